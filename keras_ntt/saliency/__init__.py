"""Scores of weights: the higher, the sooner a weight is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_ntt.saliency.balanced import Balanced
from keras_ntt.saliency.base import Function, NetworkSaliency, OfWeights, Subject
from keras_ntt.saliency.data import Batches
from keras_ntt.saliency.grasp import GraSP
from keras_ntt.saliency.ntk_sap import NTKSAP
from keras_ntt.saliency.ntk_trace import NTKTrace
from keras_ntt.saliency.random import Random
from keras_ntt.saliency.snip import SNIP, LogitSNIP
from keras_ntt.saliency.synflow import SynFlow, SynFlowL2

__all__ = [
    "NTKSAP",
    "SALIENCIES",
    "SNIP",
    "Balanced",
    "Batches",
    "GraSP",
    "LogitSNIP",
    "NTKTrace",
    "NetworkSaliency",
    "Random",
    "Subject",
    "SynFlow",
    "SynFlowL2",
    "as_saliency",
    "check_scores",
    "magnitude",
]


def magnitude(weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Score weights by their absolute value.

    Args:
        weights: Values of the weights.

    Returns:
        Scores of the same shapes.

    Raises:
        TypeError: If they are no list.

    Examples:
        >>> [s.numpy().tolist() for s in magnitude([tf.constant([-2.0, 1.0])])]
        [[2.0, 1.0]]
    """
    if not isinstance(weights, Sequence) or isinstance(weights, str | bytes):
        raise TypeError(
            f"weights must be a list of arrays or tensors. Received: {type(weights).__name__}"
        )
    return [tf.abs(w) for w in weights]


_BY_NAME: dict[str, Callable[[], NetworkSaliency]] = {
    "magnitude": lambda: OfWeights(magnitude),
    "random": Random,
    "balanced": Balanced,
    "snip": SNIP,
    "iterative_snip": lambda: SNIP(rounds=100),
    "logit_snip": LogitSNIP,
    "grasp": GraSP,
    "synflow": SynFlow,
    "synflow_l2": SynFlowL2,
    "ntk_sap": NTKSAP,
    "ntk_trace": NTKTrace,
}
SALIENCIES: tuple[str, ...] = tuple(_BY_NAME)


def as_saliency(saliency: str | NetworkSaliency | Function) -> NetworkSaliency:
    """Return the score of a name, a score as it is, or a function of weights as a score.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(saliency, NetworkSaliency):
        return saliency
    is_class = isinstance(saliency, type) and issubclass(saliency, NetworkSaliency)
    if callable(saliency) and not is_class:
        return OfWeights(saliency)
    if isinstance(saliency, str) and saliency in _BY_NAME:
        return _BY_NAME[saliency]()
    raise ValueError(
        f"saliency must be one of {', '.join(map(repr, SALIENCIES))}, an object such as "
        "keras_ntt.saliency.SNIP(), or a function from weights to scores. "
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
    except (TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
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
