"""Subclasses that change nothing are treated as their base class, everywhere."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_ntt
from keras_ntt.core import input_kinds
from keras_ntt.core.channels.chains import chains_of
from keras_ntt.core.channels.rules.elementwise import is_elementwise
from keras_ntt.core.kinds import computes_as, kind_of, kinds_of
from keras_ntt.core.logits import logits_of
from keras_ntt.ntk.layer_rules.base import find_rule
from keras_ntt.selection.schedules import asked_for


def plain(base):
    """Return a subclass with another argument, and a method that nothing calls."""

    class Plain(base):
        def __init__(self, *args, groups=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.remembered = groups

        def describe(self):
            return f"{self.name} with {self.remembered}"

        def get_config(self):
            return {**super().get_config(), "groups": 1}

    Plain.__name__ = f"Plain{base.__name__}"
    return keras.saving.register_keras_serializable("kinds")(Plain)


def other(base):
    class Other(base):
        def call(self, x, **kwargs):
            return super().call(x, **kwargs)

    return Other


class Scales:
    """A mixin that is in the way of the layer it is mixed with."""

    def call(self, x):
        return 2 * x


KINDS = [layers.Dense, layers.DepthwiseConv2D, layers.LSTMCell, layers.ReLU, layers.MaxPooling2D]


@pytest.mark.parametrize("base", KINDS)
def test_kinds(base):
    arguments = {"Dense": (3,), "DepthwiseConv2D": (3,), "LSTMCell": (3,)}.get(base.__name__, ())
    assert kind_of(base(*arguments)) is base
    assert kind_of(plain(base)(*arguments)) is base
    assert kind_of(type("Again", (plain(base),), {})(*arguments)) is base
    assert computes_as(plain(base)(*arguments), base)
    different = other(base)
    assert kind_of(different(*arguments)) is different
    assert kind_of(plain(different)(*arguments)).__name__ == "PlainOther"
    assert not computes_as(different(*arguments), base)


def test_what_is_mixed_in_counts():
    mixed = type("Mixed", (Scales, layers.Dense), {})
    assert kind_of(mixed(3)) is mixed
    assert layers.Dense not in kinds_of(mixed(3))


def test_a_call_that_is_replaced_counts():
    layer = layers.Dense(3)
    layer.call = lambda x: x
    assert kind_of(layer) is None


RULED = [
    (layers.Dense, (2,)),
    (layers.Conv2D, (2, 2)),
    (layers.LSTM, (2,)),
    (layers.BatchNormalization, ()),
]


@pytest.mark.parametrize(("base", "arguments"), RULED)
def test_rules_of_the_tangent_kernel(base, arguments):
    rule = find_rule(base(*arguments))
    assert rule is not None
    assert find_rule(plain(base)(*arguments)) is rule
    assert find_rule(other(base)(*arguments)) is None


def recurrent(cell):
    keras.utils.set_random_seed(0)
    layer = layers.RNN(cell(3))
    return keras.Sequential([keras.Input((4, 2)), layer, layers.Dense(2)])


@pytest.mark.parametrize("cell", [layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell])
def test_the_kernel_of_recurrent_cells(cell, rng):
    x = rng.normal(size=(3, 4, 2)).astype("float32")
    wanted = keras_ntt.empirical_ntk(recurrent(cell), x)
    found = keras_ntt.empirical_ntk(recurrent(plain(cell)), x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_chains_and_activations():
    conv, dense = plain(layers.Conv2D), plain(layers.Dense)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            conv(3, 3, activation="relu", name="one"),
            plain(layers.MaxPooling2D)(),
            plain(layers.DepthwiseConv2D)(2, activation="relu"),
            plain(layers.Flatten)(),
            dense(4, name="two"),
            plain(layers.Activation)("tanh"),
            dense(2, name="three"),
        ]
    )
    found = [(chain.first.name, chain.last.name) for chain in chains_of(model)]
    assert found == [("one", "two"), ("two", "three")]
    assert is_elementwise(plain(layers.ReLU)())
    assert not is_elementwise(other(layers.ReLU)())


MAKERS = {
    "depthwise": lambda wrap: [
        keras.Input((8, 8, 3)),
        wrap(layers.Conv2D)(6, 3, name="first"),
        wrap(layers.BatchNormalization)(),
        wrap(layers.DepthwiseConv2D)(3),
        wrap(layers.ReLU)(),
        wrap(layers.Conv2D)(5, 1),
        wrap(layers.GlobalAveragePooling2D)(),
        wrap(layers.Dense)(2),
    ],
    "recurrent": lambda wrap: [
        keras.Input((5, 3)),
        wrap(layers.Bidirectional)(wrap(layers.LSTM)(6, return_sequences=True)),
        wrap(layers.TimeDistributed)(wrap(layers.Dense)(4)),
        wrap(layers.GRU)(5),
        wrap(layers.Dense)(2),
    ],
}


@pytest.mark.parametrize("name", MAKERS)
def test_channels_are_removed_alike(name):
    models = []
    for wrap in (lambda base: base, plain):
        keras.utils.set_random_seed(1)
        models.append(keras.Sequential(MAKERS[name](wrap)))
    groups = [keras_ntt.channel_groups(model) for model in models]
    removable = [[group.channels for group in found] for found in groups]
    assert removable[0] == removable[1] != []
    smaller = [keras_ntt.prune_channels(model, ratio=0.5, round_to=1) for model in models]
    assert smaller[0].count_params() == smaller[1].count_params() < models[0].count_params()
    shapes = [[w.shape for w in model.get_weights()] for model in smaller]
    assert shapes[0] == shapes[1]


def test_a_rule_of_ones_own_holds_for_such_subclasses():
    class Gain(layers.Layer):
        def build(self, shape):
            self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, x):
            return self.gain * x

    @keras_ntt.register_channel_rule(Gain)
    def rule(call):
        x = call.inputs[0]
        call.weight(call.layer.gain, {0: x.axes[-1]})
        return x.axes

    counts = []
    for cls in (Gain, plain(Gain), other(Gain)):
        parts = [keras.Input((4,)), layers.Dense(8), cls(), layers.Dense(2)]
        groups = keras_ntt.channel_groups(keras.Sequential(parts))
        counts.append(sum(g.channels for g in groups if g.kept is None))
    assert counts[0] == counts[1] == 8
    assert counts[2] == 0


HEADS = {
    "layer": lambda wrap: [layers.Dense(3), wrap(layers.Softmax)()],
    "activation": lambda wrap: [layers.Dense(3), wrap(layers.Activation)("softmax")],
    "dense": lambda wrap: [wrap(layers.Dense)(3, activation="softmax")],
    "moved": lambda wrap: [layers.Dense(3, activation="softmax"), wrap(layers.Reshape)((3, 1))],
}


@pytest.mark.parametrize("name", HEADS)
def test_logits(name):
    model = keras.Sequential([keras.Input((4,)), *HEADS[name](plain)])
    found = logits_of(model)
    assert (found.names, found.certain) == ("softmax", True)


def test_a_softmax_that_computes_something_else_is_none():
    class Sharp(layers.Softmax):
        def call(self, x):
            return super().call(5 * x)

    found = logits_of(keras.Sequential([keras.Input((4,)), layers.Dense(3), Sharp()]))
    assert (found.names, found.certain) == ("", False)


def test_scaling_at_the_inputs(rng):
    x = rng.normal(size=(2, 4)).astype("float32")
    for wrap in (lambda base: base, plain):
        parts = [keras.Input((4,)), wrap(layers.Rescaling)(1 / 255), layers.Dense(2)]
        model = keras.Sequential(parts)
        with input_kinds.taken_as_scaled(model):
            np.testing.assert_allclose(model(x), model.layers[-1](x), rtol=1e-6)


def test_schedules_say_what_they_ask_for():
    class Mine(keras_ntt.PolynomialDecay):
        def __init__(self, final):
            super().__init__(0.2, final, 0, 100)

    class Wild(Mine):
        def __call__(self, step):
            return True, 0.1

    assert asked_for(Mine(0.8)) == [0.2, 0.8]
    assert asked_for(Wild(0.8)) == []


def test_operations_are_what_they_are():
    x = keras.Input((3,))
    model = keras.Model(x, ops.softmax(layers.Dense(2)(x)))
    assert logits_of(model).names == "softmax"
