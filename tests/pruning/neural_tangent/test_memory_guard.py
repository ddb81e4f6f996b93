"""A transfer whose step does not fit in memory says so before its first step."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ntt
from keras_ntt.core import memory
from keras_ntt.core.memory import written
from keras_ntt.pruning.neural_tangent.memory import rough_bound


def autoencoder(width=2048):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((width,)), layers.Dense(2), layers.Dense(width)])


def transfer_of(model, **settings):
    transfer = keras_ntt.NeuralTangentTransfer(model, pruning_schedule=0.5, seed=0, **settings)
    transfer.compile("sgd")
    return transfer


SAID = r"A step needs about [\d.]+ GiB, and there are [\d.]+ .iB of memory left.*"


@pytest.mark.parametrize("as_data_set", [False, True])
def test_a_step_that_does_not_fit_is_refused(as_data_set):
    x = np.zeros((512, 2048), "float32")  # a kernel of (256 * 2048)^2 numbers is 1 TiB
    transfer = transfer_of(autoencoder())
    before = [np.array(w) for w in transfer.student.get_weights()]
    given = tf.data.Dataset.from_tensors(x) if as_data_set else x
    with pytest.raises(
        ValueError, match=SAID + "output_projections.*memory_limit.*batch_size"
    ) as e:
        transfer.fit(given, batch_size=None if as_data_set else 512, verbose=0)
    needed = transfer.estimate_memory(x)
    assert written(needed) in str(e.value)
    assert needed > memory.available()
    assert transfer.step == 0
    for value, found in zip(before, transfer.student.get_weights(), strict=True):
        np.testing.assert_array_equal(value, found)


@pytest.mark.long
def test_each_advice_works(rng):
    x = rng.normal(size=(512, 2048)).astype("float32")
    with pytest.raises(ValueError, match=SAID):
        keras_ntt.prune_neural_tangent(
            autoencoder(), x, sparsity=0.5, epochs=1, batch_size=512, verbose=0
        )
    for settings in ({"batch_size": 512, "output_projections": 2}, {"batch_size": 2}):
        sparse = keras_ntt.prune_neural_tangent(
            *(autoencoder(), x[: settings["batch_size"]]),
            **{"sparsity": 0.5, "epochs": 1, "verbose": 0, **settings},
        )
        assert keras_ntt.sparsity_report(sparse).sparsity == 0.5


def test_the_limit_that_is_advised_is_taken():
    x = np.zeros((64, 2048), "float32")
    transfer = transfer_of(autoencoder())
    with pytest.raises(ValueError, match=SAID) as error:
        transfer.fit(np.zeros((4096, 2048), "float32"), batch_size=4096, verbose=0)
    limit = int(re.search(r"memory_limit=(\d+)", str(error.value))[1])
    assert 0 < limit < memory.available()
    assert transfer_of(autoencoder(), memory_limit=limit).estimate_memory(x[:2]) < limit


def test_small_steps_are_not_estimated(monkeypatch, rng):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(3)])
    x = rng.normal(size=(16, 6)).astype("float32")
    assert rough_bound(model, tf.TensorSpec((16, 6)), None) < 1e7
    transfer = transfer_of(model)
    monkeypatch.setattr(transfer, "estimate_memory", lambda *_: pytest.fail("it was estimated"))
    transfer.fit(x, verbose=0)
    assert transfer.step == 1


def attending():
    x = keras.Input((24, 6))
    attended = layers.MultiHeadAttention(3, 2)(x, x)
    return keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling1D()(attended)))


NETS = {
    "dense": lambda: keras.Sequential(
        [keras.Input((20,)), layers.Dense(50, "relu"), layers.Dense(30, "relu"), layers.Dense(7)]
    ),
    "convolutions": lambda: keras.Sequential(
        [
            keras.Input((12, 12, 2)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    ),
    "attention": attending,
    "recurrent": lambda: keras.Sequential([keras.Input((9, 3)), layers.LSTM(8), layers.Dense(4)]),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("samples", [4, 32])
@pytest.mark.few(1)
def test_the_rough_bound_is_above_the_estimate(name, samples):
    model = NETS[name]()
    spec = tf.TensorSpec((samples, *model.inputs[0].shape[1:]))
    assert transfer_of(model).estimate_memory(spec) < rough_bound(model, spec, None)
