"""Channels of zeros are removed from every kind of layer: the outputs stay."""

from __future__ import annotations

import hypothesis
import keras
import numpy as np
import pytest
from helpers.architectures import sequential
from helpers.channel_removal import (
    assert_exact,
    assert_gradients,
    assert_outputs,
    draw,
    inputs_of,
    outputs_of,
    random_removal,
    set_to_zero,
)
from helpers.expect import use_float
from helpers.random_graphs import random_graph
from hypothesis import strategies as st
from keras import layers

from keras_ntt.core.channels.resize import resized


def convolutional(*middle, shape=(8, 8, 3), filters=6, head=True):
    first = {2: layers.Conv1D, 3: layers.Conv2D, 4: layers.Conv3D}[len(shape)]
    end = (layers.Flatten(), layers.Dense(3)) if head else ()
    return sequential(shape, first(filters, 2, activation="relu"), *middle, *end)


def recurrent(*middle):
    return sequential((7, 3), layers.Dense(5, "tanh"), *middle, layers.Dense(2))


def tokens(make, width=8):
    x = layers.Input((6,), dtype="int32")
    return keras.Model(x, layers.Dense(3)(make(layers.Embedding(9, width)(x))))


def attention(x):
    own = layers.MultiHeadAttention(4, 3, value_dim=5)(x, x)
    return layers.MultiHeadAttention(3, 2, use_bias=False)(x + own, x)


def grouped_query(x):
    return layers.Add()([x, layers.GroupQueryAttention(4, 4, 2)(x, x)])


def einsum(x):
    y = layers.EinsumDense("abc,cde->abde", (None, 3, 4), activation="relu", bias_axes="de")(x)
    y = layers.EinsumDense("abde,de->abde", (None, 3, 4))(y)
    y = layers.EinsumDense("...de,def->...f", (8,), bias_axes="f")(y)
    return x + y


def heads_by_operations(x):
    query, key, value = (layers.Dense(12)(x) for _ in range(3))
    query, key, value = (
        keras.ops.transpose(keras.ops.reshape(t, (-1, 6, 3, 4)), (0, 2, 1, 3))
        for t in (query, key, value)
    )
    scores = keras.ops.matmul(query, keras.ops.transpose(key, (0, 1, 3, 2)))
    mixed = keras.ops.matmul(keras.ops.softmax(scores, axis=-1), value)
    mixed = keras.ops.reshape(keras.ops.transpose(mixed, (0, 2, 1, 3)), (-1, 6, 12))
    return x + layers.Dense(8)(mixed)


def residual():
    x = inputs = layers.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(x))
    y = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    y = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(y))
    x = layers.Add()([layers.Conv2D(6, 1)(x), y])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def squeeze_and_excite():
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, activation="relu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(4, 1, activation="silu")(gate)
    x = layers.Multiply()([x, layers.Conv2D(6, 1, activation="hard_sigmoid")(gate)])
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def dense_block():
    x = inputs = layers.Input((8, 8, 3))
    for _ in range(3):
        y = layers.Conv2D(4, 3, padding="same")(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, y])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))


def several():
    a, b = layers.Input((5,)), layers.Input((4,))
    x, y = layers.Dense(6, "tanh")(a), layers.Dense(6, "relu")(b)
    shared = layers.Dense(6, "tanh")
    z = layers.Average()([shared(x), shared(y)])
    z = layers.Maximum()([z, x]) - layers.Minimum()([z, y])
    return keras.Model([a, b], [layers.Dense(2)(z), layers.Dense(3)(shared(z))])


def nested():
    inner = layers.Input((6,))
    part = keras.Model(inner, layers.Dense(6)(layers.Dense(5, "relu")(inner)))
    stack = sequential((6,), layers.Dense(7, "tanh"), layers.Dense(6))
    x = layers.Input((4,))
    y = part(layers.Dense(6, "tanh")(x))
    return keras.Model(x, layers.Dense(2)(stack(part(y)) + y))


def nested_sequential():
    return sequential(
        (8, 8, 3), convolutional(shape=(8, 8, 3), head=False), layers.Flatten(), layers.Dense(3)
    )


def states():
    x, y = layers.Input((7, 3)), layers.Input((5, 2))
    _, *state = layers.LSTM(6, return_state=True)(x)
    z = layers.LSTM(6, return_sequences=True)(y, initial_state=state)
    return keras.Model([x, y], layers.Dense(2)(z))


def mixer():
    x = inputs = layers.Input((6, 5))
    x = layers.Dense(8)(x)
    y = layers.Permute((2, 1))(x)
    y = layers.Permute((2, 1))(layers.Dense(6)(layers.Dense(9, "gelu")(y)))
    x = x + y
    return keras.Model(inputs, layers.Dense(3)(x + layers.Dense(8)(layers.Dense(7, "gelu")(x))))


def masked():
    x = layers.Input((6,), dtype="int32")
    y = layers.Embedding(9, 8, mask_zero=True)(x)
    y = layers.LSTM(6, return_sequences=True)(y)
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(y)))


MODELS = {
    "dense": lambda: recurrent(layers.Dense(6, "selu")),
    "conv1d": lambda: convolutional(layers.Conv1D(5, 3, padding="causal"), shape=(9, 2)),
    "conv2d": lambda: convolutional(layers.Conv2D(5, 3, dilation_rate=2, padding="same")),
    "conv3d": lambda: convolutional(layers.Conv3D(5, 2), shape=(5, 5, 5, 2)),
    "groups": lambda: convolutional(layers.Conv2D(9, 3, groups=3), layers.Conv2D(4, 1)),
    "depthwise": lambda: convolutional(layers.DepthwiseConv2D(3, depth_multiplier=2)),
    "depthwise 1d": lambda: convolutional(layers.DepthwiseConv1D(3), shape=(9, 2)),
    "separable": lambda: convolutional(layers.SeparableConv2D(5, 3, depth_multiplier=2)),
    "separable 1d": lambda: convolutional(layers.SeparableConv1D(5, 3), shape=(9, 2)),
    "transposed": lambda: convolutional(layers.Conv2DTranspose(5, 3, strides=2, padding="same")),
    "transposed 1d": lambda: convolutional(layers.Conv1DTranspose(5, 3), shape=(9, 2)),
    "transposed 3d": lambda: convolutional(layers.Conv3DTranspose(5, 2), shape=(4, 4, 4, 2)),
    "batch norm": lambda: convolutional(layers.BatchNormalization(), layers.Conv2D(4, 3)),
    "group norm": lambda: convolutional(layers.GroupNormalization(3)),
    "unit norm": lambda: convolutional(layers.UnitNormalization()),
    "prelu": lambda: convolutional(layers.PReLU(shared_axes=[1, 2]), layers.PReLU()),
    "upsampling": lambda: convolutional(layers.UpSampling2D(), layers.Cropping2D(2)),
    "padding": lambda: convolutional(layers.ZeroPadding2D(2), layers.AveragePooling2D(2)),
    "reshape": lambda: convolutional(layers.Reshape((49, 6)), layers.Dense(5, "relu")),
    "reshape back": lambda: convolutional(
        layers.Flatten(), layers.Dense(24), layers.Reshape((2, 3, 4)), layers.Conv2D(5, 2)
    ),
    "open reshape": lambda: convolutional(layers.Reshape((-1, 6)), layers.Conv1D(4, 2)),
    "permute": lambda: convolutional(layers.Permute((3, 1, 2)), layers.Dense(4, "relu")),
    "repeat": lambda: sequential(
        (4,), layers.Dense(5), layers.RepeatVector(3), layers.GRU(4), layers.Dense(2)
    ),
    "lstm": lambda: recurrent(layers.LSTM(6, return_sequences=True)),
    "gru": lambda: recurrent(layers.GRU(6), layers.Dense(4)),
    "gru before": lambda: recurrent(layers.GRU(6, reset_after=False), layers.Dense(4)),
    "simple rnn": lambda: recurrent(layers.SimpleRNN(6, return_sequences=True)),
    "bidirectional": lambda: recurrent(
        layers.Bidirectional(layers.LSTM(5, return_sequences=True)),
        layers.Bidirectional(layers.GRU(4), merge_mode="sum", backward_layer=None),
    ),
    "time distributed": lambda: sequential(
        (4, 8, 8, 2),
        layers.TimeDistributed(layers.Conv2D(5, 3, activation="relu")),
        layers.TimeDistributed(layers.GlobalAveragePooling2D()),
        layers.LSTM(4),
        layers.Dense(2),
    ),
    "attention": lambda: tokens(attention),
    "grouped query": lambda: tokens(grouped_query),
    "einsum": lambda: tokens(einsum),
    "heads by operations": lambda: tokens(heads_by_operations),
    **{
        f.__name__: f
        for f in (
            *(residual, squeeze_and_excite, dense_block, several, nested, nested_sequential),
            *(states, mixer, masked),
        )
    },
}
if hasattr(layers, "RMSNormalization"):
    MODELS["rms norm"] = lambda: tokens(lambda x: layers.RMSNormalization()(x + attention(x)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.few(8)
def test_outputs_stay(name):
    model = MODELS[name]()
    removal, smaller = assert_exact(model)
    assert removal.removed
    assert smaller.count_params() < model.count_params()
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("name", ["residual", "attention", "lstm"])
def test_outputs_and_gradients_stay_in_float64(name):
    use_float("float64")
    model = MODELS[name]()
    # Keras rounds the factor of attention to float32.
    tolerance = 1e-8 if name == "attention" else 1e-12
    removal, smaller = assert_exact(model, tolerance=tolerance)
    assert_gradients(removal, smaller, inputs_of(model, 3), 1e2 * tolerance)


def assert_exact_graph(seed):
    """Remove channels of a random graph in float64, whose gradients must stay, and in float32."""
    for dtype, tolerance in (("float64", 1e-12), ("float32", 4e-6)):
        use_float(dtype)
        model = random_graph(seed)
        removal, smaller = assert_exact(model, seed, tolerance=tolerance)
        if dtype == "float64":
            assert_gradients(removal, smaller, inputs_of(model, seed + 1), 1e-10)


@hypothesis.given(st.integers(0, 10**9))
@hypothesis.settings(max_examples=4)
def test_random_graphs(seed):
    assert_exact_graph(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_many_random_graphs(seed):
    assert_exact_graph(seed)


def test_a_smaller_model_trains_and_is_saved(tmp_path):
    model = draw(squeeze_and_excite(), 0)
    smaller = resized(random_removal(model, 0))
    smaller.compile("sgd", "mse")
    x = inputs_of(model, 1)
    smaller.fit(x, np.zeros((3, 3)), verbose=0)
    smaller.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert_outputs(outputs_of(loaded, x), outputs_of(smaller, x), 1e-6)


def test_the_check_sees_a_difference():
    model = draw(residual(), 0)
    removal = random_removal(model, 0)
    smaller = resized(removal)
    x = inputs_of(model, 0)
    with pytest.raises(AssertionError):  # the channels are not zero yet
        assert_outputs(outputs_of(smaller, x), outputs_of(model, x), 1e-3)
    set_to_zero(removal)
    assert_outputs(outputs_of(smaller, x), outputs_of(model, x), 1e-6)
