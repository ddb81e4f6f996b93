"""Channels of normalizations and of activations with weights."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_ntt.core import host
from keras_ntt.core.channels.call import ChannelCall
from keras_ntt.core.channels.labels import Axes


def _axes_of(layer: Any, rank: int) -> list[int]:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return sorted(axis % rank for axis in axes)


def batch_normalization(call: ChannelCall) -> Axes:
    """BatchNormalization: four weights of a number a channel, nothing mixed in inference."""
    layer, x = call.layer, call.inputs[0]
    (axis,) = _axes_of(layer, x.rank)
    labels = x.axes[axis]
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        call.weight(getattr(layer, name, None), {0: labels})
    call.constant = "all"
    return x.axes


def layer_normalization(call: ChannelCall) -> Axes:
    """LayerNormalization: mean and variance over the channels."""
    layer, x = call.layer, call.inputs[0]
    axes = _axes_of(layer, x.rank)
    for weight in (getattr(layer, "gamma", None), getattr(layer, "beta", None)):
        call.weight(weight, {i: x.axes[axis] for i, axis in enumerate(axes)})
    for axis in axes:
        call.inexact(x.axes[axis], "takes mean and variance over the channels")
    return x.axes


def rms_normalization(call: ChannelCall) -> Axes | list[Axes]:
    """RMSNormalization: the mean square over fewer channels is larger, the scale smaller.

    With S the sum of squares over d channels, of which n stay and the others are zero,
    ``x / sqrt(S / d + e)`` is ``sqrt(d / n) x / sqrt(S / n + e d / n)``.
    """
    layer, x = call.layer, call.inputs[0]
    axes = _axes_of(layer, x.rank)
    if len(axes) != 1:
        return call.opaque("normalizes over several axes")
    labels = x.axes[axes[0]]
    epsilon = layer.epsilon
    call.weight(layer.scale, {0: labels})
    call.rescale(layer.scale, labels, -0.5)
    call.resize("epsilon", labels, lambda after, before: epsilon * before / after)
    call.multiplies(labels)
    return x.axes


def group_normalization(call: ChannelCall) -> Axes:
    """GroupNormalization: a group goes as a whole; over one group, it is as a layer's."""
    layer, x = call.layer, call.inputs[0]
    (axis,) = _axes_of(layer, x.rank)
    labels = x.axes[axis]
    for name in ("gamma", "beta"):
        call.weight(getattr(layer, name, None), {0: labels})
    if labels is not None:
        size = x.shape[axis] or 1
        groups = size if layer.groups == -1 else layer.groups
        if groups == 1:
            call.inexact(labels, "takes mean and variance over the channels")
        else:
            for part in labels.reshape(groups, -1):
                call.couple_all(part)
            call.resize("groups", labels[:: size // groups])
    return x.axes


def unit_normalization(call: ChannelCall) -> Axes:
    """UnitNormalization: divides by the length, to which zeros add nothing."""
    x = call.inputs[0]
    for axis in _axes_of(call.layer, x.rank):
        call.multiplies(x.axes[axis])
    return x.axes


def prelu(call: ChannelCall) -> Axes:
    """PReLU: slopes [...] as the inputs, one where axes share them."""
    alpha, x = call.layer.alpha, call.inputs[0]
    own = {i: x.axes[i + 1] for i, size in enumerate(alpha.shape) if size == x.shape[i + 1]}
    call.weight(alpha, {i: labels for i, labels in own.items() if alpha.shape[i] != 1})
    call.constant = "all" if all(size == 1 for size in alpha.shape[:-1]) else "never"
    return x.axes


def layer_scale(call: ChannelCall) -> Axes:
    """LayerScale of ConvNeXt: a factor a channel."""
    x = call.inputs[0]
    call.weight(call.layer.gamma, {0: x.axes[-1]})
    call.resize("projection_dim", x.axes[-1])
    call.constant = "all"
    return x.axes


RULES: dict[type, Any] = {
    layers.BatchNormalization: batch_normalization,
    layers.LayerNormalization: layer_normalization,
    layers.GroupNormalization: group_normalization,
    layers.UnitNormalization: unit_normalization,
    layers.PReLU: prelu,
    host.LAYER_SCALE: layer_scale,
}
if hasattr(layers, "RMSNormalization"):  # of later releases than the oldest supported
    RULES[layers.RMSNormalization] = rms_normalization
