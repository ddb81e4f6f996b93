"""Statistics of BatchNormalization from unlabelled inputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_ntt import reestimate_batch_norm


def network():
    return keras.Sequential(
        [
            keras.Input((6, 5, 2)),
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(4, 2),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def moments(x):
    flat = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return flat.mean(axis=0), flat.var(axis=0)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_moments_are_exact_and_later_layers_see_earlier_ones(rng, batch_size):
    model = network()
    x = rng.normal(2, 3, size=(11, 6, 5, 2)).astype("float32")
    kernels = [np.asarray(v) for v in model.trainable_variables]
    reestimate_batch_norm(model, x, batch_size=batch_size)
    for number in (1, 4):
        seen = keras.Model(model.inputs[0], model.layers[number].input)(x)
        mean, variance = moments(seen)
        np.testing.assert_allclose(model.layers[number].moving_mean, mean, atol=1e-5)
        np.testing.assert_allclose(model.layers[number].moving_variance, variance, rtol=1e-5)
    for variable, value in zip(model.trainable_variables, kernels, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_variance_beside_a_large_mean():
    model = keras.Sequential([keras.Input((1,)), layers.BatchNormalization()])
    x = np.array([[1e4 - 1], [1e4 + 1], [1e4 - 3], [1e4 + 3]])
    reestimate_batch_norm(model, x, batch_size=1)
    assert float(model.layers[0].moving_variance[0]) == pytest.approx(5.0)


def test_custom_models_and_other_axes(rng):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.dense = layers.BatchNormalization(axis=1), layers.Dense(3)
            self.second = layers.BatchNormalization()

        def call(self, x):
            return self.second(self.dense(self.first(x)))

    model, x = Own(), rng.normal(5, 2, size=(9, 4, 2)).astype("float32")
    model(x)
    reestimate_batch_norm(model, tf.data.Dataset.from_tensor_slices(x).batch(2))
    np.testing.assert_allclose(model.first.moving_mean, x.mean(axis=(0, 2)), rtol=1e-5)
    mean, variance = moments(model.dense(model.first(x)))
    np.testing.assert_allclose(model.second.moving_mean, mean, atol=1e-5)
    np.testing.assert_allclose(model.second.moving_variance, variance, rtol=1e-4)


def test_a_shared_layer_gets_the_moments_of_all_its_calls(rng):
    norm = layers.BatchNormalization()
    a, b = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], layers.Add()([norm(a), norm(b)]))
    x = [rng.normal(size=(5, 2)).astype("float32"), rng.normal(7, size=(5, 2)).astype("float32")]
    reestimate_batch_norm(model, x)
    mean, variance = moments(np.concatenate(x))
    np.testing.assert_allclose(norm.moving_mean, mean, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-5)


def test_refusals_leave_the_model_as_it_was(rng):
    model = network()
    before = [np.asarray(v) for v in model.variables]
    x = rng.normal(size=(3, 6, 5, 2)).astype("float32")
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        reestimate_batch_norm(model, x)
    with pytest.raises(ValueError, match="is NaN or infinite"), np.errstate(all="ignore"):
        reestimate_batch_norm(model, np.full((3, 6, 5, 2), 3e38, "float32"))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    with pytest.raises(ValueError, match="no BatchNormalization"):
        reestimate_batch_norm(keras.Sequential([keras.Input((2,)), layers.Dense(1)]), x)
