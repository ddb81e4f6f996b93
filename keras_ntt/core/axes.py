"""The meaning of the axes of a layer's kernel: positions of a filter, inputs, outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_ntt.core import host

_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


@dataclass(frozen=True)
class Axes:
    """The axes of one kernel, in three groups.

    Attributes:
        positions: Those along which a filter moves.
        inputs: Those that count input channels; none where each output reads its own channel.
        outputs: Those that count output channels.
    """

    positions: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """All axes: positions, inputs, outputs."""
        return (*self.positions, *self.inputs, *self.outputs)

    def ordered(self, kernel: tf.Tensor) -> tf.Tensor:
        """Return a kernel in the order of an ordinary layer, ``[positions ..., inputs, outputs]``.

        >>> query = axes_of(layers.EinsumDense("abc,cde->abde", (None, 2, 4)), 3)
        >>> query.ordered(tf.ones([16, 2, 4])).shape.as_list()
        [16, 8]
        """
        positions = [kernel.shape[axis] for axis in self.positions]
        inputs, outputs = (
            math.prod(kernel.shape[axis] for axis in axes) for axes in (self.inputs, self.outputs)
        )
        return tf.reshape(tf.transpose(kernel, self.order), [*positions, inputs, outputs])

    def restored(self, ordered: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        """Return a result of `ordered` in the original shape of the kernel."""
        apart = tf.reshape(ordered, [shape[axis] for axis in self.order])
        return tf.transpose(apart, np.argsort(self.order))


def axes_of(layer: Any, rank: int) -> Axes:
    """Return the meaning of the axes of a layer's kernel.

    Args:
        layer: The layer, None if it is not known.
        rank: The number of the kernel's axes.

    Returns:
        The `Axes`. For an unknown layer the outputs are last and the inputs before them.

    >>> axes_of(layers.Conv2D(4, 3), 4)
    Axes(positions=(0, 1), inputs=(2,), outputs=(3,))
    >>> axes_of(layers.Conv2DTranspose(4, 3), 4)
    Axes(positions=(0, 1), inputs=(3,), outputs=(2,))
    """
    outputs = _outputs(layer, rank)
    rest = tuple(axis for axis in range(rank) if axis not in outputs)
    if isinstance(layer, _DEPTHWISE):
        return Axes(rest, (), outputs)
    if isinstance(layer, layers.EinsumDense):
        return Axes((), rest, outputs)
    return Axes(rest[:-1], rest[-1:], outputs)


def _outputs(layer: Any, rank: int) -> tuple[int, ...]:
    """Return the axes that count outputs: the last, for most layers."""
    if isinstance(layer, _DEPTHWISE):
        return (rank - 2, rank - 1)
    if isinstance(layer, _TRANSPOSED):
        return (rank - 2,)
    if isinstance(layer, layers.EinsumDense):
        operands, _, y = layer.equation.replace(" ", "").partition("->")
        kernel = operands.partition(",")[2]
        if len(kernel) == rank:
            return tuple(axis for axis, label in enumerate(kernel) if label in y)
    return (rank - 1,) if rank > 1 else ()


def axes_of_weights(model: keras.Model, variables: Sequence[keras.Variable]) -> tuple[Axes, ...]:
    """Return the axes of some trainable variables of a model."""
    layer_of = {id(v): layer for layer in host.layers_of(model) for v in host.own_variables(layer)}
    return tuple(axes_of(layer_of.get(id(v)), len(v.shape)) for v in variables)
