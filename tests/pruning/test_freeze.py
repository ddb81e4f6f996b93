"""FreezeNet: which entries are trained, from which values, and what its file has."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.errors import refused, samples, small

import keras_ntt
from keras_ntt import freeze_at_init, load_difference, save_difference, trained_entries
from keras_ntt.core import philox
from keras_ntt.masks.difference import limits_of

DATA = samples(), np.arange(8) % 3


def test_entries_with_the_largest_gradients_are_trained():
    """By hand: the gradient of the mean squared error of one linear unit is 2 x (f - y)."""
    layer = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.set_weights([np.array([[9.0], [1e-6], [0.0]])])
    x, y = np.array([[0.1, 2.0, -3.0]], "float32"), np.array([[5.0]], "float32")
    score = keras_ntt.saliency.LossGradient("mse")
    found = keras_ntt.saliency_scores(model, score, data=(x, y))
    np.testing.assert_allclose(next(iter(found.values())).ravel(), np.abs(x[0]) / 5.1, rtol=1e-5)
    frozen = freeze_at_init(model, frozen=0.6, data=(x, y), saliency=score, seed=None)
    assert next(iter(trained_entries(frozen).values())).ravel().tolist() == [False, False, True]
    np.testing.assert_array_equal(frozen.get_weights()[0], layer.get_weights()[0])


def test_values_come_from_the_seed_and_the_file_has_the_rest(tmp_path):
    model = small(units=40)
    before = model.get_weights()
    frozen = freeze_at_init(model, frozen=0.95, data=DATA, seed=5)
    for place in (0, 2):
        kernel = frozen.get_weights()[place]
        limit = np.sqrt(6 / sum(kernel.shape))
        wanted = philox.uniform(5, place, kernel.size, limit).reshape(kernel.shape)
        np.testing.assert_array_equal(kernel, wanted)
        np.testing.assert_array_equal(model.get_weights()[place], before[place])
    masks = list(trained_entries(frozen).values())
    assert sum(m.sum() for m in masks) == 18  # 5 % of 360
    frozen.compile(keras.optimizers.Adam(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    frozen.fit(*DATA, epochs=2, verbose=0)
    save_difference(frozen, 5, tmp_path / "seed")
    again = load_difference(small(units=40), tmp_path / "seed")
    for a, b in zip(again.get_weights(), frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert trained_entries(again) == {}


def test_first_values_have_the_variance_of_the_initializers():
    make = keras.layers.Dense
    layers = [
        make(30, kernel_initializer="he_normal"),
        make(20, kernel_initializer=keras.initializers.RandomNormal(stddev=0.2)),
        make(10, kernel_initializer=keras.initializers.RandomUniform(-0.3, 0.3)),
        make(5, kernel_initializer="orthogonal"),
    ]
    found = limits_of(keras.Sequential([keras.Input((40,)), *layers]))[::2]
    wanted = [(6 / 40) ** 0.5, 3**0.5 * 0.2, 0.3, (6 / 15) ** 0.5]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    conv = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    np.testing.assert_allclose(limits_of(conv)[0], (6 / (27 + 36)) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"frozen": 1.0}, r"frozen is the fraction.*Received: frozen=1.0"),
        ({"frozen": 0.5, "data": None}, "LossGradient is taken on samples.*Received"),
        ({"frozen": 0.5, "seed": -1}, "seed must be an integer.*Received: seed=-1"),
        ({"frozen": 0.5, "allocation": "none"}, "allocation.*Received"),
    ],
)
def test_refused(options, match):
    model = small()
    with refused(ValueError, match, model):
        freeze_at_init(model, **{"data": DATA, **options})


def test_any_score_will_do():
    frozen = freeze_at_init(small(), frozen=0.5, saliency="random", allocation="layerwise")
    assert [int(m.sum()) for m in trained_entries(frozen).values()] == [12, 6]
