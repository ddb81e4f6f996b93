"""Checks of the arguments of `prune_channels`."""

from __future__ import annotations

from typing import Any

import keras

from keras_ntt.core import checks, host
from keras_ntt.masks.apply import get_masks
from keras_ntt.pruning.channels.scores import IMPORTANCES

ALLOCATIONS = ("uniform", "global")


def check_target(**given: float | None) -> tuple[str, float]:
    """Return the name and the value of the one target that is given.

    Raises:
        ValueError: If there is none or more than one, or it is no fraction.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise ValueError(
            "prune_channels needs one of channels, ratio, flops and latency: the fraction to "
            f"remove. Received: {named or 'none of them'}"
        )
    ((name, value),) = named.items()
    if not checks.is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"{name} is the fraction to remove and must be a number in [0, 1). "
            f"Received: {name}={value!r}"
        )
    return name, float(value)


def check_arguments(
    model: keras.Model,
    *,
    allocation: str,
    importance: Any,
    inputs: Any,
    data: Any,
    measure: Any,
    latency: Any,
    epochs: int,
) -> None:
    """Raise a ValueError at arguments that do not go together."""
    checks.check_choice("allocation", allocation, ALLOCATIONS)
    if importance is not None and not callable(importance):
        checks.check_choice("importance", importance, IMPORTANCES)
    if host.functional_of(model) is None:
        raise ValueError(
            "Channels can be removed from Sequential and functional models only, whose layers say "
            f"what reads what. Received: model={model.name!r} of type {type(model).__name__}"
        )
    if get_masks(model):
        raise ValueError(
            "Masks do not fit a smaller model, and a fit by least squares fills their zeros. Prune "
            "channels first and weights afterwards, or pass strip_pruning(model). "
            f"Received: model={model.name!r} with {len(get_masks(model))} mask(s)"
        )
    needs = importance in ("activation", "reconstruction")
    if inputs is None and (needs or epochs):
        raise ValueError(
            "These need unlabelled inputs: pass inputs. Received: inputs=None with "
            f"importance={importance!r}, epochs={epochs!r}"
        )
    if importance == "taylor" and data is None:
        raise ValueError('importance="taylor" needs labels: pass data=(x, y). Received: data=None')
    if (latency is None) != (measure is None):
        raise ValueError(
            "latency is the fraction to remove of what measure(model) returns: pass both. "
            f"Received: latency={latency!r}, measure={measure!r}"
        )
