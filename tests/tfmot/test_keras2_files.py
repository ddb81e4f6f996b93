"""Files that tf_keras writes: they come in through it, and without it."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.legacy import layers, seeded, tf_keras  # noqa: F401

import keras_ntt
from keras_ntt.tfmot import to_keras3

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")


def convolutions():
    inputs = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu6", kernel_regularizer="l2")(inputs)
    x = y = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, padding="same", dilation_rate=1)(x)
    x = layers.LeakyReLU(alpha=0.2)(layers.Add()([x, y]))
    x = layers.SeparableConv2D(5, 3)(x)
    x = layers.Conv2DTranspose(3, 2)(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    return tf_keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def sequences():
    parts = [layers.Bidirectional(layers.LSTM(4, return_sequences=True), input_shape=(5, 3))]
    parts += [layers.GRU(3, return_sequences=True), layers.TimeDistributed(layers.Dense(2))]
    parts += [layers.LayerNormalization(), layers.GlobalMaxPooling1D()]
    return tf_keras.Sequential(parts)


def words():
    parts = [layers.Embedding(20, 4, input_length=6), layers.Conv1D(3, 2), layers.Flatten()]
    return tf_keras.Sequential([*parts, layers.Dense(2, "sigmoid")])


def nested():
    inputs = tf_keras.Input((8, 8, 3))
    return tf_keras.Model(inputs, layers.Dense(2)(convolutions()(inputs)))


MAKERS = [convolutions, sequences, words, nested]


@pytest.mark.parametrize("there", [True, False], ids=["tf_keras", "without"])
@pytest.mark.parametrize("suffix", [".h5", ""], ids=["h5", "folder"])
@pytest.mark.parametrize("make", MAKERS)
def test_what_tf_keras_writes_comes_in(make, suffix, there, tmp_path, monkeypatch):
    model = make()
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.2, 0.7, w.shape) for w in model.get_weights()])
    model.compile("adam", "mse")  # the optimizer is saved along
    path = tmp_path / f"saved{suffix}"
    model.save(path)
    shape = (2, *(side or 4 for side in model.input_shape[1:]))
    x = rng.integers(0, 9, shape).astype("float32")
    if not there:
        monkeypatch.setitem(sys.modules, "tf_keras", None)
    loaded = keras_ntt.load_model(path)
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert [layer.name for layer in loaded.layers if layer.weights] == [
        layer.name for layer in model.layers if layer.weights
    ]


def test_functions_of_tensorflow_need_tf_keras(tmp_path, monkeypatch):
    inputs = tf_keras.Input((4,))
    model = tf_keras.Model(inputs, tf.nn.relu(layers.Dense(3)(inputs)) + 1)
    model.save(tmp_path / "model.h5")
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(keras_ntt.load_model(tmp_path / "model.h5")(x), model(x), rtol=1e-5)
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(ValueError, match=r"function of TensorFlow.*pip install tf-keras"):
        keras_ntt.load_model(tmp_path / "model.h5")


def test_weights_alone_of_tf_keras(tmp_path):
    model = convolutions()
    model.save_weights(tmp_path / "weights.h5")
    model.save_weights(tmp_path / "ckpt")
    for name in ("weights.h5", "ckpt"):
        with pytest.raises(ValueError, match="only weights"):
            keras_ntt.load_model(tmp_path / name)


def test_a_model_with_code_of_its_own_is_named(tmp_path):
    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.ones((1, 3), "float32"))
    model.save(tmp_path / "own")
    with pytest.raises(ValueError, match=r"code is not in the file.*Received"):
        keras_ntt.load_model(tmp_path / "own")


def test_a_subclass_that_changes_nothing_is_its_base():
    class Named(layers.DepthwiseConv2D):
        def __init__(self, *args, remark="", **kwargs):
            super().__init__(*args, **kwargs)
            self.remark = remark

        def get_config(self):
            return {**super().get_config(), "remark": self.remark}

    inputs = tf_keras.Input((6, 6, 2))
    model = tf_keras.Model(inputs, Named(3, remark="first", activation="relu")(inputs))
    twin = to_keras3(model)
    assert type(twin.layers[1]) is keras.layers.DepthwiseConv2D
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(twin(x), model(x), rtol=1e-5, atol=1e-6)

    class Doubled(layers.DepthwiseConv2D):
        def call(self, x):
            return 2 * super().call(x)

    with pytest.raises(ValueError, match="a custom layer"):
        to_keras3(tf_keras.Model(inputs, Doubled(3)(inputs)))
