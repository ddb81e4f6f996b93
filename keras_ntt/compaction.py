"""Remove units that are dead: a smaller model of the same outputs, without any sparse format.

A unit of a Dense or Conv layer is dead if all its incoming weights are zero, so that it is
constant, or if all that reads it weighs it with zero. A constant is added to the bias of the
layer that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_ntt import _host, checks
from keras_ntt.model_copies import hand_over

_READERS = (layers.Dense, layers.Conv1D, layers.Conv2D)
_POOLING = (
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.AveragePooling1D, layers.AveragePooling2D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.UpSampling2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.Flatten),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D),
)
_PADDING = (layers.ZeroPadding1D, layers.ZeroPadding2D)
_ACTIVATIONS = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU)
_ELEMENTWISE = """
    linear relu relu6 leaky_relu elu selu gelu silu tanh sigmoid hard_sigmoid hard_silu softplus
    softsign exponential mish
"""


@dataclass
class Chain:
    """A layer, the layers that pass its channels on, and the layer that reads them.

    Attributes:
        first: The layer whose units may be dead.
        between: The layers between.
        last: The layer that reads them.
    """

    first: Any
    between: list[Any]
    last: Any


@dataclass
class _Weights:
    """Weights by layer, as arrays that may shrink."""

    by_layer: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def of(self, layer: Any) -> list[np.ndarray]:
        if id(layer) not in self.by_layer:
            self.by_layer[id(layer)] = [np.asarray(w) for w in layer.get_weights()]
        return self.by_layer[id(layer)]


def remove_dead_units(model: keras.Model) -> tuple[keras.Model, tuple[tuple[str, int], ...]]:
    """Return a model without its dead units.

    Units of Dense, Conv1D and Conv2D layers are removed where a chain of layers that treat each
    channel by itself (activations, pooling, BatchNormalization, DepthwiseConv2D, Flatten, ...)
    leads to one other such layer. Each layer keeps at least one unit.

    Args:
        model: A built Sequential or functional model. It is left as it is.

    Returns:
        The smaller model, or `model` itself if no unit is dead, and how many units were removed
        by layer name. The outputs are the same up to rounding.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is neither Sequential nor functional.
    """
    checks.check_model(model)
    if _host.functional_of(model) is None:
        raise ValueError(
            "Dead units can be removed from Sequential and functional models only, whose layers "
            f"say what reads what. Received: model={model.name!r} of type {type(model).__name__}"
        )
    weights, chains = _Weights(), list(chains_of(model))
    removed: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for chain in chains:
            count = _shrink(chain, weights)
            if count:
                removed[chain.first.name] = removed.get(chain.first.name, 0) + count
                changed = True
    if not removed:
        return model, ()
    return _rebuilt(model, weights), tuple(removed.items())


def chains_of(model: keras.Model) -> Iterator[Chain]:
    """Yield the chains of layers that are called once and read by one other.

    Args:
        model: A model; one that is neither Sequential nor functional has none.

    Yields:
        The chains.
    """
    functional = _host.functional_of(model)
    if functional is None:
        return
    readers: dict[int, list[Any]] = {}
    calls: dict[int, int] = {}
    nodes = _host.nodes_in_order(functional)
    for node in nodes:
        calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node)
    ends = {id(tensor) for tensor in functional.outputs}
    for start in nodes:
        if not _has_units(start.operation) or calls[id(start.operation)] != 1:
            continue
        between: list[Any] = []
        node = start
        while True:
            (tensor,) = node.output_tensors
            places = readers.get(id(tensor), [])
            if id(tensor) in ends or len(places) != 1 or len(places[0].input_tensors) != 1:
                break
            node = places[0]
            layer = node.operation
            if calls[id(layer)] != 1:
                break
            if _has_units(layer):
                yield Chain(start.operation, between, layer)
                break
            flat = any(type(earlier) is layers.Flatten for earlier in between)
            if not _passes(layer) or (flat and layer.weights):
                break
            between.append(layer)


def _has_units(layer: Any) -> bool:
    if type(layer) not in _READERS or getattr(layer, "quantization_mode", None) is not None:
        return False
    if getattr(layer, "lora_enabled", False) or not _is_elementwise(layer.activation):
        return False
    plain = getattr(layer, "data_format", "channels_last") == "channels_last"
    return plain and getattr(layer, "groups", 1) == 1


def _is_elementwise(function: Any) -> bool:
    known = {name: getattr(keras.activations, name) for name in _ELEMENTWISE.split()}
    return function is None or any(function is f for f in known.values())


def _passes(layer: Any) -> bool:
    """Tell whether a layer treats each channel by itself, in a way that is known here."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    if type(layer) is layers.Activation:
        return _is_elementwise(layer.activation)
    if type(layer) is layers.BatchNormalization:
        return layer.axis in (-1, len(layer.input.shape) - 1)
    if type(layer) is layers.DepthwiseConv2D:
        return layer.depth_multiplier == 1 and _is_elementwise(layer.activation)
    return type(layer) in (*_POOLING, *_PADDING, *_ACTIVATIONS)


def _shrink(chain: Chain, weights: _Weights) -> int:
    """Remove the dead units of a chain's first layer.

    Returns:
        How many.
    """
    first, last = weights.of(chain.first), weights.of(chain.last)
    units = first[0].shape[-1]
    constant = ~np.any(first[0] != 0, axis=tuple(range(first[0].ndim - 1)))
    bias = first[1] if chain.first.use_bias else np.zeros(units, first[0].dtype)
    values = _apply(chain.first.activation, bias)
    known = constant.copy()  # units whose constant still is one where it is read
    for layer in chain.between:
        values, exact = _passed_on(layer, weights.of(layer), values)
        known &= exact
    kernel = last[0]  # [..., inputs, outputs], inputs in turns of the units after Flatten
    rows = kernel.reshape(*kernel.shape[:-2], -1, units, kernel.shape[-1])
    unread = ~np.any(rows != 0, axis=tuple(i for i in range(rows.ndim) if i != rows.ndim - 2))
    free = values == 0
    foldable = free | (chain.last.use_bias and getattr(chain.last, "padding", "") not in _BORDERED)
    dead = unread | (known & foldable)
    if dead.all():
        dead[np.argmin(unread)] = False
    if not dead.any():
        return 0
    folded = dead & ~unread & ~free
    if folded.any():
        sums = rows.astype(np.float64).sum(axis=tuple(range(rows.ndim - 2)))
        last[1] = (last[1] + values[folded].astype(np.float64) @ sums[folded]).astype(kernel.dtype)
    last[0] = rows[..., ~dead, :].reshape(*kernel.shape[:-2], -1, kernel.shape[-1])
    first[:] = [w[..., ~dead] for w in first]
    for layer in chain.between:
        own = weights.of(layer)
        depthwise = type(layer) is layers.DepthwiseConv2D
        own[:] = [w[:, :, ~dead] if depthwise and w.ndim == 4 else w[..., ~dead] for w in own]
    return int(dead.sum())


_BORDERED = ("same", "causal")  # paddings that mix zeros into a constant


def _passed_on(
    layer: Any, own: list[np.ndarray], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a layer makes of channels that are constant, and whether they still are."""
    always = np.ones(values.shape, bool)
    if type(layer) in _PADDING:
        return values, values == 0
    if type(layer) in _ACTIVATIONS:
        return _apply(layer, values), always
    if type(layer) is layers.BatchNormalization:
        *affine, mean, variance = (w.astype(np.float64) for w in own)
        scale = affine.pop(0) if layer.scale else np.ones_like(mean)
        shift = affine.pop(0) if layer.center else np.zeros_like(mean)
        normal = (values - mean) / np.sqrt(variance + layer.epsilon)
        return (normal * scale + shift).astype(values.dtype), always
    if type(layer) is layers.DepthwiseConv2D:
        bias = own[1] if layer.use_bias else 0
        exact = always if layer.padding == "valid" else values == 0
        return _apply(layer.activation, values * own[0].sum(axis=(0, 1))[:, 0] + bias), exact
    return values, always


def _apply(function: Callable[[Any], Any] | None, values: np.ndarray) -> np.ndarray:
    if function is None:
        return values
    return keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(values)))


def _rebuilt(model: keras.Model, weights: _Weights) -> keras.Model:
    """Return a copy of a model whose layers have the sizes of the weights given."""
    pairs: list[tuple[Any, Any]] = []

    def copied(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            new = keras.models.clone_model(layer)
        else:
            config = layer.get_config()
            if id(layer) in weights.by_layer and _has_units(layer):
                size = weights.of(layer)[0].shape[-1]
                config["units" if "units" in config else "filters"] = size
            new = type(layer).from_config(config)
        pairs.append((layer, new))
        return new

    clone = keras.models.clone_model(model, clone_function=copied)
    for old, new in pairs:
        if id(old) in weights.by_layer:
            new.set_weights(weights.of(old))
        elif isinstance(old, layers.Layer):  # operations such as those of x + y have learnt nothing
            hand_over(old, new)
    return clone
