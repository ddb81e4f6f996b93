"""Groups of channels: what is coupled, what must stay and why."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.architectures import Doubled, OwnCode, Squared, sequential
from helpers.channel_removal import assert_exact, draw
from keras import layers

from keras_ntt import channel_groups, register_channel_rule
from keras_ntt.core.channels.graph import channel_graph


def found(model):
    return {group.name: group for group in channel_groups(model)}


def test_a_residual_block_by_hand():
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    y = layers.Conv2D(4, 3, padding="same", name="inner")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Conv2D(6, 3, padding="same", name="outer")(y)
    x = layers.Flatten(name="flat")(layers.Add()([x, y]))
    groups = channel_groups(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    assert [(g.name, g.channels, g.parameters, g.makers) for g in groups] == [
        # kernels and biases of both, inputs of the inner one, 64 rows of the head a channel
        ("stem", 6, 3 * 9 * 6 + 6 + 9 * 6 * 4 + 9 * 4 * 6 + 6 + 64 * 6 * 2, ("stem", "outer")),
        ("inner", 4, 9 * 6 * 4 + 4 + 4 * 4 + 9 * 4 * 6, ("inner",)),
        ("head", 2, 64 * 6 * 2 + 2, ("head",)),
    ]
    assert [g.kept for g in groups] == [None, None, "they are an output of the model"]
    inner = {(m.layer, m.axis, m.role) for m in groups[1].members}
    kernels = {("inner", 3, "out"), ("inner", 0, "out"), ("outer", 2, "in")}
    assert inner == kernels | {("norm", 0, "own")}
    lines = str(groups).splitlines()
    assert len(lines) == 5
    assert lines[2].split()[:5] == ["stem", "6", "1,374", "stem,", "inner,"]
    assert lines[4].endswith("kept: they are an output of the model")


def test_flatten_gives_the_rows_of_all_positions():
    model = sequential((4, 4, 1), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(2))
    graph = channel_graph(model)
    rows = next(a for a in graph.weights if a.role == "in" and a.layer.name.startswith("dense"))
    made = next(a for a in graph.weights if a.role == "out" and a.axis == 3)
    assert np.flatnonzero(rows.labels == made.labels[1]).tolist() == [1, 4, 7, 10]


def test_layers_without_a_rule_fix_what_they_read():
    model = sequential(
        (3,), layers.Dense(4), Squared(name="mine"), layers.Dense(5), layers.Dense(1)
    )
    first, second, _ = channel_groups(model)
    assert first.kept == "mine is a Squared, for which there is no channel rule"
    assert second.kept is None


def test_subclasses_that_change_nothing_are_their_bases():
    class Named(layers.Dense):
        """As Dense, with another default."""

        def __init__(self, units, activation="relu", **kwargs):
            super().__init__(units, activation, **kwargs)

    model = sequential((3,), Named(4), Doubled(4), layers.Dense(2))
    first, _ = channel_groups(model)
    assert first.kept is not None  # the layer that reads it computes something else
    assert channel_groups(sequential((3,), Named(4), layers.Dense(2)))[0].kept is None
    assert_exact(sequential((3,), Named(6), Named(5), layers.Dense(2)))


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (layers.Softmax, "takes a softmax over them"),
        (lambda: layers.Dense(4, "softmax"), "has an activation that mixes channels"),
        (lambda: layers.Lambda(lambda x: x), "is a Lambda, for which there is no channel rule"),
        (lambda: layers.Activation("log_softmax"), "mixes channels"),
    ],
)
def test_what_mixes_channels_fixes_them(middle, reason):
    model = sequential((3,), layers.Dense(4), middle(), layers.Dense(2))
    assert any(reason in (group.kept or "") for group in channel_groups(model)[:-1])


def test_normalization_over_channels_is_removable_and_not_exact():
    model = sequential(
        (3,), layers.Dense(4), layers.LayerNormalization(name="norm"), layers.Dense(2)
    )
    group = channel_groups(model)[0]
    assert group.kept is None
    assert group.inexact == "norm takes mean and variance over the channels"


def test_quantized_layers_keep_their_channels():
    model = sequential((8,), layers.Dense(8), layers.Dense(4), layers.Dense(2))
    model.layers[1].quantize("int8")
    assert all(group.kept for group in channel_groups(model))


def test_a_sum_with_positions_or_inputs_keeps_channels():
    x = layers.Input((4,))
    model = keras.Model(x, layers.Dense(2)(layers.Add(name="sum")([x, layers.Dense(4)(x)])))
    group = channel_groups(model)[0]
    assert group.kept == "sum joins them with what has no channels to remove"


def test_custom_code_has_no_groups():
    model = OwnCode()
    model(np.zeros((1, 5)))
    assert channel_groups(model) == ()


def test_what_is_no_built_model_is_refused():
    with pytest.raises(TypeError, match="Received"):
        channel_groups("model")
    with pytest.raises(ValueError, match="Received"):
        channel_groups(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(TypeError, match=r"class of Keras layers.*Received: layer_class=3"):
        register_channel_rule(3)


@keras.saving.register_keras_serializable("tests")
class Twice(layers.Layer):
    """A kernel of its own, whose outputs come twice."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], self.width), name="matrix")

    def call(self, x):
        y = keras.ops.matmul(x, self.matrix)
        return keras.ops.concatenate([y, y], axis=-1)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_a_rule_of_ones_own():
    def model():
        return sequential((3,), layers.Dense(6, "relu"), Twice(4), layers.Dense(5), layers.Dense(2))

    assert channel_groups(model())[0].kept is not None

    @register_channel_rule(Twice)
    def rule(call):
        x, out = call.inputs[0], call.new(call.layer.width)
        call.weight(call.layer.matrix, {0: x.axes[-1], 1: out}, {0: "in", 1: "out"})
        call.resize("width", out)
        call.reads(call.layer.matrix, 0, x.axes[-1])
        return (*x.axes[:-1], np.concatenate([out, out]))

    groups = channel_groups(model())
    assert [(g.channels, g.kept is None) for g in groups] == [(6, 1), (4, 1), (5, 1), (2, 0)]
    assert_exact(model())


def test_a_rule_that_forgets_a_size_is_found_out():
    class Wide(Twice):
        pass

    @register_channel_rule(Wide)
    def rule(call):
        x, out = call.inputs[0], call.new(call.layer.width)
        call.weight(call.layer.matrix, {0: x.axes[-1], 1: out}, {0: "in", 1: "out"})
        return (*x.axes[:-1], np.concatenate([out, out]))

    model = draw(sequential((3,), Wide(4), layers.Dense(2)), 0)
    with pytest.raises(ValueError, match=r"cannot be made again in its new size.*Received: Wide"):
        assert_exact(model)
