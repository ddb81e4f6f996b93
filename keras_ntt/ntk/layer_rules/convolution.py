"""Structured derivatives of the convolutions: plain, depthwise, separable and transposed.

At each position p the kernel is multiplied with x[p], the patch under the filter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import AffineFactor, Factor, JacobianFactor, full_precision
from keras_ntt.ntk.layer_rules import fourier, stacking
from keras_ntt.ntk.layer_rules.affine import Affine, is_plain, positions
from keras_ntt.ntk.layer_rules.base import Cotangents, Linearization, register_layer_rule
from keras_ntt.ntk.layer_rules.patches import Geometry, channels_last, patches
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.layer_rules.unknown import Unknown


class Convolution(Affine):
    """A layer that convolves its input with its kernel.

    Args:
        call: The call.
        tensors: Its one input.
        geometry: How the filter moves.
        depthwise: Whether each channel has its own filters.
        **options: As for `Affine`.
    """

    def __init__(
        self,
        call: Call,
        tensors: Sequence[tf.Tensor],
        geometry: Geometry,
        *,
        depthwise: bool = False,
        **options: Any,
    ):
        self._geometry = geometry
        self._depthwise = depthwise
        super().__init__(call, tensors, **options)

    def product(self, tensor: tf.Tensor) -> tf.Tensor:
        geometry, padding = self._geometry, self._geometry.padding
        if padding == "causal":
            left = geometry.dilation_rate[0] * (geometry.kernel_size[0] - 1)
            before = [[0, 0], [0, 0], [0, 0]]
            before[2 if geometry.data_format == "channels_first" else 1] = [left, 0]
            tensor, padding = tf.pad(tensor, before), "valid"
        convolve = keras.ops.depthwise_conv if self._depthwise else keras.ops.conv
        return convolve(
            tensor,
            self.kernel,
            strides=geometry.strides,
            padding=padding,
            dilation_rate=geometry.dilation_rate,
            data_format=geometry.data_format,
        )

    def add_bias(self, preactivation: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return preactivation + _along_channels(bias, self._geometry)

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        shapes = self._by_frequencies() if wanted[0] else None
        if shapes is None:
            return super().backward(cotangents, wanted)
        stacked = self.before_activation(cotangents)
        delta, copies = stacked.by_channel(self.outputs[0]), stacked.copies
        back = fourier.cotangent_of_input(delta, self.kernel, shapes)
        factors = self.factors_of(delta, copies, channels_first=True)
        return [Stacked(back, copies, channels_first=True)], factors

    def transposed_product(self, delta: tf.Tensor, copies: int) -> tf.Tensor:
        geometry = self._geometry
        plain = self.groups == 1 and max(geometry.dilation_rate) == 1 and not self._depthwise
        if not plain or geometry.padding == "causal" or geometry.data_format == "channels_first":
            return _gradient_by_input(self.product, self.tensor, delta, copies)
        n = tf.shape(delta)[0] if delta.shape[0] is None else delta.shape[0]
        shape = [n, *stacking.batch_shape(self.tensor)[1:]]
        return tf.nn.conv_transpose(
            delta, self.kernel, shape, geometry.strides, geometry.padding.upper()
        )

    def _by_frequencies(self) -> fourier.Shapes | None:
        """Return the sizes of a plain convolution that is faster with a Fourier transform."""
        geometry, image = self._geometry, self.tensor.shape[1:-1]
        if len(image) != 2 or None in image or geometry.data_format == "channels_first":
            return None
        steps = max(*geometry.strides, *geometry.dilation_rate)
        if steps > 1 or self.groups > 1 or self._depthwise:
            return None
        if self.kernel.dtype not in (tf.float32, tf.float64):
            return None  # too short for it
        # TensorFlow's products of many small matrices are slow, and the libraries of GPUs choose
        # among such methods themselves.
        fast = host.has_onednn() or host.is_in_xla()
        if not fast or tf.config.get_visible_devices("GPU"):
            return None
        shapes = fourier.Shapes.of(image, geometry.kernel_size, geometry.padding)
        return shapes if fourier.pays(shapes, *self.kernel.shape[2:]) else None

    def by_position(self, ones: bool) -> tf.Tensor:
        tensor = channels_last(self.tensor, self._geometry.data_format)
        return patches(tensor, self._geometry, groups=self.groups, ones=ones)

    def deltas_by_position(self, delta: tf.Tensor) -> tf.Tensor:
        return positions(channels_last(delta, self._geometry.data_format))


class TransposedConvolution(Affine):
    """A layer whose linear part is the transpose of a convolution.

    The roles are exchanged: at each position of the input the kernel multiplies the input's
    channels, and the result is a patch of the output.
    """

    def product(self, tensor: tf.Tensor) -> tf.Tensor:
        layer = self.layer
        return keras.ops.conv_transpose(
            tensor,
            self.kernel,
            strides=tuple(layer.strides),
            padding=layer.padding,
            output_padding=layer.output_padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )

    def add_bias(self, preactivation: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return preactivation + _along_channels(bias, self.layer)

    def transposed_product(self, delta: tf.Tensor, copies: int) -> tf.Tensor:
        return _gradient_by_input(self.product, self.tensor, delta, copies)

    def factors(self, delta: tf.Tensor, copies: int) -> list[Factor]:
        kernel, bias = self.trained
        delta = channels_last(delta, self.layer.data_format)
        found: list[Factor] = []
        if bias is not None:
            matrix = tf.reduce_sum(full_precision(positions(delta)), axis=1)
            found.append(JacobianFactor(matrix, copies, (bias,)))
        if kernel is not None:
            inputs, deltas = self.by_position(ones=False), self.deltas_by_position(delta)
            found.append(AffineFactor(inputs, deltas, copies, 1, kernel, None, self.axes))
        return found

    def by_position(self, ones: bool) -> tf.Tensor:
        return positions(channels_last(self.tensor, self.layer.data_format))

    def deltas_by_position(self, delta: tf.Tensor) -> tf.Tensor:
        return patches(delta, Geometry.of(self.layer))


class Chain(Linearization):
    """A sequence of steps, each with one input and one output."""

    def __init__(self, steps: Sequence[Linearization]):
        self._steps = steps
        self.outputs = steps[-1].outputs

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        found: list[Factor] = []
        for i, step in reversed([*enumerate(self._steps)]):
            cotangents, factors = step.backward(cotangents, [True] if i else wanted)
            found += factors
        return list(cotangents), found


def _along_channels(bias: tf.Tensor, geometry: Any) -> tf.Tensor:
    if geometry.data_format == "channels_last":
        return bias
    return tf.reshape(bias, [1, -1] + [1] * len(geometry.kernel_size))


def _gradient_by_input(
    product: Callable, tensor: tf.Tensor, delta: tf.Tensor, copies: int
) -> tf.Tensor:
    """Return the stacked cotangent of the input of a linear function."""
    # The gradient needs only the shape of the input: in a graph the function of the zeros is never
    # computed.
    zeros = stacking.zeros(tensor, copies)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(zeros)
        outputs = product(zeros)
    return tape.gradient(outputs, zeros, delta)


def _bias(layer: Any) -> keras.Variable | None:
    return layer.bias if layer.use_bias else None


@register_layer_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def conv(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: patches under the filter times derivatives with respect to the pre-activation."""
    layer = call.operation
    if not is_plain(layer):
        return Unknown(call, tensors)
    return Convolution(
        call,
        tensors,
        Geometry.of(layer),
        kernel=layer.kernel,
        bias=_bias(layer),
        activation=layer.activation,
        groups=layer.groups,
    )


def _channels(layer: Any, tensor: tf.Tensor) -> int:
    return tensor.shape[1 if layer.data_format == "channels_first" else -1]


@register_layer_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_conv(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: a convolution with one group per channel."""
    layer = call.operation
    return Convolution(
        call,
        tensors,
        Geometry.of(layer),
        depthwise=True,
        kernel=layer.kernel,
        bias=_bias(layer),
        activation=layer.activation,
        groups=_channels(layer, tensors[0]),
    )


@register_layer_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_conv(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: a depthwise convolution, then a pointwise one."""
    layer = call.operation
    depthwise = Convolution(
        call,
        tensors,
        Geometry.of(layer),
        depthwise=True,
        kernel=layer.depthwise_kernel,
        groups=_channels(layer, tensors[0]),
    )
    pointwise = Convolution(
        call,
        depthwise.outputs,
        Geometry.point(layer),
        kernel=layer.pointwise_kernel,
        bias=_bias(layer),
        activation=layer.activation,
    )
    return Chain([depthwise, pointwise])


@register_layer_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def conv_transpose(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: inputs times patches of the derivatives with respect to the pre-activation."""
    layer = call.operation
    if not is_plain(layer):
        return Unknown(call, tensors)
    rank = layer.rank
    return TransposedConvolution(
        call,
        tensors,
        kernel=layer.kernel,
        bias=_bias(layer),
        activation=layer.activation,
        axes=(rank + 1, *range(rank + 1)),
    )
