"""Recovery: the loss, and the sparse model trained towards the dense one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import warned
from keras import layers

from keras_ntt import get_masks, prune_post_training
from keras_ntt.pruning.post_training.gradual import GradualMasks, lamp
from keras_ntt.pruning.post_training.logits import heads_of
from keras_ntt.pruning.post_training.recovery import Loss


def classifier(head="inside"):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, "relu")])
    model.add(layers.BatchNormalization())
    model.add(layers.Dense(4, "softmax" if head == "inside" else None))
    if head == "layer":
        model.add(layers.Softmax())
    if head == "activation":
        model.add(layers.Activation("softmax"))
    return model


@pytest.mark.parametrize("head", ["inside", "layer", "activation"])
def test_logits_are_found_behind_a_softmax(head, rng):
    model, x = classifier(head), rng.normal(size=(5, 6)).astype("float32")
    before = np.asarray(model(x))
    heads = heads_of(model, x)
    (found,) = heads.logits(x, training=False)
    hidden = np.asarray(keras.Model(model.inputs[0], model.layers[1].output)(x))
    kernel, bias = (np.asarray(v) for v in model.layers[2].weights)
    np.testing.assert_allclose(found, hidden @ kernel + bias, atol=1e-5)
    np.testing.assert_array_equal(model(x), before)
    assert heads.kinds == ("softmax",)


def test_probabilities_of_custom_models_become_logarithms(rng):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return keras.ops.softmax(self.dense(x))

    model, x = Own(), rng.normal(size=(5, 2)).astype("float32")
    model(x)
    heads = heads_of(model, x)
    assert (heads.kinds, heads.own) == (("softmax",), (True,))
    (found,) = heads.logits(x, training=False)
    np.testing.assert_allclose(tf.nn.softmax(found), model(x), atol=1e-6)
    np.testing.assert_allclose(
        found - tf.reduce_mean(found, -1, keepdims=True),
        model.dense(x) - tf.reduce_mean(model.dense(x), -1, keepdims=True),
        atol=1e-5,
    )


def test_losses_are_those_of_their_formulas(rng):
    t, y = rng.normal(size=(2, 7, 3))
    p, q = (np.exp(a / 3) / np.exp(a / 3).sum(-1, keepdims=True) for a in (t, y))
    divergence = 9 * (p * np.log(p / q)).sum(-1).mean()
    given = [tf.constant(a) for a in (t, y)]
    for kind, scale, expected in (
        ("softmax", 1.0, divergence),
        ("linear", 2.0, ((t - y) ** 2).mean() / 2),
    ):
        loss = Loss([kind], [scale], 3.0)([given[0]], [given[1]])
        assert float(loss) == pytest.approx(expected)
    a, b = (1 / (1 + np.exp(-z / 3)) for z in (t, y))
    expected = 9 * (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))).mean()
    found = Loss(["sigmoid"], [1.0], 3.0)([given[0]], [given[1]])
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("form", ["arrays", "dataset", "augmented"])
@pytest.mark.few(1)
def test_recovery_comes_nearer_to_the_dense_model(form, rng):
    model, x = classifier(), rng.normal(size=(256, 6)).astype("float32")
    dense = [np.asarray(v) for v in model.variables]
    inputs = tf.data.Dataset.from_tensor_slices(x).batch(32) if form == "dataset" else x
    augment = (lambda a: a + 0.01) if form == "augmented" else None
    found = [
        prune_post_training(model, inputs, sparsity=0.7, epochs=epochs, augment=augment, verbose=0)
        for epochs in (0, 10)
    ]
    distance = [np.abs(np.asarray(m(x)) - np.asarray(model(x))).mean() for m in found]
    assert distance[1] < 0.9 * distance[0]
    for (path, first), second in zip(
        get_masks(found[0]).items(), get_masks(found[1]).values(), strict=True
    ):
        np.testing.assert_array_equal(first, second)
        value = next(np.asarray(v) for v in found[1].weights if v.path == path)
        assert (value[~second] == 0).all()
    for variable, value in zip(model.variables, dense, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_recovery_of_several_outputs_and_inputs(rng):
    a, b = keras.Input((3,)), keras.Input((2,))
    hidden = layers.Dense(8, "relu")(layers.Concatenate()([a, b]))
    outputs = [layers.Dense(3, "softmax")(hidden), layers.Dense(1)(hidden)]
    model = keras.Model([a, b], outputs)
    x = [rng.normal(size=(64, 3)).astype("float32"), rng.normal(size=(64, 2)).astype("float32")]
    found = prune_post_training(model, x, sparsity=0.5, epochs=2, verbose=0)
    assert all(np.isfinite(np.asarray(y)).all() for y in found(x))


def test_a_recovery_that_diverges_is_taken_back(rng):
    model, x = classifier(), rng.normal(size=(64, 6)).astype("float32")
    plain = prune_post_training(model, x, sparsity=0.5, verbose=0)
    with warned("taken back"):
        found = prune_post_training(model, x, sparsity=0.5, epochs=3, learning_rate=1e30, verbose=0)
    np.testing.assert_allclose(found(x), plain(x), atol=1e-4)


@pytest.mark.long
def test_the_same_seed_gives_the_same_weights(rng):
    model, x = classifier(), rng.normal(size=(64, 6)).astype("float32")
    a, b = (
        prune_post_training(model, x, sparsity=0.5, epochs=2, seed=3, verbose=0) for _ in range(2)
    )
    for one, other in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_lamp_scores_are_those_of_the_definition(rng):
    values = rng.normal(size=(5, 4)).astype("float32")
    values[0, :2] = 0
    squares = values.astype("float64") ** 2
    expected = [s / squares[squares >= s].sum() if s else 0.0 for s in squares.ravel()]
    np.testing.assert_allclose(lamp(values).ravel(), expected, rtol=1e-12)
    np.testing.assert_array_equal(lamp(np.zeros((2, 2))), np.zeros((2, 2)))


def test_gradual_masks_shrink_along_the_cubic_curve_to_the_sparsity(rng):
    model, x = classifier(), rng.normal(size=(640, 6)).astype("float32")
    sparse = prune_post_training(model, x, sparsity=0.5, verbose=0)
    (first, last) = (v for v in sparse.trainable_variables if v.path in get_masks(sparse))
    masks = GradualMasks(sparse, [first, last], 0.9, steps=80)
    before = get_masks(sparse)
    sparsities = []
    for _ in range(80):
        masks.on_train_batch_end(0)
        now = get_masks(sparse)
        assert all((now[path] <= before[path]).all() for path in now)
        before = now
        kept = sum(int(mask.sum()) for mask in now.values())
        sparsities.append(1 - kept / 160)
    for step in (20, 40, 60):
        curve = 0.9 - 0.4 * (1 - step / 60) ** 3
        assert sparsities[step - 1] == pytest.approx(curve, abs=0.5 / 160 + 1e-9)
    assert sparsities[18] == 0.5
    assert sparsities[59:] == [0.9] * 21


def test_gradual_masks_end_at_the_sparsity_whatever_the_number_of_steps(rng):
    model, x = classifier(), rng.normal(size=(64, 6)).astype("float32")
    sparse = prune_post_training(model, x, sparsity=0.5, verbose=0)
    variables = [v for v in sparse.trainable_variables if v.path in get_masks(sparse)]
    masks = GradualMasks(sparse, variables, 0.9, steps=37)  # the end, 27, is no multiple of 20
    for _ in range(37):
        masks.on_train_batch_end(0)
    assert sum(int(mask.sum()) for mask in get_masks(sparse).values()) == 16


@pytest.mark.long
def test_gradual_recovery_ends_at_the_sparsity_with_its_zeros(rng):
    model, x = classifier(), rng.normal(size=(320, 6)).astype("float32")
    options = {"sparsity": 0.8, "epochs": 8, "verbose": 0}
    gradual = prune_post_training(model, x, recovery="gradual", **options)
    masks = get_masks(gradual)
    assert sum(int(mask.sum()) for mask in masks.values()) == 32
    for variable in gradual.variables:
        if variable.path in masks:
            assert not np.asarray(variable)[~masks[variable.path]].any()
    held = prune_post_training(model, x, **options)
    assert any((masks[path] != mask).any() for path, mask in get_masks(held).items())


@pytest.mark.parametrize(
    "options", [{}, {"epochs": 1, "pattern": "2:4"}, {"epochs": 1, "allocation": "layerwise"}]
)
def test_gradual_recovery_needs_steps_and_one_threshold(options, rng):
    x = rng.normal(size=(32, 6)).astype("float32")
    with pytest.raises(ValueError, match="gradual"):
        prune_post_training(classifier(), x, sparsity=0.5, recovery="gradual", verbose=0, **options)
