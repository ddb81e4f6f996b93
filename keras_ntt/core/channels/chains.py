"""Which layer reads whose channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.kinds import kind_of

_READERS = (layers.Dense, layers.Conv1D, layers.Conv2D)

_POOLING = (
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.AveragePooling1D, layers.AveragePooling2D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.UpSampling2D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.Flatten),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D),
)

PADDING = (layers.ZeroPadding1D, layers.ZeroPadding2D)

ACTIVATIONS = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU)

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


def chains_of(model: keras.Model) -> Iterator[Chain]:
    """Yield the chains of layers that are called once and read by one other.

    Args:
        model: A model; one that is neither Sequential nor functional has none.

    Yields:
        The chains.
    """
    functional = host.functional_of(model)
    if functional is None:
        return
    readers: dict[int, list[Any]] = {}
    calls: dict[int, int] = {}
    nodes = host.nodes_in_order(functional)
    for node in nodes:
        calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node)
    ends = {id(tensor) for tensor in functional.outputs}
    for start in nodes:
        if not has_units(start.operation) or calls[id(start.operation)] != 1:
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
            if has_units(layer):
                yield Chain(start.operation, between, layer)
                break
            flat = any(kind_of(earlier) is layers.Flatten for earlier in between)
            if not _passes(layer) or (flat and layer.weights):
                break
            between.append(layer)


def has_units(layer: Any) -> bool:
    """Tell whether a layer's outputs are units: columns of a kernel, each with its activation."""
    if kind_of(layer) not in _READERS or getattr(layer, "quantization_mode", None) is not None:
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
    kind = kind_of(layer)
    if kind is layers.Activation:
        return _is_elementwise(layer.activation)
    if kind is layers.BatchNormalization:
        return layer.axis in (-1, len(layer.input.shape) - 1)
    if kind is layers.DepthwiseConv2D:
        return layer.depth_multiplier == 1 and _is_elementwise(layer.activation)
    return kind in (*_POOLING, *PADDING, *ACTIVATIONS)
