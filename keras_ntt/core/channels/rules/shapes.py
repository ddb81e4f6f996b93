"""Channels of layers that move, pool, pad or join: nothing is learnt, indices are mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.channels.call import ChannelCall, Traced
from keras_ntt.core.channels.labels import Axes, Labels, labelled
from keras_ntt.core.channels.rules.elementwise import is_elementwise
from keras_ntt.core.channels.rules.kernels import channel_axis


def same(call: ChannelCall) -> Axes:
    """Layers that treat each entry by itself, in inference."""
    call.constant = "all"
    return call.inputs[0].axes


def dropout(call: ChannelCall) -> Axes | list[Axes]:
    """Dropout: entry by entry, unless it has a shape of its own."""
    if getattr(call.layer, "noise_shape", None) is not None:
        return call.opaque("drops entries in a shape of its own")
    return same(call)


def activation(call: ChannelCall) -> Axes | list[Axes]:
    """Activation: as the function."""
    if not is_elementwise(call.layer.activation):
        return call.opaque("mixes channels, or is a function that is not known")
    return same(call)


def softmax(call: ChannelCall) -> Axes:
    """Softmax: mixes its axes."""
    x, axes = call.inputs[0], call.layer.axis
    for axis in axes if isinstance(axes, list | tuple) else [axes]:
        call.fix(x.axes[axis], "takes a softmax over them")
    for tensor in call.inputs[1:]:
        for labels in labelled(tensor.axes):
            call.fix(labels, "takes them for a mask")
    return x.axes


def spatial(call: ChannelCall) -> Axes:
    """Pooling, upsampling, cropping: positions change, channels do not."""
    x = call.inputs[0]
    axis = channel_axis(call.layer, x.rank)
    labels = call.only(x, axis)
    call.constant = "moved"
    return tuple(labels if i == axis else None for i in range(x.rank))


def padding(call: ChannelCall) -> Axes:
    """ZeroPadding: a constant stays one if it is zero."""
    axes = spatial(call)
    call.constant = "padded"
    return axes


def global_pooling(call: ChannelCall) -> Axes:
    """Global pooling: only channels remain."""
    x = call.inputs[0]
    axis = channel_axis(call.layer, x.rank)
    labels = call.only(x, axis)
    for mask in call.inputs[1:]:
        for some in labelled(mask.axes):
            call.fix(some, "takes them for a mask")
    call.constant = "moved"
    if call.layer.keepdims:
        return tuple(labels if i == axis else None for i in range(x.rank))
    return (None, labels)


def reshape(call: ChannelCall) -> Axes | list[Axes]:
    """Reshape: see `reshaped`."""
    axes = reshaped(call, call.inputs[0], call.output_shapes[0])
    if axes is None:
        return call.opaque("changes the shape in a way that is not followed")
    for i, labels in enumerate(axes[1:]):
        if call.layer.target_shape[i] not in (-1, None):
            call.resize(("target_shape", i), labels)
    return axes


def flatten(call: ChannelCall) -> Axes | list[Axes]:
    """Flatten: channel c of C becomes the entries p * C + c, for all positions p."""
    x = call.inputs[0]
    if call.layer.data_format == "channels_first" and x.rank > 2:
        return call.opaque("moves channels to the end before it flattens")
    axes = reshaped(call, x, call.output_shapes[0])
    return call.opaque("flattens axes of unknown size") if axes is None else axes


def reshaped(call: ChannelCall, x: Traced, shape: Sequence[int | None]) -> Axes | None:
    """Return the labels of a tensor in another shape, None where they are not known.

    Axes are matched from the left: the fewest that hold as many entries go over into each other.
    Where an axis is cut, the last of its parts keeps labels of its own, and what shares an index
    of it is coupled.
    """
    call.constant = "moved"
    sizes, targets = list(x.shape), list(shape)
    if not sizes or not targets or sizes[0] != targets[0]:
        return None
    axes: list[Labels | None] = [None]
    i = j = 1
    while i < len(sizes) or j < len(targets):
        if i < len(sizes) and j < len(targets) and sizes[i] == targets[j]:
            axes.append(x.axes[i])
            i, j = i + 1, j + 1
            continue
        start, begin = i, j
        ins, outs = 0, 1  # entries so far; the first step takes an input, if there is one
        while ins != outs:
            if ins <= outs and i < len(sizes):
                ins, i = max(ins, 1) * (sizes[i] or 0), i + 1
            elif j < len(targets):
                ins, outs, j = max(ins, 1), outs * (targets[j] or 0), j + 1
            else:
                return None
            if ins == 0 or outs == 0:
                return None
        axes += _regrouped(call, x.axes[start:i], sizes[start:i], targets[begin:j])
    return tuple(axes)


def _regrouped(
    call: ChannelCall, axes: Sequence[Labels | None], sizes: Sequence[Any], targets: Sequence[Any]
) -> list[Labels | None]:
    """Return the labels of some axes after these hold the same entries in other sizes."""
    if not labelled(axes):
        return [None] * len(targets)
    last = max(i for i, labels in enumerate(axes) if labels is not None)
    for i, labels in enumerate(axes):
        if i != last:
            call.fix(labels, "merges them with other channels")
    labels = axes[last]
    assert labels is not None
    if not targets:
        call.fix(labels, "drops the axis")
        return []
    own = labels.reshape([len(labels) if i == last else 1 for i in range(len(sizes))])
    entries = np.broadcast_to(own, sizes).reshape(targets)
    alike = [axis for axis in range(len(targets)) if _varies_along(entries, axis)]
    kept = alike[-1] if alike else len(targets) - 1
    rows = np.moveaxis(entries, kept, -1).reshape(-1, targets[kept])
    if len(alike) > 1:
        for row in rows[1:]:
            call.couple(rows[0], row)
    return [rows[0] if axis == kept else None for axis in range(len(targets))]


def _varies_along(entries: np.ndarray, axis: int) -> bool:
    return bool((entries != entries.take([0], axis)).any())


def permute(call: ChannelCall) -> Axes:
    """Permute: axes in another order."""
    call.constant = "moved"
    return tuple(call.inputs[0].axes[axis] for axis in (0, *call.layer.dims))


def repeat(call: ChannelCall) -> Axes:
    """RepeatVector: positions are added."""
    call.constant = "moved"
    return (None, None, call.inputs[0].axes[-1])


def concatenated(call: ChannelCall, tensors: Sequence[Traced], axis: int) -> Axes | list[Axes]:
    """Return the labels of tensors one after the other along an axis."""
    rank = tensors[0].rank
    if any(t.rank != rank for t in tensors):
        return call.opaque("joins tensors of several ranks")
    axis %= rank
    axes: list[Labels | None] = []
    for i in range(rank):
        parts = [t.axes[i] for t in tensors]
        if i != axis:
            for part in parts[1:]:
                call.couple(parts[0], part)
            axes.append(parts[0] if all(part is not None for part in parts) else None)
        elif not labelled(parts):
            axes.append(None)
        else:
            filled = []
            for part, tensor in zip(parts, tensors, strict=True):
                if part is None:
                    part = call.new(tensor.shape[i] or 0)
                    call.fix(part, "joins them from what has no channels to remove")
                filled.append(part)
            axes.append(np.concatenate(filled))
    call.constant = "moved"
    return tuple(axes)


def concatenate(call: ChannelCall) -> Axes | list[Axes]:
    """Concatenate: the labels one after the other."""
    return concatenated(call, call.inputs, call.layer.axis)


def broadcast(
    call: ChannelCall, tensors: Sequence[Traced], others: Sequence[Any] = ()
) -> Axes | list[Axes]:
    """Return the labels of tensors that are combined entry by entry.

    Args:
        call: The call.
        tensors: The tensors; sizes of one are spread.
        others: Arrays and numbers that take part.
    """
    shape = call.output_shapes[0]
    axes: list[Labels | None] = []
    for back in range(len(shape), 0, -1):
        found: list[Labels] = []
        plain = any(np.ndim(o) >= back and np.shape(o)[-back] != 1 for o in others)
        for tensor in tensors:
            if tensor.rank < back:
                continue
            labels, size = tensor.axes[-back], tensor.shape[-back]
            if size == 1 and shape[-back] != 1:
                call.fix(labels, "spreads a single channel over many")
            elif labels is None:
                plain = True
            else:
                found.append(labels)
        if plain:
            for labels in found:
                call.fix(labels, "joins them with what has no channels to remove")
        for labels in found[1:]:
            call.couple(found[0], labels)
        axes.append(found[0] if found and not plain else None)
    call.constant = "all"
    return tuple(axes)


def merge(call: ChannelCall) -> Axes | list[Axes]:
    """Add, Subtract, Multiply, Average, Maximum, Minimum: indices are coupled."""
    if len({tensor.rank for tensor in call.inputs}) > 1:
        return call.opaque("joins tensors of several ranks")
    return broadcast(call, call.inputs)


_SAME = """
    ReLU LeakyReLU ELU GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D
    SpatialDropout3D Identity ActivityRegularization
"""
_SPATIAL = """
    MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D
    UpSampling1D UpSampling2D UpSampling3D Cropping1D Cropping2D Cropping3D
"""
_GLOBAL = """
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
"""
_MERGE = "Add Subtract Multiply Average Maximum Minimum"

RULES: dict[type, Any] = {
    **{getattr(layers, name): same for name in _SAME.split()},
    **{getattr(layers, name): spatial for name in _SPATIAL.split()},
    **{getattr(layers, name): global_pooling for name in _GLOBAL.split()},
    **{getattr(layers, name): merge for name in _MERGE.split()},
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D), padding),
    **dict.fromkeys((layers.Dropout, layers.AlphaDropout), dropout),
    layers.Activation: activation,
    layers.Softmax: softmax,
    layers.Reshape: reshape,
    layers.Flatten: flatten,
    layers.Permute: permute,
    layers.RepeatVector: repeat,
    layers.Concatenate: concatenate,
    host.STOCHASTIC_DEPTH: same,
}
