"""Small models of every shape that the kernel must be exact on."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers


class Doubled(layers.Dense):
    """A Dense layer that computes something else than its base."""

    def call(self, x, training=None):
        return 2 * super().call(x)


class Squared(layers.Layer):
    """A layer of the user's own without weights."""

    def call(self, x):
        return x * x + x


class Gain(layers.Layer):
    """A layer of the user's own with weights and no rule."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")
        self.shift = self.add_weight(shape=(1,), initializer="zeros", name="shift")

    def call(self, x):
        return keras.ops.sin(self.gain * x) + self.shift


class OwnCode(keras.Model):
    """A model whose call is the user's own."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(units, "tanh")
        self.second = layers.Dense(3)

    def call(self, x):
        hidden = self.first(x)
        return self.second(hidden + keras.ops.flip(hidden, axis=1))


def sequential(shape, *parts):
    return keras.Sequential([layers.Input(shape), *parts])


def dense():
    return sequential((6,), layers.Dense(5, "relu"), layers.Dense(4, "gelu"), layers.Dense(3))


def dense_without_bias():
    return sequential(
        (6,), layers.Dense(5, "tanh", use_bias=False), layers.Dense(3, "softmax", use_bias=False)
    )


def dense_on_sequences():
    return sequential(
        (7, 4), layers.Dense(5, "silu"), layers.Flatten(), layers.Dropout(0.5), layers.Dense(2)
    )


def lenet():
    return sequential(
        (12, 12, 2),
        layers.Conv2D(4, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(5, 2, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(6, "relu"),
        layers.Dense(3),
    )


def conv_padded_and_strided():
    return sequential(
        (9, 8, 3),
        layers.ZeroPadding2D(1),
        layers.Conv2D(4, (3, 2), strides=(2, 3), padding="same", activation="elu"),
        layers.AveragePooling2D(2),
        layers.Reshape((-1,)),
        layers.Dense(2, "sigmoid"),
    )


def conv_dilated():
    return sequential(
        (10, 9, 2),
        layers.Conv2D(3, 3, dilation_rate=(2, 1), padding="same", activation="softplus"),
        layers.Conv2D(2, (2, 3), dilation_rate=2, use_bias=False),
        layers.GlobalAveragePooling2D(),
    )


def conv_grouped():
    return sequential(
        (5, 5, 3),
        layers.Conv2D(4, 1, activation="tanh"),
        layers.Conv2D(4, 2, groups=2, strides=2, padding="same"),  # compiled with XLA by Keras
        layers.GlobalMaxPooling2D(),
        layers.Dense(3),
    )


def conv_1d():
    return sequential(
        (9, 3),
        layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu"),
        layers.Conv1D(4, 2, strides=2, padding="same", activation="mish"),
        layers.MaxPooling1D(2),
        layers.GlobalAveragePooling1D(),
        layers.Dense(2),
    )


def pooling_with_remainder():
    return sequential(
        (7, 5, 2),
        layers.Conv2D(3, 2, activation="relu"),
        layers.MaxPooling2D((2, 3)),
        layers.Conv2D(3, 1),
        layers.MaxPooling2D(3, strides=1, padding="same"),
        layers.LeakyReLU(),
        layers.Flatten(),
        layers.Dense(2),
    )


def branches():
    x = layers.Input((8, 8, 2))
    a = layers.Conv2D(3, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(3, 1, activation="tanh")(x)
    joined = layers.Concatenate()([layers.Add()([a, b]), layers.Subtract()([a, b]), a])
    y = layers.Flatten()(layers.MaxPooling2D(4)(joined))
    y = layers.Dense(4, "relu")(y) + 1.0
    return keras.Model(x, layers.Dense(3)(keras.ops.multiply(y, y)))


def layer_called_twice():
    x = layers.Input((5,))
    shared = layers.Dense(5, "tanh")
    conv = layers.Conv1D(2, 2, activation="relu")
    y = shared(shared(x))
    z = layers.Concatenate()([y, shared(x * 2.0)])
    z = layers.Reshape((10, 1))(z)
    left = conv(z)
    right = conv(layers.Cropping1D((2, 1))(z))
    joined = layers.Concatenate()([layers.Flatten()(left), layers.Flatten()(right)])
    return keras.Model(x, layers.Dense(2)(joined))


def nested():
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(4, "relu"), layers.Dense(4)])
    i = layers.Input((4,))
    block = keras.Model(i, layers.Dense(4, "tanh")(inner(i)) + i)
    x = layers.Input((4,))
    return keras.Model(x, layers.Dense(2)(block(inner(block(x)))))


def own_layers():
    return sequential((6,), layers.Dense(5), Squared(), Doubled(4, "tanh"), Gain(), layers.Dense(2))


def other_layers():
    return sequential(
        (6, 3),
        layers.LSTM(4, return_sequences=True),
        layers.LayerNormalization(),
        layers.BatchNormalization(),
        layers.PReLU(),
        layers.Flatten(),
        layers.Dense(2),
    )


def masked_sequences():
    return sequential(
        (6, 3),
        layers.Masking(),
        layers.Dense(4, "tanh"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(2),
    )


def own_code():
    model = OwnCode()
    model(np.zeros((1, 5)))
    return model


def outputs_of_rank_three():
    return sequential((4, 3), layers.Dense(4, "relu"), layers.Dense(2))


def frozen_weights():
    model = dense()
    model.layers[0].trainable = False
    model.layers[1].bias.trainable = False
    model.layers[2]._kernel.trainable = False
    return model


ALL = [
    dense,
    dense_without_bias,
    dense_on_sequences,
    lenet,
    conv_padded_and_strided,
    conv_dilated,
    conv_grouped,
    conv_1d,
    pooling_with_remainder,
    branches,
    layer_called_twice,
    nested,
    own_layers,
    other_layers,
    masked_sequences,
    own_code,
    outputs_of_rank_three,
    frozen_weights,
]


def trace_of(ntk):
    """Return the mean over the outputs of a full tangent kernel."""
    ntk = keras.ops.convert_to_numpy(ntk)
    over = (*range(2, (ntk.ndim - 2) // 2 + 2),)
    size = int(np.prod([ntk.shape[axis] for axis in over]))
    return np.einsum("ijaa->ij", ntk.reshape(*ntk.shape[:2], size, size)) / size


def randomize(model, seed=0, scale=0.5):
    """Give every weight a random value, biases and scales too."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(scale * rng.standard_normal(variable.shape))
    return model


def inputs_for(model, n, seed=0):
    shape = (5,) if isinstance(model, OwnCode) else model.input_shape[1:]
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype("float64")


def ntk_by_definition(model, x):
    """The kernel by TensorFlow's Jacobian of the model as Keras runs it, loops and all."""
    return sum(tf.einsum("aop,bqp->aboq", j, j) for j in jacobians_by_definition(model, x))


def jacobians_by_definition(model, x):
    """Return, for each trainable variable, TensorFlow's Jacobian ``[n, outputs, entries]``."""
    with tf.GradientTape(persistent=True) as tape:
        outputs = keras.tree.flatten(model(x))
        y = tf.concat([tf.reshape(o, [o.shape[0], -1]) for o in outputs], axis=1)
    variables = [v.value for v in model.trainable_variables]
    # The loop of one output after the other takes derivatives of one type only.
    options = {"experimental_use_pfor": any(v.dtype != y.dtype for v in variables)}
    found = tape.jacobian(y, variables, unconnected_gradients="zero", **options)
    return [tf.reshape(tf.convert_to_tensor(j), (*y.shape, -1)) for j in found]
