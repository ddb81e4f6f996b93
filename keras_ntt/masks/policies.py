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
"""What is never pruned, and how a report says it."""


class PrunableLayer(ABC):
    """A base class for custom layers that say which of their weights may be pruned.

    The class has the name of tfmot's; the method alone is enough for a layer. List it after the
    layer's class: ``class Scaled(keras.layers.Layer, PrunableLayer)``.
    """

    @abstractmethod
    def get_prunable_weights(self) -> list[keras.Variable]:
        """Return the weights of the built layer itself that may be pruned."""


class PruningPolicy(ABC):
    """Decides layer by layer what may be pruned."""

    @abstractmethod
    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return whether the weights of `layer` may be pruned."""

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:  # noqa: B027
        """Raise a ValueError if the model as a whole does not fit the policy."""


@dataclass(frozen=True)
class KernelPolicy(PruningPolicy):
    """Which weights of Keras's layers are pruned. Without options it is the default policy.

    By default it prunes the kernels of Dense, of EinsumDense (and so of attention), of plain and
    transposed convolutions, the pointwise kernels of separable convolutions, and both kernels of
    SimpleRNN, LSTM, GRU and ConvLSTM. Biases and the scales of normalizations are never pruned.

    Attributes:
        depthwise: Whether depthwise kernels are pruned as well. They are a small part of a network,
            and each entry serves a whole channel.
        embeddings: Whether tables of embeddings are pruned as well. With None the function decides:
            `keras_ntt.prune_low_magnitude` prunes them, as tfmot does, and no other function does.
    """

    depthwise: bool = False
    embeddings: bool | None = None

    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return True: the options choose among the weights of a layer."""
        return True

    def prunable_weights(self, layer: keras.layers.Layer) -> list[keras.Variable]:
        """Return the weights of the layer itself that may be pruned."""
        if not getattr(layer, "built", False):
            return []  # a layer that the code of its model does not call
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
            # The layer represents its cells, so filters and policies see the layer.
            return [
                v for cell in getattr(layer.cell, "cells", [layer.cell]) for v in _of_cell(cell)
            ]
        if isinstance(layer, _KERNEL_LAYERS):
            kernel = host.kernel_of(layer)
            return [] if kernel is None else [kernel]  # a subclass may have no kernel
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
    """The weights of a model that are pruned.

    Attributes:
        weights: The variables to prune, in the order of the model's weights.
        skipped: The other variables, with a reason for each: ``(variable, reason)``.
    """

    weights: tuple[keras.Variable, ...]
    skipped: tuple[tuple[keras.Variable, str], ...]


def prunable_weights(
    layer: keras.layers.Layer, policy: PruningPolicy | None = None
) -> list[keras.Variable]:
    """Return the weights of one layer that may be pruned.

    If a layer defines ``get_prunable_weights()``, it is called. For Keras's layers `KernelPolicy`
    decides.

    Args:
        layer: A built layer.
        policy: A policy, which may have its own ``prunable_weights(layer)``.

    Returns:
        Trainable variables of the layer itself, not of layers inside it.
    """
    found = getattr(policy, "prunable_weights", KernelPolicy().prunable_weights)(layer)
    what = f"prunable_weights(layer) of {type(policy).__name__}"
    return [v for v in checks.check_variables(what, found) if v.trainable]


def all_kernels(model: keras.Model) -> list[keras.Variable]:
    """Return every weight of a model that some method could prune, also frozen ones."""
    everything = KernelPolicy(depthwise=True, embeddings=True)
    found = [v for layer in host.layers_of(model) for v in everything.prunable_weights(layer)]
    return list({id(v): v for v in found}.values())


def weights_by_magnitude(
    layer: keras.layers.Layer, policy: PruningPolicy | None = None
) -> list[keras.Variable]:
    """Return the weights of one layer that pruning by magnitude may prune, as in tfmot.

    These are the weights that Neural Tangent Transfer prunes, and the tables of Embedding unless a
    policy says otherwise.

    Args:
        layer: A built layer.
        policy: A policy, which may have its own ``prunable_weights(layer)``.

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
        filters: Which layers to prune. A regular expression, or a list of them, is searched in the
            names of a layer, of the layers that contain it, and in the paths of its weights. A
            callable gets the layer. None takes all layers.
        pruning_policy: An object with ``allow_pruning(layer)`` and, if it has requirements,
            ``ensure_model_supports_pruning(model)``; for depthwise kernels and embeddings
            ``KernelPolicy(depthwise=True, embeddings=True)``.
        weights_of: A function from a layer to the weights that could be pruned; None uses the
            policy.
        frozen_too: Whether a model may have only frozen kernels, of which none is chosen.

    Returns:
        The `Choice`.

    Raises:
        ValueError: If there is nothing to prune, or the policy refuses the model.
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
            "There is nothing to prune: Keras has quantized the kernels, which can no longer be "
            "trained. Prune the model before quantize(). "
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
    """Say why a weight is not pruned that filters and policy allow."""
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
