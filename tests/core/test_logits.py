"""What goes into the last activation, against the same network built without it."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import Doubled, OwnCode, sequential
from helpers.expect import warned
from keras import layers, ops

import keras_ntt
from keras_ntt.core import logits
from keras_ntt.core.logits import logits_of
from keras_ntt.core.network import unroll

RNG = np.random.default_rng(0)
SOFTMAX, SIGMOID = keras.activations.softmax, keras.activations.sigmoid


class Plain(layers.Dense):
    """A subclass that changes nothing."""


class Inert(keras.Model):
    """A functional model of a class of the user's own, with a step of its own."""

    def train_step(self, data):
        return {"loss": 0.0}


def functional(shape, make, cls=keras.Model):
    inputs = keras.Input(shape)
    return cls(inputs, make(inputs))


def two_heads(end):
    inputs = keras.Input((5,), name="x")
    hidden = layers.Dense(4, "tanh")(inputs)
    kind = layers.Dense(3, end and "softmax", name="kind")(hidden)
    flag = layers.Dense(2, end and "sigmoid", name="flag")(hidden)
    return keras.Model({"x": inputs}, {"kind": kind, "flag": flag, "raw": hidden})


def shared_head(end):
    """One layer twice: inside of the network, where it stays as it is, and at its end."""
    inputs = keras.Input((4,))
    gate = layers.Dense(4, "sigmoid")
    # Without the end, a second layer stands for the same one: see the test.
    last = gate if end else layers.Dense(4)
    return keras.Model(inputs, last(ops.multiply(gate(inputs), inputs)))


def joined(end):
    inputs = keras.Input((6, 6, 2))
    parts = []
    for size in (1, 3):
        found = layers.Conv2D(3, size, activation=end and "softmax")(inputs)
        parts.append(layers.Reshape((-1, 3))(found))
    return keras.Model(inputs, layers.Concatenate(axis=1)(parts))


def used_twice(end):
    """The probabilities are an output, and they are read by another layer, which needs them."""
    inputs = keras.Input((5,))
    shares = layers.Dense(3)(inputs)
    made = layers.Softmax()(shares)
    return keras.Model(inputs, [made if end else shares, layers.Dense(2)(made)])


ACTIVATION = [
    lambda end: sequential((5,), layers.Dense(4, "relu"), layers.Dense(3, end and "softmax")),
    lambda end: sequential((5,), layers.Dense(3, end and tf.nn.softmax)),
    lambda end: sequential((5,), layers.Dense(1, end and ops.sigmoid)),
    lambda end: sequential((5,), Plain(3, activation=end and "softmax")),
    lambda end: sequential((5,), layers.Dense(3), layers.Softmax() if end else layers.Identity()),
    lambda end: sequential((5,), layers.Dense(3), layers.Activation(end and "sigmoid")),
    lambda end: sequential((5,), layers.Dense(3, end and "softmax"), layers.Activation("linear")),
    lambda end: sequential((5,), layers.Dense(3), layers.Lambda(SOFTMAX if end else ops.copy)),
    lambda end: functional((5,), lambda x: (SOFTMAX if end else ops.copy)(layers.Dense(3)(x))),
    lambda end: functional((5,), lambda x: (ops.sigmoid if end else ops.copy)(layers.Dense(3)(x))),
    lambda end: sequential((4, 5), layers.EinsumDense("abc,cd->abd", (None, 3), end and "softmax")),
    lambda end: sequential((8, 2), layers.SeparableConv1D(3, 3, activation=end and "sigmoid")),
    lambda end: sequential((6, 6, 2), layers.Conv2DTranspose(2, 3, activation=end and "sigmoid")),
    lambda end: sequential((6, 6, 2), layers.DepthwiseConv2D(3, activation=end and "sigmoid")),
    lambda end: sequential((4, 5), layers.TimeDistributed(layers.Dense(3, end and "softmax"))),
    lambda end: sequential((4, 5), layers.LSTM(3), layers.Dense(2, end and "softmax")),
    lambda end: sequential(
        (4, 5),
        layers.Dense(3, end and "softmax"),
        layers.Dropout(0.5),
        layers.Permute((2, 1)),
        layers.Flatten(),
    ),
    lambda end: sequential(
        (5,), layers.Dense(4), sequential((4,), layers.Dense(3, end and SOFTMAX))
    ),
    lambda end: sequential(
        (5,), sequential((5,), layers.Dense(3, end and SIGMOID)), layers.Reshape((3, 1))
    ),
    lambda end: functional((5,), layers.Dense(3, end and "softmax"), Inert),
    two_heads,
    shared_head,
    joined,
    used_twice,
]  # fmt: skip


def inputs_of(model, n=4):
    x = [RNG.normal(size=(n, *t.shape[1:])).astype("float32") for t in model.inputs]
    return {"x": x[0]} if model.inputs[0].name == "x" else x[0]


@pytest.mark.parametrize("make", ACTIVATION)
@pytest.mark.few(9)
def test_logits_are_those_of_the_network_without_its_last_activation(make):
    model = make(True)
    x, before = inputs_of(model), model.get_config()
    found = logits_of(model)
    assert any(found.activations)
    assert found.certain
    assert {id(v) for v in found.model.weights} == {id(v) for v in model.weights}
    assert found.model.name == model.name

    # Nothing of the model has changed.
    after = model.get_config()
    assert str(after) == str(before)
    for layer in model.layers[:-1]:
        assert len(layer._inbound_nodes) == 1 or isinstance(layer, layers.Dense)

    plain = make(None)
    copies = len(plain.weights) // len(model.weights)  # 2 where a layer is shared
    plain.set_weights(copies * model.get_weights())
    wanted = plain(x)
    got = found.model(x)
    keras.tree.assert_same_structure(got, wanted)
    for mine, theirs in zip(keras.tree.flatten(got), keras.tree.flatten(wanted), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)

    # The model is trained by way of its logits.
    with tf.GradientTape() as tape:
        total = sum(tf.reduce_sum(y) for y in keras.tree.flatten(found.model(x, training=True)))
    gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
    assert all(g is not None for g in gradients)
    before = [np.asarray(y) for y in keras.tree.flatten(got)]
    model.trainable_variables[-1].assign_add(np.ones(model.trainable_variables[-1].shape))
    after = [np.asarray(y) for y in keras.tree.flatten(found.model(x))]
    assert any((a != b).any() for a, b in zip(after, before, strict=True))


def test_which_activation_each_output_ends_in():
    model = two_heads(True)
    by_name = dict(zip(model.output_names, logits_of(model).activations, strict=True))
    assert (by_name.pop("kind"), by_name.pop("flag")) == ("softmax", "sigmoid")
    assert list(by_name.values()) == [None]
    assert logits_of(used_twice(True)).activations == ("softmax", None)


@pytest.mark.parametrize(
    ("make", "certain"),
    [
        (lambda: sequential((5,), layers.Dense(3)), True),
        (lambda: sequential((5,), layers.Dense(3, "softmax"), layers.Dense(2, "tanh")), True),
        (lambda: sequential((5,), layers.Dense(3), layers.ReLU()), False),
        (lambda: functional((3,), lambda x: x * layers.Dense(3, "sigmoid")(x)), False),
        (lambda: sequential((5,), Doubled(3, activation="softmax")), False),
        (lambda: sequential((3, 5), layers.LSTM(3, recurrent_activation="sigmoid")), False),
        (lambda: sequential((5,), layers.Lambda(lambda x: ops.softmax(x))), False),
        (lambda: sequential((5,), layers.Dense(3, lambda x: ops.softmax(x))), False),
    ],
)
def test_other_models_are_returned_as_they_are(make, certain):
    model = make()
    found = logits_of(model)
    assert found.model is model
    assert not any(found.activations)
    assert found.certain is certain


def test_layers_of_the_model_still_have_one_output_each():
    model = sequential(
        (5,), layers.Dense(4), layers.Dense(3), layers.Softmax(), layers.Reshape((3, 1))
    )
    logits_of(model)
    features = keras.Model(model.inputs, model.layers[1].output)
    assert features.output_shape == (None, 3)
    assert [len(layer._outbound_nodes) for layer in model.layers] == [1, 1, 1, 0]


def test_mixed_precision_gives_logits_of_full_length():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = sequential((5,), layers.Dense(3), layers.Activation("softmax", dtype="float32"))
    finally:
        keras.config.set_dtype_policy("float32")
    found = logits_of(model)
    x = inputs_of(model)
    assert found.model(x).dtype == "float32"
    np.testing.assert_allclose(ops.softmax(found.model(x)), model(x), atol=1e-6)


def test_the_kernel_of_logits_is_taken_by_structured_derivatives():
    model = sequential((5,), layers.Dense(4, "relu"), layers.Dense(3, "softmax"))
    found = logits_of(model).model
    assert len(unroll(found).calls) == 2
    x = inputs_of(model)
    structured = keras_ntt.empirical_ntk(found, x)
    by_definition = keras_ntt.empirical_ntk(found, x, implementation="jacobian")
    np.testing.assert_allclose(structured, by_definition, rtol=1e-5, atol=1e-6)


def test_outputs_that_look_like_probabilities():
    rows = RNG.dirichlet(np.ones(4), 6)
    assert logits.look_like_probabilities(rows)
    assert logits.look_like_probabilities([RNG.normal(size=(6, 4)), rows.reshape(2, 3, 4)])
    assert logits.look_like_probabilities(RNG.uniform(0.1, 0.9, (16, 1)))
    assert not logits.look_like_probabilities(RNG.uniform(0.1, 0.9, (15, 1)))
    assert not logits.look_like_probabilities(RNG.normal(size=(16, 4)))
    assert not logits.look_like_probabilities(np.maximum(RNG.normal(size=(16, 4)), 0))


class OwnEnd(OwnCode):
    def call(self, x):
        return ops.softmax(super().call(x))


def test_probabilities_of_own_code_are_told_by_looking():
    model = OwnEnd()
    x = RNG.normal(size=(40, 5)).astype("float32")
    model(x)
    found = logits_of(model)
    assert found.model is model
    assert not found.certain
    with warned("look like probabilities.*your own code.*from_logits=True"):
        logits.warn_of_probabilities([found], x, "The transfer")
    plain = OwnCode()
    plain(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits.warn_of_probabilities([logits_of(plain)], x, "The transfer")
        logits.warn_of_logits(logits_of(sequential((5,), layers.Dense(3))), "The transfer")
    with warned("ends in softmax. The transfer looks at what goes into it"):
        logits.warn_of_logits(
            logits_of(sequential((5,), layers.Dense(3, "softmax"))), "The transfer"
        )
