"""Weights whose schedules do not advance: counted by a call or the callback, and named if not."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import warned
from keras import layers

import keras_ntt
from keras_ntt import PolynomialDecay, UpdatePruningStep, prune_low_magnitude, strip_pruning
from keras_ntt.pruning.scheduled_mask import scheduled_masks

SCHEDULE = PolynomialDecay(0.0, 0.8, 0, 8, frequency=1)


def network():
    return keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(30, "relu", use_bias=False),
            layers.Dense(5, use_bias=False),
        ]
    )


@pytest.fixture
def data(rng):
    return (
        tf.constant(rng.normal(size=(80, 16)), "float32"),
        tf.constant(rng.normal(size=(80, 5)), "float32"),
    )


def update(model, x, y):
    """Take a step of gradient descent without an optimizer."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    variables = model.trainable_variables
    for v, g in zip(variables, tape.gradient(loss, variables), strict=True):
        v.assign_sub(0.1 * g)


def kept(model):
    return [int(mask.mask.sum()) for mask in scheduled_masks(model)]


def steps(model):
    return [mask.step for mask in scheduled_masks(model)]


@pytest.mark.parametrize("wrap", [tf.function, lambda f: f], ids=["graph", "eager"])
def test_a_loop_without_an_optimizer_counts_by_a_call(data, wrap):
    model = prune_low_magnitude(network(), SCHEDULE)

    @wrap
    def step():
        update(model, *data)
        keras_ntt.advance_pruning(model)

    for number in range(1, 11):
        step()
        assert steps(model) == [number, number]
    assert kept(model) == [96, 30]
    for mask in scheduled_masks(model):
        np.testing.assert_array_equal(np.asarray(mask.variable) != 0, mask.mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strip_pruning(model)


def test_the_call_is_that_of_an_optimizer(data):
    """The same updates, by SGD and by hand, give the same masks and weights."""
    start = network().get_weights()
    by_hand, by_sgd = network(), network()
    for model in (by_hand, by_sgd):
        model.set_weights(start)
        prune_low_magnitude(model, SCHEDULE)
    optimizer = keras.optimizers.SGD(0.1)
    for _ in range(10):
        update(by_hand, *data)
        keras_ntt.advance_pruning(by_hand)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((by_sgd(data[0], training=True) - data[1]) ** 2)
        variables = by_sgd.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        keras_ntt.advance_pruning(by_sgd)  # counts nothing: the optimizer has
    assert steps(by_hand) == steps(by_sgd) == [10, 10]
    for a, b in zip(by_hand.get_weights(), by_sgd.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        np.testing.assert_array_equal(a == 0, b == 0)


def test_a_loop_without_an_optimizer_is_named(data):
    model = prune_low_magnitude(network(), SCHEDULE)
    for _ in range(3):
        update(model, *data)
    assert "schedule at step 0 of 8" in str(keras_ntt.sparsity_report(model))
    with warned("did not end in 2 of 2 weights.*advance_pruning.*Received: .*step 0 of 8"):
        strip_pruning(model)


def test_weights_that_are_behind_are_named_one_by_one(data):
    """Alternating training, and a head that no loss uses."""
    inputs = keras.Input((16,))
    hidden = layers.Dense(8, name="shared")(inputs)
    heads = [layers.Dense(5, name=name)(hidden) for name in ("a", "b", "unused")]
    model = prune_low_magnitude(keras.Model(inputs, heads), SCHEDULE)
    tasks = [keras.Model(inputs, head) for head in heads[:2]]
    for task in tasks:
        task.compile("sgd", "mse")
    for _ in range(5):
        for task in tasks:
            task.train_on_batch(*data)
    progress = {row.path: row.progress for row in keras_ntt.sparsity_report(model).rows}
    assert progress["shared/kernel"] == ""
    assert progress["a/kernel"] == progress["b/kernel"] == "step 5 of 8"
    assert progress["unused/kernel"] == "step 0 of 8"
    with warned(r"in 2 of 4 weights.*Received: a/kernel \(step 5 of 8\), b/kernel"):
        strip_pruning(model)


@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 2}, {"jit_compile": True}])
@pytest.mark.few(1)
def test_the_callback_counts_for_a_head_without_a_loss(data, options):
    inputs = keras.Input((16,))
    hidden = layers.Dense(30)(inputs)
    heads = {name: layers.Dense(5, name=name)(hidden) for name in ("used", "unused")}
    model = prune_low_magnitude(keras.Model(inputs, heads), SCHEDULE)
    model.compile("sgd", {"used": "mse", "unused": None}, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradients do not exist")
        model.fit(
            data[0], {"used": data[1]}, batch_size=8, verbose=0, callbacks=[UpdatePruningStep()]
        )
    assert steps(model) == [10, 10, 10]
    assert kept(model) == [96, 30, 30]


class OwnStep(keras.Model):
    """A model whose step needs no optimizer."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(5, use_bias=False)

    def call(self, x):
        return self.inner(x)

    def train_step(self, batch):
        update(self, *batch)
        return {"steps": 1}


def test_the_callback_counts_for_a_step_of_ones_own(data):
    model = OwnStep()
    model(data[0])
    prune_low_magnitude(model, SCHEDULE)
    model.compile()
    model.fit(*data, batch_size=8, verbose=0, callbacks=[UpdatePruningStep()])
    assert steps(model) == [10]
    assert kept(model) == [16]


@pytest.mark.parametrize("optimizer", [None, "sgd"])
@pytest.mark.parametrize("ends", [False, True], ids=["begins", "begins_and_ends"])
def test_the_callback_is_driven_as_in_guides_for_tfmot(data, optimizer, ends):
    model = prune_low_magnitude(network(), SCHEDULE)
    model.compile(optimizer or "sgd", "mse")
    callback = UpdatePruningStep()
    callback.set_model(model)
    callback.on_train_begin()
    for _ in range(2):
        callback.on_epoch_begin(epoch=0)
        for _ in range(5):
            callback.on_train_batch_begin(batch=-1)
            if optimizer is None:
                update(model, *data)
            else:
                model.train_on_batch(*data)
            if ends:
                callback.on_train_batch_end(batch=-1)
        callback.on_epoch_end(batch=-1)
    callback.on_train_end()
    assert steps(model) == [10, 10]
    assert kept(model) == [96, 30]


@pytest.mark.parametrize(("count_updates", "last"), [(False, 10), (True, 5)])
def test_accumulated_gradients_count_by_update_if_asked(data, count_updates, last):
    model = prune_low_magnitude(network(), SCHEDULE, count_updates=count_updates)
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
    model.fit(*data, batch_size=8, verbose=0, callbacks=[])
    assert steps(model) == [last, last]
    wanted = max(1 - SCHEDULE(min(last + 1, 8))[1], 0.2)
    assert kept(model)[0] == round(480 * wanted)


def test_there_is_nothing_to_count_without_a_schedule():
    with pytest.raises(ValueError, match="No schedule prunes this model"):
        keras_ntt.advance_pruning(network())


def test_a_file_names_what_is_behind(data, tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = prune_low_magnitude(network(), SCHEDULE)
    update(model, *data)
    report = keras_ntt.export_tflite(model, tmp_path / "m.tflite")
    assert any("did not end" in note and "step 0 of 8" in note for note in report.warnings)
