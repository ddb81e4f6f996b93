"""Units that are multiples of others: merged by hand, in all kinds of networks, and refused."""

from __future__ import annotations

import hypothesis
import keras
import numpy as np
import pytest
from helpers.architectures import sequential
from helpers.channel_removal import assert_outputs, draw, inputs_of, outputs_of
from helpers.expect import use_float
from hypothesis import strategies as st
from keras import layers

from keras_ntt import remove_dead_units
from keras_ntt.core.channels.multiples import parallel_columns


def test_three_units_by_hand():
    model = sequential((2,), layers.Dense(4, "relu"), layers.Dense(2, use_bias=False))
    # The second unit is three times the first, the fourth its copy; the third points backwards.
    model.set_weights(
        [
            np.array([[1.0, 3, -1, 1], [2, 6, -2, 2]]),
            np.array([1.0, 3, -1, 1]),
            np.array([[1.0, 0], [1, 2], [5, 5], [0, 7]]),
        ]
    )
    smaller, removed = remove_dead_units(model)
    assert removed == ((model.layers[0].name, 2),)
    kernel, bias = smaller.layers[0].get_weights()
    np.testing.assert_array_equal(kernel, [[1, -1], [2, -2]])
    np.testing.assert_array_equal(bias, [1, -1])
    # [1 + 3 * 1 + 0, 0 + 3 * 2 + 7]
    np.testing.assert_allclose(smaller.layers[1].kernel, [[4, 13], [5, 5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("activation", "left"), [(None, 2), ("relu", 3), ("leaky_relu", 3), ("tanh", 4), ("relu6", 4)]
)
def test_what_an_activation_keeps(activation, left):
    # Columns 0 to 4: a, its copy, twice, minus, and another one. tanh keeps copies alone.
    a, b = np.array([1.0, -2, 0.5]), np.array([3.0, 1, 1])
    kernel = np.stack([a, a, 2 * a, -a, b], axis=1)
    model = sequential((3,), layers.Dense(5, activation, use_bias=False), layers.Dense(2))
    model.layers[0].set_weights([kernel])
    smaller, removed = remove_dead_units(model)
    assert dict(removed) == {model.layers[0].name: 5 - left}
    x = inputs_of(model, 0)
    assert_outputs(outputs_of(smaller, x), outputs_of(model, x), 1e-6)


def test_biases_decide():
    model = sequential((2,), layers.Dense(3, "relu"), layers.Dense(2))
    kernel = np.array([[1.0, 2, 2], [3, 6, 6]])
    model.layers[0].set_weights([kernel, np.array([1.0, 2, 1])])
    assert remove_dead_units(model)[1] == ((model.layers[0].name, 1),)  # the second, not the third


def double(layer, rng, share=0.5, positive=True):
    """Make a part of a layer's units multiples of others; return the factors and their sources."""
    kernel, *bias = layer.get_weights()
    axis = -2 if "Transpose" in type(layer).__name__ else -1
    units = kernel.shape[axis]
    count = max(int(share * units), 1)
    order = rng.permutation(units)
    to, of = order[:count], order[count + rng.integers(0, units - count, count)]
    factors = rng.uniform(0.5, 2, count) * (1 if positive else rng.choice([-1, 1], count))
    kernel = np.moveaxis(kernel, axis, 0)
    kernel[to] = factors.reshape([-1] + [1] * (kernel.ndim - 1)) * kernel[of]
    kernel = np.moveaxis(kernel, 0, axis)
    if bias:
        bias[0][to] = factors * bias[0][of]
    layer.set_weights([kernel, *bias])
    return to, of, factors


def follow(norm, to, of, factors):
    """Let a normalization treat multiples as multiples."""
    gamma, beta, mean, variance = norm.get_weights()
    mean[to], beta[to] = factors * mean[of], factors * beta[of]
    variance[to] = variance[of]
    gamma[to] = gamma[of]
    norm.set_weights([gamma, beta, mean, variance])


def dense():
    return sequential(
        (5,),
        layers.Dense(8, "relu", name="made"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.5),
        layers.LeakyReLU(),
        layers.Dense(3),
    )


def image():
    return sequential(
        (7, 7, 2),
        layers.Conv2D(8, 3, padding="same", use_bias=False, name="made"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(),
        layers.MaxPooling2D(2, padding="same"),
        layers.ZeroPadding2D(1),
        layers.Conv2D(4, 3, padding="same", activation="tanh"),
        layers.Flatten(),
        layers.Dense(3),
    )


def flat():
    return sequential(
        (5, 5, 2),
        layers.Conv2DTranspose(8, 3, strides=2, activation="relu", name="made"),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        layers.Dense(3),
    )


def branches():
    x = inputs = layers.Input((6, 6, 2))
    y = layers.Conv2D(8, 3, activation="relu", name="made")(x)
    z = layers.Conv2D(5, 2, padding="same", name="one")(layers.UpSampling2D(2)(y))
    w = layers.Conv2D(5, 3, padding="same", dilation_rate=2)(y)
    z = layers.Concatenate()([layers.MaxPooling2D(2)(z), w, y])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(z)))


@pytest.mark.parametrize("make", [dense, image, flat, branches])
@hypothesis.given(st.integers(0, 10_000))
@hypothesis.settings(max_examples=5)
@pytest.mark.few(2)
def test_multiples_are_merged_exactly(make, seed):
    rng = np.random.default_rng(seed)
    use_float("float64")
    model = draw(make(), seed)
    to, of, factors = double(model.get_layer("made"), rng)
    if "norm" in [layer.name for layer in model.layers]:
        follow(model.get_layer("norm"), to, of, factors)
    smaller, removed = remove_dead_units(model)
    assert dict(removed)["made"] == len(to)
    x = inputs_of(model, seed)
    assert_outputs(outputs_of(smaller, x), outputs_of(model, x), 1e-12)


def test_depthwise_filters_may_be_multiples_too():
    use_float("float64")
    model = draw(
        sequential(
            (7, 7, 2),
            layers.Conv2D(6, 3, activation="relu", name="made"),
            layers.DepthwiseConv2D(3, padding="same", name="apart"),
            layers.ReLU(),
            layers.Conv2D(4, 1, name="read"),
            layers.GlobalAveragePooling2D(),
        ),
        0,
    )
    to, of, factors = double(model.get_layer("made"), np.random.default_rng(0))
    kernel, bias = model.get_layer("apart").get_weights()
    kernel[:, :, to] = 3 * kernel[:, :, of]
    bias[to] = 3 * factors * bias[of]
    assert remove_dead_units(model)[1] == ()  # the filters are not multiples yet
    model.get_layer("apart").set_weights([kernel, bias])
    smaller, removed = remove_dead_units(model)
    assert removed == (("made", len(to)),)
    x = inputs_of(model, 0)
    assert_outputs(outputs_of(smaller, x), outputs_of(model, x), 1e-12)


def test_a_residual_unit_needs_both_its_makers():
    use_float("float64")
    x = inputs = layers.Input((5,))
    y = layers.Dense(6, name="a")(x)
    y = layers.Add()([y, layers.Dense(6, name="b")(x)])
    model = draw(keras.Model(inputs, layers.Dense(2)(layers.ReLU()(y))), 0)
    a, b = model.get_layer("a"), model.get_layer("b")
    kernel, bias = a.get_weights()
    kernel[:, 4], bias[4] = 2 * kernel[:, 1], 2 * bias[1]
    a.set_weights([kernel, bias])
    assert remove_dead_units(model)[1] == ()
    kernel, bias = b.get_weights()
    kernel[:, 4], bias[4] = 2 * kernel[:, 1], 2 * bias[1]
    b.set_weights([kernel, bias])
    smaller, removed = remove_dead_units(model)
    assert removed == (("a", 1),)
    x = inputs_of(model, 0)
    assert_outputs(outputs_of(smaller, x), outputs_of(model, x), 1e-12)


@pytest.mark.parametrize("merged", [True, False])
def test_a_mean_over_units_keeps_them_and_a_recurrent_layer_does_not(merged):
    rest = [layers.LayerNormalization(), layers.GlobalAveragePooling1D()]
    made = layers.Dense(6, "relu", name="made")
    model = sequential((4, 3), made, *([layers.LSTM(3)] if merged else rest), layers.Dense(2))
    draw(model, 0)
    double(made, np.random.default_rng(0))
    smaller, removed = remove_dead_units(model)
    assert dict(removed) == ({"made": 3} if merged else {})
    x = inputs_of(model, 0)
    assert_outputs(outputs_of(smaller, x), outputs_of(model, x), 1e-6)


def test_parallel_columns_is_brute_force():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(4, 30))
    columns[:, 10:20] = columns[:, rng.integers(0, 10, 10)] * rng.normal(size=10)
    columns[:, 25] = 0
    found = {j: (i, c) for j, i, c in parallel_columns(columns, 1e-12)}
    for j in range(30):
        first = next(
            (
                i
                for i in range(j)
                if columns[:, i].any()
                and np.linalg.matrix_rank(columns[:, [i, j]], tol=1e-9) == 1
                and columns[:, j].any()
            ),
            None,
        )
        assert found.get(j, (None,))[0] == first
        if first is not None:
            np.testing.assert_allclose(columns[:, j], found[j][1] * columns[:, first], rtol=1e-9)
