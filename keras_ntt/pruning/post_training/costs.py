"""What the removal of each entry of a dense model costs, measured once for several sparsities."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


class Costs(NamedTuple):
    """Costs of the kernels of a dense model, in their order.

    Attributes:
        entries: What the removal of each entry costs; None for kernels of which it is not known.
        importance: What a squared error of each output counts; None likewise.
    """

    entries: list[np.ndarray | None]
    importance: list[np.ndarray | None]


class _Known(NamedTuple):
    model: Any
    inputs: Any
    settings: tuple[Any, ...]
    costs: Costs


_shared: contextvars.ContextVar[list[_Known] | None] = contextvars.ContextVar("costs", default=None)


@contextlib.contextmanager
def costs_shared() -> Iterator[None]:
    """Measure the costs of a model once for several sparsities, while the context lasts.

    Weights and inputs must not change meanwhile.

    Yields:
        Nothing.
    """
    token = _shared.set([])
    try:
        yield
    finally:
        _shared.reset(token)


def costs_of(
    model: Any, inputs: Any, settings: tuple[Any, ...], measure: Callable[[], Costs]
) -> Costs:
    """Return costs that are known already, or else measure them.

    Args:
        model: The dense model.
        inputs: The inputs that they are measured on.
        settings: What they depend on besides.
        measure: Measures them.

    Returns:
        The `Costs`.
    """
    known = _shared.get()
    for one in known or ():
        if one.model is model and one.inputs is inputs and one.settings == settings:
            return one.costs
    found = measure()
    if known is not None:
        known.append(_Known(model, inputs, settings, found))
    return found
