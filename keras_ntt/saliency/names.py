"""Scores by name."""

from __future__ import annotations

from collections.abc import Callable

from keras_ntt.saliency.balanced import Balanced
from keras_ntt.saliency.base import Function, NetworkSaliency
from keras_ntt.saliency.grasp import GraSP
from keras_ntt.saliency.ntk_sap import NTKSAP
from keras_ntt.saliency.ntk_trace import NTKTrace
from keras_ntt.saliency.of_weights import OfWeights, magnitude
from keras_ntt.saliency.random import Random
from keras_ntt.saliency.snip import SNIP, LogitSNIP
from keras_ntt.saliency.synflow import SynFlow, SynFlowL2

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
    """Return the score of a name, a score unchanged, or a function of weights as a score.

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
