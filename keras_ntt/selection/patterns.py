"""From scores to boolean masks of a given structure: single entries, blocks, m of n.

Pure functions of tensors, the same in and out of compiled steps. On magnitudes the masks equal
those of tensorflow-model-optimization entry for entry, except for ties.
tensorflow-model-optimization keeps every entry equal to the smallest kept one, and so keeps more
than requested. Here the count is exact, and ties are broken evenly over rows and columns, see
`keras_ntt.selection.ties`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.selection.counts import keep_count_float32
from keras_ntt.selection.ties import rank_of

Pattern = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Scores and a float32 sparsity -> a boolean mask of the scores' shape."""


def largest(scores: tf.Tensor, count: Any) -> tf.Tensor:
    """Return the mask of the `count` largest scores; ties are broken evenly, see `rank_of`.

    Args:
        scores: Scores of any shape.
        count: The number of entries, an integer or a scalar tensor.

    Returns:
        A boolean tensor of the shape of `scores`.

    >>> largest(tf.constant([[3.0, 1.0], [2.0, 2.0]]), 2).numpy().tolist()
    [[True, False], [False, True]]
    """
    rank = rank_of(scores)
    return rank < tf.cast(count, rank.dtype)


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
    return largest(scores, keep_count_float32(int(np.prod(scores.shape)), sparsity))


def blocks(
    scores: tf.Tensor, sparsity: Any, *, block_size: tuple[int, int], pooling: str = "AVG"
) -> tf.Tensor:
    """Return the mask that keeps the whole blocks with the largest pooled scores.

    The blocks tile a matrix from its first entry. Their scores are pooled as in tfmot, by windows
    with SAME padding. If the size of a block does not divide that of the matrix, the windows begin
    before the blocks, by up to half of the missing entries, and are pooled over existing entries.
    The sparsity is the fraction of pruned blocks.

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
    # First down the columns, then along the rows: the order matters in sums of floats.
    for size in (height, width):
        pooled = tf.nn.pool(pooled, [1, size], pooling, [1, size], "SAME")
        pooled = tf.transpose(pooled, [0, 1, 3, 2])
    kept = entries(pooled[0, 0], sparsity)
    whole = tf.repeat(tf.repeat(kept, height, axis=0), width, axis=1)
    return whole[: scores.shape[0], : scores.shape[1]]


def m_of_n(scores: tf.Tensor, m: int, n: int) -> tf.Tensor:
    """Return the mask with `m` zeros in every `n` consecutive entries along the input channels.

    Consecutive means the order of a LiteRT file: a Dense kernel is read output by output, a Conv2D
    kernel output by output and position by position. If `n` does not divide the number of channels,
    the last group is padded with zeros, which are pruned first, whatever the scores.

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
    # Groups run along the channels only, so the axes before may be in any order.
    paddings = [[0, 0]] * (len(scores.shape) - 1) + [[0, -channels % n]]
    # Not padded with zeros: scores may be negative.
    padded = tf.pad(by_output, paddings, constant_values=-np.inf)
    groups = tf.reshape(padded, [-1, n])
    # Of equal scores the first are kept. Each output starts where the previous one ended, so that
    # all inputs are kept equally often. Padding always comes last.
    count, each = groups.shape[0], padded.shape[-1] // n
    group = tf.range(count)[:, None]
    shift = ((n - m) * (group // each) + group % each) % n
    last = tf.reshape(_filled(padded, channels), [-1, n])
    turn = (tf.range(n)[None] - shift) % n + n * tf.cast(last, tf.int32)
    first = tf.argsort(turn, axis=-1)
    order = tf.argsort(
        tf.gather(groups, first, batch_dims=1), axis=-1, direction="DESCENDING", stable=True
    )
    rank = tf.argsort(tf.gather(first, order, batch_dims=1), axis=-1)
    kept = tf.reshape(rank < n - m, padded.shape)[..., :channels]
    return tf.linalg.matrix_transpose(kept)


def is_pruned_m_by_n(
    mask: Any, m_by_n: tuple[int, int] = (2, 4), last_channel: str = "C_OUT"
) -> bool:
    """Tell whether a mask or a weight has `m` zeros in every `n` consecutive entries.

    It is tfmot's check of that name. If `n` does not divide the number of inputs, the last group is
    padded with zeros.

    Args:
        mask: A mask or a weight of two axes at least.
        m_by_n: ``(m, n)``.
        last_channel: The meaning of the last axis: ``"C_OUT"`` for outputs, as in Keras, with the
            inputs on the axis before; or ``"C_IN"`` for inputs, as in a LiteRT file.

    Returns:
        Whether every group has at least `m` zeros.

    Raises:
        ValueError: If an argument does not fit.

    Examples:
        >>> is_pruned_m_by_n([[1, 0], [0, 2], [3, 0], [0, 4]])
        True
    """
    checks.check_choice("last_channel", last_channel, ("C_OUT", "C_IN"))
    if not isinstance(m_by_n, list | tuple) or len(m_by_n) != 2:
        raise ValueError(f"m_by_n must be two whole numbers, (m, n). Received: m_by_n={m_by_n!r}")
    m, n = (checks.check_count("m_by_n", size) for size in m_by_n)
    array = np.asarray(mask)
    if array.ndim < 2 or m >= n:
        raise ValueError(
            "mask must have 2 axes at least, and m must be less than n. "
            f"Received: mask of shape {array.shape}, m_by_n={m_by_n!r}"
        )
    by_output = array if last_channel == "C_IN" else np.swapaxes(array, -1, -2)
    paddings = [(0, 0)] * (array.ndim - 1) + [(0, -by_output.shape[-1] % n)]
    groups = np.pad(by_output != 0, paddings).reshape(-1, n)
    return bool((groups.sum(-1) <= n - m).all())


def _filled(padded: tf.Tensor, channels: int) -> tf.Tensor:
    """Return which entries along the last axis are padding."""
    return tf.broadcast_to(tf.range(padded.shape[-1]) >= channels, padded.shape)


def whole_filters(scores: tf.Tensor, sparsity: Any) -> tf.Tensor:
    """Return the mask that keeps the whole output channels with the largest sum of scores.

    It is the pattern ``"filters"``. Only kernels of Dense and ordinary convolution layers can
    shrink afterwards. Leave out other kernels, and the last layer, by ``filters=``.

    Args:
        scores: Scores of a kernel ``[..., outputs]``.
        sparsity: Fraction of channels that become zero; at least one channel is kept.

    Returns:
        A boolean tensor of the shape of `scores`.

    Raises:
        ValueError: If the scores have no axis besides the channels.

    >>> scores = tf.constant([[1.0, 5.0, 2.0], [1.0, 0.0, 2.0]])
    >>> whole_filters(scores, 1 / 3).numpy().astype(int).tolist()
    [[0, 1, 1], [0, 1, 1]]
    """
    check_rank(scores, "Whole filters")
    channels = scores.shape[-1]
    sums = tf.reduce_sum(tf.reshape(scores, [-1, channels]), axis=0)
    order = tf.argsort(sums, direction="DESCENDING", stable=True)
    rank = tf.math.invert_permutation(order)
    return tf.broadcast_to(rank < keep_count_float32(channels, sparsity), scores.shape)


def check_rank(scores: tf.Tensor, what: str) -> None:
    """Raise a ValueError unless scores are those of a kernel, of two axes at least."""
    if len(scores.shape) < 2:
        raise ValueError(
            f"{what}: only kernels of at least 2 axes have such a pattern. Leave the others out by "
            f"filters=. Received: a weight of shape {tuple(scores.shape)}"
        )


def butterfly(scores: tf.Tensor, sparsity: Any) -> tf.Tensor:
    """Return the mask of a flat block butterfly (Chen et al., "Pixelated Butterfly", ICLR 2022).

    Inputs and outputs are cut into `size` blocks each, a power of two. Block i of the inputs and
    block j of the outputs are connected if i and j are equal or differ in one of the lowest
    `factors` bits, so that each block has 1 + `factors` others. Size and number of factors, at
    least one, are those whose density is nearest to the one that is asked for; of several, those
    with the most factors. The values of the scores do not matter.

    Args:
        scores: Scores ``[..., inputs, outputs]``.
        sparsity: Fraction of zeros.

    Returns:
        A boolean tensor of the shape of `scores`, the same at all positions of a filter.

    >>> butterfly(tf.zeros([4, 4]), 0.25).numpy().astype(int).tolist()
    [[1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]]
    """
    check_rank(scores, "The pattern 'butterfly'")
    inputs, outputs = scores.shape[-2:]
    most = min(inputs, outputs).bit_length() - 1
    shapes = [(2**n, k) for n in range(most, 0, -1) for k in range(1, n + 1)]
    if not shapes:  # a single input or output
        return tf.ones_like(scores, tf.bool)
    densities = tf.constant([(1 + k) / size for size, k in shapes], tf.float32)
    best = tf.argmin(tf.abs(densities - (1 - tf.cast(sparsity, tf.float32))))
    size, factors = tf.unstack(tf.gather(tf.constant(shapes, tf.int64), best))
    i, j = (tf.range(n, dtype=tf.int64) * size // n for n in (inputs, outputs))
    bits = tf.bitwise.bitwise_xor(i[:, None], j)
    single = tf.equal(tf.bitwise.bitwise_and(bits, bits - 1), 0)  # no bit or one
    low = bits < tf.bitwise.left_shift(tf.constant(1, tf.int64), factors)
    return tf.broadcast_to(single & low, scores.shape)
