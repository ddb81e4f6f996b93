"""Long runs: nothing is traced anew, nothing grows, and what is not used any more goes away."""

import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import architectures
from keras import layers

import keras_ntt
from benchmarks.soak import long_run


@pytest.mark.long
def test_some_hundred_steps_are_traced_once_and_take_no_memory():
    found = long_run.measure(600)
    long_run.check(found)
    assert found["steps"] == 600
    assert len(found["traces"]) == 12
    assert found["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_a_step_that_is_traced_anew_would_be_noticed():
    import tensorflow as tf

    step = tf.function(lambda x: x + 1)

    def run(x):
        return step(x)

    run(tf.ones(2))
    run(tf.ones(2))
    assert long_run.traces(run) == 1
    run(tf.ones(3))
    assert long_run.traces(run) == 2
    with pytest.raises(AssertionError, match="traced 1 times in the first epoch, 2"):
        long_run.check({"traces": [1, 2], "growth": 0})
    with pytest.raises(AssertionError, match="grown"):
        long_run.check({"traces": [1, 1], "growth": 2**30})


@pytest.mark.soak
def test_twenty_thousand_steps():
    long_run.check(long_run.measure(20_000))


def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((16, 6)).astype("float32"), rng.standard_normal((16, 3))


def network():
    return architectures.sequential((6,), layers.Dense(8, "relu"), layers.Dense(3))


def transferred():
    transfer = keras_ntt.NeuralTangentTransfer(network(), pruning_schedule=0.5)
    transfer.compile(keras.optimizers.Adam(1e-3))
    transfer.fit(data()[0], batch_size=8, verbose=0, validation_data=data()[0])
    transfer.student.compile("adam", "mse", jit_compile=False)
    transfer.student.fit(*data(), batch_size=8, verbose=0)
    return transfer, transfer.student, transfer.optimizer


def with_masks():
    model = keras_ntt.prune_at_init(network(), sparsity=0.5, saliency="magnitude")
    x, y = data()
    callbacks = [keras_ntt.TrainingDynamics(network(), x[:4]), keras_ntt.UpdatePruningStep()]
    model.compile("adam", "mse", jit_compile=False)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=callbacks)
    return (model, model.optimizer, *callbacks)


def scheduled():
    model = network()
    keras_ntt.prune_low_magnitude(model, keras_ntt.ConstantSparsity(0.5, 0, frequency=1))
    callback = keras_ntt.UpdatePruningStep()
    model.compile("adam", "mse", jit_compile=False)
    model.fit(*data(), batch_size=8, verbose=0, callbacks=[callback])
    return model, callback, model.layers[0]


def stripped():
    model = scheduled()[0]
    keras_ntt.strip_pruning(model)
    return (model,)


@pytest.mark.parametrize("make", [transferred, with_masks, scheduled, stripped])
@pytest.mark.few(1)
def test_what_is_not_used_any_more_is_collected(make):
    references = [weakref.ref(one) for one in make()]
    keras.backend.clear_session()  # Keras keeps names and the like of what was built
    gc.collect()
    left = [reference() for reference in references if reference() is not None]
    assert left == []
