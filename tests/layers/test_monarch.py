"""Monarch matrices: shapes, products and projections, by hand and by brute force."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

import keras_ntt
from keras_ntt import MonarchDense
from keras_ntt.layers.monarch import Blocks, as_matrix, blocks_of, project


def by_indices(first, second):
    """Return the matrix entry by entry, as the paper's permutations have it."""
    (k, q, p), (l, s, r) = first.shape, second.shape  # noqa: E741
    found = np.zeros((k * p, l * s))
    for i, a, j, b in itertools.product(range(k), range(p), range(l), range(s)):
        for c in range(r):
            flat = c * l + j  # the number in the middle that block j has at place c
            block, place = divmod(flat, q)
            if block == i:
                found[i * p + a, b * l + j] += first[i, place, a] * second[j, b, c]
    return found


SIZES = [Blocks((2, 2, 2), (2, 2, 2)), Blocks((4, 8, 6), (4, 5, 8)), Blocks((3, 5, 4), (3, 2, 5))]


@pytest.mark.parametrize("sizes", SIZES)
def test_the_matrix_of_two_factors(rng, sizes):
    first, second = (rng.normal(size=size) for size in sizes)
    np.testing.assert_allclose(as_matrix(first, second), by_indices(first, second), atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_monarch_matrix_is_its_own_projection(rng, sizes):
    wanted = as_matrix(*(rng.normal(size=size) for size in sizes))
    np.testing.assert_allclose(as_matrix(*project(wanted, sizes)), wanted, atol=1e-12)


def test_projection_by_hand():
    """Four slices of 2 x 2, of which one is not of rank 1: diag(3, 1) loses its 1."""
    matrix = np.array([[3.0, 0, 1, 2], [1, 1, 2, 0], [0, 1, 2, 4], [1, 1, 0, 0]])
    sizes = Blocks((2, 2, 2), (2, 2, 2))
    found = as_matrix(*project(matrix.T, sizes)).T  # the paper's matrices are [outputs, inputs]
    wanted = matrix.copy()
    wanted[2, 1] = 0
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_projection_leaves_what_the_slices_lose(rng):
    """The error is the sum of the squares of the singular values that are cut off."""
    sizes = Blocks((4, 8, 6), (4, 5, 8))
    assert sizes.parameters == 352
    matrix = rng.normal(size=(24, 20))
    lost = 0.0
    for i, j in itertools.product(range(4), range(4)):
        values = np.linalg.svd(matrix[6 * i : 6 * i + 6, j::4], compute_uv=False)
        lost += np.square(values[2:]).sum()
    error = np.square(as_matrix(*project(matrix, sizes)) - matrix).sum()
    np.testing.assert_allclose(error, lost, rtol=1e-10)


@pytest.mark.parametrize(
    ("inputs", "outputs", "share"),
    [(784, 300, 0.346), (300, 100, 0.333), (512, 512, 0.5), (128, 512, 0.3125), (512, 128, 0.3125)],
)
def test_parameters(inputs, outputs, share):
    found = blocks_of(inputs, outputs, 4).parameters / (inputs * outputs)
    assert found == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("blocks", [4, 16])
@pytest.mark.long
def test_exported(tmp_path, blocks):
    """Also where both factors have the same shape, of which a converter makes nonsense."""
    model = keras.Sequential([keras.Input((256,)), MonarchDense(256, blocks)])
    keras_ntt.export_tflite(model, tmp_path / "m.tflite", target="dense")  # compares the outputs


@pytest.mark.parametrize("shape", [(7,), (3, 7)])
def test_the_layer_is_the_product_with_its_matrix(rng, shape):
    model = keras.Sequential([keras.Input(shape), MonarchDense(10, 3, "tanh")])
    layer = model.layers[0]
    layer.bias.assign(rng.normal(size=10))
    x = rng.normal(size=(5, *shape)).astype("float32")
    matrix = by_indices(layer.first.numpy(), layer.second.numpy())[:7, :10]
    found = model(x).numpy()
    assert model.output_shape == (None, *shape[:-1], 10)
    np.testing.assert_allclose(found, np.tanh(x @ matrix + layer.bias.numpy()), atol=1e-5)


@pytest.mark.parametrize("units", [9, 8])
def test_factors_of_one_shape(rng, units):
    model = keras.Sequential([keras.Input((9,)), MonarchDense(units, 3, use_bias=False)])
    layer = model.layers[0]
    assert layer.sizes == Blocks((3, 3, 3), (3, 3, 3))
    x = rng.normal(size=(5, 9)).astype("float32")
    matrix = by_indices(layer.first.numpy(), layer.second.numpy())[:, :units]
    np.testing.assert_allclose(model(x), x @ matrix, atol=1e-5)


def test_saved_and_pruned(tmp_path, rng):
    model = keras.Sequential([keras.Input((8,)), MonarchDense(8, 2, "relu"), keras.layers.Dense(2)])
    x = rng.normal(size=(4, 8)).astype("float32")
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(x), model(x))
    sparse = keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude")
    assert [m.shape for m in keras_ntt.get_masks(sparse).values()] == [(2, 4, 4), (2, 4, 4), (8, 2)]


@pytest.mark.parametrize("options", [{"units": 0}, {"units": 3, "blocks": 1.5}])
def test_refused(options):
    with pytest.raises(ValueError, match=r"must be a positive integer.*Received"):
        MonarchDense(**options)
