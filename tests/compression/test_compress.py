"""compress: the smallest file within what may be lost."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import layers

from keras_ntt import compress, get_masks, sparsity_report, tflite_predict
from keras_ntt.compression.agreement import accuracy, agreement


@pytest.fixture
def trained(rng):
    """Return a classifier that has learnt something, inputs and labels."""
    centres = rng.normal(size=(4, 20)) * 2
    y = rng.integers(0, 4, size=600)
    x = (centres[y] + rng.normal(size=(600, 20))).astype("float32")
    model = keras.Sequential([keras.Input((20,)), layers.Dense(48, "relu")])
    model.add(layers.Dense(32, "relu"))
    model.add(layers.Dense(4, "softmax"))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=8, verbose=0)
    return model, x, y


def test_the_smallest_file_within_the_drop_is_written(trained, tmp_path):
    model, x, _ = trained
    path = tmp_path / "small.tflite"
    report = compress(model, x, sparsity=[0.5, 0.8], max_drop=0.05, path=path, verbose=0)
    assert [row.sparsity for row in report.rows[:4]] == [0, 0, 0.5, 0.5]
    fit = [row for row in report.rows if row.is_within(0.05)]
    assert report.best in fit
    assert report.best.size == min(row.size for row in fit)
    assert path.stat().st_size == report.best.size < report.rows[0].size / 2
    assert report.rows[0].agreement == 1
    found = tflite_predict(path, x).argmax(axis=1)
    assert (found == model.predict(x, verbose=0).argmax(axis=1)).mean() > 0.9
    assert sparsity_report(report.model).sparsity == pytest.approx(report.best.sparsity, abs=0.01)
    text = str(report)
    assert "best" in text
    assert str(path) in text
    json.dumps(report.to_dict())


def test_nothing_may_be_lost(rng):
    model = keras.Sequential([keras.Input((20,)), layers.Dense(30, "relu"), layers.Dense(4)])
    x = rng.normal(size=(200, 20)).astype("float32")
    report = compress(
        model, x, sparsity=[0.9, 0.95], max_drop=0.0, quantization="float32", verbose=0
    )
    assert report.best is report.rows[0]
    assert report.model is model
    assert get_masks(report.model) == {}
    assert len(report.rows) == 2  # higher sparsities are not tried
    assert "loses too much" in str(report)


@pytest.mark.long
def test_labelled_data_decide_where_there_are_any(trained):
    model, x, y = trained
    report = compress(model, x, sparsity=0.6, data=(x, y), max_drop=0.02, verbose=0)
    dense = (model.predict(x, verbose=0).argmax(axis=1) == y).mean()
    assert report.rows[0].accuracy == pytest.approx(dense)
    for row in report.rows:
        assert row.drop == pytest.approx(dense - row.accuracy)
    assert "accuracy %" in str(report)


@pytest.mark.long
def test_int8_and_several_inputs(rng):
    a, b = keras.Input((6,), name="a"), keras.Input((5,), name="b")
    hidden = layers.Dense(16, "relu")(layers.Concatenate()([a, b]))
    model = keras.Model([a, b], layers.Dense(2)(hidden))
    x = [rng.normal(size=(60, 6)).astype("float32"), rng.normal(size=(60, 5)).astype("float32")]
    report = compress(model, x, sparsity=0.3, quantization="int8", max_drop=0.5, verbose=0)
    assert [row.quantization for row in report.rows] == [None, "int8"] * 2
    assert all(row.agreement > 0.5 for row in report.rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "magic"}, "target must be"),
        ({"quantization": "int3"}, "quantization must be"),
        ({"max_drop": 2}, "max_drop"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"data": np.zeros(3)}, "data must be"),
    ],
)
@pytest.mark.few(1)
def test_refusals(trained, options, message):
    model, x, _ = trained
    with pytest.raises(ValueError, match=message):
        compress(model, x, verbose=0, **options)
    with pytest.raises(ValueError, match="two inputs"):
        compress(model, x[:1], verbose=0)


def test_measures():
    dense = [np.array([[1.0], [3.0]]), np.array([[0.2], [0.7]])]
    found = [np.array([[1.0], [2.0]]), np.array([[0.6], [0.7]])]
    assert agreement(found, dense, ["linear", "sigmoid"]) == (0.5 + 0.5) / 2
    assert agreement([np.array([[np.nan]])], [np.ones((1, 1))], ["linear"]) == 0
    scores = [np.array([[0.1, 0.9], [0.8, 0.2]])]
    assert accuracy(scores, np.eye(2)[[1, 1]]) == 0.5
    assert accuracy([np.array([[0.3], [0.8]])], np.array([0, 1])) == 1
