"""The entropy penalty: bits by hand, its gradient, and what training with it leaves."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.errors import samples, small

import keras_ntt
from keras_ntt import EntropyPenalty
from keras_ntt.pruning.entropy_penalty import entropy_bits, rate


def test_bits_by_hand():
    values = [0] * 90 + [1] * 4 + [-1] * 4 + [2, -2]
    assert entropy_bits(values) == pytest.approx(64.1, abs=0.05)
    assert entropy_bits(values) / 100 == pytest.approx(0.6412, abs=1e-4)
    assert entropy_bits(np.zeros(5)) == 0
    bits = rate(tf.constant([0.0, 1.0, -1.0, 1e6], tf.float64), 0.25)  # sigmoid(4 x)
    np.testing.assert_allclose(2.0 ** -bits.numpy()[:3], [0.7616, 0.1167, 0.1167], atol=5e-5)
    assert float(bits[3]) == pytest.approx(-np.log2(1e-10), abs=0.01)


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_probabilities_sum_to_one(scale):
    levels = tf.range(-200.0, 201.0, dtype=tf.float64)
    assert float(tf.reduce_sum(2.0 ** -rate(levels, scale))) == pytest.approx(1, abs=1e-6)


def trained(weight, **options):
    keras.utils.set_random_seed(0)
    model, callback = small(units=16), EntropyPenalty(weight, **options)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x = samples(64)
    model.fit(x, x[:, :3], epochs=10, batch_size=8, verbose=0, callbacks=[callback])
    return model, callback


@pytest.mark.long
def test_a_larger_penalty_takes_fewer_bits():
    sums = []
    for weight in (0.0, 5.0):
        model, callback = trained(weight, levels=15)
        assert all(v.regularizer is None for v in model.weights)
        for variable in model.weights:
            if variable.name != "kernel":
                continue
            values = variable.numpy()
            assert entropy_bits(values) == pytest.approx(callback.bits[variable.path])
            gaps = np.diff(np.unique(values)).astype("float64")
            steps = gaps / gaps.min()
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-2 * steps.max())
        sums.append(sum(callback.bits.values()))
        assert f"in all  {sums[-1] / 8:,.0f} bytes" in str(callback)
    assert sums[1] < 0.7 * sums[0]


def test_filters_and_another_regularizer():
    layer = keras.layers.Dense(3, kernel_regularizer="l2", name="one")
    model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(3, name="two")])
    before = layer.kernel.regularizer
    model.compile("sgd", "mse")
    callback = EntropyPenalty(1.0, filters="one")
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: seen.append((layer.kernel.regularizer, len(model.losses)))
    )
    model.fit(samples(), np.zeros((8, 3)), verbose=0, callbacks=[callback, watch])
    assert seen[0][0] is not before
    assert seen[0][1] == 1
    assert layer.kernel.regularizer is before
    assert list(callback.bits) == [layer.kernel.path]


def test_refused():
    for options, match in (
        ({"weight": -1}, "weight"),
        ({"levels": 0}, "levels must be a positive"),
    ):
        with pytest.raises(ValueError, match=match + ".*Received"):
            EntropyPenalty(**options)
    assert keras_ntt.EntropyPenalty is EntropyPenalty
