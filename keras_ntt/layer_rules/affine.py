"""Structured derivatives of the layers that are affine in their weights: Dense and Conv.

For ``z[p] = x[p] @ kernel + bias`` the derivative of an output by the kernel is the sum over
positions p of ``x[p]^T delta[p]``, with delta the derivative by z. A Dense layer on ``[n, k]``
has one position; a convolution has one a pixel, and x[p] is the patch under the filter.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import layers

from keras_ntt import _host
from keras_ntt.factors import AffineFactor, Factor, JacobianFactor
from keras_ntt.layer_rules import stacking
from keras_ntt.layer_rules.base import (
    Cotangents,
    Linearization,
    pass_mask_on,
    rule_for,
)
from keras_ntt.layer_rules.stacking import Stacked
from keras_ntt.layer_rules.unknown import Unknown
from keras_ntt.layer_rules.weightless import ELEMENTWISE, Elementwise, General
from keras_ntt.network import Call, call_on


class Affine(Linearization):
    """A layer ``activation(x @ kernel + bias)``; subclasses say what the product is."""

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        (tensor,) = tensors
        self.layer = call.operation
        self.tensor = tf.cast(tensor, self.layer.compute_dtype)
        self.kernel = self._cast(self.layer.kernel)
        preactivation = self.product(self.tensor)
        if self.layer.use_bias:
            preactivation = self.add_bias(preactivation, self._cast(self.layer.bias))
        function = self.layer.activation
        if function is None or function is keras.activations.linear:
            self._activated: Linearization | None = None
            output = preactivation
        elif function in ELEMENTWISE:
            self._activated = Elementwise(function, preactivation)
            output = self._activated.outputs[0]
        else:
            self._activated = General(call_on(function), [preactivation])
            output = self._activated.outputs[0]
        pass_mask_on(call, tensors, output)
        self.outputs = [output]

    def _cast(self, variable: keras.Variable) -> tf.Tensor:
        return tf.cast(_host.value_of(variable), self.layer.compute_dtype)

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        if self._activated is not None:
            cotangents, _ = self._activated.backward(cotangents, [True])
        (stacked,) = cotangents
        assert stacked is not None
        if not wanted[0] and self._few_weights(stacked):
            return [None], [self._winners_jacobian(stacked)]
        delta, copies = stacked.tensor, stacked.copies
        cotangent = None
        if wanted[0]:
            cotangent = stacked.with_rows(self.transposed_product(delta, copies))
        kernel, bias = self._trained()
        if kernel is None and bias is None:
            return [cotangent], []
        deltas = self.deltas_by_position(delta)
        groups = getattr(self.layer, "groups", 1)
        if kernel is None:
            inputs = tf.ones_like(deltas[::copies, :, :groups])
        else:
            inputs = self.by_position(ones=bias is not None)
        return [cotangent], [AffineFactor(inputs, deltas, copies, groups, kernel, bias)]

    def _few_weights(self, stacked: Stacked) -> bool:
        """Tell whether `_winners_jacobian` applies and is smaller than the whole cotangent."""
        layer = self.layer
        plain = (
            layer.kernel.trainable
            and getattr(layer, "groups", 1) == 1
            and getattr(layer, "data_format", "channels_last") == "channels_last"
        )
        if stacked.window is None or not plain:
            return False
        return math.prod(layer.kernel.shape[:-1]) < stacked.copies * math.prod(stacked.window)

    def _winners_jacobian(self, stacked: Stacked) -> JacobianFactor:
        """Return the derivative by the weights where each window has one cotangent.

        The inputs of a window are summed first, with the factors of its entries. They then
        differ by output channel, but not by output of the network.
        """
        copies, channels, window = stacked.copies, stacked.rows.shape[-1], stacked.window
        assert stacked.factor is not None
        assert window is not None
        kernel, bias = self._trained()
        patches = self.by_position(ones=bias is not None)
        spatial = stacked.factor.shape[1:-1]
        patches = tf.reshape(patches, [-1, *spatial, patches.shape[-1]])
        inputs = tf.matmul(
            stacking.windows_of(stacked.factor, window),
            stacking.windows_of(patches, window),
            transpose_a=True,
        )  # [n, windows, o, k]
        count = inputs.shape[1]
        rows = tf.reshape(stacked.rows, [-1, copies, count, channels])
        jacobian = tf.matmul(
            tf.transpose(rows, [0, 3, 1, 2]), tf.transpose(inputs, [0, 2, 1, 3])
        )  # [n, o, c, k]
        matrix = tf.reshape(
            tf.transpose(jacobian, [0, 2, 3, 1]), [-1, patches.shape[-1] * channels]
        )
        return JacobianFactor(matrix, copies, tuple(v for v in (kernel, bias) if v is not None))

    def _trained(self) -> tuple[keras.Variable | None, keras.Variable | None]:
        """Return kernel and bias, None for one that is frozen or not there."""
        kernel, bias = self.layer.kernel, self.layer.bias if self.layer.use_bias else None
        return (
            kernel if kernel.trainable else None,
            bias if bias is not None and bias.trainable else None,
        )

    @abstractmethod
    def product(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the layer's linear part on ``[n, ...]``."""

    def add_bias(self, preactivation: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """Add the bias to each position."""
        return preactivation + bias

    @abstractmethod
    def transposed_product(self, delta: tf.Tensor, copies: int) -> tf.Tensor:
        """Return the stacked cotangent of the input from that of the pre-activation."""

    @abstractmethod
    def by_position(self, ones: bool) -> tf.Tensor:
        """Return what the weights are multiplied with, ``[n, positions, groups * k]``.

        Args:
            ones: Whether to end each group with a 1, the input of the bias.
        """

    def deltas_by_position(self, delta: tf.Tensor) -> tf.Tensor:
        """Return the stacked delta as ``[n * c, positions, o]``."""
        return tf.reshape(delta, [tf.shape(delta)[0], -1, delta.shape[-1]])


class DenseAffine(Affine):
    """`keras.layers.Dense` on ``[n, ..., k]``."""

    def product(self, tensor: tf.Tensor) -> tf.Tensor:
        return keras.ops.matmul(tensor, self.kernel)

    def transposed_product(self, delta: tf.Tensor, copies: int) -> tf.Tensor:
        return keras.ops.matmul(delta, tf.transpose(self.kernel))

    def by_position(self, ones: bool) -> tf.Tensor:
        inputs = _positions(self.tensor, self.tensor.shape[1:-1])
        return tf.concat([inputs, tf.ones_like(inputs[..., :1])], axis=-1) if ones else inputs

    def deltas_by_position(self, delta: tf.Tensor) -> tf.Tensor:
        return _positions(delta, delta.shape[1:-1])


def _positions(x: tf.Tensor, middle: Sequence[int | None]) -> tf.Tensor:
    """Merge the middle axes of ``[n, ..., channels]`` to one."""
    count = tf.TensorShape(middle).num_elements()
    if count is None:
        count = tf.reduce_prod(tf.shape(x)[1:-1])
    return tf.reshape(x, [-1, count, x.shape[-1]])


class ConvAffine(Affine):
    """`keras.layers.Conv1D`, `Conv2D` and `Conv3D`, any padding, stride, dilation, groups."""

    def product(self, tensor: tf.Tensor) -> tf.Tensor:
        layer, padding = self.layer, self.layer.padding
        if padding == "causal":
            left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            before = [[0, 0], [0, 0], [0, 0]]
            before[self._spatial_axes()[0]] = [left, 0]
            tensor, padding = tf.pad(tensor, before), "valid"
        return keras.ops.conv(
            tensor,
            self.kernel,
            strides=list(layer.strides),
            padding=padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )

    def add_bias(self, preactivation: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        if self.layer.data_format == "channels_first":
            bias = tf.reshape(bias, [1, -1] + [1] * self.layer.rank)
        return preactivation + bias

    def transposed_product(self, delta: tf.Tensor, copies: int) -> tf.Tensor:
        layer = self.layer
        plain = layer.groups == 1 and max(layer.dilation_rate) == 1
        if plain and layer.padding != "causal" and layer.data_format == "channels_last":
            n = tf.shape(delta)[0] if delta.shape[0] is None else delta.shape[0]
            shape = [n, *stacking.batch_shape(self.tensor)[1:]]
            return tf.nn.conv_transpose(
                delta, self.kernel, shape, layer.strides, layer.padding.upper()
            )
        # The gradient by the input needs its shape only: in a graph the convolution of the
        # zeros is never computed.
        zeros = stacking.zeros(self.tensor, copies)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(zeros)
            outputs = self.product(zeros)
        return tape.gradient(outputs, zeros, delta)

    def by_position(self, ones: bool) -> tf.Tensor:
        layer = self.layer
        tensor = _channels_last(self.tensor, layer.data_format)
        return patches(
            tensor, layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding,
            groups=layer.groups, ones=ones,
        )  # fmt: skip

    def deltas_by_position(self, delta: tf.Tensor) -> tf.Tensor:
        delta = _channels_last(delta, self.layer.data_format)
        return _positions(delta, delta.shape[1:-1])

    def _spatial_axes(self) -> range:
        first = 2 if self.layer.data_format == "channels_first" else 1
        return range(first, first + self.layer.rank)


def _channels_last(x: tf.Tensor, data_format: str) -> tf.Tensor:
    if data_format == "channels_last":
        return x
    return tf.transpose(x, [0, *range(2, x.shape.rank), 1])


def patches(
    x: tf.Tensor,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    dilation_rate: Sequence[int],
    padding: str,
    *,
    groups: int = 1,
    ones: bool = False,
) -> tf.Tensor:
    """Return the patch under the filter at each position.

    Args:
        x: ``[n, *spatial, channels]``.
        kernel_size: Filter size along each spatial axis.
        strides: Strides, likewise.
        dilation_rate: Dilations, likewise.
        padding: ``"valid"``, ``"same"`` or ``"causal"``.
        groups: Number of groups that the channels fall into.
        ones: Whether to end each group with a 1.

    Returns:
        ``[n, positions, groups * k]``, with the k entries of a group in the order of a kernel
        ``[*kernel_size, channels / groups, ...]``.
    """
    pads, sizes = [], []
    for axis, (k, s, d) in enumerate(zip(kernel_size, strides, dilation_rate, strict=True), 1):
        size = tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]
        reach = d * (k - 1) + 1
        if padding == "same":
            out = (size + s - 1) // s
            maximum = tf.maximum if isinstance(size, tf.Tensor) else max
            total = maximum((out - 1) * s + reach - size, 0)
            pads.append([total // 2, total - total // 2])
        else:
            left = reach - 1 if padding == "causal" else 0
            pads.append([left, 0])
            out = (size + left - reach) // s + 1
        sizes.append(out)
    if any(isinstance(p, tf.Tensor) or p for pad in pads for p in pad):
        x = tf.pad(x, [[0, 0], *pads, [0, 0]])
    # Axis by axis, the last one first: far fewer slices than one for each entry of the filter.
    taps = list(zip(kernel_size, sizes, strides, dilation_rate, strict=True))
    n, channels = tf.shape(x)[0], x.shape[-1]
    end = [tf.ones([n, *sizes, groups], x.dtype)] if ones else []
    for axis, (k, out, s, d) in reversed([*enumerate(taps, 1)]):
        pieces = [_window(x, axis, i * d, out, s) for i in range(k)]
        x = tf.concat(pieces + (end if axis == groups == 1 else []), axis=-1)
    count = 1
    for out in sizes:
        count = count * out
    if groups > 1:
        x = tf.reshape(x, [n, *sizes, math.prod(kernel_size), groups, channels // groups])
        rank = x.shape.rank
        x = tf.transpose(x, [*range(rank - 3), rank - 2, rank - 3, rank - 1])
        x = tf.reshape(x, [n, *sizes, groups, math.prod(kernel_size) * channels // groups])
        x = tf.concat([x, *(ones[..., None] for ones in end)], axis=-1)
    return tf.reshape(x, [n, count, math.prod(kernel_size) * channels + groups * len(end)])


def _window(x: tf.Tensor, axis: int, start: int, size: int | tf.Tensor, stride: int) -> tf.Tensor:
    """Return `size` entries along an axis, every `stride`-th from `start` on."""
    if stride == 1:  # tf.slice has the faster gradient
        begin = [start if i == axis else 0 for i in range(x.shape.rank)]
        return tf.slice(x, begin, [size if i == axis else -1 for i in range(x.shape.rank)])
    window = [slice(None)] * x.shape.rank
    window[axis] = slice(start, start + (size - 1) * stride + 1, stride)
    return x[tuple(window)]


@rule_for(layers.Dense)
def dense(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Dense layers."""
    return DenseAffine(call, tensors) if _is_plain(call.operation) else Unknown(call, tensors)


@rule_for(layers.Conv1D, layers.Conv2D)
def conv(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Convolutions."""
    return ConvAffine(call, tensors) if _is_plain(call.operation) else Unknown(call, tensors)


def _is_plain(layer: keras.layers.Layer) -> bool:
    """Tell whether the layer's kernel is one variable, neither LoRA-adapted nor quantized."""
    return not getattr(layer, "lora_enabled", False) and (
        getattr(layer, "quantization_mode", None) is None
    )
