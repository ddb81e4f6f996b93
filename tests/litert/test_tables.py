"""Tables of embeddings in files: how they are stored, and what the reports say of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.litert_graphs import run
from keras import layers

import keras_ntt
from keras_ntt import export_tflite, inspect_tflite

TOKENS = np.random.default_rng(0).integers(0, 300, size=(8, 12)).astype("int32")


class Tied(layers.Layer):
    """A table whose transpose is the last kernel."""

    def build(self, shape):
        self.table = self.add_weight(shape=(300, 24), name="embeddings")

    def call(self, ids):
        rows = keras.ops.mean(keras.ops.take(self.table, ids, axis=0), axis=1)
        return keras.ops.matmul(rows, keras.ops.transpose(self.table))

    def get_prunable_weights(self):
        return [self.table]


def text_model():
    ids = keras.Input((12,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(300, 24)(ids))
    return keras.Model(ids, layers.Dense(4)(x))


def two_tables():
    ids = keras.Input((12,), dtype="int32")
    x = layers.concatenate([layers.Embedding(300, 24)(ids), layers.Embedding(300, 8)(ids)])
    x = layers.Conv1D(6, 3, activation="relu")(x)
    return keras.Model(ids, layers.Dense(4)(layers.Flatten()(x)))


def tied():
    ids = keras.Input((12,), dtype="int32")
    return keras.Model(ids, Tied()(ids))


MODELS = {"one": text_model, "two": two_tables, "tied": tied}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantization", [None, "int8_weights"])
@pytest.mark.few(2)
def test_a_pruned_table_is_stored_sparsely(name, quantization, tmp_path):
    model = keras_ntt.prune_low_magnitude(MODELS[name](), 0.9)
    options = {"representative_data": TOKENS, "quantization": quantization}
    report = export_tflite(model, tmp_path / "m.tflite", **options)
    dense = export_tflite(model, tmp_path / "d.tflite", target="dense", representative_data=TOKENS)
    tables = [row for row in report.tensors if "GATHER" in row.operators]
    assert [row.shape for row in tables] == [(300, 24), (300, 8)][: 2 if name == "two" else 1]
    for row in tables:
        assert row.storage == "densify"
        assert row.size < 300 * 24 * 4 * 0.25
        assert row.sparsity == pytest.approx(0.9, abs=0.01)
        assert row.reason
    assert report.size < 0.5 * dense.size
    assert report.limit < 0.35 * dense.size
    if quantization is None:  # exact but for the order of sums
        for xnnpack in (True, False):
            found = run((tmp_path / "m.tflite").read_bytes(), TOKENS, xnnpack=xnnpack)
            np.testing.assert_allclose(found, model(TOKENS), rtol=1e-4, atol=1e-5)


def test_a_table_that_stays_dense_has_a_row_that_says_why(tmp_path):
    model = keras_ntt.prune_low_magnitude(text_model(), 0.9)
    options = {"target": "latency", "representative_data": TOKENS}
    report = export_tflite(model, tmp_path / "m.tflite", **options)
    (row,) = [row for row in report.tensors if row.operators == "GATHER"]
    assert (row.storage, row.reason) == ("dense", "no sparse kernel for this operator")
    assert "300x24" in str(inspect_tflite(tmp_path / "m.tflite"))


@pytest.mark.filterwarnings("ignore:.*Interpreter is deprecated")
def test_tensorflow_runs_it_at_other_batches(tmp_path):
    model = keras_ntt.prune_low_magnitude(two_tables(), 0.9)
    export_tflite(model, tmp_path / "m.tflite", representative_data=TOKENS)
    for batch in (1, 5):
        interpreter = tf.lite.Interpreter(str(tmp_path / "m.tflite"))
        place = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(place, (batch, 12))
        interpreter.allocate_tensors()
        for _ in range(2):  # what is unpacked stays
            interpreter.set_tensor(place, TOKENS[:batch])
            interpreter.invoke()
            found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
            np.testing.assert_allclose(found, model(TOKENS[:batch]), rtol=1e-4, atol=1e-5)


def test_a_table_of_float16_stays_dense(tmp_path):
    model = keras_ntt.prune_low_magnitude(tied(), 0.9)
    options = {"representative_data": TOKENS, "quantization": "float16"}
    report = export_tflite(model, tmp_path / "m.tflite", **options)
    (row,) = report.tensors
    assert (row.operators, row.storage) == ("FULLY_CONNECTED+GATHER", "dense")
    assert "from unpacked float16" in row.reason


def test_constants_that_are_no_tables_have_no_row(tmp_path):
    inputs = keras.Input((6, 4))
    picked = keras.ops.take(inputs, np.array([0, 2]), axis=1)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(picked)))
    report = export_tflite(model, tmp_path / "m.tflite")
    assert [row.operators for row in report.tensors] == ["FULLY_CONNECTED"]
