"""Scores of weights: the higher, the sooner a weight is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_ntt.masks import Saliency


def magnitude(weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Score weights by their absolute value.

    Args:
        weights: Values of the weights.

    Returns:
        Scores of the same shapes.

    >>> [s.numpy().tolist() for s in magnitude([tf.constant([-2.0, 1.0])])]
    [[2.0, 1.0]]
    """
    return [tf.abs(w) for w in weights]


def as_saliency(saliency: Any) -> Saliency:
    """Return the score of a name, or the function that was given.

    Raises:
        ValueError: If it is neither.
    """
    if callable(saliency):
        return saliency
    if saliency == "magnitude":
        return magnitude
    raise ValueError(
        "saliency must be 'magnitude' or a function from weights to scores. "
        f"Received: saliency={saliency!r}"
    )
