"""Products of derivatives: the terms of the tangent kernel, without forming Jacobians.

For a layer with the pre-activation ``z[p] = x[p] @ kernel`` the kernel's term is a double sum over
positions of ``(x1[p] . x2[q]) * (delta1[p] . delta2[q])``; a bias is the weight of an additional
input that is always 1. With few positions it is computed in this way. With many it is cheaper to
sum over the positions of each sample first.
"""

from __future__ import annotations

import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.ntk.factors import (
    AffineFactor,
    Factor,
    LookupFactor,
    Masks,
    add_by_row,
    affine_jacobian,
    prefers_positions,
    size_of,
    sizes_of,
    to_jacobian,
)


def product(
    first: Factor, second: Factor, *, masks: Masks | None = None, trace: bool = False
) -> tf.Tensor:
    """Return one term of the tangent kernel, ``J(x1) @ J(x2)^T``.

    Args:
        first: Derivatives for n1 samples.
        second: Derivatives with respect to the same variables, for n2 samples.
        masks: Entries of the variables that count. Without a mask all entries count.
        trace: Sum over equal outputs instead of keeping all pairs.

    Returns:
        ``[n1 * c, n2 * c]``, or with `trace` ``[n1, n2]``.
    """
    masks = masks or {}
    if isinstance(first, AffineFactor) and isinstance(second, AffineFactor):
        return _affine_product(first, second, masks, trace)
    if isinstance(first, LookupFactor) and isinstance(second, LookupFactor):
        return _lookup_product(first, second, masks.get(id(first.table)), trace)
    first, second = to_jacobian(first), to_jacobian(second)
    weights = [masks.get(id(v)) for v in first.variables]
    j1, j2 = first.matrix, second.matrix
    if any(w is not None for w in weights):
        columns = [
            tf.ones([size_of(v)], j1.dtype) if w is None else tf.reshape(tf.cast(w, j1.dtype), [-1])
            for v, w in zip(first.variables, weights, strict=True)
        ]
        j1 = j1 * tf.concat(columns, axis=0)
    return _matrix_product(j1, j2, first.copies, trace)


def _matrix_product(j1: tf.Tensor, j2: tf.Tensor, copies: int, trace: bool) -> tf.Tensor:
    if trace:
        j1, j2 = (tf.reshape(j, [-1, copies * _columns(j)]) for j in (j1, j2))
    return tf.matmul(j1, j2, transpose_b=True)


def _columns(matrix: tf.Tensor) -> int | tf.Tensor:
    return tf.shape(matrix)[1] if matrix.shape[1] is None else matrix.shape[1]


def _affine_product(
    first: AffineFactor, second: AffineFactor, masks: Masks, trace: bool
) -> tf.Tensor:
    mask = _mask_of(first, masks)
    samples = first.inputs.shape[0]
    if mask is None and prefers_positions(first, samples=samples, trace=trace):
        return _product_by_positions(first, second, trace)
    if mask is not None and sizes_of(first)[0] == 1 and first.groups == 1:
        return _masked_product(first, second, mask[:, 0], trace)
    j1, j2 = affine_jacobian(first), affine_jacobian(second)
    if mask is not None:
        j1 = j1 * tf.reshape(tf.transpose(mask, [1, 2, 0]), [-1])
    return _matrix_product(j1, j2, first.copies, trace)


def _mask_of(factor: AffineFactor, masks: Masks) -> tf.Tensor | None:
    """Return which entries count, ``[k, g, o]``, with the bias in the last row."""
    mask = masks.get(id(factor.kernel))
    if mask is None:
        return None
    _, k, o = sizes_of(factor)
    has_bias = factor.bias is not None
    mask = tf.cast(mask, factor.inputs.dtype)
    if factor.axes is not None:
        mask = tf.transpose(mask, factor.axes)
    mask = tf.reshape(mask, [k - has_bias, factor.groups, o])
    return tf.concat([mask, tf.ones_like(mask[:1])], axis=0) if has_bias else mask


def _product_by_positions(first: AffineFactor, second: AffineFactor, trace: bool) -> tf.Tensor:
    """Sum ``(x1[p] . x2[q]) * (delta1[p] . delta2[q])`` over positions p, q."""
    c = first.copies
    positions, k, o = sizes_of(first)
    by_input = tf.matmul(
        *(tf.reshape(f.inputs, [-1, k]) for f in (first, second)), transpose_b=True
    )
    deltas = [tf.reshape(_by_position(f), [-1, c, positions, o]) for f in (first, second)]
    n1, n2 = (tf.shape(d)[0] if d.shape[0] is None else d.shape[0] for d in deltas)
    if trace:
        rows = [tf.reshape(tf.transpose(d, [0, 2, 1, 3]), [-1, c * o]) for d in deltas]
        pairs = tf.matmul(*rows, transpose_b=True) * by_input
        return tf.reduce_sum(tf.reshape(pairs, [n1, positions, n2, positions]), axis=[1, 3])
    rows = [tf.reshape(d, [-1, o]) for d in deltas]
    pairs = tf.reshape(tf.matmul(*rows, transpose_b=True), [n1, c, positions * n2, c, positions])
    pairs *= tf.reshape(by_input, [n1, 1, positions * n2, 1, positions])
    if positions > 1:
        pairs = tf.reduce_sum(tf.reshape(pairs, [n1, c, positions, n2, c, positions]), axis=[2, 5])
    return tf.reshape(pairs, [n1 * c, n2 * c])


def _by_position(factor: AffineFactor) -> tf.Tensor:
    """Return the deltas of a factor as ``[n * c, p, g * o]``."""
    return tf.transpose(factor.deltas, [0, 2, 1]) if factor.channels_first else factor.deltas


def _masked_product(
    first: AffineFactor, second: AffineFactor, mask: tf.Tensor, trace: bool
) -> tf.Tensor:
    """The term of a layer of one position when only entries of `mask` ``[k, o]`` count.

    The product of inputs then depends on the output channel: it is ``sum_k mask[k, o] x1[k]
    x2[k]``, which weighs the channels in the product of deltas.
    """
    c, (_, k, o) = first.copies, sizes_of(first)
    a1, a2 = (tf.reshape(f.inputs, [-1, k]) for f in (first, second))
    n1, n2 = tf.shape(a1)[0], tf.shape(a2)[0]
    products = tf.reshape(a1 * a2[:, None, :], [n2 * n1, k])
    weights = tf.reshape(tf.matmul(products, mask), [n2, n1, 1, o])
    left = tf.reshape(first.deltas, [n1, c, o]) * weights  # [n2, n1, c, o]
    if trace:
        right = tf.reshape(second.deltas, [n2, 1, c, o])
        return tf.transpose(tf.reduce_sum(left * right, axis=[2, 3]))
    # Nothing is broadcast: TensorFlow 2.21's product [n1, 1, c, o] x [1, 1, o, c] overruns memory.
    right = tf.reshape(second.deltas, [n2, c, o])
    blocks = tf.matmul(tf.reshape(left, [n2, n1 * c, o]), right, transpose_b=True)
    return tf.reshape(tf.transpose(blocks, [1, 0, 2]), [n1 * c, n2 * c])


def _lookup_product(
    first: LookupFactor, second: LookupFactor, mask: tf.Tensor | None, trace: bool
) -> tf.Tensor:
    """Sum the deltas by row of the table, over the rows that both sides read."""
    ids = [tf.reshape(f.indices, [-1]) for f in (first, second)]
    rows, *sides = (_sorted_rows if host.is_in_xla() else _common_rows)(*ids)
    sums = []
    for factor, places in zip((first, second), sides, strict=True):
        slots = tf.reshape(places, tf.shape(factor.indices))
        sums.append(add_by_row(factor, slots, tf.size(rows)))
    if mask is not None:
        sums[0] *= tf.gather(tf.cast(mask, sums[0].dtype), rows)
    d = first.deltas.shape[-1]
    j1, j2 = (tf.reshape(s, [tf.shape(s)[0], tf.size(rows) * d]) for s in sums)
    return _matrix_product(j1, j2, first.copies, trace)


def _common_rows(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the rows that both sides read, and their places among them; -1 for other rows."""
    rows, places = tf.unique(tf.concat([first, second], axis=0))
    sides = tf.split(places, [tf.size(first), tf.size(second)])
    used = [tf.scatter_nd(p[:, None], tf.ones_like(p), tf.shape(rows)) > 0 for p in sides]
    common = tf.logical_and(*used)
    slots = tf.where(common, tf.cumsum(tf.cast(common, tf.int32)) - 1, -1)
    # One more row, which stays unused: a sum into no rows has no gradient in TensorFlow.
    found = tf.concat([tf.boolean_mask(rows, common), rows[:1]], axis=0)
    return found, *(tf.gather(slots, side) for side in sides)


def _sorted_rows(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Do the same with shapes that do not depend on the rows that are read, as XLA needs.

    The place of a row is that of its first occurrence among all rows that the first side reads,
    sorted. The places of its further occurrences stay empty.
    """
    rows = tf.sort(first)
    places = tf.minimum(tf.searchsorted(rows, second), tf.size(rows) - 1)
    places = tf.where(tf.gather(rows, places) == second, places, -1)
    return rows, tf.searchsorted(rows, first), places
