"""Masks of a given structure: tables written by hand, and loops in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_ntt.selection.counts import keep_count_float32
from keras_ntt.selection.named_patterns import pattern_of
from keras_ntt.selection.patterns import blocks, entries, largest, m_of_n
from keras_ntt.selection.ties import place_of


def as_lists(mask):
    return mask.numpy().astype(int).tolist()


@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [
        (192, 0.7, 58),
        (10, 0.99, 1),  # at least one
        (1, 0.5, 1),
        (10, 0.0, 10),
        (4, 0.5, 2),
        (5, 0.5, 2),  # 2.5 and 1.5: halves to even
        (3, 0.5, 2),
        (10, 0.75, 2),
        (6, 0.75, 2),
        (2**24 + 1, 0.0, 2**24 + 1),  # float32 rounds this size up to an even number
    ],
)
def test_counts_by_hand(size, sparsity, count):
    assert int(keep_count_float32(size, sparsity)) == count


@pytest.mark.parametrize(
    ("scores", "count", "mask"),
    [
        ([3, 1, 2], 2, [1, 0, 1]),
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),  # of equal scores the first
        ([0, 2, 1, 2, 1], 3, [0, 1, 1, 1, 0]),
        ([[0, 0], [5, 0]], 2, [[1, 0], [1, 0]]),
        ([1, 2], 2, [1, 1]),
    ],
)
def test_the_largest_by_hand(scores, count, mask):
    assert as_lists(largest(tf.constant(scores, tf.float32), count)) == mask


def test_blocks_by_hand():
    scores = tf.constant(
        [
            [1, 1, 0, 0, 6],
            [1, 1, 0, 9, 0],
            [3, 3, 4, 4, 1],
        ],
        tf.float32,
    )
    # Averages of 2 x 2: 1, 2.25, 3 / 3, 4, 1. Blocks that reach over the edge: only what is there.
    kept = [
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [1, 1, 1, 1, 0],
    ]
    assert as_lists(blocks(scores, 1 / 3, block_size=(2, 2), pooling="AVG")) == kept
    # Largest entries: 1, 9, 6 / 3, 4, 1.
    kept = [
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ]
    assert as_lists(blocks(scores, 2 / 3, block_size=(2, 2), pooling="MAX")) == kept


def test_m_of_n_by_hand():
    # A Dense kernel, 4 inputs and 2 outputs: two zeros in each column.
    kernel = tf.constant([[4, 1], [3, 2], [2, 3], [1, 4]], tf.float32)
    assert as_lists(m_of_n(kernel, 2, 4)) == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert as_lists(m_of_n(kernel, 3, 4)) == [[1, 0], [0, 0], [0, 0], [0, 1]]
    assert as_lists(m_of_n(kernel, 1, 2)) == [[1, 0], [0, 1], [1, 0], [0, 1]]
    # 3 inputs in groups of 2: the last group is filled up with a zero, which is the one dropped.
    assert as_lists(m_of_n(tf.constant([[1.0], [2.0], [0.5]]), 1, 2)) == [[0], [1], [1]]


@pytest.mark.parametrize("least", [0.0, -7.0, -1e6, -np.inf])
def test_what_is_filled_up_never_goes_before_an_entry(least):
    # 5 inputs in groups of 4: the fifth shares its group with padding only.
    scores = tf.constant([[least], [-3], [-1], [-2], [least]], tf.float64)
    assert as_lists(m_of_n(scores, 2, 4)) == [[int(least > -1)], [0], [1], [int(least < -1)], [1]]
    # One input: nothing to choose from.
    assert as_lists(m_of_n(tf.fill([3, 3, 1, 2], least), 2, 4)) == np.ones((3, 3, 1, 2)).tolist()


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(
    st.integers(0, 9999),
    shapes,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from(["AVG", "MAX"]),
    st.floats(0, 0.99),
)
def test_blocks_against_a_loop(seed, shape, block, pooling, sparsity):
    scores = np.abs(np.random.default_rng(seed).normal(size=shape)).astype("float32")
    (rows, columns), (height, width) = shape, block
    starts = [(r, c) for r in range(0, rows, height) for c in range(0, columns, width)]
    # As in tfmot, windows are those of SAME padding: they begin before the first entry.
    up, left = (-rows % height) // 2, (-columns % width) // 2
    pool = {"AVG": np.mean, "MAX": np.max}[pooling]
    windows = [(r - up, c - left) for r, c in starts]
    pooled = [pool(scores[max(r, 0) : r + height, max(c, 0) : c + width]) for r, c in windows]
    best = np.argsort(pooled)[::-1][: int(keep_count_float32(len(starts), sparsity))]
    wanted = np.zeros(shape, bool)
    for r, c in (starts[i] for i in best):
        wanted[r : r + height, c : c + width] = True
    pattern = pattern_of(shape, block_size=block, pooling=pooling)
    np.testing.assert_array_equal(pattern(tf.constant(scores), sparsity), wanted)


@pytest.mark.parametrize(
    "structure",
    [{}, {"block_size": (2, 3)}, {"block_size": (3, 2), "pooling": "MAX"}],
    ids=["entries", "average", "largest"],
)
@pytest.mark.few(1)
def test_compiled_patterns_are_the_same(rng, structure):
    scores = tf.constant(np.abs(rng.normal(size=(7, 8))).astype("float32"))
    pattern = pattern_of((7, 8), **structure)
    for sparsity in (0.3, 0.8):
        compiled = tf.function(pattern, jit_compile=True)(scores, tf.constant(sparsity))
        np.testing.assert_array_equal(compiled, pattern(scores, sparsity))


@given(st.integers(0, 9999), st.sampled_from([2, 4]), st.integers(2, 5), st.data())
def test_m_of_n_against_a_loop(seed, rank, n, data):
    m = data.draw(st.integers(1, n - 1))
    rng = np.random.default_rng(seed)
    shape = tuple(int(k) for k in rng.integers(1, 8, size=rank))
    scores = rng.normal(size=shape).astype("float32")
    mask = m_of_n(tf.constant(scores), m, n).numpy()
    for index in np.ndindex(*shape[:-2]):
        for output in range(shape[-1]):
            row = scores[index][:, output]
            kept = mask[index][:, output]
            for first in range(0, len(row), n):
                group, held = row[first : first + n], kept[first : first + n]
                assert held.sum() == min(n - m, len(group))  # what is filled up goes first
                assert set(group[held]) == set(np.sort(group)[::-1][: held.sum()])


@given(st.integers(0, 9999), st.integers(1, 5), st.floats(0, 0.99))
def test_entries_against_a_sort(seed, rank, sparsity):
    rng = np.random.default_rng(seed)
    shape = tuple(int(k) for k in rng.integers(1, 6, size=rank))
    scores = rng.integers(0, 4, size=shape).astype("float32")  # with many ties
    count = int(keep_count_float32(scores.size, sparsity))
    places = place_of(np.arange(scores.size), shape)
    order = sorted(range(scores.size), key=lambda i: (-scores.flat[i], places[i]))
    wanted = np.zeros(scores.size, bool)
    wanted[order[:count]] = True
    np.testing.assert_array_equal(
        entries(tf.constant(scores), sparsity), wanted.reshape(scores.shape)
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype(dtype):
    scores = tf.cast([[4, 1], [3, 2], [2, 3], [1, 4]], dtype)
    assert as_lists(pattern_of((4, 2))(scores, 0.75)) == [[1, 0], [0, 0], [0, 0], [0, 1]]
    assert as_lists(pattern_of((4, 2), block_size=(2, 1))(scores, 0.5)) == [
        [1, 0],
        [1, 0],
        [0, 1],
        [0, 1],
    ]
    assert as_lists(pattern_of((4, 2), sparsity_m_by_n=(1, 2))(scores, 0.0)) == [
        [1, 0],
        [0, 1],
        [1, 0],
        [0, 1],
    ]
