"""Representative data in the forms that people have them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import sequential
from keras import layers

from keras_ntt import export_tflite
from keras_ntt.litert.representative import arrays_of

pytestmark = pytest.mark.oldest

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
Y = np.arange(24) % 3


def mlp():
    return sequential((6,), layers.Dense(8, "relu"), layers.Dense(3))


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return X[rows], Y[rows]


def guide():
    for row in X:
        yield [row[None]]


def named():
    for row in X:
        yield {"keras_tensor": row[None]}


FORMS = {
    "array": X,
    "tensor": tf.constant(X),
    "list of batches": [X[:10], X[10:]],
    "list of samples": list(X),
    "list of batches in lists": [[X[:10]], [X[10:]]],
    "list of batches with labels": [(X[:10], Y[:10]), (X[10:], Y[10:])],
    "function, as in the guides": guide,
    "generator": guide(),
    "generator of pairs": ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 24, 4)),
    "tf.data": tf.data.Dataset.from_tensor_slices(X).batch(5),
    "tf.data with labels": tf.data.Dataset.from_tensor_slices((X, Y)).batch(7),
    "tf.data without batches": tf.data.Dataset.from_tensor_slices(X),
    "function that returns tf.data": lambda: tf.data.Dataset.from_tensor_slices(X).batch(5),
    "PyDataset": Batches(),
    "iterator": iter([X[:20], X[20:]]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_input(form):
    np.testing.assert_array_equal(arrays_of(FORMS[form], mlp(), limit=100), X)


def test_no_more_is_read_than_is_used():
    read = []

    def endless():
        while True:
            read.append(1)
            yield [X[:4]]

    assert len(arrays_of(endless, mlp(), limit=10)) == 10
    assert len(read) == 3
    repeated = tf.data.Dataset.from_tensor_slices(X).batch(8).repeat()
    assert len(arrays_of(repeated, mlp(), limit=30)) == 30


def two_inputs():
    a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
    return keras.Model([a, b], layers.Dense(3)(layers.Concatenate()([a, b])))


PAIRS = {
    "list of arrays": [X, X[:, :2]],
    "function of lists": lambda: ([r[None], r[None, :2]] for r in X),
    "function of tuples": lambda: ((r[None], r[None, :2]) for r in X),
    "tf.data with labels": tf.data.Dataset.from_tensor_slices(((X, X[:, :2]), Y)).batch(5),
    "list of batches": [[X[:10], X[:10, :2]], [X[10:], X[10:, :2]]],
    "dict": {"a": X, "b": X[:, :2]},
    "function of dicts": lambda: ({"b": r[None, :2], "a": r[None]} for r in X),
}


@pytest.mark.parametrize("form", PAIRS)
def test_forms_of_two_inputs(form):
    found = arrays_of(PAIRS[form], two_inputs(), limit=100)
    arrays = [found["a"], found["b"]] if isinstance(found, dict) else list(found)
    np.testing.assert_array_equal(arrays[0], X)
    np.testing.assert_array_equal(arrays[1], X[:, :2])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (lambda: iter(()), "hold no samples.*pass the function"),
        ([[0.0, 1.0]], "representative_data"),
        (lambda: iter([X[:2], X[:2, :5]]), "do not have the shape"),
        (lambda: iter([X[:2].astype("int32")]), "whole numbers"),
        (lambda: iter([np.full((1, 6), np.nan, "float32")]), "NaN"),
        (7, "representative_data"),
        ("data.npy", "representative_data"),
        (lambda: 7, "representative_data"),
    ],
)
def test_data_that_are_none(data, match):
    with pytest.raises(ValueError, match=f"{match}.*Received"):
        arrays_of(data, mlp(), limit=10)


def test_a_generator_that_is_used_up(tmp_path):
    data = guide()
    options = {"target": "int8", "representative_data": data}
    export_tflite(mlp(), tmp_path / "m.tflite", **options)
    with pytest.raises(ValueError, match=r"read only once.*of type generator"):
        export_tflite(mlp(), tmp_path / "m.tflite", **options)


def test_a_function_makes_the_file_that_its_samples_make(tmp_path):
    model = mlp()
    paths = tmp_path / "a.tflite", tmp_path / "b.tflite"
    for path, data in zip(paths, (X, guide), strict=True):
        report = export_tflite(model, path, target="int8", representative_data=data)
        assert report.samples == 24
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_model_with_a_custom_call_takes_batches(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(X)
    report = export_tflite(model, tmp_path / "m.tflite", representative_data=guide)
    assert report.samples == 24
