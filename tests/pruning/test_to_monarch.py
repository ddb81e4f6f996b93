"""Trained Dense layers as Monarch matrices."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.errors import refused, small

from keras_ntt import MonarchDense, to_monarch
from keras_ntt.layers.monarch import as_matrix, blocks_of, project


def network(width=12):
    layers = [keras.layers.Dense(width, "relu", name="wide"), keras.layers.Dense(1, name="last")]
    return keras.Sequential([keras.Input((16,)), *layers])


def test_a_monarch_matrix_is_kept(rng):
    model = network()
    sizes = blocks_of(16, 12, 4)
    kernel = as_matrix(*(rng.normal(size=size) for size in sizes))
    model.get_layer("wide").kernel.assign(kernel)
    model.get_layer("wide").bias.assign(rng.normal(size=12))
    x = rng.normal(size=(20, 16)).astype("float32")
    for inputs in (None, x):
        copy = to_monarch(model, inputs, blocks=4)
        assert isinstance(copy.get_layer("wide"), MonarchDense)
        assert type(copy.get_layer("last")) is keras.layers.Dense  # would not become smaller
        np.testing.assert_allclose(copy(x), model(x), atol=2e-4)


def test_the_fit_is_the_least_squares_solution(rng):
    """Against one ridge problem over all entries of the second factor, written out."""
    model = network()
    model.get_layer("wide").activation = keras.activations.linear
    x = (rng.normal(size=(40, 16)) @ rng.normal(size=(16, 16)) + 1).astype("float32")
    copy = to_monarch(model, x, blocks=2)
    layer, kernel = copy.get_layer("wide"), model.get_layer("wide").kernel.numpy()
    first, before = project(kernel.astype("float64"), layer.sizes)
    np.testing.assert_allclose(layer.first, first, atol=1e-6)
    y = x.astype("float64") @ kernel
    y -= y.mean(axis=0)
    q = first.shape[1]
    flat = np.concatenate([x[:, 8 * i : 8 * i + 8] @ first[i].T for i in range(2)], axis=1)
    flat -= flat.mean(axis=0)
    assert q == 6
    for j in range(2):
        z, wanted = flat[:, j::2], y[:, j::2]
        ridge = 0.01 * np.mean(np.square(z).sum(axis=0))
        rows = np.concatenate([z, np.sqrt(ridge) * np.eye(6)])
        right = np.concatenate([wanted, np.sqrt(ridge) * before[j].T])
        found = np.linalg.lstsq(rows, right, rcond=None)[0].T
        np.testing.assert_allclose(layer.second.numpy()[j], found, atol=1e-4)
    error = np.asarray(copy.get_layer("wide")(x)) - np.asarray(model.get_layer("wide")(x))
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-4)


def test_others_are_copied_and_the_model_stays(rng):
    x = keras.Input((16,))
    shared = keras.layers.Dense(16, name="shared")
    y = shared(shared(x))
    y = keras.layers.BatchNormalization()(keras.layers.Dense(16, name="one")(y))
    model = keras.Model(x, keras.layers.Dense(1, name="out")(y))
    model.set_weights([rng.normal(size=w.shape) ** 2 for w in model.get_weights()])
    before = model.get_weights()
    copy = to_monarch(model, blocks=4)
    kinds = {layer.name: type(layer) for layer in copy.layers}
    assert kinds["one"] is MonarchDense
    assert kinds["shared"] is kinds["out"] is keras.layers.Dense
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(model.layers, copy.layers, strict=True):
        if a.name != "one":
            for u, v in zip(a.get_weights(), b.get_weights(), strict=True):
                np.testing.assert_array_equal(u, v)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"blocks": 0}, "blocks must be a positive integer"),
        ({"blocks": 1}, "No layer can be replaced.*Received: model="),
        ({"filters": "none"}, "filters.*Received"),
        ({"inputs": np.ones((3, 5))}, "Received"),
    ],
)
def test_refused(options, match):
    model = small()
    with refused(ValueError, match, model):
        to_monarch(model, **{"blocks": 2, **options})
