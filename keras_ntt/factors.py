"""The derivative of the outputs by a layer's weights, in the form it comes in, and its products.

The tangent kernel is a sum over weights of ``J(x1) @ J(x2)^T``, where a row of the Jacobian ``J``
``[n * c, size]`` is the derivative of one output of one sample. For a layer that is linear in
its weights the Jacobian is a sum over positions p of (layer input) x (derivative by the
pre-activation), and the product can be had without ever forming it: the structured derivatives
of Novak, Sohl-Dickstein & Schoenholz, "Fast Finite Width Neural Tangent Kernel" (ICML 2022),
section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

# Up to this many positions the double sum over positions is written out as a loop.
_MAX_LOOPED_POSITIONS = 6


@dataclass(frozen=True, eq=False)
class AffineFactor:
    """Derivatives by the kernel and bias of a layer ``z[p] = x[p] @ kernel + bias``.

    With g groups the channels of input and output fall into g equal parts that do not mix.

    Attributes:
        inputs: What the kernel is multiplied with, ``[n, p, g * k]``.
        deltas: Derivative of the outputs by z, stacked: ``[n * c, p, g * o]``.
        copies: The number c of outputs.
        groups: The number g of groups.
        kernel: The kernel variable, reshapeable to ``[k, g, o]``; None if it is frozen.
        bias: The bias variable ``[g * o]``; None if there is none or it is frozen.
    """

    inputs: tf.Tensor
    deltas: tf.Tensor
    copies: int
    groups: int
    kernel: keras.Variable | None
    bias: keras.Variable | None

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """The variables that are differentiated by."""
        return tuple(v for v in (self.kernel, self.bias) if v is not None)


@dataclass(frozen=True, eq=False)
class JacobianFactor:
    """Derivatives by a set of weights, as a matrix.

    Attributes:
        matrix: ``[n * c, size]``.
        copies: The number c of outputs.
        variables: The variables that the columns stand for, in order.
    """

    matrix: tf.Tensor
    copies: int
    variables: tuple[keras.Variable, ...]


Factor = AffineFactor | JacobianFactor
Masks = Mapping[int, tf.Tensor]
"""``id(variable) -> 0/1 tensor`` of the variable's shape: the entries that count."""


def gather(factors: Iterable[Factor]) -> list[Factor]:
    """Add up the derivatives by one and the same variable.

    A layer that is called several times has one factor a call. The Jacobians of the calls add,
    so their kernel has cross terms between the calls.

    Args:
        factors: One factor a call.

    Returns:
        Factors no two of which share a variable.
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
    affine = [f for f in group if isinstance(f, AffineFactor)]
    if len(group) == 1:
        return first
    if len(affine) == len(group):
        # More positions of the same weights.
        return replace(
            affine[0],
            inputs=tf.concat([f.inputs for f in affine], axis=1),
            deltas=tf.concat([f.deltas for f in affine], axis=1),
        )
    matrices = [to_jacobian(f).matrix for f in group]
    return JacobianFactor(tf.add_n(matrices), first.copies, first.variables)


def _add_by_variable(factors: Sequence[Factor]) -> list[Factor]:
    """Add factors that overlap in some of their variables, variable by variable."""
    sums: dict[int, JacobianFactor] = {}
    for factor in map(to_jacobian, factors):
        sizes = [_size(v) for v in factor.variables]
        parts = tf.split(factor.matrix, sizes, axis=1)
        for variable, part in zip(factor.variables, parts, strict=True):
            if id(variable) in sums:
                part = part + sums[id(variable)].matrix
            sums[id(variable)] = JacobianFactor(part, factor.copies, (variable,))
    return list(sums.values())


def _size(variable: keras.Variable) -> int:
    return math.prod(variable.shape)


def to_jacobian(factor: Factor) -> JacobianFactor:
    """Write a factor as a matrix with the columns in the order of the variables' own entries."""
    if isinstance(factor, JacobianFactor):
        return factor
    _, k, o = _sizes(factor)
    k = k if factor.kernel is not None else 0
    width = k + (factor.bias is not None)
    blocks = tf.reshape(_affine_jacobian(factor), [-1, factor.groups * o, width])
    columns = tf.transpose(blocks, [0, 2, 1])  # kernel [k, g * o], then the bias [g * o]
    matrix = tf.reshape(columns, [-1, width * factor.groups * o])
    return JacobianFactor(matrix, factor.copies, factor.variables)


def _affine_jacobian(factor: AffineFactor) -> tf.Tensor:
    """Return the derivative by kernel and bias, ``[n * c, g * o * (k + 1)]``.

    The bias is the weight of one more input that is always 1.
    """
    c, g = factor.copies, factor.groups
    positions, k, o = _sizes(factor)
    inputs = tf.reshape(factor.inputs, [-1, positions, g, k])
    inputs = inputs[..., :0] if factor.kernel is None else inputs
    if factor.bias is not None:
        inputs = tf.concat([inputs, tf.ones_like(factor.inputs[:, :, :g, None])], axis=-1)
    k = inputs.shape[-1]
    if g == 1:
        deltas = tf.reshape(factor.deltas, [-1, c, positions, o])
        return tf.reshape(_sum_over_positions(inputs[:, :, 0], deltas), [-1, o * k])
    deltas = tf.reshape(factor.deltas, [-1, c, positions, g, o])
    deltas = tf.reshape(tf.transpose(deltas, [0, 3, 1, 2, 4]), [-1, c, positions, o])
    inputs = tf.reshape(tf.transpose(inputs, [0, 2, 1, 3]), [-1, positions, k])
    jacobian = tf.reshape(_sum_over_positions(inputs, deltas), [-1, g, c, o, k])
    return tf.reshape(tf.transpose(jacobian, [0, 2, 1, 3, 4]), [-1, g * o * k])


@tf.custom_gradient
def _sum_over_positions(inputs: tf.Tensor, deltas: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Return ``sum_p deltas[n, c, p, o] * inputs[n, p, k]`` as ``[n, c, o, k]``.

    The gradient is written out because TensorFlow's own repeats the inputs once an output.
    """
    positions, k = inputs.shape[1], inputs.shape[2]
    c, o = deltas.shape[1], deltas.shape[3]
    positions = tf.shape(inputs)[1] if positions is None else positions
    product = tf.matmul(deltas, inputs[:, None], transpose_a=True)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        by_deltas = tf.matmul(inputs[:, None], upstream, transpose_b=True)
        flat = tf.reshape(tf.transpose(deltas, [0, 2, 1, 3]), [-1, positions, c * o])
        by_inputs = tf.matmul(flat, tf.reshape(upstream, [-1, c * o, k]))
        return by_inputs, by_deltas

    return product, gradient


def _sizes(factor: AffineFactor) -> tuple[int | tf.Tensor, int, int]:
    """Return the number of positions and the input and output channels of one group."""
    positions = factor.inputs.shape[1]
    if positions is None:
        positions = tf.shape(factor.inputs)[1]
    g = factor.groups
    return positions, factor.inputs.shape[2] // g, factor.deltas.shape[2] // g


def split(factor: Factor, sizes: Any) -> tuple[Factor, Factor]:
    """Split a factor into those of the first and the second part of its batch.

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
    if _jacobian_is_smaller(factor):
        return split(to_jacobian(factor), sizes)
    a1, a2 = tf.split(factor.inputs, sizes, num=2)
    d1, d2 = tf.split(factor.deltas, stacked, num=2)
    return replace(factor, inputs=a1, deltas=d1), replace(factor, inputs=a2, deltas=d2)


def product(
    first: Factor, second: Factor, *, masks: Masks | None = None, trace: bool = False
) -> tf.Tensor:
    """Return one term of the tangent kernel, ``J(x1) @ J(x2)^T``.

    Args:
        first: Derivatives for n1 samples.
        second: Derivatives by the same variables for n2 samples.
        masks: Entries of the variables that count; without a mask all do.
        trace: Sum over equal outputs instead of keeping all pairs.

    Returns:
        ``[n1 * c, n2 * c]``, or with `trace` ``[n1, n2]``.
    """
    masks = masks or {}
    if isinstance(first, AffineFactor) and isinstance(second, AffineFactor):
        return _affine_product(first, second, masks, trace)
    first, second = to_jacobian(first), to_jacobian(second)
    weights = [masks.get(id(v)) for v in first.variables]
    j1, j2 = first.matrix, second.matrix
    if any(w is not None for w in weights):
        columns = [
            tf.ones([_size(v)], j1.dtype) if w is None else tf.reshape(tf.cast(w, j1.dtype), [-1])
            for v, w in zip(first.variables, weights, strict=True)
        ]
        j1 = j1 * tf.concat(columns, axis=0)
    return _matrix_product(j1, j2, first.copies, trace)


def _matrix_product(j1: tf.Tensor, j2: tf.Tensor, copies: int, trace: bool) -> tf.Tensor:
    if trace:
        j1 = tf.reshape(j1, [-1, copies * j1.shape[1]])
        j2 = tf.reshape(j2, [-1, copies * j2.shape[1]])
    return tf.matmul(j1, j2, transpose_b=True)


def _affine_product(
    first: AffineFactor, second: AffineFactor, masks: Masks, trace: bool
) -> tf.Tensor:
    mask = masks.get(id(first.kernel)) if first.kernel is not None else None
    if mask is not None:
        _, k, o = _sizes(first)
        mask = tf.reshape(tf.cast(mask, first.inputs.dtype), [k, first.groups, o])
    if _prefers_positions(first, masked=mask is not None, trace=trace):
        return _product_by_positions(first, second, mask, trace)
    j1, j2 = _affine_jacobian(first), _affine_jacobian(second)
    if mask is not None:
        rows = tf.transpose(mask, [1, 2, 0])
        if first.bias is not None:
            rows = tf.concat([rows, tf.ones_like(rows[..., :1])], axis=-1)
        j1 = j1 * tf.reshape(rows, [-1])
    return _matrix_product(j1, j2, first.copies, trace)


def _prefers_positions(factor: AffineFactor, *, masked: bool, trace: bool) -> bool:
    """Tell whether summing over pairs of positions is cheaper than forming the Jacobian."""
    positions, k, o = _sizes(factor)
    if not isinstance(positions, int) or positions > _MAX_LOOPED_POSITIONS:
        return False
    if factor.groups > 1:
        return False
    pairs = factor.copies if trace else factor.copies**2
    batch = 32
    by_pairs = batch**2 * positions**2 * (k * o if masked else k) + (
        batch**2 * positions**2 * pairs * o
    )
    by_jacobian = 2 * batch * positions * factor.copies * k * o + batch**2 * pairs * k * o
    return by_pairs < by_jacobian


def _jacobian_is_smaller(factor: AffineFactor) -> bool:
    """Tell whether the Jacobian by the kernel has fewer entries than the deltas."""
    positions, k, _ = _sizes(factor)
    small = isinstance(positions, int) and k * factor.groups < positions
    return small and not _prefers_positions(factor, masked=False, trace=False)


def _product_by_positions(
    first: AffineFactor, second: AffineFactor, mask: tf.Tensor | None, trace: bool
) -> tf.Tensor:
    """Sum ``(x1[p] . x2[q] + 1{bias}) * (delta1[p] . delta2[q])`` over positions p, q."""
    total = None
    inputs1, inputs2 = (tf.unstack(f.inputs, axis=1) for f in (first, second))
    deltas1, deltas2 = (tf.unstack(f.deltas, axis=1) for f in (first, second))
    has_kernel, has_bias = first.kernel is not None, first.bias is not None
    for a1, d1 in zip(inputs1, deltas1, strict=True):
        for a2, d2 in zip(inputs2, deltas2, strict=True):
            if mask is None or not has_kernel:
                term = _unmasked_pair(a1, d1, a2, d2, first.copies, has_kernel, has_bias, trace)
            else:
                term = _masked_pair(a1, d1, a2, d2, first.copies, mask[:, 0], has_bias, trace)
            total = term if total is None else total + term
    return total


def _unmasked_pair(
    a1: tf.Tensor,
    d1: tf.Tensor,
    a2: tf.Tensor,
    d2: tf.Tensor,
    copies: int,
    has_kernel: bool,
    has_bias: bool,
    trace: bool,
) -> tf.Tensor:
    by_delta = _matrix_product(d1, d2, copies, trace)
    if not has_kernel:
        return by_delta
    by_input = tf.matmul(a1, a2, transpose_b=True)
    if has_bias:
        by_input += 1
    if trace:
        return by_delta * by_input
    n1, n2 = tf.shape(a1)[0], tf.shape(a2)[0]
    blocks = tf.reshape(by_delta, [n1, copies, n2, copies]) * by_input[:, None, :, None]
    return tf.reshape(blocks, [n1 * copies, n2 * copies])


def _masked_pair(
    a1: tf.Tensor,
    d1: tf.Tensor,
    a2: tf.Tensor,
    d2: tf.Tensor,
    copies: int,
    mask: tf.Tensor,
    has_bias: bool,
    trace: bool,
) -> tf.Tensor:
    """The pair's term when only entries of `mask` ``[k, o]`` count.

    The product of inputs then depends on the output channel: it is ``sum_k mask[k, o] x1[k]
    x2[k]``, which weighs the channels in the product of deltas.
    """
    n1, n2, o = tf.shape(a1)[0], tf.shape(a2)[0], d1.shape[-1]
    products = tf.reshape(a1[:, None, :] * a2[None, :, :], [n1 * n2, a1.shape[-1]])
    weights = tf.reshape(tf.matmul(products, mask), [n1, n2, 1, o])
    if has_bias:
        weights += 1
    left = tf.reshape(d1, [n1, 1, copies, o]) * weights
    right = tf.reshape(d2, [1, n2, copies, o])
    if trace:
        return tf.reduce_sum(left * right, axis=[2, 3])
    blocks = tf.matmul(left, right, transpose_b=True)  # [n1, n2, c, c]
    return tf.reshape(tf.transpose(blocks, [0, 2, 1, 3]), [n1 * copies, n2 * copies])
