"""From scores to boolean masks of a given structure: single entries, blocks, m of n.

Pure functions of tensors, the same in and out of compiled steps. On magnitudes the masks are
those of tensorflow-model-optimization entry for entry, but for ties: that keeps every entry equal
to the least one kept, and so more than it was asked for; here the count is exact and of equal
scores the first are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ntt import checks

POOLINGS: tuple[str, ...] = ("AVG", "MAX")

Pattern = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Scores and a float32 sparsity -> a boolean mask of the scores' shape."""


def keep_count(size: int, sparsity: Any) -> tf.Tensor:
    """Return how many of `size` entries tfmot keeps, ``max(round(size * (1 - sparsity)), 1)``.

    It is computed in float32 and halves are rounded to even, as there: where ``size * (1 -
    sparsity)`` is a half but for rounding, the count of another precision can differ by one.
    Beyond 2**24 entries, which float32 cannot count, it is computed in float64.

    Args:
        size: Number of entries.
        sparsity: Fraction of zeros, a number or a scalar tensor.

    Returns:
        An int32 scalar of at least 1 and at most `size`.

    >>> int(keep_count(192, 0.7)), int(keep_count(10, 0.99)), int(keep_count(10, 0.0))
    (58, 1, 10)
    """
    dtype = tf.float32 if size <= 2**24 else tf.float64
    kept = tf.round(tf.cast(size, dtype) * tf.cast(1 - tf.cast(sparsity, tf.float32), dtype))
    return tf.minimum(tf.cast(tf.maximum(kept, 1), tf.int32), size)


def largest(scores: tf.Tensor, count: Any) -> tf.Tensor:
    """Return the mask of the `count` largest scores; of equal ones the first are taken.

    Args:
        scores: Scores of any shape.
        count: How many, an integer or a scalar tensor.

    Returns:
        A boolean tensor of the shape of `scores`.

    >>> largest(tf.constant([[3.0, 1.0], [2.0, 2.0]]), 2).numpy().tolist()
    [[True, False], [True, False]]
    """
    order = tf.argsort(tf.reshape(scores, [-1]), direction="DESCENDING", stable=True)
    rank = tf.math.invert_permutation(order)
    return tf.reshape(rank < tf.cast(count, rank.dtype), scores.shape)


def entries(scores: tf.Tensor, sparsity: Any) -> tf.Tensor:
    """Return the mask that keeps the largest scores, wherever they are.

    Args:
        scores: Scores of any shape.
        sparsity: Fraction of zeros.

    Returns:
        A boolean tensor of the shape of `scores`.

    >>> entries(tf.constant([0.1, 0.4, 0.2, 0.3]), 0.5).numpy().tolist()
    [False, True, False, True]
    """
    return largest(scores, keep_count(int(np.prod(scores.shape)), sparsity))


def blocks(
    scores: tf.Tensor, sparsity: Any, *, block_size: tuple[int, int], pooling: str = "AVG"
) -> tf.Tensor:
    """Return the mask that keeps whole blocks, those with the largest pooled score.

    The blocks tile a matrix from its first entry; those that reach over its edge are pooled over
    the part that is there. The sparsity is that of the blocks.

    Args:
        scores: Scores ``[rows, columns]``.
        sparsity: Fraction of blocks that become zero.
        block_size: Rows and columns of a block.
        pooling: ``"AVG"`` or ``"MAX"`` over the scores of a block.

    Returns:
        A boolean tensor of the shape of `scores`.

    >>> scores = tf.constant([[9.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 1.0]])
    >>> blocks(scores, 0.5, block_size=(2, 2)).numpy().astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0]]
    """
    height, width = block_size
    pooled = scores[tf.newaxis, tf.newaxis]
    # First down the columns, then along the rows: of sums of floats the order matters.
    for size in (height, width):
        pooled = tf.nn.pool(pooled, [1, size], pooling, [1, size], "SAME")
        pooled = tf.transpose(pooled, [0, 1, 3, 2])
    kept = entries(pooled[0, 0], sparsity)
    whole = tf.repeat(tf.repeat(kept, height, axis=0), width, axis=1)
    return whole[: scores.shape[0], : scores.shape[1]]


def m_of_n(scores: tf.Tensor, m: int, n: int) -> tf.Tensor:
    """Return the mask with `m` zeros in every `n` consecutive entries along the input channels.

    Consecutive is meant as in a LiteRT file: a Dense kernel is read output by output, a Conv2D
    kernel output by output and position by position. If `n` does not divide the number of
    channels, the last group is filled up with zeros, which are the first to go, whatever the
    scores.

    Args:
        scores: Scores of a kernel ``[inputs, outputs]`` or ``[height, width, inputs, outputs]``.
        m: Zeros in each group.
        n: Entries of a group, more than `m`.

    Returns:
        A boolean tensor of the shape of `scores`.

    >>> m_of_n(tf.constant([[1.0], [4.0], [2.0], [3.0], [5.0]]), 2, 4).numpy().ravel().tolist()
    [False, True, False, True, True]
    """
    channels = scores.shape[-2]
    by_output = tf.linalg.matrix_transpose(scores)
    # Groups run along the channels only, so what is before them may be in any order.
    paddings = [[0, 0]] * (len(scores.shape) - 1) + [[0, -channels % n]]
    # Not with zeros: scores may be below zero. Of equal ones the first are kept, so real entries.
    padded = tf.pad(by_output, paddings, constant_values=-np.inf)
    groups = tf.reshape(padded, [-1, n])
    order = tf.argsort(groups, axis=-1, direction="DESCENDING", stable=True)
    rank = tf.argsort(order, axis=-1)
    kept = tf.reshape(rank < n - m, padded.shape)[..., :channels]
    return tf.linalg.matrix_transpose(kept)


def pattern_of(
    shape: tuple[int, ...],
    *,
    block_size: tuple[int, int] = (1, 1),
    pooling: str = "AVG",
    sparsity_m_by_n: tuple[int, int] | None = None,
    name: str = "the weight",
) -> Pattern:
    """Return the function from scores and a sparsity to a mask, for a weight of one shape.

    Args:
        shape: The weight's shape.
        block_size: Rows and columns of a block.
        pooling: ``"AVG"`` or ``"MAX"``.
        sparsity_m_by_n: Zeros and entries of a group; None for no such structure.
        name: What to call the weight in a message.

    Returns:
        The function. With `sparsity_m_by_n` the sparsity has no effect.

    Raises:
        ValueError: If the shape has no such structure.
    """
    if sparsity_m_by_n is not None:
        m, n = sparsity_m_by_n
        if len(shape) not in (2, 4):
            raise ValueError(
                "sparsity_m_by_n is for the kernels of Dense and Conv2D layers, of 2 or 4 axes. "
                "Leave the others out by filters= or pruning_policy=. "
                f"Received: {name} of shape {shape}"
            )
        return lambda scores, sparsity: m_of_n(_floats(scores), m, n)
    if block_size != (1, 1):
        if len(shape) != 2:
            raise ValueError(
                "block_size is for weights of 2 axes, such as the kernels of Dense layers. Leave "
                "the others out by filters= or pruning_policy=, or prune them in a call of their "
                f"own. Received: block_size={block_size}, {name} of shape {shape}"
            )
        return lambda scores, sparsity: blocks(
            _floats(scores), sparsity, block_size=block_size, pooling=pooling
        )
    return lambda scores, sparsity: entries(_floats(scores), sparsity)


def _floats(scores: tf.Tensor) -> tf.Tensor:
    """Return half-precision scores, which not every operation takes, as float32."""
    return tf.cast(scores, tf.float32) if scores.dtype.size < 4 else scores


def check_structure(
    block_size: Any, block_pooling_type: Any, sparsity_m_by_n: Any
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Return the structure that was asked for, checked.

    Args:
        block_size: Rows and columns of a block.
        block_pooling_type: ``"AVG"`` or ``"MAX"``.
        sparsity_m_by_n: Zeros and entries of a group, or None.

    Returns:
        The block size and the group as tuples of integers.

    Raises:
        ValueError: If they are none, or both are given.
    """
    block = _pair("block_size", block_size)
    checks.check_choice("block_pooling_type", block_pooling_type, POOLINGS)
    if sparsity_m_by_n is None:
        return block, None
    group = _pair("sparsity_m_by_n", sparsity_m_by_n)
    if group[0] >= group[1]:
        raise ValueError(
            "sparsity_m_by_n is (m, n): m zeros in every n consecutive entries, so m must be less "
            f"than n. Received: sparsity_m_by_n={sparsity_m_by_n!r}"
        )
    if block != (1, 1):
        raise ValueError(
            "block_size and sparsity_m_by_n are two structures, of which a mask can have one. "
            f"Received: block_size={block_size!r}, sparsity_m_by_n={sparsity_m_by_n!r}"
        )
    return block, group


def _pair(name: str, value: Any) -> tuple[int, int]:
    try:
        pair = value if isinstance(value, list | tuple | np.ndarray) else ()
        first, second = (checks.check_count(name, entry) for entry in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be two positive integers, such as (2, 4). Received: {name}={value!r}"
        ) from error
    return first, second
