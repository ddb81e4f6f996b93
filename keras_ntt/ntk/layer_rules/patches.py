"""The patches of an image under a filter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_ntt.ntk.layer_rules.stacking import batch_shape


@dataclass(frozen=True)
class Geometry:
    """How a filter moves over its input.

    Attributes:
        kernel_size: Filter size along each spatial axis.
        strides: Strides, likewise.
        dilation_rate: Dilations, likewise.
        padding: ``"valid"``, ``"same"`` or ``"causal"``.
        data_format: ``"channels_last"`` or ``"channels_first"``.
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    padding: str
    data_format: str

    @classmethod
    def of(cls, layer: Any) -> Geometry:
        """Return that of a layer."""
        rank = layer.rank
        strides, dilation = (
            (v,) * rank if isinstance(v, int) else tuple(v)
            for v in (layer.strides, layer.dilation_rate)
        )
        return cls(tuple(layer.kernel_size), strides, dilation, layer.padding, layer.data_format)

    @classmethod
    def point(cls, layer: Any) -> Geometry:
        """Return that of a filter of one point, with the layer's data format."""
        ones = (1,) * layer.rank
        return cls(ones, ones, ones, "valid", layer.data_format)


def channels_last(x: tf.Tensor, data_format: str) -> tf.Tensor:
    """Move the channels to the last axis, if they are not there."""
    if data_format == "channels_last":
        return x
    return tf.transpose(x, [0, *range(2, x.shape.rank), 1])


def patches(x: tf.Tensor, geometry: Geometry, *, groups: int = 1, ones: bool = False) -> tf.Tensor:
    """Return the patch under the filter at each position.

    Args:
        x: ``[n, *spatial, channels]``.
        geometry: How the filter moves.
        groups: Number of groups that the channels fall into.
        ones: Whether to end each group with a 1.

    Returns:
        ``[n, positions, groups * k]``, with the k entries of a group in the order of a kernel
        ``[*kernel_size, channels / groups, ...]``.
    """
    kernel_size, padding = geometry.kernel_size, geometry.padding
    steps = list(zip(kernel_size, geometry.strides, geometry.dilation_rate, strict=True))
    pads, sizes = [], []
    for size, (k, s, d) in zip(batch_shape(x)[1:-1], steps, strict=True):
        reach = d * (k - 1) + 1
        if padding == "same":
            out = (size + s - 1) // s
            total = _at_least_zero((out - 1) * s + reach - size)
            left, right = total // 2, total - total // 2
        else:
            left, right = (reach - 1 if padding == "causal" else 0), 0
            out = (size + left - reach) // s + 1
        whole = s * (out + (reach - 1) // s)  # what _windows reads
        pads.append([left, right + _at_least_zero(whole - (left + size + right))])
        sizes.append(out)
    if any(isinstance(p, tf.Tensor) or p for pad in pads for p in pad):
        x = tf.pad(x, [[0, 0], *pads, [0, 0]])
    # Axis by axis, the last one first: far fewer slices than one for each entry of the filter.
    n, channels = tf.shape(x)[0], x.shape[-1]
    end = [tf.ones([n, *sizes, groups], x.dtype)] if ones else []
    for axis, (k, s, d) in reversed([*enumerate(steps, 1)]):
        pieces = _windows(x, axis, range(0, k * d, d), sizes[axis - 1], s)
        x = tf.concat(pieces + (end if axis == groups == 1 else []), axis=-1)
    count = 1
    for out in sizes:
        count = count * out
    if groups > 1:
        x = tf.reshape(x, [-1, *sizes, math.prod(kernel_size), groups, channels // groups])
        rank = x.shape.rank
        x = tf.transpose(x, [*range(rank - 3), rank - 2, rank - 3, rank - 1])
        x = tf.reshape(x, [-1, *sizes, groups, math.prod(kernel_size) * channels // groups])
        x = tf.concat([x, *(ones[..., None] for ones in end)], axis=-1)
    return tf.reshape(x, [-1, count, math.prod(kernel_size) * channels + groups * len(end)])


def _windows(
    x: tf.Tensor, axis: int, starts: Sequence[int], size: int | tf.Tensor, stride: int
) -> list[tf.Tensor]:
    """Return `size` entries along an axis, every `stride`-th, from each of some starts on.

    Plain slices: TensorFlow copies strided ones number by number, and has slow gradients of them.

    Args:
        x: ``[n, *spatial, channels]``, with ``size + starts[-1] // stride`` or more blocks of
            `stride` entries along the axis.
        axis: The axis.
        starts: The first entry of each, ascending.
        size: How many entries each has.
        stride: How far apart they are.
    """
    shape = batch_shape(x)
    row = math.prod(shape[axis + 1 :])
    blocks = size + starts[-1] // stride
    x = tf.slice(tf.reshape(x, [-1, shape[axis] * row]), [0, 0], [-1, blocks * stride * row])
    x = tf.reshape(x, [-1, blocks, stride * row])
    begins = [[0, start // stride, start % stride * row] for start in starts]
    shape[axis] = size
    return [tf.reshape(tf.slice(x, begin, [-1, size, row]), shape) for begin in begins]


def _at_least_zero(number: int | tf.Tensor) -> int | tf.Tensor:
    return tf.maximum(number, 0) if isinstance(number, tf.Tensor) else max(number, 0)
