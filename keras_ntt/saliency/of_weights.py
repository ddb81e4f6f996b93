"""Magnitude, and any other function of the values of weights, as a score."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_ntt.saliency.base import Function, NetworkSaliency, Subject


class OfWeights(NetworkSaliency):
    """A function of the weights' values as a score of a network.

    Args:
        function: A function from the values of the weights to scores of the same shapes.
    """

    def __init__(self, function: Function):
        self.function = function

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", "the saliency")

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return what the function returns for the masked weights."""
        found = self.function(subject.values)
        if not isinstance(found, Sequence):
            raise ValueError(
                "A saliency must return a list with one tensor of scores for each weight. "
                f"Received: {type(found).__name__} of {self.name}"
            )
        return list(found)


def magnitude(weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Score weights by their absolute value.

    Args:
        weights: Values of the weights.

    Returns:
        Scores of the same shapes.

    Raises:
        TypeError: If `weights` is not a list.

    Examples:
        >>> [s.numpy().tolist() for s in magnitude([tf.constant([-2.0, 1.0])])]
        [[2.0, 1.0]]
    """
    if not isinstance(weights, Sequence) or isinstance(weights, str | bytes):
        raise TypeError(
            f"weights must be a list of arrays or tensors. Received: {type(weights).__name__}"
        )
    return [tf.abs(w) for w in weights]
