"""A transfer of a model that ends in softmax or sigmoid matches the logits and keeps the model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.expect import warned
from keras import layers

import keras_ntt

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
OPTIONS = {"sparsity": 0.5, "epochs": 2, "batch_size": 16, "seed": 1, "verbose": 0}


def layers_of(end):
    keras.utils.set_random_seed(5)
    first = layers.Dense(8, "tanh")
    last = layers.Dense(3, activation=end if isinstance(end, str) else None)
    return [first, last, *([end] if isinstance(end, layers.Layer) else [])]


def sequential(end=None):
    return keras.Sequential([keras.Input((6,)), *layers_of(end)])


def functional(end=None):
    inputs = outputs = keras.Input((6,))
    for layer in layers_of(end):
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def nested(end=None):
    inputs = keras.Input((6,))
    return keras.Model(inputs, functional(end)(inputs))


@pytest.mark.parametrize("make", [sequential, functional, nested])
@pytest.mark.parametrize(
    "end", ["softmax", "sigmoid", layers.Softmax(), layers.Activation("softmax")], ids=str
)
@pytest.mark.few(1)
def test_the_transfer_is_that_of_the_logits_to_the_bit(make, end):
    plain = keras_ntt.prune_neural_tangent(make(), X, **OPTIONS)
    model = make(end)
    model.set_weights(make().get_weights())
    with warned("ends in (softmax|sigmoid).*The transfer looks at"):
        sparse = keras_ntt.prune_neural_tangent(model, X, **OPTIONS)
    for mine, other in zip(sparse.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    function = keras.activations.sigmoid if end == "sigmoid" else keras.activations.softmax
    np.testing.assert_allclose(
        sparse(X), keras.ops.convert_to_numpy(function(plain(X))), rtol=1e-5, atol=1e-6
    )
    assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.02)


def test_the_loss_is_that_of_the_logits():
    wanted = keras_ntt.ntt_loss(sequential(), functional(), X, sparsity=0.5)
    with warned("ntt_loss looks at"):
        found = keras_ntt.ntt_loss(
            sequential("softmax"), functional(layers.Softmax()), X, sparsity=0.5
        )
    assert found == wanted


def test_a_teacher_of_probabilities_and_a_student_of_logits_are_told_of():
    with warned("end in different activations.*student that ends in none"):
        keras_ntt.ntt_loss(sequential(), sequential("softmax"), X, sparsity=0.5)


class OwnSoftmax(keras.Model):
    """Probabilities out of code of the user's own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(3)

    def call(self, x):
        return keras.ops.softmax(self.dense(x))


def test_probabilities_of_own_code_are_warned_of():
    model = OwnSoftmax()
    model(X)
    with warned("look like probabilities.*Return what goes into the softmax"):
        keras_ntt.prune_neural_tangent(model, X, **OPTIONS)
