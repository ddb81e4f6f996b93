"""Channels of operators such as ``x + 3`` and of the functions of keras.ops."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_ntt.core.channels.call import ChannelCall, Traced
from keras_ntt.core.channels.labels import Axes, labelled
from keras_ntt.core.channels.rules import shapes
from keras_ntt.core.channels.rules.elementwise import (
    BROADCAST_OPERATIONS,
    ELEMENTWISE_OPERATIONS,
)


def _others(call: ChannelCall) -> list[Any]:
    leaves = keras.tree.flatten((call.args, call.kwargs))
    return [leaf for leaf in leaves if not isinstance(leaf, Traced) and leaf is not None]


def elementwise(call: ChannelCall) -> Axes | list[Axes]:
    """Functions and operators that combine entries at the same place."""
    return shapes.broadcast(call, call.inputs, _others(call))


def _axes(operation: Any, rank: int) -> list[int]:
    axes = operation.axis
    if axes is None:
        return list(range(rank))
    return [axis % rank for axis in (axes if isinstance(axes, list | tuple) else [axes])]


def reduction(call: ChannelCall) -> Axes | list[Axes]:
    """Mean, sum, maximum over positions."""
    x = call.inputs[0]
    axes = _axes(call.layer, x.rank)
    for axis in axes:
        call.fix(x.axes[axis], "takes a sum, mean or extreme over them")
    call.constant = "never"
    if call.layer.keepdims:
        return tuple(None if i in axes else labels for i, labels in enumerate(x.axes))
    return tuple(labels for i, labels in enumerate(x.axes) if i not in axes)


def reshape(call: ChannelCall) -> Axes | list[Axes]:
    """keras.ops.reshape: see `shapes.reshaped`."""
    axes = shapes.reshaped(call, call.inputs[0], call.output_shapes[0])
    target = call.layer.newshape
    if axes is None or len(target) != len(axes):
        return call.opaque("changes the shape in a way that is not followed")
    for i, labels in enumerate(axes):
        if target[i] not in (-1, None):
            call.resize(("newshape", i), labels)
    return axes


def transpose(call: ChannelCall) -> Axes | list[Axes]:
    """keras.ops.transpose: axes in another order."""
    x = call.inputs[0]
    order = call.layer.axes or tuple(reversed(range(x.rank)))
    call.constant = "moved"
    return tuple(x.axes[axis] for axis in order)


def concatenate(call: ChannelCall) -> Axes | list[Axes]:
    """keras.ops.concatenate: the labels one after the other."""
    if _others(call):
        return call.opaque("joins arrays to tensors")
    return shapes.concatenated(call, call.inputs, call.layer.axis)


def expand(call: ChannelCall) -> Axes | list[Axes]:
    """keras.ops.expand_dims: axes of size one come in."""
    x, rank = call.inputs[0], len(call.output_shapes[0])
    new = _axes(call.layer, rank)
    rest = iter(x.axes)
    call.constant = "moved"
    return tuple(None if i in new else next(rest) for i in range(rank))


def squeeze(call: ChannelCall) -> Axes | list[Axes]:
    """keras.ops.squeeze: axes of size one go."""
    x = call.inputs[0]
    gone = [i for i, size in enumerate(x.shape) if size == 1]
    gone = gone if call.layer.axis is None else _axes(call.layer, x.rank)
    for axis in gone:
        call.fix(x.axes[axis], "drops the axis")
    call.constant = "moved"
    return tuple(labels for i, labels in enumerate(x.axes) if i not in gone)


def split(call: ChannelCall) -> Axes | list[Axes]:
    """keras.ops.split into equal parts: these lose the same indices."""
    x, parts = call.inputs[0], call.layer.indices_or_sections
    (axis,) = _axes(call.layer, x.rank)
    labels = x.axes[axis]
    call.constant = "moved"
    if labels is None:
        return [x.axes for _ in call.output_shapes]
    if not isinstance(parts, int):
        return call.opaque("cuts axes at given places")
    pieces = np.split(labels, parts)
    for piece in pieces[1:]:
        call.couple(pieces[0], piece)
    return [(*x.axes[:axis], piece, *x.axes[axis + 1 :]) for piece in pieces]


def item(call: ChannelCall) -> Axes | list[Axes]:
    """``x[...]``: channels of an axis that is taken whole stay."""
    x = call.inputs[0]
    keys = call.args[1] if len(call.args) > 1 else call.kwargs.get("key")
    keys = keys if isinstance(keys, tuple) else (keys,)
    if len(call.inputs) > 1 or any(not isinstance(k, int | slice) for k in keys):
        return call.opaque("takes entries in a way that is not followed")
    axes: list[Any] = []
    for i, labels in enumerate(x.axes):
        key = keys[i] if i < len(keys) else slice(None)
        if isinstance(key, int):
            call.fix(labels, "takes one of them")
        elif key == slice(None):
            axes.append(labels)
        else:
            call.fix(labels, "takes some of them by their place")
            axes.append(None)
    call.constant = "moved"
    return tuple(axes)


def matmul(call: ChannelCall) -> Axes | list[Axes]:
    """keras.ops.matmul of two tensors: the axis that is summed over is coupled."""
    if len(call.inputs) != 2 or any(t.rank < 3 for t in call.inputs):
        return call.opaque("multiplies by an array, or a vector")
    a, b = call.inputs
    if a.rank != b.rank:
        return call.opaque("multiplies tensors of several ranks")
    for axis in range(a.rank - 2):
        call.couple(a.axes[axis], b.axes[axis])
    batch = tuple(
        None if mine is None or theirs is None else mine
        for mine, theirs in zip(a.axes[:-2], b.axes[:-2], strict=True)
    )
    for axis in range(a.rank - 2):
        if a.shape[axis] != b.shape[axis]:
            call.fix(a.axes[axis], "spreads them")
            call.fix(b.axes[axis], "spreads them")
    call.couple(a.axes[-1], b.axes[-2])
    for labels in labelled((a.axes[-1], b.axes[-2])):
        call.multiplies(labels)
    return (*batch, a.axes[-2], b.axes[-1])


def softmax(call: ChannelCall) -> Axes | list[Axes]:
    """keras.ops.softmax: mixes its axis."""
    x = call.inputs[0]
    for axis in _axes(call.layer, x.rank):
        call.fix(x.axes[axis], "takes a softmax over them")
    return x.axes


RULES: dict[str, Any] = {
    **dict.fromkeys(ELEMENTWISE_OPERATIONS | BROADCAST_OPERATIONS, elementwise),
    **dict.fromkeys(["Mean", "Sum", "Max", "Min", "Amax", "Amin", "Var", "Std"], reduction),
    "Reshape": reshape,
    "Transpose": transpose,
    "Concatenate": concatenate,
    "ExpandDims": expand,
    "Squeeze": squeeze,
    "Split": split,
    "GetItem": item,
    "Matmul": matmul,
    "Softmax": softmax,
    "LogSoftmax": softmax,
}
