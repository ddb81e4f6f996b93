"""Connections that are dropped and grown: masks of SET (2018), RigL (2020) and GraNet (2021).

All are functions, compiled or not, of tensors of one weight, or of several as one vector. Equal
entries are told apart as in `selection.ties`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_ntt.selection.ties import largest_among


def drop_count(mask: tf.Tensor, fraction: Any) -> tf.Tensor:
    """Return how many entries a fraction of those kept is, ``int(kept * fraction)``.

    At least one entry stays.

    >>> int(drop_count(tf.constant([True, True, False, True, True]), 0.5))
    2
    """
    kept = tf.math.count_nonzero(mask, dtype=tf.int32)
    number = tf.cast(kept, tf.float64) * tf.cast(fraction, tf.float64)
    # What is a whole number but for rounding, as 100 * 0.29 is, counts as that number.
    return tf.maximum(tf.minimum(tf.cast(tf.floor(number + 1e-9), tf.int32), kept - 1), 0)


def drop_smallest(value: tf.Tensor, mask: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Return a mask without the `count` kept entries of smallest magnitude."""
    kept = tf.math.count_nonzero(mask, dtype=tf.int32)
    return largest_among(tf.abs(value), mask, kept - count)


def drop_nearest_zero(value: tf.Tensor, mask: tf.Tensor, fraction: Any) -> tf.Tensor:
    """Return a mask without a fraction of the positive entries and one of the negative ones.

    Of each sign those nearest zero go, as in SET. Entries that are zero count as positive.
    """
    negative = tf.logical_and(mask, value < 0)
    positive = tf.logical_and(mask, tf.logical_not(value < 0))
    parts = [drop_smallest(value, m, drop_count(m, fraction)) for m in (negative, positive)]
    return tf.logical_or(*parts)


def grow(mask: tf.Tensor, scores: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Return a mask with `count` entries more: of those not kept, the ones of largest score.

    Args:
        mask: Booleans.
        scores: Numbers of at least 0, of the shape of the mask.
        count: How many.

    Returns:
        Booleans.
    """
    return tf.logical_or(mask, largest_among(scores, tf.logical_not(mask), count))
