"""Ties: which entries with equal scores are kept.

Kernels that begin with equal values have ties, such as zero-initialized last layers and identities.
So have scores that are zero for many entries. If the first entries were kept, whole rows would be
kept or pruned. Here each entry has a place in a fixed order, the same in every run. The order takes
one entry of each row (or column, if there are more columns), then the next one: a Latin square. Any
number of entries from its beginning is spread over rows and columns as evenly as possible, give or
take one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def place_of(index: Any, shape: Sequence[int]) -> Any:
    """Return the places of entries in the order in which ties are broken.

    Args:
        index: Their indices in the flat array, as 64-bit integers: an array or a tensor.
        shape: The shape; all axes but the last count as rows.

    Returns:
        Integers of the same kind, from 0 to the number of entries.

    >>> place_of(np.arange(6), (3, 2)).reshape(3, 2)
    array([[0, 3],
           [4, 1],
           [2, 5]])
    """
    columns = int(shape[-1]) if shape else 1
    rows = max(math.prod(shape) // max(columns, 1), 1)
    row = (index // columns) * _stride(rows) % rows
    column = (index % columns) * _stride(columns) % columns
    if rows >= columns:
        return ((column - row) % columns) * _stride(columns) % columns * rows + row
    return ((row - column) % rows) * _stride(rows) % rows * columns + column


def _stride(size: int) -> int:
    """Return a step that visits all of `size` places, with neighbours far from each other.

    >>> [_stride(n) for n in (1, 2, 8, 100)]
    [1, 1, 3, 61]
    """
    stride = max(int(size * 0.618), 1)
    while math.gcd(stride, size) != 1:
        stride -= 1
    return stride


def rank_of(scores: tf.Tensor) -> tf.Tensor:
    """Return the rank of each score, 0 for the largest, with ties in the order of `place_of`.

    Args:
        scores: Scores of a known shape.

    Returns:
        int32 of the shape of `scores`.

    >>> rank_of(tf.constant([[3.0, 1.0], [2.0, 2.0]])).numpy().tolist()
    [[0, 3], [2, 1]]
    """
    shape = scores.shape.as_list()
    size = math.prod(shape)
    longest = max(shape[-1], size // max(shape[-1], 1)) if shape else 1
    dtype = tf.int32 if longest**2 < 2**31 else tf.int64  # the largest intermediate product
    place = place_of(tf.range(size, dtype=dtype), shape)
    entry = tf.math.invert_permutation(place)
    by_place = tf.gather(tf.reshape(scores, [-1]), entry)
    order = tf.argsort(by_place, direction="DESCENDING", stable=True)
    rank = tf.gather(tf.math.invert_permutation(order), place)
    return tf.reshape(rank, scores.shape)


def largest_among(scores: tf.Tensor, among: tf.Tensor, count: Any) -> tf.Tensor:
    """Return the mask of the `count` largest scores of some entries, compiled and without a sort.

    The threshold is found by halving, as is the place up to which equal scores are kept. XLA takes
    many seconds to compile a sort, and sorts slowly.

    Args:
        scores: Scores of at least 0, of a known shape.
        among: Booleans of the same shape: the entries to choose from.
        count: How many, at most as many as there are; an int32 scalar.

    Returns:
        Booleans of the same shape; equal scores are taken in the order of `place_of`.

    >>> among = tf.constant([[True, True], [True, False]])
    >>> largest_among(tf.constant([[3.0, 1.0], [3.0, 9.0]]), among, 1).numpy().tolist()
    [[True, False], [False, False]]
    """
    count = tf.cast(count, tf.int32)
    scores = scores if scores.dtype in _BITS else tf.cast(scores, tf.float32)
    integers = _BITS[scores.dtype]
    # The bits of floats that are not negative are ordered as these are; those of -0 are not.
    bits = tf.where(among, tf.bitcast(tf.abs(scores), integers), -tf.ones_like(scores, integers))

    def chosen(level: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(among, bits >= level)

    least = _last(chosen, count, integers.max, integers)
    above = tf.logical_and(among, bits > least)
    tied = tf.logical_and(among, tf.equal(bits, least))
    missing = count - tf.math.count_nonzero(above, dtype=tf.int32)
    shape = scores.shape.as_list()
    size = math.prod(shape)
    places = tf.reshape(place_of(tf.range(size, dtype=tf.int64), shape), shape)

    def late(level: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(tied, size - places > level)

    return tf.logical_or(above, late(_last(late, missing, size, tf.int64)))


_BITS = {tf.float32: tf.int32, tf.float64: tf.int64}


def _last(chosen: Any, count: tf.Tensor, beyond: int, dtype: tf.DType) -> tf.Tensor:
    """Return the last level at which at least `count` entries are chosen, or one that fits exactly.

    Args:
        chosen: Function that takes a level to booleans; fewer are true the higher it is.
        count: How many are wanted.
        beyond: A level at which none is chosen.
        dtype: Of the levels, integers from 0.
    """
    zero = tf.zeros([], dtype)

    def goes_on(low: tf.Tensor, high: tf.Tensor, fits: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(high - low > 1, tf.logical_not(fits))

    def halve(low: tf.Tensor, high: tf.Tensor, fits: tf.Tensor) -> tuple[tf.Tensor, ...]:
        middle = low + (high - low) // 2
        found = tf.math.count_nonzero(chosen(middle), dtype=tf.int32)
        enough = found >= count
        return tf.where(enough, middle, low), tf.where(enough, high, middle), tf.equal(found, count)

    start = (zero, tf.constant(beyond, dtype), tf.constant(False))
    return tf.while_loop(goes_on, halve, start)[0]


def largest_of(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the mask of the `count` largest scores, with ties in the order of `place_of`.

    Args:
        scores: Scores.
        count: The number of entries.

    Returns:
        A boolean array of the shape of `scores`.

    >>> largest_of(np.array([[3.0, 1.0], [2.0, 2.0]]), 2).tolist()
    [[True, False], [False, True]]
    """
    if count >= scores.size or count <= 0:
        return np.full(scores.shape, count > 0)
    flat = scores.ravel()
    least = np.partition(flat, flat.size - count)[flat.size - count]
    mask = flat > least
    tied = np.flatnonzero(flat == least)
    missing = count - np.count_nonzero(mask)
    if missing < tied.size:
        places = place_of(tied.astype(np.int64), scores.shape)
        tied = tied[np.argpartition(places, missing - 1)[:missing]]
    mask[tied] = True
    return mask.reshape(scores.shape)
