"""One small model for each type of layer that has a rule, or is made of layers that have."""

import keras
import numpy as np
from keras import layers, ops


class Block(layers.Layer):
    """A transformer block as users write it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 3)
        self.inner = keras.Sequential([layers.Dense(5, "relu"), layers.Dense(4)])
        self.norm_1 = layers.LayerNormalization()
        self.norm_2 = layers.LayerNormalization()
        self.dropout = layers.Dropout(0.5)

    def build(self, shape):
        self.attention.build(shape, shape)
        self.inner.build(shape)
        self.norm_1.build(shape)
        self.norm_2.build(shape)

    def call(self, x, training=None):
        x = self.norm_1(x + self.dropout(self.attention(x, x), training=training))
        return self.norm_2(x + self.inner(x))


class TokenAndPosition(layers.Layer):
    """Embeddings of tokens and of positions; the latter never see a sample."""

    def __init__(self, length, tokens, size, **kwargs):
        super().__init__(**kwargs)
        self.tokens = layers.Embedding(tokens, size)
        self.places = layers.Embedding(length, size)

    def build(self, shape):
        self.tokens.build(shape)
        self.places.build(())

    def call(self, x):
        return self.tokens(x) + self.places(ops.arange(ops.shape(x)[-1]))


class Tied(layers.Layer):
    """An inner layer, and its kernel once more by hand."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(3, "tanh")
        self.second = layers.Dense(4)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((shape[0], 3))

    def call(self, x):
        hidden = self.first(x)
        return self.second(hidden) + ops.matmul(hidden, ops.transpose(self.first.kernel))


class Merged(layers.Layer):
    """An inner layer that sees several rows a sample."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3, "tanh")
        self.last = layers.Dense(2)

    def build(self, shape):
        self.dense.build((None, shape[-1]))
        self.last.build((None, shape[1] * 3))

    def call(self, x):
        rows = ops.reshape(x, (-1, x.shape[-1]))
        return self.last(ops.reshape(self.dense(rows), (-1, x.shape[1] * 3)))


class Residual(keras.Model):
    """A model whose call is the user's own, one layer called twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(3, 3, padding="same", activation="relu")
        self.same = layers.Conv2D(3, 3, padding="same", activation="tanh")
        self.norm = layers.BatchNormalization()
        self.pool = layers.GlobalAveragePooling2D()
        self.top = layers.Dense(2)

    def call(self, x, training=None):
        x = self.conv(x)
        for _ in range(2):
            x = x + self.norm(self.same(x), training=training)
        return self.top(self.pool(x))


def _ending(*parts, shape, dtype=None):
    return keras.Sequential(
        [layers.Input(shape, dtype=dtype), *parts, layers.Flatten(), layers.Dense(2)]
    )


def _attention(**options):
    x = layers.Input((4, 6))
    query = layers.Conv1D(6, 1)(x)
    if "num_query_heads" in options:
        y = layers.GroupQueryAttention(**options)(query, x)
    else:
        y = layers.MultiHeadAttention(**options)(query, x, use_causal_mask=True)
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(y)))


def _subclassed():
    model = Residual()
    model(np.zeros((1, 5, 5, 2)))
    return model


def _lora():
    model = _ending(layers.Dense(5, "relu"), layers.EinsumDense("ab,bc->ac", 4), shape=(6,))
    for layer in model.layers[:2]:
        layer.enable_lora(2)
    return model


def _normalized():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).standard_normal((20, 6)))
    return _ending(normalization, layers.Dense(4, "relu"), shape=(6,))


def _several_outputs():
    x, z = layers.Input((4,), name="x"), layers.Input((3,), name="z")
    hidden = layers.Dense(5, "tanh")(layers.Concatenate()([x, z]))
    sequence = layers.Reshape((2, 2))(layers.Dense(4, "relu")(hidden))
    return keras.Model({"x": x, "z": z}, {"a": layers.Dense(2)(hidden), "b": sequence})


def _windows_of_smooth_maxima():
    return _ending(
        layers.Conv2D(3, 2, activation="tanh"),
        layers.MaxPooling2D((2, 3)),
        layers.ELU(),
        layers.MaxPooling2D((2, 1)),
        shape=(9, 8, 2),
    )


def _windows_without_bias():
    first = layers.Conv1D(3, 2, strides=2, padding="same", use_bias=False)
    return _ending(first, layers.MaxPooling1D(2), shape=(9, 2))


CASES = {
    "Conv3D": lambda: _ending(
        layers.Conv3D(3, 2, strides=(1, 2, 1), padding="same", activation="relu"),
        layers.Conv3D(2, 2, dilation_rate=(1, 1, 2), padding="same", activation="tanh"),
        shape=(4, 5, 6, 2),
    ),
    "DepthwiseConv1D": lambda: _ending(
        layers.DepthwiseConv1D(3, depth_multiplier=2, activation="relu"),
        layers.DepthwiseConv1D(2, strides=2, padding="same", use_bias=False),
        shape=(8, 3),
    ),
    "DepthwiseConv2D": lambda: _ending(
        layers.DepthwiseConv2D(3, padding="same", activation="tanh"),
        layers.DepthwiseConv2D((2, 2), strides=(2, 2), depth_multiplier=2, padding="same"),
        layers.DepthwiseConv2D(2, dilation_rate=(1, 1), padding="valid"),
        shape=(6, 7, 3),
    ),
    "SeparableConv1D": lambda: _ending(
        layers.SeparableConv1D(4, 3, activation="relu", padding="same"),
        layers.SeparableConv1D(3, 2, depth_multiplier=2, use_bias=False),
        shape=(7, 3),
    ),
    "SeparableConv2D": lambda: _ending(
        layers.SeparableConv2D(4, 3, strides=(2, 2), activation="relu", padding="same"),
        layers.SeparableConv2D(3, 2, depth_multiplier=2, dilation_rate=(1, 1)),
        shape=(7, 6, 2),
    ),
    "Conv1DTranspose": lambda: _ending(
        layers.Conv1DTranspose(3, 3, strides=2, activation="relu"),
        layers.Conv1DTranspose(2, 2, padding="same", use_bias=False),
        shape=(5, 2),
    ),
    "Conv2DTranspose": lambda: _ending(
        layers.Conv2DTranspose(3, 3, strides=2, padding="same", activation="tanh"),
        layers.Conv2DTranspose(2, (2, 3), strides=(1, 2), output_padding=(0, 1)),
        shape=(3, 4, 2),
    ),
    "Conv3DTranspose": lambda: _ending(
        layers.Conv3DTranspose(2, 2, strides=(1, 2, 1), activation="tanh"), shape=(2, 3, 2, 2)
    ),
    "EinsumDense": lambda: _ending(
        layers.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de", activation="relu"),
        layers.EinsumDense("abde,def->abf", (4, 4), bias_axes="f"),
        layers.EinsumDense("abf,bfg->abg", (4, 3), bias_axes="bg", activation="tanh"),
        layers.EinsumDense("...x,xy->...y", 2, bias_axes="y"),
        shape=(4, 5),
    ),
    "MultiHeadAttention": lambda: _attention(num_heads=2, key_dim=3),
    "GroupedQueryAttention": lambda: _attention(
        head_dim=3, num_query_heads=4, num_key_value_heads=2
    ),
    "Embedding": lambda: _ending(
        layers.Embedding(9, 3, mask_zero=True),
        layers.Dense(3, "tanh"),
        layers.GlobalAveragePooling1D(),
        shape=(6,),
        dtype="int32",
    ),
    "BatchNormalization": lambda: _ending(
        layers.Dense(4),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.BatchNormalization(axis=1, center=False),
        layers.Dense(3),
        layers.BatchNormalization(scale=False),
        shape=(3, 2),
    ),
    "LayerNormalization": lambda: _ending(
        layers.Dense(4, "relu"),
        layers.LayerNormalization(),
        layers.LayerNormalization(axis=(1, 2), center=False),
        layers.LayerNormalization(axis=1, scale=False),
        shape=(3, 5),
    ),
    "GroupNormalization": lambda: _ending(
        layers.Conv2D(4, 2, activation="tanh"), layers.GroupNormalization(2), shape=(4, 4, 2)
    ),
    "RMSNormalization": lambda: _ending(
        layers.Dense(4, "relu"), layers.RMSNormalization(), shape=(3, 5)
    ),
    "UnitNormalization": lambda: _ending(
        layers.Dense(4, "relu"), layers.UnitNormalization(), layers.Dense(3), shape=(3, 5)
    ),
    "PReLU": lambda: _ending(
        layers.Dense(4), layers.PReLU(), layers.PReLU(shared_axes=[1]), shape=(3, 5)
    ),
    "TimeDistributed": lambda: _ending(
        layers.TimeDistributed(layers.Conv1D(3, 2, activation="relu")),
        layers.TimeDistributed(layers.Flatten()),
        layers.TimeDistributed(layers.Dense(3, "tanh")),
        shape=(3, 4, 2),
    ),
    "SimpleRNN": lambda: _ending(layers.SimpleRNN(4, return_sequences=True), shape=(4, 3)),
    "LSTM": lambda: _ending(layers.LSTM(2), shape=(3, 2)),
    "GRU": lambda: _ending(layers.GRU(2), shape=(3, 2)),
    "RNN": lambda: _ending(layers.RNN(layers.GRUCell(2)), shape=(3, 2)),
    "Bidirectional": lambda: _ending(
        layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True)),
        layers.Bidirectional(layers.LSTM(1), merge_mode="sum"),
        shape=(2, 2),
    ),
    "Normalization": _normalized,
    "lora": _lora,
    "subclassed": _subclassed,
    "transformer": lambda: _ending(
        TokenAndPosition(5, 8, 4),
        Block(),
        layers.GlobalAveragePooling1D(),
        shape=(5,),
        dtype="int32",
    ),
    "tied": lambda: _ending(layers.Dense(4), Tied(), shape=(4,)),
    "merged": lambda: _ending(layers.Conv1D(3, 2), Merged(), shape=(4, 3)),
    "several outputs": _several_outputs,
    "windows of smooth maxima": _windows_of_smooth_maxima,
    "windows without bias": _windows_without_bias,
}


def inputs_for(model, n, seed=0):
    """Return random inputs: tokens where the model takes integers."""
    rng = np.random.default_rng(seed)
    if isinstance(model, Residual):
        return rng.standard_normal((n, 5, 5, 2))

    def draw(symbol):
        shape = (n, *symbol.shape[1:])
        if "int" in symbol.dtype:
            return rng.integers(0, 8, shape).astype("int32")
        return rng.standard_normal(shape)

    if isinstance(model, keras.Sequential):
        return draw(model.inputs[0])
    return keras.tree.map_structure(draw, model.input)
