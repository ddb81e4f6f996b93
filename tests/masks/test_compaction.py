"""Dead units removed: by hand, and over many models by their outputs."""

from __future__ import annotations

import hypothesis
import keras
import numpy as np
import pytest
from helpers.architectures import OwnCode, randomize, sequential
from helpers.channel_removal import assert_outputs, inputs_of, outputs_of
from hypothesis import strategies as st
from keras import layers

from keras_ntt import apply_masks, remove_dead_units

pytestmark = pytest.mark.oldest


def shapes(model):
    return [tuple(w.shape) for w in model.weights]


def assert_same(model, smaller, seed=0):
    shape = [size or 7 for size in model.input_shape[1:]]
    x = np.random.default_rng(seed).normal(size=(4, *shape)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    found = keras.ops.convert_to_numpy(smaller(x, training=False))
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * scale)


def test_two_layers_by_hand():
    model = sequential((2,), layers.Dense(3, "relu"), layers.Dense(1))
    # The second unit is constant, relu(2) = 2; nothing reads the third.
    model.layers[0].kernel.assign([[1, 0, 5], [1, 0, 5]])
    model.layers[0].bias.assign([0, 2, 0])
    model.layers[1].kernel.assign([[3], [4], [0]])
    model.layers[1].bias.assign([1])
    smaller, removed = remove_dead_units(model)
    assert removed == ((model.layers[0].name, 2),)
    first, second = smaller.layers
    np.testing.assert_array_equal(first.kernel, [[1], [1]])
    np.testing.assert_array_equal(second.kernel, [[3]])
    np.testing.assert_array_equal(second.bias, [1 + 2 * 4])
    assert shapes(model)[0] == (2, 3)  # left as it was
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]


def test_what_dies_of_the_removal_dies_too():
    model = sequential((2,), *[layers.Dense(3, "relu", use_bias=False) for _ in range(3)])
    values = [np.zeros((2, 3)), np.zeros((3, 3)), np.ones((3, 3))]
    values[0][:, 0] = 1
    values[1][0, 0] = 1  # only the path through the first units is alive
    model.set_weights(values)
    smaller, removed = remove_dead_units(model)
    assert shapes(smaller) == [(2, 1), (1, 1), (1, 3)]
    assert dict(removed) == {model.layers[0].name: 2, model.layers[1].name: 2}
    assert_same(model, smaller)


def test_one_unit_stays_where_all_are_dead():
    model = sequential((3,), layers.Dense(4, "tanh"), layers.Dense(2))
    model.set_weights([np.zeros((3, 4)), np.ones(4), np.ones((4, 2)), np.ones(2)])
    smaller, _ = remove_dead_units(model)
    assert shapes(smaller)[0] == (3, 1)
    assert_same(model, smaller)


def test_a_model_without_dead_units_is_given_back():
    model = randomize(sequential((3,), layers.Dense(4), layers.Dense(2)))
    assert remove_dead_units(model) == (model, ())


def mlp():
    return sequential(
        (5,),
        layers.Dense(6, "sigmoid"),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Dense(6, use_bias=False),
        layers.LeakyReLU(),
        layers.Dense(4, "gelu"),
        layers.Dense(3, "softmax"),
    )


def cnn():
    return sequential(
        (8, 8, 2),
        layers.Conv2D(6, 3, padding="same", activation="relu"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Conv2D(6, 3, padding="same", use_bias=False),
        layers.Activation("tanh"),
        layers.AveragePooling2D(2),
        layers.Conv2D(5, 2, activation="elu"),
        layers.Flatten(),
        layers.Dense(4, "relu"),
        layers.Dense(3),
    )


def separable():
    return sequential(
        (9, 9, 3),
        layers.Conv2D(6, 3, activation="relu"),
        layers.ZeroPadding2D(1),
        layers.DepthwiseConv2D(3, strides=2, activation="relu"),
        layers.Conv2D(6, 1),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.BatchNormalization(),
        layers.Conv2D(5, 1, activation="relu6"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
    )


def sequence():
    return sequential(
        (7, 3),
        layers.Conv1D(6, 2, padding="causal", activation="tanh"),
        layers.Conv1D(5, 2, activation="relu"),
        layers.Dense(4, "relu"),
        layers.GlobalMaxPooling1D(),
        layers.Dense(2),
    )


def branches():
    x = layers.Input((6,))
    a = layers.Dense(6, "relu")(x)
    b = layers.Dense(6, "relu")(a)
    c = layers.Dense(5, "relu")(layers.Add()([a, b]))  # two layers read a
    shared = layers.Dense(5, "tanh")
    return keras.Model(x, layers.Dense(2)(shared(shared(layers.Dense(5)(c)))))


MODELS = (mlp, cnn, separable, sequence, branches)


@pytest.mark.parametrize("make", MODELS)
@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.95]))
@hypothesis.settings(max_examples=4)
@pytest.mark.few(2)
def test_outputs_stay_the_same(make, seed, sparsity):
    rng = np.random.default_rng(seed)
    model = randomize(make(), seed)
    for variable in model.weights:
        if "variance" in variable.name:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif "kernel" in variable.name:
            # Whole columns and rows die, and single entries.
            value = keras.ops.convert_to_numpy(variable).copy()
            value *= rng.random(value.shape) >= sparsity
            value *= rng.random(value.shape[-1]) >= 0.4
            value *= (rng.random(value.shape[-2]) >= 0.3)[:, None]
            variable.assign(value)
    smaller, removed = remove_dead_units(model)
    assert_same(model, smaller)
    assert bool(removed) == (smaller is not model)
    counts = model.count_params(), smaller.count_params()
    assert counts[1] < counts[0] if removed else counts[1] == counts[0]


def test_masks_do_no_harm():
    model = randomize(sequential((4,), layers.Dense(6, "relu"), layers.Dense(2)))
    mask = np.ones((4, 6), bool)
    mask[:, 2] = False
    apply_masks(model, {model.layers[0].kernel.path: mask})
    smaller, removed = remove_dead_units(model)
    assert removed == ((model.layers[0].name, 1),)
    assert_same(model, smaller)


def test_operations_that_are_no_layers_stay():
    x = layers.Input((6,))
    v = layers.Dense(4)(layers.Dense(9, "relu")(x))
    v = keras.ops.concatenate([v + 1.0, keras.ops.tanh(x)], axis=1)
    model = randomize(keras.Model(x, layers.Dense(3)(v) * v[:, :3]))
    first = model.layers[1]
    first.kernel.assign(keras.ops.convert_to_numpy(first.kernel) * ([0, 0, 0] + [1] * 6))
    smaller, removed = remove_dead_units(model)
    assert removed == ((first.name, 3),)
    assert_same(model, smaller)


def test_a_layer_of_ones_own_ends_a_chain():
    class Doubled(layers.Dense):
        def call(self, x):
            return 2 * super().call(x) + 1

    model = randomize(sequential((3,), Doubled(4), layers.Dense(4, "softmax"), layers.Dense(2)))
    for layer in model.layers:
        layer.kernel.assign(
            keras.ops.convert_to_numpy(layer.kernel) * ([0] + [1] * (layer.units - 1))
        )
    assert remove_dead_units(model) == (model, ())  # softmax mixes units


def test_a_model_with_a_call_of_its_own_is_refused():
    model = OwnCode()
    model(np.zeros((1, 5)))
    with pytest.raises(ValueError, match=r"Sequential and functional models only.*Received"):
        remove_dead_units(model)


def residual():
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    y = layers.Conv2D(5, 3, activation="relu", padding="same", name="inner")(x)
    y = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same", name="outer")(y))
    x = layers.Concatenate()([layers.ReLU()(layers.Add()([x, y])), x])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="last")(x))
    gate = layers.Dense(4, "sigmoid", name="gate")(layers.Dense(3, "relu", name="squeezed")(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Multiply()([x, gate])))


def recurrent():
    x = layers.Input((6,), dtype="int32")
    y = layers.Dense(6, "tanh")(layers.Embedding(9, 5)(x))
    y = layers.Bidirectional(layers.GRU(4, return_sequences=True))(y)
    y = y + layers.MultiHeadAttention(2, 3)(y, y)
    return keras.Model(x, layers.Dense(2)(layers.LSTM(5)(y)))


@pytest.mark.parametrize("make", [residual, recurrent])
@hypothesis.given(st.integers(0, 10_000))
@hypothesis.settings(max_examples=2)
@pytest.mark.few(1)
def test_outputs_stay_the_same_in_graphs(make, seed):
    rng = np.random.default_rng(seed)
    model = randomize(make(), seed)
    for variable in model.weights:
        if len(variable.shape) > 1:
            value = keras.ops.convert_to_numpy(variable).copy()
            for axis in (-1, -2):
                shape = [1] * value.ndim
                shape[axis] = -1
                value *= (rng.random(value.shape[axis]) >= 0.4).reshape(shape)
            variable.assign(value)
    smaller, _ = remove_dead_units(model)
    x = inputs_of(model, seed)
    assert_outputs(outputs_of(smaller, x), outputs_of(model, x), 2e-6)


def test_a_residual_unit_dies_with_all_that_make_and_read_it():
    model = randomize(residual())
    stem, outer, inner, last = (model.get_layer(n) for n in ("stem", "outer", "inner", "last"))
    for layer in (stem, outer):  # made by two layers, which leave a constant
        kernel, bias = layer.get_weights()
        kernel[..., 2] = 0
        layer.set_weights([kernel, bias])
    assert remove_dead_units(model)[1] == ()  # inner, with zeros at its borders, is told of it
    kernel, bias = inner.get_weights()
    kernel[:, :, 2] = 0
    inner.set_weights([kernel, bias])
    smaller, removed = remove_dead_units(model)
    assert removed == (("stem", 1),)  # the last layer's bias takes in what it reads of both
    names = ("stem", "outer", "last")
    shapes = [smaller.get_layer(name).kernel.shape[-2:] for name in names]
    assert shapes == [(3, 5), (5, 5), (10, 4)]
    assert not np.allclose(smaller.get_layer("last").bias, last.bias)
    assert_same(model, smaller)


def test_a_gate_of_zero_channels_goes_with_them():
    model = randomize(residual())
    last = model.get_layer("last")
    kernel, bias = last.get_weights()
    kernel[..., 1], bias[1] = 0, 0
    last.set_weights([kernel, bias])
    smaller, removed = remove_dead_units(model)
    assert removed == (("last", 1),)
    assert smaller.get_layer("gate").units == 3
    assert_same(model, smaller)


def test_a_constant_of_a_layer_called_twice_stays():
    x = layers.Input((3,))
    shared = layers.Dense(4, "tanh", name="shared")
    y = layers.Dense(4, "tanh", name="first")(x)
    model = randomize(keras.Model(x, layers.Dense(2)(shared(shared(y)))))
    for name in ("first", "shared"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[:, 1] = 0
        model.get_layer(name).set_weights([kernel, bias])
    smaller, _ = remove_dead_units(model)
    assert_same(model, smaller)


def test_weights_that_are_zero_but_for_rounding():
    model = randomize(sequential((3,), layers.Dense(6, "relu"), layers.Dense(4), layers.Dense(2)))
    kernel, bias = model.layers[1].get_weights()
    kernel[[1, 4]] = np.sign(kernel[[1, 4]]) * 1e-9
    kernel[2, 0] = 1e-9
    model.layers[1].set_weights([kernel, bias])
    assert remove_dead_units(model)[1] == ()
    smaller, removed = remove_dead_units(model, tolerance=1e-6)
    assert removed == ((model.layers[0].name, 2),)
    np.testing.assert_array_equal(
        smaller.layers[1].get_weights()[0], np.delete(kernel, [1, 4], axis=0)
    )  # an entry of a unit that lives stays as it is
    assert_same(model, smaller)
    with pytest.raises(ValueError, match=r"below 1.*Received: tolerance=1\.5"):
        remove_dead_units(model, tolerance=1.5)
    with pytest.raises(ValueError, match="Received: tolerance=-1"):
        remove_dead_units(model, tolerance=-1)


def test_constants_that_positions_tell_apart_stay():
    x = layers.Input((4, 3))
    first, second = layers.Dense(5, name="a"), layers.Dense(5, name="b")
    y = layers.Concatenate(axis=1)([first(x), second(x)])
    model = randomize(keras.Model(x, layers.Dense(2)(layers.Dense(5, "relu")(y))))
    for layer, value in ((first, 1.0), (second, 2.0)):
        kernel, bias = layer.get_weights()
        kernel[:, 3], bias[3] = 0, value
        layer.set_weights([kernel, bias])
    smaller, removed = remove_dead_units(model)
    assert removed == ()
    assert smaller is model


def test_one_constant_stands_for_others_at_borders():
    model = randomize(
        sequential(
            (6, 6, 2),
            layers.Conv2D(6, 3, activation="relu"),
            layers.Conv2D(4, 3, padding="same", activation="tanh"),
            layers.Flatten(),
            layers.Dense(2),
        )
    )
    kernel, bias = model.layers[0].get_weights()
    kernel[..., [0, 2, 3, 5]], bias[[0, 2, 3, 5]] = 0, [0.5, 2, -1, 1]
    model.layers[0].set_weights([kernel, bias])
    smaller, removed = remove_dead_units(model)
    assert removed == ((model.layers[0].name, 3),)  # the one of -1 is zero after ReLU
    assert bias[2] in smaller.layers[0].get_weights()[1]  # the largest stands for 0.5 and 1
    before, after = (m.layers[1].get_weights()[0] for m in (model, smaller))
    merged = before[:, :, 2] + 0.25 * before[:, :, 0] + 0.5 * before[:, :, 5]
    np.testing.assert_allclose(after[:, :, 1], merged, rtol=1e-6)
    assert_same(model, smaller)
