"""Structured derivatives of layers that are affine in their weights, and of Dense.

For ``z[p] = x[p] @ kernel + bias`` the derivative of an output with respect to the kernel is the
sum over positions p of ``x[p]^T delta[p]``, where delta is the derivative with respect to z. A
Dense layer on ``[n, k]`` has one position; on ``[n, t, k]`` it has t.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.network import Call, call_on
from keras_ntt.ntk.factors import AffineFactor, Factor, JacobianFactor, full_precision
from keras_ntt.ntk.layer_rules import stacking
from keras_ntt.ntk.layer_rules.base import (
    Cotangents,
    Linearization,
    pass_mask_on,
    register_layer_rule,
)
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.layer_rules.unknown import Unknown
from keras_ntt.ntk.layer_rules.weightless import ELEMENTWISE, Elementwise, General

Gradients = tuple[list[Stacked | None], list[Factor]]


class Affine(Linearization):
    """A layer ``activation(x @ kernel + bias)``; subclasses say what the product is.

    Args:
        call: The call.
        tensors: Its one input.
        kernel: The kernel variable.
        bias: The bias variable, if there is one.
        activation: The function applied to the sum, if there is one.
        groups: The number of groups of channels.
        axes: See `AffineFactor`.
    """

    def __init__(
        self,
        call: Call,
        tensors: Sequence[tf.Tensor],
        *,
        kernel: keras.Variable,
        bias: keras.Variable | None = None,
        activation: Callable | None = None,
        groups: int = 1,
        axes: tuple[int, ...] | None = None,
    ):
        (tensor,) = tensors
        self.layer = call.operation
        self.groups = groups
        self.axes = axes
        self.tensor = tf.cast(tensor, self.layer.compute_dtype)
        self.kernel = self._cast(kernel)
        self.trained = (
            kernel if kernel.trainable else None,
            bias if bias is not None and bias.trainable else None,
        )
        preactivation = self.product(self.tensor)
        if bias is not None:
            preactivation = self.add_bias(preactivation, self._cast(bias))
        self._activated: Linearization | None = None
        if activation in ELEMENTWISE and activation is not keras.activations.linear:
            self._activated = Elementwise(activation, preactivation)
        elif activation not in (None, keras.activations.linear):
            self._activated = General(call_on(activation), [preactivation])
        output = self._activated.outputs[0] if self._activated else preactivation
        pass_mask_on(call, tensors, output)
        self.outputs = [output]

    def _cast(self, variable: keras.Variable) -> tf.Tensor:
        return tf.cast(host.value_of(variable), self.layer.compute_dtype)

    def backward(self, cotangents: Cotangents, wanted: Sequence[bool]) -> Gradients:
        stacked = self.before_activation(cotangents)
        if not wanted[0] and self._few_weights(stacked):
            return [None], [self._winners_jacobian(stacked)]
        delta, copies = stacked.tensor, stacked.copies
        cotangent = None
        if wanted[0]:
            cotangent = stacked.with_rows(self.transposed_product(delta, copies))
        return [cotangent], self.factors(delta, copies)

    def before_activation(self, cotangents: Cotangents) -> Stacked:
        """Return the cotangent of the pre-activation from that of the output."""
        if self._activated is not None:
            cotangents, _ = self._activated.backward(cotangents, [True])
        (stacked,) = cotangents
        assert stacked is not None
        return stacked

    def factors(self, delta: tf.Tensor, copies: int) -> list[Factor]:
        """Return the derivatives with respect to the weights.

        Args:
            delta: The stacked derivative with respect to the pre-activation.
            copies: The number of outputs that are stacked.

        Returns:
            The factors of the trainable weights.
        """
        if all(variable is None for variable in self.trained):
            return []
        return self.factors_of(self.deltas_by_position(delta), copies)

    def factors_of(
        self, deltas: tf.Tensor, copies: int, *, channels_first: bool = False
    ) -> list[Factor]:
        """Do the same from the deltas of an `AffineFactor`."""
        kernel, bias = self.trained
        found: list[Factor] = []
        axis = 2 if channels_first else 1
        # One more input for the bias costs nothing at one position. At many positions it would make
        # rows of odd length, for which the large products that follow are slower.
        if bias is not None and (kernel is None or deltas.shape[axis] != 1):
            summed = tf.reduce_sum(full_precision(deltas), axis)
            found.append(JacobianFactor(summed, copies, (bias,)))
            bias = None
        if kernel is not None:
            inputs = self.by_position(ones=bias is not None)
            found.append(
                AffineFactor(
                    inputs, deltas, copies, self.groups, kernel, bias, self.axes, channels_first
                )
            )
        return found

    def _few_weights(self, stacked: Stacked) -> bool:
        """Tell whether `_winners_jacobian` applies and is smaller than the whole cotangent."""
        kernel, _ = self.trained
        last = getattr(self.layer, "data_format", "channels_last") != "channels_first"
        if stacked.window is None or kernel is None or self.groups > 1 or self.axes or not last:
            return False
        return math.prod(kernel.shape[:-1]) < stacked.copies * math.prod(stacked.window)

    def _winners_jacobian(self, stacked: Stacked) -> JacobianFactor:
        """Return the derivative with respect to the weights where each window has one cotangent.

        Only the inputs of the winning entry of each window are used. They depend on the output
        channel, but not on the output of the network.
        """
        copies, window = stacked.copies, stacked.window
        assert stacked.factor is not None
        assert window is not None
        patches = full_precision(self.by_position(ones=self.trained[1] is not None))
        (*spatial, channels), k = stacked.factor.shape[1:], patches.shape[-1]
        factor = stacking.windows_of(full_precision(stacked.factor), window)
        rows = full_precision(stacked.rows)
        if stacked.channels_first:
            rows = tf.reshape(rows, [-1, copies, channels, factor.shape[1]])
            rows = tf.transpose(rows, [0, 2, 1, 3])
        else:
            rows = tf.reshape(rows, [-1, copies, factor.shape[1], channels])
            rows = tf.transpose(rows, [0, 3, 1, 2])
        if len(window) < 3:
            rows *= tf.transpose(tf.reduce_sum(factor, axis=2), [0, 2, 1])[:, :, None]
            places = tf.transpose(stacking.places_of_winners(factor, window, spatial), [0, 2, 1])
            n, count = tf.shape(patches)[0], patches.shape[1]
            places += tf.reshape(tf.range(n) * count, [-1, 1, 1])
            inputs = tf.gather(tf.reshape(patches, [-1, k]), places)
        else:  # all equal entries win
            patches = stacking.windows_of(tf.reshape(patches, [-1, *spatial, k]), window)
            inputs = tf.transpose(tf.matmul(factor, patches, transpose_a=True), [0, 2, 1, 3])
        jacobian = tf.matmul(rows, inputs)  # [n, o, c, k]
        matrix = tf.reshape(tf.transpose(jacobian, [0, 2, 3, 1]), [-1, k * channels])
        return JacobianFactor(matrix, copies, tuple(v for v in self.trained if v is not None))

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
        """Return the inputs that the weights multiply, ``[n, positions, groups * k]``.

        Args:
            ones: Whether to append a 1, the input of the bias, to each group.
        """

    @abstractmethod
    def deltas_by_position(self, delta: tf.Tensor) -> tf.Tensor:
        """Return the stacked delta as ``[n * c, positions, groups * o]``."""


class DenseAffine(Affine):
    """`keras.layers.Dense` on ``[n, ..., k]``."""

    def product(self, tensor: tf.Tensor) -> tf.Tensor:
        return keras.ops.matmul(tensor, self.kernel)

    def transposed_product(self, delta: tf.Tensor, copies: int) -> tf.Tensor:
        return keras.ops.matmul(delta, tf.transpose(self.kernel))

    def by_position(self, ones: bool) -> tf.Tensor:
        return with_ones(positions(self.tensor), ones)

    def deltas_by_position(self, delta: tf.Tensor) -> tf.Tensor:
        return positions(delta)


def positions(x: tf.Tensor) -> tf.Tensor:
    """Merge the middle axes of ``[n, ..., channels]`` to one."""
    count = x.shape[1:-1].num_elements()
    if count is None:
        count = tf.reduce_prod(tf.shape(x)[1:-1])
    return tf.reshape(x, [-1, count, x.shape[-1]])


def with_ones(x: tf.Tensor, ones: bool, groups: int = 1) -> tf.Tensor:
    """End each group of the last axis of ``[n, positions, groups * k]`` with a 1, if asked."""
    if not ones:
        return x
    if groups == 1:
        return tf.concat([x, tf.ones_like(x[..., :1])], axis=-1)
    size = x.shape[-1] // groups
    count = tf.shape(x)[1] if x.shape[1] is None else x.shape[1]
    x = tf.reshape(x, [-1, count, groups, size])
    x = tf.concat([x, tf.ones_like(x[..., :1])], axis=-1)
    return tf.reshape(x, [-1, count, groups * (size + 1)])


def sum_to(rows: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Sum a stacked cotangent over the axes along which a weight is broadcast.

    Args:
        rows: ``[n * c, ...]``.
        shape: The shape of a weight that broadcasts to ``[...]`` from the right.

    Returns:
        ``[n * c, entries of the weight]``.
    """
    full = [1] * (rows.shape.rank - 1 - len(shape)) + list(shape)
    over = [
        1 + i
        for i, (s, t) in enumerate(zip(full, rows.shape[1:], strict=True))
        if s == 1 and t != 1
    ]
    rows = tf.reduce_sum(rows, axis=over) if over else rows
    return tf.reshape(rows, [-1, math.prod(shape)])


def is_plain(layer: keras.layers.Layer) -> bool:
    """Tell whether the layer's kernel is one variable, neither LoRA-adapted nor quantized."""
    return not getattr(layer, "lora_enabled", False) and (
        getattr(layer, "quantization_mode", None) is None
    )


@register_layer_rule(layers.Dense)
def dense(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: inputs times derivatives with respect to the pre-activation."""
    layer = call.operation
    if not is_plain(layer):
        return Unknown(call, tensors)
    bias = layer.bias if layer.use_bias else None
    return DenseAffine(call, tensors, kernel=layer.kernel, bias=bias, activation=layer.activation)
