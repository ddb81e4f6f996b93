"""Rules for layers and operations without trainable weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from keras import activations, layers

from keras_ntt.core import host
from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import Factor
from keras_ntt.ntk.layer_rules import stacking
from keras_ntt.ntk.layer_rules.base import Cotangents, Linearization, register_layer_rule
from keras_ntt.ntk.layer_rules.stacking import Stacked

Gradients = tuple[list[Stacked | None], list[Factor]]

# Elementwise functions: the derivative is one number per entry.
ELEMENTWISE: frozenset[Callable] = frozenset(
    getattr(activations, name)
    for name in (
        "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu",
        "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu",
        "sigmoid", "silu", "soft_shrink", "softplus", "softsign", "squareplus", "tanh",
        "tanh_shrink", "threshold",
    )
    if hasattr(activations, name)
)  # fmt: skip


def is_floating(tensor: tf.Tensor) -> bool:
    """Tell whether a tensor can carry a derivative."""
    return tensor.dtype.is_floating


class General(Linearization):
    """Any operation: a tape takes its gradient, on the batch repeated once per output."""

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        self._call = call
        self._tensors = list(tensors)
        self._masks = masks_of(tensors)
        self.outputs = call.run(*tensors)

    def backward(self, cotangents: Cotangents, wanted: Sequence[bool]) -> Gradients:
        copies = copies_of(cotangents)
        return _by_tape(self._call, self._repeated(copies), cotangents, wanted), []

    def _repeated(self, copies: int) -> list[tf.Tensor]:
        """Return the rows to differentiate."""
        return repeated(self._tensors, self._masks, copies)


class Linear(General):
    """A linear operation: its gradient does not depend on the values of the inputs."""

    def _repeated(self, copies: int) -> list[tf.Tensor]:
        # In a graph the operation on the zeros is dead code: only their shape is used.
        return [stacking.zeros(tensor, copies) for tensor in self._tensors]


def masks_of(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor | None]:
    """Return the timestep masks of a call's inputs. Call it before the call.

    Keras's attention removes the masks from its inputs while it runs.
    """
    return [host.get_mask(tensor) for tensor in tensors]


def repeated(
    tensors: Sequence[tf.Tensor], masks: Sequence[tf.Tensor | None], copies: int
) -> list[tf.Tensor]:
    """Return a call's inputs with a row for each sample and output, and with their masks."""
    found = []
    for tensor, mask in zip(tensors, masks, strict=True):
        rows = stacking.repeat(tensor, copies)
        if mask is not None:
            host.set_mask(rows, stacking.repeat(mask, copies))
        found.append(rows)
    return found


def copies_of(cotangents: Cotangents) -> int:
    """Return the number of outputs in stacked cotangents."""
    return next(ct.copies for ct in cotangents if ct is not None)


def _by_tape(
    call: Call, tensors: list[tf.Tensor], cotangents: Cotangents, wanted: Sequence[bool]
) -> list[Stacked | None]:
    copies = copies_of(cotangents)
    chosen = [w and is_floating(t) for t, w in zip(tensors, wanted, strict=True)]
    sources = [t for t, take in zip(tensors, chosen, strict=True) if take]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        outputs = call.run(*tensors)
    used = [(y, ct) for y, ct in zip(outputs, cotangents, strict=True) if ct is not None]
    gradients = tape.gradient(
        [y for y, _ in used], sources, [tf.cast(ct.tensor, y.dtype) for y, ct in used]
    )
    found = (
        None if gradient is None else Stacked(_shaped_like(source, gradient), copies)
        for source, gradient in zip(sources, gradients, strict=True)
    )
    return [next(found) if take else None for take in chosen]


def _shaped_like(source: tf.Tensor, gradient: Any) -> tf.Tensor:
    """Return a gradient as a tensor of known shape."""
    gradient = tf.convert_to_tensor(gradient)  # the gradient of tf.gather is slices
    gradient.set_shape(source.shape)  # the gradient of tf.py_function has no shape
    return gradient


class Reshaped(Linearization):
    """An operation that does not change the entries of a sample or their order."""

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        self._like = tensors[0]
        self.outputs = call.run(*tensors)

    def backward(self, cotangents: Cotangents, wanted: Sequence[bool]) -> Gradients:
        (cotangent,) = cotangents
        assert cotangent is not None
        back = tf.reshape(cotangent.tensor, stacking.batch_shape(self._like))
        back = stacking.restack(back, self._like, cotangent.copies)
        return [cotangent.with_rows(back)], []


class Elementwise(Linearization):
    """An elementwise function: one derivative per entry serves all outputs."""

    def __init__(self, function: Callable, tensor: tf.Tensor, output: tf.Tensor | None = None):
        self._function = function
        self._tensor = tensor
        self.outputs = [function(tensor) if output is None else output]

    def backward(self, cotangents: Cotangents, wanted: Sequence[bool]) -> Gradients:
        (cotangent,) = cotangents
        assert cotangent is not None
        if self._function is activations.linear:
            return [cotangent], []
        if self._function is activations.relu:
            return [cotangent.where_positive(self.outputs[0])], []
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._tensor)
            values = self._function(self._tensor)
        return [cotangent.scaled(tape.gradient(values, self._tensor))], []


class MaxPooled(Linearization):
    """Maxima over windows that do not overlap: the cotangent of each goes to its one winner."""

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        self._call = call
        (self._tensor,) = tensors
        self.outputs = call.run(*tensors)

    def backward(self, cotangents: Cotangents, wanted: Sequence[bool]) -> Gradients:
        (cotangent,) = cotangents
        assert cotangent is not None
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._tensor)
            pooled = self._call.run(self._tensor)
        winners = tf.stop_gradient(tape.gradient(pooled, self._tensor))
        window = tuple(self._call.operation.pool_size)
        return [cotangent.over_windows(window, tf.cast(winners, cotangent.rows.dtype))], []


@register_layer_rule(layers.Flatten, layers.Reshape, layers.Dropout, layers.SpatialDropout1D,
          layers.SpatialDropout2D, layers.SpatialDropout3D, layers.GaussianNoise,
          layers.GaussianDropout, layers.AlphaDropout, layers.ActivityRegularization,
          layers.Identity)  # fmt: skip
def reshaped(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Layers that change only the shape in inference mode."""
    (tensor,) = tensors
    moves = getattr(call.operation, "data_format", None) == "channels_first"
    if moves and isinstance(call.operation, layers.Flatten) and tensor.shape.rank > 2:
        return Linear(call, tensors)
    return Reshaped(call, tensors)


@register_layer_rule(layers.Add, layers.Subtract, layers.Average, layers.Concatenate,
          layers.Permute,
          layers.RepeatVector, layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
          layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, layers.AveragePooling1D,
          layers.AveragePooling2D, layers.AveragePooling3D, layers.GlobalAveragePooling2D,
          layers.GlobalAveragePooling3D)  # fmt: skip
def linear(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Layers that are linear in their inputs."""
    if len({t.dtype for t in tensors}) > 1 or not all(map(is_floating, tensors)):
        return General(call, tensors)
    return Linear(call, tensors)


@register_layer_rule(layers.Activation)
def activation(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Activations, elementwise if possible."""
    function = call.operation.activation
    if function not in ELEMENTWISE or len(tensors) != 1:
        return General(call, tensors)
    (output,) = call.run(*tensors)
    return Elementwise(function, tensors[0], output)


@register_layer_rule(layers.ReLU, layers.LeakyReLU, layers.ELU)
def activation_layer(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Layers that apply one function to each entry."""
    (tensor,) = tensors
    return Elementwise(lambda x: call.run(x)[0], tensor)


@register_layer_rule(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D)
def max_pooling(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Maximum over windows; a faster form where the windows do not overlap."""
    layer = call.operation
    disjoint = (
        tuple(layer.strides) == tuple(layer.pool_size)
        and layer.padding == "valid"
        and layer.data_format == "channels_last"
        and None not in tensors[0].shape[1:]
    )
    return MaxPooled(call, tensors) if disjoint else General(call, tensors)


def by_default(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Anything else without weights."""
    return General(call, tensors)
