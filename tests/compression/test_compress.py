"""compress: the smallest file within what may be lost."""

from __future__ import annotations

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers

from keras_ntt import compress, get_masks, sparsity_report, tflite_predict
from keras_ntt.compression.agreement import accuracy, agreement
from keras_ntt.compression.candidates import ladders
from keras_ntt.compression.report import CompressionRow


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
    assert all(row.seconds > 0 for row in report.rows)
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
    row = CompressionRow(0.5, None, size=9, code=2, seconds=0.1)
    assert [row.cost(target) for target in ("size", "micro", "latency")] == [11, 11, 0.1]


def stopping(at):
    """Return a function of a layer that says yes, and is Ctrl-C when it was asked so often."""
    asked = iter(range(at))

    def wanted(layer):
        if next(asked, None) is None:
            raise KeyboardInterrupt
        return True

    return wanted


@pytest.mark.long
def test_a_search_that_was_stopped_goes_on(trained, tmp_path):
    model, x, y = trained
    options = {"sparsity": [0.3, 0.6], "max_drop": 0.9, "quantization": "float32", "verbose": 0}
    options |= {"data": (x, y), "path": tmp_path / "small.tflite", "folder": tmp_path / "kept"}
    asked = []
    compress(model, x, **options | {"folder": None, "filters": lambda layer: not asked.append(1)})
    first = compress(model, x, **options, filters=stopping(len(asked) - 1))
    assert first.interrupted
    assert [row.sparsity for row in first.rows] == [0, 0.3]
    assert first.best is first.rows[1]
    assert options["path"].stat().st_size == first.best.size
    assert "was stopped" in str(first)
    # What is there is not made again, but read: a wrong number in it comes back.
    file = tmp_path / "kept" / "weights-0.3.json"
    file.write_text(file.read_text().replace(f'"size": {first.best.size}', '"size": 1'))
    second = compress(model, x, **options, filters=stopping(10**6))
    assert not second.interrupted
    assert [row.sparsity for row in second.rows] == [0, 0.3, 0.6]
    assert second.best is second.rows[1]
    assert second.best.size == 1
    for one, other in zip(first.model.weights, second.model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sparsity_report(second.model).sparsity == pytest.approx(0.3, abs=0.01)
    assert get_masks(second.model).keys() == get_masks(first.model).keys()
    with pytest.raises(ValueError, match=r"of another search.*inputs, seed"):
        compress(model, x, **options, filters=stopping(10**6), seed=1)


def test_whole_channels(rng, tmp_path):
    parts = [keras.Input((8, 8, 3)), layers.Conv2D(16, 3, activation="relu"), layers.Flatten()]
    model = keras.Sequential([*parts, layers.Dense(4)])
    x = rng.normal(size=(100, 8, 8, 3)).astype("float32")
    options = {"max_drop": 1.0, "quantization": "float32", "verbose": 0, "folder": tmp_path}
    report = compress(model, x, channels=[0.1, 0.5], **options)
    # A tenth of 16 channels is none, as they go in eights.
    assert [(row.channels, row.sparsity) for row in report.rows] == [(0, 0), (0.5, 0)]
    row = report.rows[1]
    assert row.size < 0.6 * report.rows[0].size
    assert row.name == "50 % fewer channels, float32"
    again = compress(model, x, channels=0.5, **options)  # from what is there
    assert replace(again.rows[1], seconds=0) == replace(row, seconds=0)
    assert again.best is again.rows[1]
    y = tflite_predict(tmp_path / "channels-0.5-float32.tflite", x)
    np.testing.assert_allclose(again.model.predict(x, verbose=0), y, atol=1e-4)


def test_files_for_microcontrollers(trained, tmp_path):
    model, x, _ = trained
    path = tmp_path / "small.tflite"
    report = compress(model, x, sparsity=0.8, max_drop=0.5, target="micro", path=path, verbose=0)
    names = [(row.sparsity, row.quantization) for row in report.rows]
    assert names == [(0, None), (0, "int8"), (0.8, "int8")]
    assert report.rows[2].size < report.rows[1].size
    assert report.rows[2].code > 0 == report.rows[1].code
    assert all(row.arena > 0 and row.seconds is None for row in report.rows)
    assert path.stat().st_size == report.best.size
    # Code of 11 kB is more than the zeros of so few weights save.
    assert report.best is report.rows[1]
    assert "arena" in str(report)


def test_what_is_tried():
    dense = keras.Sequential([keras.Input((4,)), layers.Dense(16), layers.Dense(2)])
    alone = keras.Sequential([keras.Input((4,)), layers.Dense(2)])

    def names(model, methods=None, sparsity=None, channels=None):
        rows = ladders(model, methods=methods, sparsity=sparsity, channels=channels)
        return [[candidate.name for candidate in row] for row in rows]

    assert names(dense, None, [0.5, 0, 0.25]) == [["dense"], ["weights-0.25", "weights-0.5"]]
    assert names(dense, None, None, 0.5) == [["dense"], ["channels-0.5"]]
    assert [len(row) for row in names(dense)] == [1, 5, 3]
    assert [len(row) for row in names(alone)] == [1, 5]
    assert names(dense, ["channels"], None, [0.5]) == [["dense"], ["channels-0.5"]]
    for wrong, text in (
        ({"methods": "channels"}, "no channels that may be removed"),
        ({"methods": []}, "one at least"),
        ({"methods": "magic"}, "methods must be"),
        ({"methods": "weights", "channels": 0.5}, "channels was given, too"),
        ({"channels": 1.0}, "channels must be below 1"),
    ):
        with pytest.raises(ValueError, match=text):
            names(alone, **wrong)
