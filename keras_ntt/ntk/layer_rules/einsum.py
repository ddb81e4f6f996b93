"""Structured derivatives of einsums of an input and a kernel: EinsumDense."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import layers

from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import Factor, JacobianFactor, full_precision
from keras_ntt.ntk.layer_rules.affine import Affine, is_plain, sum_to, with_ones
from keras_ntt.ntk.layer_rules.base import Linearization, register_layer_rule
from keras_ntt.ntk.layer_rules.unknown import Unknown


class Labels(NamedTuple):
    """The axes of an einsum ``x, kernel -> y`` by their role.

    Attributes:
        x: Labels of the input.
        w: Labels of the kernel.
        y: Labels of the output.
        p: Those of only input and output: positions.
        k: Those that are summed.
        g: Those of all three: groups.
        o: Those of only kernel and output.
    """

    x: str
    w: str
    y: str
    p: str
    k: str
    g: str
    o: str


def labels_of(equation: str, rank: int) -> Labels | None:
    """Parse an einsum equation of two operands; None if it has another form.

    >>> labels_of("...k,ko->...o", 3)
    Labels(x='ABk', w='ko', y='ABo', p='B', k='k', g='', o='o')
    >>> labels_of("ab,bc->c", 2) is None  # sums over samples
    True
    """
    left, _, y = equation.replace(" ", "").partition("->") if isinstance(equation, str) else "   "
    x, _, w = left.partition(",")
    dots = "ABCDEFGHIJ"[: rank - len(x.replace("...", ""))]
    x, y = x.replace("...", dots), y.replace("...", dots)
    k = "".join(a for a in w if a in x and a not in y)
    g = "".join(a for a in w if a in x and a in y)
    o = "".join(a for a in w if a not in x)
    p = "".join(a for a in x[1:] if a in y and a not in w)
    distinct = all(len(set(labels)) == len(labels) for labels in (x, w, y))
    whole = set(x) <= set(w + y) and set(o) <= set(y) and set(y) <= set(x + w)
    sample = "" != x[:1] == y[:1] and x[0] not in w
    return Labels(x, w, y, p, k, g, o) if distinct and whole and sample and "," not in w else None


class Einsum(Affine):
    """A layer ``activation(einsum(equation, x, kernel) + bias)``.

    Args:
        call: The call.
        tensors: Its one input.
        equation: An equation ``"x,kernel->y"``, whose first axis is that of the samples.
        kernel: The kernel variable.
        bias: The bias variable, broadcast to the output from the right.
        activation: The function applied to the sum, if there is one.

    Raises:
        ValueError: If the equation does not treat samples one by one.
    """

    def __init__(
        self,
        call: Call,
        tensors: Sequence[tf.Tensor],
        equation: str,
        *,
        kernel: keras.Variable,
        bias: keras.Variable | None = None,
        activation: Callable | None = None,
    ):
        found = labels_of(equation, tensors[0].shape.rank)
        if found is None:
            raise ValueError(
                "equation must be of the form 'x,kernel->y', with the axis of the samples first "
                f"in x and y and not in the kernel. Received: equation={equation!r}"
            )
        self._labels = found
        sizes = dict(zip(found.w, kernel.shape, strict=True))
        super().__init__(
            call,
            tensors,
            kernel=kernel,
            bias=bias,
            activation=activation,
            groups=math.prod(sizes[a] for a in found.g),
            axes=tuple(found.w.index(a) for a in found.k + found.g + found.o),
        )
        own = found.g + found.o
        self._bias_is_an_input = bias is None or (
            found.y.endswith(own) and tuple(bias.shape) == tuple(sizes[a] for a in own)
        )

    def product(self, tensor: tf.Tensor) -> tf.Tensor:
        x, w, y, *_ = self._labels
        return tf.einsum(f"{x},{w}->{y}", tensor, self.kernel)

    def transposed_product(self, delta: tf.Tensor, copies: int) -> tf.Tensor:
        x, w, y, *_ = self._labels
        return tf.einsum(f"{y},{w}->{x}", delta, self.kernel)

    def factors(self, delta: tf.Tensor, copies: int) -> list[Factor]:
        kernel, bias = self.trained
        if self._bias_is_an_input or bias is None:
            return super().factors(delta, copies)
        matrix = sum_to(full_precision(delta), bias.shape)
        found: list[Factor] = [JacobianFactor(matrix, copies, (bias,))]
        if kernel is not None:
            self.trained = (kernel, None)
            found += super().factors(delta, copies)
        return found

    def by_position(self, ones: bool) -> tf.Tensor:
        _, _, _, p, k, g, _ = self._labels
        return with_ones(self._ordered(self.tensor, self._labels.x, p, g + k), ones, self.groups)

    def deltas_by_position(self, delta: tf.Tensor) -> tf.Tensor:
        _, _, y, p, _, g, o = self._labels
        return self._ordered(delta, y, p, g + o)

    def _ordered(self, x: tf.Tensor, labels: str, p: str, channels: str) -> tf.Tensor:
        """Return a tensor as ``[n, positions, channels]``."""
        order = [0, *(labels.index(a) for a in p + channels)]
        x = tf.transpose(x, order)
        count = x.shape[1 : 1 + len(p)].num_elements()
        if count is None:
            count = tf.reduce_prod(tf.shape(x)[1 : 1 + len(p)])
        size = x.shape[1 + len(p) :].num_elements()
        return tf.reshape(x, [-1, count, size])


@register_layer_rule(layers.EinsumDense)
def einsum_dense(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: inputs times derivatives with respect to the pre-activation, any equation."""
    layer = call.operation
    if not is_plain(layer) or labels_of(layer.equation, tensors[0].shape.rank) is None:
        return Unknown(call, tensors)
    return Einsum(
        call,
        tensors,
        layer.equation,
        kernel=layer.kernel,
        bias=layer.bias,
        activation=layer.activation,
    )
