"""The derivative of the outputs with respect to a layer's weights, in several forms.

The tangent kernel is a sum over weights of ``J(x1) @ J(x2)^T``, where a row of the Jacobian ``J``
``[n * c, size]`` is the derivative of one output of one sample. For a layer that is linear in
its weights the Jacobian is a sum over positions p of (layer input) x (derivative with respect to
the pre-activation). The product can be computed without forming it, by the structured derivatives
of Novak, Sohl-Dickstein & Schoenholz, "Fast Finite Width Neural Tangent Kernel" (ICML 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

# Samples in half a batch, where a graph is made for batches of any size.
_USUAL_SAMPLES = 32
# Factors with the same values of these can be joined.
_LAYOUT = ("axes", "groups", "channels_first")
# The cost of reading a number, in multiply-adds of a matrix product.
_PASSES = 20


@dataclass(frozen=True, eq=False)
class AffineFactor:
    """Derivatives with respect to kernel and bias of a layer ``z[p] = x[p] @ kernel + bias``.

    With g groups the channels of input and output are divided into g equal parts that do not mix.
    The bias is the weight of an additional input that is always 1.

    Attributes:
        inputs: The inputs that the weights multiply, ``[n, p, g * k]``. If there is a bias, the
            last entry of each group is its input, 1.
        deltas: Derivative of the outputs with respect to z, stacked: ``[n * c, p, g * o]``.
        copies: The number c of outputs.
        groups: The number g of groups.
        kernel: The kernel variable.
        bias: The bias variable ``[g * o]``; None if there is none, it is frozen or in another
            factor.
        axes: The kernel's axes in the order of ``[k, g, o]``; None if they are in that order.
        channels_first: Whether the deltas are ``[n * c, o, p]``; for one group.
    """

    inputs: tf.Tensor
    deltas: tf.Tensor
    copies: int
    groups: int
    kernel: keras.Variable
    bias: keras.Variable | None
    axes: tuple[int, ...] | None = None
    channels_first: bool = False

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """The variables of these derivatives."""
        return (self.kernel,) if self.bias is None else (self.kernel, self.bias)


@dataclass(frozen=True, eq=False)
class JacobianFactor:
    """Derivatives with respect to a set of weights, as a matrix.

    Attributes:
        matrix: ``[n * c, size]``.
        copies: The number c of outputs.
        variables: The variables that the columns stand for, in order.
    """

    matrix: tf.Tensor
    copies: int
    variables: tuple[keras.Variable, ...]


@dataclass(frozen=True, eq=False)
class LookupFactor:
    """Derivatives with respect to a table of which each position reads one row.

    Attributes:
        indices: The rows that are read, ``[n, p]``.
        deltas: Derivative of the outputs with respect to the rows read, stacked: ``[n * c, p, d]``.
        copies: The number c of outputs.
        table: The variable, ``[rows, d]``.
    """

    indices: tf.Tensor
    deltas: tf.Tensor
    copies: int
    table: keras.Variable

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """The variable of these derivatives."""
        return (self.table,)


Factor = AffineFactor | JacobianFactor | LookupFactor
Masks = Mapping[int, tf.Tensor]
"""``id(variable) -> 0/1 tensor`` of the variable's shape: the entries that count."""


def full_precision(x: tf.Tensor) -> tf.Tensor:
    """Return a tensor in at least float32: sums over weights need the precision."""
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


def cast(factor: Factor, dtype: tf.DType) -> Factor:
    """Return a factor with all derivatives in one float type."""
    fields = {"inputs", "deltas", "matrix"} & set(vars(factor))
    return replace(factor, **{name: tf.cast(getattr(factor, name), dtype) for name in fields})


def gather(factors: Iterable[Factor]) -> list[Factor]:
    """Add up the derivatives with respect to the same variable.

    A layer that is called several times has one factor per call. The Jacobians of the calls are
    added, so the kernel has cross terms between the calls.

    Args:
        factors: One factor per call.

    Returns:
        Factors of which no two share a variable.
    """
    by_weights: dict[tuple[int, ...], list[Factor]] = {}
    for factor in factors:
        by_weights.setdefault(tuple(id(v) for v in factor.variables), []).append(factor)
    merged = [_add(group) for group in by_weights.values()]
    uses: dict[int, int] = {}
    for factor in merged:
        for variable in factor.variables:
            uses[id(variable)] = uses.get(id(variable), 0) + 1
    own = [f for f in merged if all(uses[id(v)] == 1 for v in f.variables)]
    tied = [f for f in merged if any(uses[id(v)] > 1 for v in f.variables)]
    return own + _add_by_variable(tied)


def _add(group: Sequence[Factor]) -> Factor:
    first = group[0]
    if len(group) == 1:
        return first
    kinds = {type(f) for f in group}
    layouts = {tuple(getattr(f, name, None) for name in _LAYOUT) for f in group}
    if len(kinds) == len(layouts) == 1 and not isinstance(first, JacobianFactor):
        # The calls are more positions of the same weights.
        axes = {"indices": 1, "deltas": 1}
        if isinstance(first, AffineFactor):
            axes = {"inputs": 1, "deltas": 2 if first.channels_first else 1}
        joined = {
            name: tf.concat([getattr(f, name) for f in group], axis) for name, axis in axes.items()
        }
        return replace(first, **joined)
    matrices = [to_jacobian(f).matrix for f in group]
    return JacobianFactor(tf.add_n(matrices), first.copies, first.variables)


def _add_by_variable(factors: Sequence[Factor]) -> list[Factor]:
    """Add factors that overlap in some of their variables, variable by variable."""
    sums: dict[int, JacobianFactor] = {}
    for factor in map(to_jacobian, factors):
        sizes = [size_of(v) for v in factor.variables]
        parts = tf.split(factor.matrix, sizes, axis=1)
        for variable, part in zip(factor.variables, parts, strict=True):
            if id(variable) in sums:
                part = part + sums[id(variable)].matrix
            sums[id(variable)] = JacobianFactor(part, factor.copies, (variable,))
    return list(sums.values())


def size_of(variable: keras.Variable) -> int:
    """Return the number of entries of a variable."""
    return math.prod(variable.shape)


def to_jacobian(factor: Factor) -> JacobianFactor:
    """Return a factor as a matrix, with columns in the order of the entries of the variables."""
    if isinstance(factor, JacobianFactor):
        return factor
    if isinstance(factor, LookupFactor):
        rows, d = factor.table.shape
        sums = add_by_row(factor, factor.indices, rows)
        return JacobianFactor(tf.reshape(sums, [-1, rows * d]), factor.copies, factor.variables)
    _, k, o = sizes_of(factor)
    blocks = tf.reshape(affine_jacobian(factor), [-1, factor.groups * o, k])
    columns = tf.transpose(blocks, [0, 2, 1])  # kernel [k, g * o], then the bias [g * o]
    if factor.axes is not None:
        shape = [factor.kernel.shape[axis] for axis in factor.axes]
        back = [1 + factor.axes.index(axis) for axis in range(len(shape))]
        kernel = columns if factor.bias is None else columns[:, :-1]
        kernel = tf.transpose(tf.reshape(kernel, [-1, *shape]), [0, *back])
        parts = [kernel] if factor.bias is None else [kernel, columns[:, -1]]
        size = math.prod(shape)
        matrix = tf.concat([tf.reshape(p, [tf.shape(p)[0], -1]) for p in parts], axis=1)
        matrix.set_shape([None, size + (0 if factor.bias is None else factor.groups * o)])
    else:
        matrix = tf.reshape(columns, [-1, k * factor.groups * o])
    return JacobianFactor(matrix, factor.copies, factor.variables)


def add_by_row(factor: LookupFactor, slots: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
    """Sum deltas for each row of the table that was read.

    Args:
        factor: The derivatives.
        slots: For each position the index of its row in the result, ``[n, p]``. Positions with a
            negative index are left out.
        count: Number of rows of the result.

    Returns:
        ``[n * c, count, d]``.
    """
    c, d = factor.copies, factor.deltas.shape[-1]
    n, p = tf.shape(slots)[0], tf.shape(slots)[1]
    places = slots + tf.range(n)[:, None] * count
    places = tf.where(slots < 0, slots, places)
    deltas = tf.transpose(tf.reshape(factor.deltas, [n, c, p, d]), [0, 2, 1, 3])
    sums = tf.math.unsorted_segment_sum(deltas, places, n * count)  # [n * count, c, d]
    sums = tf.transpose(tf.reshape(sums, [n, count, c, d]), [0, 2, 1, 3])
    return tf.reshape(sums, [n * c, count, d])


def affine_jacobian(factor: AffineFactor) -> tf.Tensor:
    """Return the derivative with respect to kernel and bias, ``[n * c, g * o * k]``."""
    c, g = factor.copies, factor.groups
    positions, k, o = sizes_of(factor)
    if g == 1:
        deltas = factor.deltas
        if not factor.channels_first:
            deltas = tf.transpose(deltas, [0, 2, 1])
        deltas = tf.reshape(deltas, [-1, c, o, positions])
        return tf.reshape(_sum_over_positions(factor.inputs, deltas), [-1, o * k])
    deltas = tf.reshape(factor.deltas, [-1, c, positions, g, o])
    deltas = tf.reshape(tf.transpose(deltas, [0, 3, 1, 4, 2]), [-1, c, o, positions])
    inputs = tf.reshape(factor.inputs, [-1, positions, g, k])
    inputs = tf.reshape(tf.transpose(inputs, [0, 2, 1, 3]), [-1, positions, k])
    jacobian = tf.reshape(_sum_over_positions(inputs, deltas), [-1, g, c, o, k])
    return tf.reshape(tf.transpose(jacobian, [0, 2, 1, 3, 4]), [-1, g * o * k])


@tf.custom_gradient
def _sum_over_positions(inputs: tf.Tensor, deltas: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Return ``sum_p deltas[n, c, o, p] * inputs[n, p, k]`` as ``[n, c, o, k]``.

    The gradient is written out because TensorFlow's gradient repeats the inputs once per output.
    With this order of axes none of its products needs a transpose.
    """
    k = inputs.shape[2]
    _, c, o, _ = deltas.shape
    positions = tf.shape(inputs)[1] if inputs.shape[1] is None else inputs.shape[1]
    flat = tf.reshape(deltas, [-1, c * o, positions])
    product = tf.reshape(tf.matmul(flat, inputs), [-1, c, o, k])

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        upstream = tf.reshape(upstream, [-1, c * o, k])
        by_deltas = tf.reshape(tf.matmul(upstream, inputs, transpose_b=True), tf.shape(deltas))
        return tf.matmul(flat, upstream, transpose_a=True), by_deltas

    return product, gradient


def sizes_of(factor: AffineFactor) -> tuple[int | tf.Tensor, int, int]:
    """Return the number of positions, and of the inputs and outputs of one group."""
    positions = factor.inputs.shape[1]
    if positions is None:
        positions = tf.shape(factor.inputs)[1]
    g = factor.groups
    channels = factor.deltas.shape[1 if factor.channels_first else 2]
    return positions, factor.inputs.shape[2] // g, channels // g


def split(factor: Factor, sizes: Any) -> tuple[Factor, Factor]:
    """Split a factor into the factors of the first and the second part of its batch.

    Args:
        factor: Derivatives for n samples.
        sizes: Two integers that add up to n, in a list or a tensor.

    Returns:
        The two factors.
    """
    c = factor.copies
    stacked = sizes * c if tf.is_tensor(sizes) else [size * c for size in sizes]
    if isinstance(factor, JacobianFactor):
        first, second = tf.split(factor.matrix, stacked, num=2)
        return replace(factor, matrix=first), replace(factor, matrix=second)
    if isinstance(factor, LookupFactor):
        i1, i2 = tf.split(factor.indices, sizes, num=2)
        d1, d2 = tf.split(factor.deltas, stacked, num=2)
        return replace(factor, indices=i1, deltas=d1), replace(factor, indices=i2, deltas=d2)
    if _jacobian_is_smaller(factor):
        return split(to_jacobian(factor), sizes)
    a1, a2 = tf.split(factor.inputs, sizes, num=2)
    d1, d2 = tf.split(factor.deltas, stacked, num=2)
    return replace(factor, inputs=a1, deltas=d1), replace(factor, inputs=a2, deltas=d2)


def prefers_positions(factor: AffineFactor, *, samples: int | None, trace: bool) -> bool:
    """Tell whether summing over pairs of positions is cheaper than forming the Jacobian.

    Args:
        factor: Derivatives of one half of a batch.
        samples: The number of samples in a half; None if it is not known.
        trace: Whether only equal outputs are paired.

    Returns:
        Whether it takes fewer operations.
    """
    positions, k, o = sizes_of(factor)
    if not isinstance(positions, int) or factor.groups > 1:
        return False
    n = _USUAL_SAMPLES if samples is None else samples
    outputs = factor.copies if trace else factor.copies**2
    by_pairs = (n * positions) ** 2 * (k + outputs * (o + _PASSES))
    by_jacobian = n * factor.copies * k * o * (2 * positions + n * outputs / factor.copies)
    return by_pairs < by_jacobian


def _jacobian_is_smaller(factor: AffineFactor) -> bool:
    """Tell whether the Jacobian of the kernel has fewer entries than the deltas."""
    positions, k, _ = sizes_of(factor)
    small = isinstance(positions, int) and k * factor.groups < positions
    return small and not prefers_positions(factor, samples=None, trace=False)
