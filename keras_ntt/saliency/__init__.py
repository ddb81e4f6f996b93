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


def check_scores(scores: Any, weights: Sequence[tf.Tensor]) -> None:
    """Raise a ValueError unless there is one finite score for each entry of each weight.

    Args:
        scores: What a saliency returned.
        weights: What it was given.
    """
    try:
        found = [tuple(tf.convert_to_tensor(score).shape) for score in scores]
        finite = all(bool(tf.reduce_all(tf.math.is_finite(score))) for score in scores)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            "A saliency must return a list with one tensor of scores for each weight. "
            f"Received: {type(scores).__name__} ({error})"
        ) from error
    wanted = [tuple(weight.shape) for weight in weights]
    if found != wanted:
        raise ValueError(
            "A saliency must return one tensor of scores for each weight, of its shape. "
            f"Received: scores of shapes {found} for weights of shapes {wanted}"
        )
    if not finite:
        raise ValueError(
            "A saliency must return finite scores, or there is no order among the weights. "
            "Received: scores with NaN or infinity"
        )
