"""Models from files of Keras 2: what comes in, and what is said of the rest."""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import keras2_files as old
from keras import layers

import keras_ntt


@pytest.fixture(autouse=True)
def _without_tf_keras(monkeypatch):
    """Look for no tf_keras: the models are made from their configurations."""
    monkeypatch.setitem(sys.modules, "tf_keras", None)


def separable():
    """Depthwise and 1x1 convolutions, a residual connection, normalizations."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = y = layers.LeakyReLU(0.2, name="leaky")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="dw")(x)
    x = layers.Add(name="add")([x, y])
    x = layers.SeparableConv2D(5, 3, name="sep")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, "softmax", name="head")(x), name="net")


def generator():
    parts = [keras.Input((4,)), layers.Dense(9, "relu"), layers.Reshape((3, 3, 1))]
    parts += [layers.Conv2DTranspose(2, 3, strides=2, name="up"), layers.ReLU(6.0)]
    return keras.Sequential(parts, name="generator")


def sequences():
    parts = [keras.Input((5, 3)), layers.Bidirectional(layers.LSTM(4, return_sequences=True))]
    parts += [layers.GRU(3, return_sequences=True), layers.TimeDistributed(layers.Dense(2))]
    return keras.Sequential(parts)


def nested():
    inputs = keras.Input((8, 8, 3), name="outer")
    inner = separable()
    return keras.Model(inputs, layers.Dense(2, name="last")(inner(inputs)), name="whole")


def disturbed(model, rng):
    """Give all weights other values, statistics of normalizations too."""
    model.set_weights([rng.uniform(0.3, 0.8, size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("make", [separable, generator, sequences, nested])
def test_files_of_keras_2_come_in(make, tmp_path, rng):
    model = disturbed(make(), rng)
    old.save_h5(model, tmp_path / "old.h5")
    loaded = keras_ntt.load_model(tmp_path / "old.h5")
    assert not loaded.compiled
    assert [type(a) for a in loaded.layers] == [type(b) for b in model.layers]
    assert [a.name for a in loaded.layers] == [b.name for b in model.layers]
    x = rng.normal(size=(2, *model.inputs[0].shape[1:])).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)  # one tensor, no list
    for mine, theirs in zip(loaded.weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_what_comes_in_is_pruned_like_any_model(tmp_path, rng):
    old.save_h5(separable(), tmp_path / "old.h5")
    model = keras_ntt.load_model(tmp_path / "old.h5")
    pruned = keras_ntt.prune_at_init(
        model, sparsity=0.5, saliency="magnitude", pattern="filters", verbose=0
    )
    assert keras_ntt.sparsity_report(pruned).sparsity > 0.4
    assert keras_ntt.remove_dead_units(pruned)[0].count_params() < model.count_params()


def test_files_of_keras_3_are_read_by_keras(tmp_path, rng):
    model = disturbed(separable(), rng)
    for name in ("new.keras", "new.h5"):
        model.save(tmp_path / name)
        loaded = keras_ntt.load_model(str(tmp_path / name))
        for mine, theirs in zip(loaded.weights, model.weights, strict=True):
            np.testing.assert_array_equal(mine, theirs)


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


def test_classes_of_the_user(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.DepthwiseConv2D(2), Doubled()])
    old.save_h5(model, tmp_path / "own.h5")
    loaded = keras_ntt.load_model(tmp_path / "own.h5", custom_objects={"Doubled": Doubled})
    x = np.ones((1, 4, 4, 2), "float32")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)
    with pytest.raises(ValueError, match=r"custom_objects=\{'Doubled': Doubled\}"):
        keras_ntt.load_model(tmp_path / "own.h5")


# --- SavedModel folders ----------------------------------------------------------------------


def two_layers():
    return keras.Sequential(
        [
            keras.Input((5, 5, 2), name="image"),
            layers.DepthwiseConv2D(3, activation="relu", name="dw"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="head"),
        ]
    )


def values(rng):
    return old.weights(
        rng, dw__depthwise_kernel=(3, 3, 2, 1), dw__bias=(2,), head__kernel=(18, 3), head__bias=(3,)
    )


def compute(w, x):
    x = tf.nn.depthwise_conv2d(x, w["dw/depthwise_kernel"], [1, 1, 1, 1], "VALID") + w["dw/bias"]
    return tf.reshape(tf.nn.relu(x), [-1, 18]) @ w["head/kernel"] + w["head/bias"]


def test_folders_of_keras_2_come_in(tmp_path, rng):
    held = values(rng)
    old.save_folder(tmp_path / "saved", old.config_of(two_layers()), held, compute, (5, 5, 2))
    loaded = keras_ntt.load_model(tmp_path / "saved")
    x = rng.normal(size=(3, 5, 5, 2)).astype("float32")
    np.testing.assert_allclose(loaded(x), compute(held, x), rtol=1e-5, atol=1e-5)
    assert [layer.name for layer in loaded.layers] == ["dw", "flat", "head"]


def test_a_folder_whose_graph_computes_something_else_is_refused(tmp_path, rng):
    old.save_folder(
        *(tmp_path / "saved", old.config_of(two_layers()), values(rng)),
        *(lambda w, x: compute(w, x) + 1, (5, 5, 2)),
    )
    with pytest.raises(ValueError, match="computes something else than the graph"):
        keras_ntt.load_model(tmp_path / "saved")


def test_a_folder_without_a_value_is_refused(tmp_path, rng):
    held = values(rng)
    held["head/kernel"] = held["head/kernel"][:-1]
    old.save_folder(
        *(tmp_path / "saved", old.config_of(two_layers()), held),
        *(lambda w, x: x, (5, 5, 2)),
    )
    with pytest.raises(ValueError, match=r"no value for the weight '.*head/kernel'"):
        keras_ntt.load_model(tmp_path / "saved")


# --- what is no model ------------------------------------------------------------------------


def test_weights_alone(tmp_path):
    model = two_layers()
    old.save_weights_h5(model, tmp_path / "old.h5")
    model.save_weights(tmp_path / "new.weights.h5")
    for name in ("old.h5", "new.weights.h5"):
        with pytest.raises(ValueError, match=r"holds only weights.*model\.load_weights\(path\)"):
            keras_ntt.load_model(tmp_path / name)
        two_layers().load_weights(tmp_path / name)  # the advice works


def test_a_checkpoint_of_tensorflow(tmp_path):
    tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(tmp_path / "ckpt"))
    for name in ("ckpt", "ckpt.index", ""):
        with pytest.raises(ValueError, match=r"checkpoint of TensorFlow.*Received: "):
            keras_ntt.load_model(tmp_path / name)


def test_a_graph_for_serving(tmp_path, rng):
    old.save_folder(tmp_path / "saved", None, values(rng), compute, (5, 5, 2))
    with pytest.raises(ValueError, match=r"a graph without layers, as model\.export\(\)"):
        keras_ntt.load_model(tmp_path / "saved")


def test_a_closed_graph_in_a_model(tmp_path, rng):
    old.save_folder(tmp_path / "saved", None, values(rng), compute, (5, 5, 2))
    closed = layers.TFSMLayer(str(tmp_path / "saved"), call_endpoint="serving_default")
    model = keras.Sequential([keras.Input((5, 5, 2)), closed])
    model.save(tmp_path / "closed.keras")
    # Older releases read it, and there is nothing in it to prune.
    with pytest.raises(ValueError, match=r"TFSMLayer.*keras_ntt\.load_model\(folder\)"):
        keras_ntt.prune_low_magnitude(keras_ntt.load_model(tmp_path / "closed.keras"), 0.5)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("net.tflite", b"TFL3", "is a LiteRT file.*keras-ntt evaluate"),
        ("saved_model.pb", b"", "SavedModel is a folder"),
        ("net.json", b"{}", "layers without weights"),
        ("net.h5", b"nothing", "Keras cannot read this as a model"),
        ("net.keras", b"", "Keras cannot read this as a model"),
        ("net.txt", b"", "Keras cannot read this as a model"),
    ],
)
def test_other_files(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        keras_ntt.load_model(tmp_path / name)


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model file"):
        keras_ntt.load_model(tmp_path / "net.keras")
    with pytest.raises(ValueError, match=r"no saved_model\.pb"):
        keras_ntt.load_model(tmp_path)
    with pytest.raises(TypeError):
        keras_ntt.load_model(None)


def changed(file, change):
    """Change the configuration in a file."""
    import h5py

    with h5py.File(file, "r+") as content:
        config = json.loads(content.attrs["model_config"])
        change(config["config"]["layers"])
        content.attrs["model_config"] = json.dumps(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: parts[1]["config"].update(groups=2), "'dw' is a DepthwiseConv2D with gro"),
        (lambda parts: parts[2].update(class_name="CuDNNLSTM"), "class CuDNNLSTM, which Keras 3"),
        (lambda parts: parts[2].update(class_name="TFOpLambda"), "function of TensorFlow in the"),
    ],
)
def test_what_keras_3_does_not_have_is_named(change, words, tmp_path):
    old.save_h5(two_layers(), tmp_path / "old.h5")
    changed(tmp_path / "old.h5", change)
    with pytest.raises(ValueError, match=rf"{words}.*pip install tf-keras"):
        keras_ntt.load_model(tmp_path / "old.h5")
