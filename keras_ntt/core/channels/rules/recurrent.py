"""Channels of LSTM, GRU and SimpleRNN, and of the wrappers Bidirectional and TimeDistributed."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from keras_ntt.core.channels.call import ChannelCall, Traced, tiled
from keras_ntt.core.channels.labels import Axes, Labels, labelled
from keras_ntt.core.channels.rules.elementwise import is_elementwise
from keras_ntt.core.kinds import kind_of

_GATES = {layers.LSTM: 4, layers.GRU: 3, layers.SimpleRNN: 1}


def recurrent(call: ChannelCall) -> list[tuple[Any, ...]]:
    """LSTM, GRU, SimpleRNN: kernels [inputs, gates * units] and [units, gates * units]."""
    layer, x = call.layer, call.inputs[0]
    gates = next(count for cls, count in _GATES.items() if isinstance(layer, cls))
    cell, ins = layer.cell, call.only(x, -1)
    out = call.new(layer.units)
    wide = tiled(out, gates)
    call.weight(cell.kernel, {0: ins, 1: wide}, {0: "in", 1: "out"})
    call.weight(cell.recurrent_kernel, {0: out, 1: wide}, {0: "in", 1: "out"})
    call.weight(getattr(cell, "bias", None), {-1: wide}, {-1: "out"})
    call.reads(cell.kernel, 0, ins, tensor=x)
    call.reads(cell.recurrent_kernel, 0, out)
    for kernel in (cell.kernel, cell.recurrent_kernel):
        call.works(kernel, x.shape[1:2])
    call.resize("units", out)
    functions = (layer.activation, getattr(layer, "recurrent_activation", None))
    if not all(is_elementwise(function) for function in functions):
        call.fix(out, "has an activation that mixes channels")
    for tensor in call.inputs[1:]:
        if tensor.rank == 2 and tensor.shape[-1] == layer.units:  # a first state
            call.couple(tensor.axes[-1], out, f"{call.name} takes them for its first state")
        for labels in labelled(tensor.axes[:-1]):
            call.fix(labels, "takes them for a mask")
    return [(*(None for _ in shape[1:]), out) for shape in call.output_shapes]


def time_distributed(call: ChannelCall, apply: Any) -> Axes | list[Axes]:
    """TimeDistributed: the inner layer's rule on a step."""
    x = call.inputs[0]
    if len(call.inputs) > 1 or len(call.output_shapes) > 1 or x.rank < 3:
        return call.opaque("is called with more than a sequence")
    call.fix(x.axes[1], "takes them for steps")
    step = Traced((x.axes[0], *x.axes[2:]), (x.shape[0], *x.shape[2:]), x.slot)
    shape = call.output_shapes[0]
    rest = (shape[0], *shape[2:])
    inner = call.inner(call.layer.layer, step, rest, ("layer", "config"), x.shape[1:2])
    axes = apply(inner)[0]
    return (axes[0], None, *axes[1:])


def bidirectional(call: ChannelCall, apply: Any) -> Axes | list[Axes]:
    """Bidirectional: both directions lose the same units."""
    layer, x = call.layer, call.inputs[0]
    ways = (layer.forward_layer, layer.backward_layer)
    known = all(kind_of(way) in _GATES for way in ways)
    if len(call.inputs) > 1 or len(call.output_shapes) > 1 or not known:
        return call.opaque("wraps layers, or is called, in a way that is not known")
    config = layer.get_config()
    shape = call.output_shapes[0]
    found: list[Labels] = []
    for way, key in zip(ways, ("layer", "backward_layer"), strict=True):
        inner = call.inner(way, x, shape, (key, "config"))
        found.append(recurrent(inner)[0][-1])
    call.couple(found[0], found[1])
    if config.get("backward_layer") is None:  # it is made of the other one's configuration
        call.forget_sizes("backward_layer")
    if layer.merge_mode == "concat":
        return (*(None for _ in shape[1:]), np.concatenate(found))
    return (*(None for _ in shape[1:]), found[0])


RULES: dict[type, Any] = dict.fromkeys(_GATES, recurrent)
WRAPPERS: dict[type, Any] = {
    layers.TimeDistributed: time_distributed,
    layers.Bidirectional: bidirectional,
}
