"""Which weights may be pruned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import layers

from keras_ntt.core import checks, host
from keras_ntt.masks.filters import Filters, as_predicate

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
_SEPARABLE_LAYERS = (layers.SeparableConv1D, layers.SeparableConv2D)
_DEPTHWISE_LAYERS = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_CELLS = (layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell, host.CONV_LSTM_CELL)
NEVER = {
    "biases": "biases are never pruned",
    "scales and offsets": "scales and offsets of normalizations are never pruned",
}
"""What nobody prunes, and how a report says so."""


class PrunableLayer(ABC):
    """A base class for layers of the user's own that says which of their weights may be pruned.

    It is tfmot's name for the protocol: a layer needs no more than the method. List it after the
    layer's class: ``class Scaled(keras.layers.Layer, PrunableLayer)``.
    """

    @abstractmethod
    def get_prunable_weights(self) -> list[keras.Variable]:
        """Return the weights that may be pruned, of the built layer itself."""


class PruningPolicy(ABC):
    """Decides layer by layer what may be pruned."""

    @abstractmethod
    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return whether the weights of `layer` may be pruned."""

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:  # noqa: B027
        """Raise a ValueError if the model as a whole does not fit the policy."""


@dataclass(frozen=True)
class KernelPolicy(PruningPolicy):
    """Which weights of Keras's own layers are pruned; without options, what is pruned anyway.

    These are the kernels of Dense, EinsumDense (and with it of attention), of convolutions,
    plain and transposed, the pointwise kernels of separable ones, and both kernels of SimpleRNN,
    LSTM, GRU and ConvLSTM. Biases and the scales of normalizations never are.

    Attributes:
        depthwise: Whether depthwise kernels are pruned too. They are a small part of a network
            and each entry serves a whole channel.
        embeddings: Whether tables of embeddings are pruned too. None leaves it to the function:
            `keras_ntt.prune_low_magnitude` prunes them, as tfmot does, and nothing else does.
    """

    depthwise: bool = False
    embeddings: bool | None = None

    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return True: the options choose among the weights of a layer."""
        return True

    def prunable_weights(self, layer: keras.layers.Layer) -> list[keras.Variable]:
        """Return the weights of one layer that may be pruned, of the layer itself."""
        if not getattr(layer, "built", False):
            return []  # a layer of a model that its code does not call
        if hasattr(layer, "get_prunable_weights"):
            return _named_by(layer)
        if getattr(layer, "quantization_mode", None) is not None:
            return []
        if isinstance(layer, _SEPARABLE_LAYERS):
            depthwise = [layer.depthwise_kernel] if self.depthwise else []
            return [*depthwise, layer.pointwise_kernel]
        if isinstance(layer, _DEPTHWISE_LAYERS):
            return [layer.kernel] if self.depthwise else []
        if isinstance(layer, layers.Embedding):
            return [host.embeddings_of(layer)] if self.embeddings else []
        if isinstance(layer, layers.RNN):
            # The layer answers for its cells, so that filters and policies are asked about it.
            return [
                v for cell in getattr(layer.cell, "cells", [layer.cell]) for v in _of_cell(cell)
            ]
        if isinstance(layer, _KERNEL_LAYERS):
            kernel = host.kernel_of(layer)
            return [] if kernel is None else [kernel]  # a subclass may have none of its own
        return []


def _named_by(layer: Any) -> list[keras.Variable]:
    what = f"get_prunable_weights() of {getattr(layer, 'name', layer)!r}"
    return checks.check_variables(what, layer.get_prunable_weights())


def _of_cell(cell: Any) -> list[keras.Variable]:
    if hasattr(cell, "get_prunable_weights"):
        return _named_by(cell)
    return [cell.kernel, cell.recurrent_kernel] if isinstance(cell, _CELLS) else []


@dataclass(frozen=True)
class Choice:
    """What is pruned of a model.

    Attributes:
        weights: The variables to prune, in the order of the model's weights.
        skipped: For each other variable with a reason: ``(variable, reason)``.
    """

    weights: tuple[keras.Variable, ...]
    skipped: tuple[tuple[keras.Variable, str], ...]


def prunable_weights(
    layer: keras.layers.Layer, policy: PruningPolicy | None = None
) -> list[keras.Variable]:
    """Return the weights of one layer that pruning may touch.

    A layer that defines ``get_prunable_weights()`` is asked. Of Keras's own layers it is what
    `KernelPolicy` says.

    Args:
        layer: A built layer.
        policy: A policy, which may have a ``prunable_weights(layer)`` of its own.

    Returns:
        Trainable variables of the layer itself, not of layers inside it.
    """
    found = getattr(policy, "prunable_weights", KernelPolicy().prunable_weights)(layer)
    what = f"prunable_weights(layer) of {type(policy).__name__}"
    return [v for v in checks.check_variables(what, found) if v.trainable]


def all_kernels(model: keras.Model) -> list[keras.Variable]:
    """Return every weight of a model that some way to prune could touch, frozen ones too."""
    everything = KernelPolicy(depthwise=True, embeddings=True)
    found = [v for layer in host.layers_of(model) for v in everything.prunable_weights(layer)]
    return list({id(v): v for v in found}.values())


def weights_by_magnitude(
    layer: keras.layers.Layer, policy: PruningPolicy | None = None
) -> list[keras.Variable]:
    """Return the weights of one layer that pruning by magnitude may touch, as in tfmot.

    These are what Neural Tangent Transfer prunes, and the tables of Embedding unless a policy says
    otherwise.

    Args:
        layer: A built layer.
        policy: A policy, which may have a ``prunable_weights(layer)`` of its own.

    Returns:
        Trainable variables of the layer and, of a recurrent one, of its cells.

    >>> layer = keras.layers.LSTM(2)
    >>> layer.build((None, None, 3))
    >>> [v.name for v in weights_by_magnitude(layer)]
    ['kernel', 'recurrent_kernel']
    """
    if not hasattr(policy, "prunable_weights"):
        policy = KernelPolicy(embeddings=True)
    elif isinstance(policy, KernelPolicy) and policy.embeddings is None:
        policy = replace(policy, embeddings=True)
    return prunable_weights(layer, policy)


def check_policy(pruning_policy: Any) -> None:
    """Raise a ValueError unless something is a policy or None."""
    usable = callable(getattr(pruning_policy, "allow_pruning", None))
    if pruning_policy is not None and (not usable or isinstance(pruning_policy, type)):
        raise ValueError(
            "pruning_policy must be a PruningPolicy, an object with allow_pruning(layer). "
            f"Received: pruning_policy={pruning_policy!r}"
        )


def choose_weights(
    model: keras.Model,
    *,
    filters: Filters = None,
    pruning_policy: Any = None,
    weights_of: Callable[[keras.layers.Layer], list[keras.Variable]] | None = None,
    frozen_too: bool = False,
) -> Choice:
    """Decide which weights of a model are pruned.

    Args:
        model: A built model.
        filters: Which layers: a regular expression or a list of them, searched in the names of the
            layer and of those that it is in, and in the paths of its weights, or a callable on the
            layer. None takes all.
        pruning_policy: An object with ``allow_pruning(layer)`` and, if it has requirements,
            ``ensure_model_supports_pruning(model)``; for depthwise kernels and embeddings
            ``KernelPolicy(depthwise=True, embeddings=True)``.
        weights_of: What could be pruned of one layer; None leaves that to the policy.
        frozen_too: Whether a model may have frozen kernels only, of which none is chosen.

    Returns:
        The `Choice`.

    Raises:
        ValueError: If nothing is left to prune, or the policy refuses the model.
    """
    accepts = as_predicate(filters, model)
    check_policy(pruning_policy)
    if pruning_policy is not None:
        ensure = getattr(pruning_policy, "ensure_model_supports_pruning", None)
        if ensure is not None:
            ensure(model)
    chosen: dict[int, keras.Variable] = {}
    reasons: dict[int, str] = {}
    for layer in host.layers_of(model):
        ask = weights_of or (lambda layer: prunable_weights(layer, pruning_policy))
        for variable in ask(layer):
            if not accepts(layer):
                reasons[id(variable)] = "left out by filters"
            elif pruning_policy is not None and not checks.check_truth(
                "pruning_policy.allow_pruning(layer)", pruning_policy.allow_pruning(layer)
            ):
                reasons[id(variable)] = f"refused by {type(pruning_policy).__name__}"
            else:
                chosen[id(variable)] = variable
    skipped = []
    owners = {id(v): layer for layer in host.layers_of(model) for v in host.own_variables(layer)}
    frozen = [v for v in all_kernels(model) if not v.trainable]
    skipped += [(v, "frozen: trainable=False") for v in frozen]
    for variable in model.trainable_variables:
        if id(variable) not in chosen:
            reason = reasons.get(id(variable)) or _reason(variable, owners.get(id(variable)))
            skipped.append((variable, reason))
    quantized = [layer.name for layer in host.layers_of(model) if _is_quantized(layer)]
    ordered = [v for v in model.trainable_variables if id(v) in chosen]
    if not ordered and quantized and not (frozen_too and frozen):
        raise ValueError(
            "There is nothing to prune: Keras has quantized the kernels, which are no weights to "
            "train any more. Prune the model before quantize(). "
            f"Received: model={model.name!r} with {', '.join(quantized)}"
        )
    if not ordered and not (frozen_too and frozen):
        found = ", ".join(f"{v.path} ({reason})" for v, reason in skipped) or "no weights at all"
        raise ValueError(
            "There is nothing to prune: the model has no trainable kernel that is selected. "
            "Kernels of dense, convolution and recurrent layers are, and whatever a layer "
            "returns from get_prunable_weights(). Check `filters`, `pruning_policy` and "
            f"`layer.trainable`. Received: model={model.name!r} with {found}"
        )
    return Choice(tuple(ordered), tuple(skipped))


def _is_quantized(layer: Any) -> bool:
    holders = (layer, getattr(layer, "dtype_policy", None))  # older releases: in the policy only
    return any(getattr(holder, "quantization_mode", None) is not None for holder in holders)


def _reason(variable: keras.Variable, layer: keras.layers.Layer | None) -> str:
    """Say why a weight that nobody left out is not pruned."""
    if "bias" in variable.name:
        return NEVER["biases"]
    if isinstance(layer, (*_DEPTHWISE_LAYERS, *_SEPARABLE_LAYERS)):
        return "depthwise: KernelPolicy(depthwise=True) prunes it"
    if isinstance(layer, layers.Embedding):
        return "embeddings: KernelPolicy(embeddings=True) prunes it"
    if "normalization" in type(layer).__module__:
        return NEVER["scales and offsets"]
    if _is_quantized(layer):
        return "Keras has quantized the layer: prune the model before quantize()"
    if isinstance(layer, layers.TFSMLayer):
        return (
            "inside TFSMLayer, a closed graph: if Keras 2 wrote the SavedModel, "
            "keras_ntt.load_model(folder) brings it in"
        )
    if variable.name.startswith("lora_"):
        return "LoRA's weights are small already"
    kind = type(layer).__name__ if layer is not None else "layer"
    return f"{kind} has no get_prunable_weights()"
