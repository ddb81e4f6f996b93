"""Layers whose output is elementwise affine in their weights: normalizations, PReLU.

For ``y = basis_0(x) + sum_v v * basis_v(x)``, with each weight v broadcast to the shape of y, the
derivative of an output with respect to v is the sum of ``delta * basis_v`` over the axes along
which v is broadcast. The bases are found by running the layer with its weights set to 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import Factor, JacobianFactor, full_precision
from keras_ntt.ntk.layer_rules.affine import sum_to
from keras_ntt.ntk.layer_rules.base import Cotangents, Linearization, register_layer_rule
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.layer_rules.unknown import Unknown
from keras_ntt.ntk.layer_rules.weightless import Elementwise, General


class Entrywise(Linearization):
    """A layer whose output is an elementwise affine function of its weights.

    Args:
        call: The call.
        tensors: Its one input.
        shape_of: The shape with which a weight broadcasts to a sample of the output; None takes the
            shape of the weight.
        entries_apart: Whether an entry of the output depends only on the same entry of the input.
            Its derivative is then one number per entry, for all outputs of the network.
    """

    def __init__(
        self,
        call: Call,
        tensors: Sequence[tf.Tensor],
        *,
        shape_of: Callable[[keras.Variable], Sequence[int]] | None = None,
        entries_apart: bool = False,
    ):
        self._call = call
        self._tensors = list(tensors)
        self._shape_of = shape_of or (lambda variable: variable.shape)
        self._way_back: Linearization = General(call, tensors)
        if entries_apart:
            output = self._way_back.outputs[0]
            self._way_back = Elementwise(lambda x: call.run(x)[0], tensors[0], output)
        self.outputs = self._way_back.outputs

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        (stacked,) = cotangents
        assert stacked is not None
        factors: list[Factor] = []
        for variable, basis in self._bases():
            rows = stacked.tensor if basis is None else stacked.scaled(basis).tensor
            matrix = sum_to(full_precision(rows), self._shape_of(variable))
            factors.append(JacobianFactor(matrix, stacked.copies, (variable,)))
        if not any(wanted):
            return [None], factors
        back, _ = self._way_back.backward(cotangents, wanted)
        return back, factors

    def _bases(self) -> list[tuple[keras.Variable, tf.Tensor | None]]:
        """Return the derivative of the output with respect to each weight; None is 1 everywhere."""
        layer, weights = self._call.operation, self._call.weights
        fixed = {id(v): (v, host.value_of(v)) for v in layer.variables}
        zero = fixed | {id(v): (v, tf.zeros(v.shape, v.dtype)) for v in weights}
        with host.values_in_place(zero):
            (start,) = self._call.run(*self._tensors)
        bases: list[tuple[keras.Variable, tf.Tensor | None]] = []
        for variable in weights:
            if variable is getattr(layer, "beta", None):
                bases.append((variable, None))
                continue
            one = {id(variable): (variable, tf.ones(variable.shape, variable.dtype))}
            with host.values_in_place(zero | one):
                (end,) = self._call.run(*self._tensors)
            bases.append((variable, end - start))
        return bases


def _at(axes: int | Sequence[int], rank: int) -> Callable[[keras.Variable], list[int]]:
    """Return a function that aligns a weight's axes with those of a sample of the output."""
    chosen = [axes] if isinstance(axes, int) else list(axes)
    places = sorted(axis % rank for axis in chosen)

    def shape_of(variable: keras.Variable) -> list[int]:
        sizes = dict(zip(places, variable.shape, strict=True))
        return [sizes.get(axis, 1) for axis in range(1, rank)]

    return shape_of


@register_layer_rule(layers.BatchNormalization)
def batch_normalization(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: derivatives times the normalized input, with the moving statistics."""
    if len(tensors) > 1:  # a mask
        return Unknown(call, tensors)
    shape_of = _at(call.operation.axis, tensors[0].shape.rank)
    return Entrywise(call, tensors, shape_of=shape_of, entries_apart=True)


def normalization(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: derivatives times the normalized input."""
    shape_of = _at(call.operation.axis, tensors[0].shape.rank)
    return Entrywise(call, tensors, shape_of=shape_of)


for _name in ("LayerNormalization", "GroupNormalization", "RMSNormalization"):
    if hasattr(layers, _name):  # not all are in the oldest Keras
        register_layer_rule(getattr(layers, _name))(normalization)


@register_layer_rule(layers.PReLU)
def prelu(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: derivatives times the negative part of the input."""
    return Entrywise(call, tensors, entries_apart=True)
