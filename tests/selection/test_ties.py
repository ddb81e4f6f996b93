"""Entries of equal scores: spread evenly, the same in NumPy and in compiled steps."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ntt
from keras_ntt.selection.counts import counts_by_threshold
from keras_ntt.selection.patterns import blocks, largest, m_of_n
from keras_ntt.selection.ties import largest_among, largest_of, place_of

SHAPES = [(16, 6), (6, 16), (12, 12), (3, 3, 4, 10), (7, 1), (1, 9), (64, 10), (5,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_entry_has_a_place(shape):
    size = int(np.prod(shape))
    places = place_of(np.arange(size), shape)
    np.testing.assert_array_equal(np.sort(places), np.arange(size))


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1])
def test_equal_scores_are_spread_over_rows_and_columns(shape):
    size = int(np.prod(shape))
    for count in {1, size // 7, size // 3, size // 2, size - 1}:
        mask = largest_of(np.zeros(shape), count).reshape(-1, shape[-1])
        assert mask.sum() == count
        for axis in (0, 1):
            kept = mask.sum(axis)
            assert kept.max() - kept.min() <= 2
        longer = mask.sum(int(mask.shape[0] >= mask.shape[1]))
        assert longer.max() - longer.min() <= 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(16, 6), (3, 3, 4, 10), (5,)])
@pytest.mark.few(4)
def test_the_largest_of_some_entries_are_those_of_numpy(rng, shape, dtype):
    compiled = tf.function(largest_among)
    for scores in (rng.random(shape), rng.integers(0, 3, shape), np.zeros(shape)):
        scores = scores.astype(dtype)
        for among in (rng.random(shape) < 0.6, np.ones(shape, bool), np.zeros(shape, bool)):
            total = int(among.sum())
            for count in {0, total // 3, total - (total > 0), total}:
                mask = compiled(tf.constant(scores), tf.constant(among), tf.constant(count))
                expected = largest_of(np.where(among, scores, -1), count) & among
                np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_and_tensors_agree_and_keep_the_largest(rng, shape):
    scores = rng.integers(0, 4, size=shape).astype("float64")
    for count in range(0, scores.size + 1, max(scores.size // 9, 1)):
        mask = largest_of(scores, count)
        assert mask.sum() == count
        if 0 < count < scores.size:
            assert scores[mask].min() >= scores[~mask].max()
        np.testing.assert_array_equal(largest(tf.constant(scores), count), mask)


@pytest.mark.parametrize(("m", "n"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_no_input_is_left_out_by_all_groups(m, n):
    mask = m_of_n(tf.zeros([16, 12]), m, n).numpy()
    groups = mask.T.reshape(12, -1, n)
    assert (groups.sum(-1) == n - m).all()
    assert set(mask.sum(1)) == {12 * (n - m) // n}


def test_groups_that_are_filled_up_keep_their_entries():
    mask = m_of_n(tf.zeros([6, 8]), 2, 4).numpy()
    assert (mask[4:].sum(0) == 2).all()
    assert (mask[:4].sum(0) == 2).all()


def test_blocks_of_equal_scores_are_spread():
    mask = blocks(tf.zeros([16, 8]), 0.5, block_size=(2, 2)).numpy()
    assert set(mask.sum(0)) == {8}
    assert set(mask.sum(1)) == {4}


def test_a_threshold_takes_equal_scores_from_every_weight():
    scores = [np.zeros((4, 5)), np.zeros(60), np.full((2, 2), 9.0)]
    first, second, third = counts_by_threshold(scores, 44, [0, 0, 0])
    assert (first + second, third) == (40, 4)
    assert 9 <= first <= 11


def _kept_by_sorting(scores, count):
    """The same mask by a stable sort of all entries, in the order of their places."""
    entry = np.argsort(place_of(np.arange(scores.size), scores.shape))
    order = entry[np.argsort(-scores.ravel()[entry], kind="stable")]
    mask = np.zeros(scores.size, bool)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_a_partition_keeps_what_a_stable_sort_does(rng, levels):
    for shape in SHAPES:
        scores = rng.integers(-levels, levels, size=shape) * 0.5
        scores[rng.random(shape) < 0.2] = -np.inf
        scores[rng.random(shape) < 0.2] = -0.0
        for count in range(0, scores.size + 1, max(scores.size // 7, 1)):
            np.testing.assert_array_equal(
                largest_of(scores, count), _kept_by_sorting(scores, count)
            )


@pytest.mark.parametrize("least", [0, 1, 3])
def test_one_threshold_counts_as_a_stable_sort_of_all_scores(rng, least):
    scores = [rng.integers(0, 6, size=shape) * 1.0 for shape in SHAPES]
    sizes = [s.size for s in scores]
    raised = [np.where(_kept_by_sorting(s.ravel(), least), np.inf, s.ravel()) for s in scores]
    owners = np.repeat(np.arange(len(sizes)), sizes)
    for total in range(least * len(sizes), sum(sizes) + 1, 97):
        kept = _kept_by_sorting(np.concatenate(raised), total)
        expected = np.bincount(owners[kept], minlength=len(sizes)).tolist()
        assert counts_by_threshold(scores, total, [least] * len(sizes)) == expected


def _head():
    last = layers.Dense(6, kernel_initializer="zeros")
    return keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), last])


def test_units_of_a_layer_that_begins_with_zeros_stay_connected():
    for make in (
        lambda: keras_ntt.prune_low_magnitude(_head(), 0.5),
        lambda: keras_ntt.prune_low_magnitude(_head(), sparsity_m_by_n=(2, 4)),
        lambda: keras_ntt.prune_at_init(
            _head(), sparsity=0.5, saliency="magnitude", allocation="layerwise", verbose=0
        ),
    ):
        last = list(keras_ntt.get_masks(make()).values())[1]
        assert set(last.sum(1)) == {3}
        assert set(last.sum(0)) <= {7, 8, 9}


def test_an_identity_keeps_its_diagonal_and_as_many_others_everywhere():
    rnn = layers.SimpleRNN(16, recurrent_initializer="identity")
    model = keras.Sequential([keras.Input((5, 4)), rnn])
    keras_ntt.prune_low_magnitude(model, 0.5)
    mask = list(keras_ntt.get_masks(model).values())[1]
    assert mask.diagonal().all()
    assert mask.sum(0).min() >= 6
    assert mask.sum(1).min() >= 6
