"""Flat block butterfly masks, by hand and by the butterfly products that they are the sum of."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ntt
from keras_ntt.selection.patterns import butterfly


def mask(inputs, outputs, sparsity):
    return butterfly(tf.zeros([inputs, outputs]), sparsity).numpy().astype(int)


def test_rows_by_hand():
    assert ["".join(map(str, row)) for row in mask(4, 4, 0.25)] == ["1110", "1101", "1011", "0111"]
    two = np.kron(np.eye(2, dtype=int), mask(4, 4, 0.25))
    np.testing.assert_array_equal(mask(8, 8, 1 - 3 / 8), two)


@pytest.mark.parametrize("size", [2, 8, 32])
def test_all_factors_are_the_pattern_of_the_sum_of_butterfly_factors(size):
    """Factor k swaps halves of runs of 2^(k+1): the identity and a permutation by kron products."""
    n = size.bit_length() - 1
    swap = np.array([[0, 1], [1, 0]])
    total = np.eye(size, dtype=int)
    for k in range(n):
        total += np.kron(
            np.kron(np.eye(2 ** (n - 1 - k), dtype=int), swap), np.eye(2**k, dtype=int)
        )
    np.testing.assert_array_equal(mask(size, size, 1 - (n + 1) / size), total)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 128), (784, 300), (96, 64)])
@pytest.mark.parametrize("sparsity", [0.5, 0.8125, 0.9])
@pytest.mark.few(3)
def test_blocks_are_connected_as_a_butterfly_and_come_near_the_sparsity(inputs, outputs, sparsity):
    found = mask(inputs, outputs, sparsity)
    rows = np.unique(found, axis=0)
    size = len(rows)  # rows of one block are alike, those of two are not
    assert size & (size - 1) == 0
    near = [(1 + k) / 2**n for n in range(1, 7) for k in range(1, n + 1)]
    assert abs(found.mean() - (1 - sparsity)) < min(abs(d - (1 - sparsity)) for d in near) + 0.02


def test_by_name():
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(64), keras.layers.Dense(16)])
    sparse = keras_ntt.prune_at_init(
        model, sparsity=0.75, saliency="magnitude", allocation="layerwise", pattern="butterfly"
    )
    for found in keras_ntt.get_masks(sparse).values():
        np.testing.assert_array_equal(found, mask(*found.shape, 0.75))
    kernel = butterfly(tf.zeros([3, 3, 8, 16]), 0.625).numpy()
    np.testing.assert_array_equal(kernel[1, 2], mask(8, 16, 0.625))
    assert (kernel == kernel[:1, :1]).all()


def test_the_sparsity_may_be_a_tensor_of_a_compiled_step():
    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def compiled(sparsity):
        return butterfly(tf.zeros([16, 8]), sparsity)

    for sparsity in (0.5, 0.75):
        np.testing.assert_array_equal(compiled(sparsity), mask(16, 8, sparsity))
    assert mask(5, 1, 0.9).all()
