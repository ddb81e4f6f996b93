"""Which weights may be pruned."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

Filters = str | Sequence[str] | Callable[[keras.layers.Layer], bool] | None

_KERNEL_LAYERS = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    layers.EinsumDense,
)


class PruningPolicy(ABC):
    """Decides layer by layer what may be pruned."""

    @abstractmethod
    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return whether the weights of `layer` may be pruned."""

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:  # noqa: B027
        """Raise a ValueError if the model as a whole does not fit the policy."""


@dataclass(frozen=True)
class Choice:
    """What is pruned of a model.

    Attributes:
        weights: The variables to prune, in the order of the model's weights.
        skipped: For each other variable with a reason: ``(variable, reason)``.
    """

    weights: tuple[keras.Variable, ...]
    skipped: tuple[tuple[keras.Variable, str], ...]


def prunable_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the weights of one layer that pruning may touch.

    A layer that defines ``get_prunable_weights()`` is asked. Of Keras's own layers it is the
    kernels of Dense, EinsumDense and the convolutions; never biases, normalisation scales or
    embeddings.

    Args:
        layer: A built layer.

    Returns:
        Trainable variables of the layer itself, not of layers inside it.
    """
    if hasattr(layer, "get_prunable_weights"):
        chosen = list(layer.get_prunable_weights())
    elif isinstance(layer, _KERNEL_LAYERS) and getattr(layer, "quantization_mode", None) is None:
        chosen = [getattr(layer, "_kernel", layer.kernel)]
    else:
        chosen = []
    return [v for v in chosen if v.trainable]


def choose_weights(
    model: keras.Model,
    *,
    filters: Filters = None,
    pruning_policy: Any = None,
    weights_of: Callable[[keras.layers.Layer], list[keras.Variable]] = prunable_weights,
) -> Choice:
    """Decide which weights of a model are pruned.

    Args:
        model: A built model.
        filters: Which layers: a regular expression or a list of them, searched in the layer's
            name and in the paths of its weights, or a callable on the layer. None takes all.
        pruning_policy: An object with ``allow_pruning(layer)`` and, if it has requirements,
            ``ensure_model_supports_pruning(model)``.
        weights_of: What could be pruned of one layer.

    Returns:
        The `Choice`.

    Raises:
        ValueError: If nothing is left to prune, or the policy refuses the model.
    """
    accepts = _as_predicate(filters)
    if pruning_policy is not None:
        usable = callable(getattr(pruning_policy, "allow_pruning", None))
        if not usable or isinstance(pruning_policy, type):
            raise ValueError(
                "pruning_policy must be a PruningPolicy, an object with allow_pruning(layer). "
                f"Received: pruning_policy={pruning_policy!r}"
            )
        ensure = getattr(pruning_policy, "ensure_model_supports_pruning", None)
        if ensure is not None:
            ensure(model)
    chosen: dict[int, keras.Variable] = {}
    reasons: dict[int, str] = {}
    for layer in model._flatten_layers():
        for variable in weights_of(layer):
            if not accepts(layer):
                reasons[id(variable)] = "left out by filters"
            elif pruning_policy is not None and not pruning_policy.allow_pruning(layer):
                reasons[id(variable)] = f"refused by {type(pruning_policy).__name__}"
            else:
                chosen[id(variable)] = variable
    skipped = []
    for variable in model.trainable_variables:
        if id(variable) not in chosen:
            reason = reasons.get(id(variable), _reason(variable))
            skipped.append((variable, reason))
    ordered = [v for v in model.trainable_variables if id(v) in chosen]
    if not ordered:
        found = ", ".join(f"{v.path} ({reason})" for v, reason in skipped) or "no weights at all"
        raise ValueError(
            "There is nothing to prune: the model has no trainable kernel that is selected. "
            "Kernels of Dense, EinsumDense and convolution layers are, and whatever a layer "
            "returns from get_prunable_weights(). Check `filters`, `pruning_policy` and "
            f"`layer.trainable`. Received: model={model.name!r} with {found}"
        )
    return Choice(tuple(ordered), tuple(skipped))


def _reason(variable: keras.Variable) -> str:
    if variable.name == "bias":
        return "biases are never pruned"
    return "not the kernel of a layer that is pruned"


def _as_predicate(filters: Filters) -> Callable[[keras.layers.Layer], bool]:
    if filters is None:
        return lambda layer: True
    if callable(filters):
        return lambda layer: bool(filters(layer))
    try:
        patterns = [filters] if isinstance(filters, str) else list(filters)
        compiled = [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise ValueError(
            "filters must be a regular expression, a list of them or a callable on the layer: "
            f"{error}. Received: filters={filters!r}"
        ) from error

    def accepts(layer: keras.layers.Layer) -> bool:
        names = [layer.name, *(v.path for v in layer.variables)]
        return any(p.search(name) for p in compiled for name in names)

    return accepts
