"""LiteRT files: run by the interpreter itself, and replaced only when they are right."""

from __future__ import annotations

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_ntt
from keras_ntt import (
    ExportError,
    apply_masks,
    export_tflite,
    tflite_predict,
)
from keras_ntt.core.loops import loops_of
from keras_ntt.litert.runtime.run import compare, outputs_by

pytestmark = pytest.mark.oldest


def run(path, x):
    """Run a file one sample at a time, as it was written."""
    interpreter = Interpreter(model_path=os.fspath(path))
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in x:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result["index"])[0].copy())
    return np.stack(outputs)


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for v in model.weights:
        low = 0.5 if "variance" in v.name else -0.5
        v.assign(rng.uniform(low, low + 1, v.shape))
    return model


def sparse(model):
    rng = np.random.default_rng(0)
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    return apply_masks(model, {v.path: rng.random(v.shape) < 0.3 for v in kernels})


def depthwise():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.DepthwiseConv2D(3, padding="same", activation="relu6"),
            keras.layers.Conv2D(3, 1),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.fixture(params=["mlp", "cnn", "depthwise"])
def model(request, mlp, cnn):
    make = {"mlp": mlp, "cnn": cnn, "depthwise": depthwise}[request.param]
    return sparse(randomize(make()))


def inputs_of(model, n=5, seed=3):
    shape = (n, *model.input_shape[1:])
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("own_data", [False, True], ids=["drawn", "own_data"])
@pytest.mark.few(3)
def test_the_file_computes_what_keras_computes(model, tmp_path, own_data, capfd):
    path = tmp_path / "model.tflite"
    x = inputs_of(model)
    before = model.get_weights(), {k: m.copy() for k, m in keras_ntt.get_masks(model).items()}
    report = export_tflite(model, path, representative_data=x if own_data else None)
    expected = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(run(path, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tflite_predict(path, x), expected, rtol=1e-4, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
    assert report.path == path
    assert report.size == path.stat().st_size
    assert report.samples == (5 if own_data else 16)
    assert 0 <= report.max_difference <= report.tolerance
    assert report.weights == sum(w.size for w in before[0])
    assert report.nonzeros == sum(np.count_nonzero(w) for w in before[0])
    if own_data:
        assert report.tolerance == pytest.approx(1e-4 * np.abs(expected).max())
        assert report.max_difference <= 1e-5
    # The model is as it was, masks included.
    for old, new in zip(before[0], model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for key, mask in keras_ntt.get_masks(model).items():
        np.testing.assert_array_equal(mask, before[1][key])
    assert capfd.readouterr().out == ""


def test_the_report_of_a_file_as_text(mlp, tmp_path):
    report = export_tflite(sparse(randomize(mlp())), tmp_path / "model.tflite")
    text = str(report)
    assert text.startswith(f"{tmp_path / 'model.tflite'}: {report.size:,} bytes, ")
    assert f"{report.nonzeros:,} of {report.weights:,} weights non-zero" in text
    assert "on 16 samples" in text


def test_the_zeros_are_in_the_file(mlp, tmp_path):
    model = sparse(randomize(mlp()))
    export_tflite(model, tmp_path / "model.tflite")
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    found = {
        tuple(d["shape"]): interpreter.get_tensor(d["index"])
        for d in interpreter.get_tensor_details()
        if tuple(d["shape"]) in {(8, 6), (3, 8)}
    }
    for layer in model.layers:
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        np.testing.assert_array_equal(found[kernel.T.shape], kernel.T)


def test_a_stripped_model_gives_the_same_file(mlp, tmp_path):
    model = sparse(randomize(mlp()))
    export_tflite(model, tmp_path / "masked.tflite")
    keras_ntt.strip_pruning(model)
    export_tflite(model, tmp_path / "stripped.tflite")
    x = inputs_of(model)
    np.testing.assert_array_equal(
        run(tmp_path / "masked.tflite", x), run(tmp_path / "stripped.tflite", x)
    )


def test_an_older_file_is_replaced(mlp, tmp_path):
    path = tmp_path / "a dir – с пробелом" / "two words.tflite"
    path.parent.mkdir()
    path.write_bytes(b"older file")
    model = randomize(mlp())
    export_tflite(model, str(path))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    x = inputs_of(model)
    np.testing.assert_allclose(run(path, x), keras.ops.convert_to_numpy(model(x)), atol=1e-5)


def test_the_file_may_be_read_by_whom_an_ordinary_file_may(mlp, tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    export_tflite(randomize(mlp()), tmp_path / "model.tflite")
    modes = [(tmp_path / name).stat().st_mode for name in ("model.tflite", "ordinary")]
    assert oct(modes[0]) == oct(modes[1])


def test_open_sizes_are_taken_from_the_data(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            keras.layers.Conv1D(4, 2, activation="relu"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2),
        ]
    )
    x = np.random.default_rng(0).normal(size=(4, 7, 3)).astype("float32")
    export_tflite(model, tmp_path / "model.tflite", representative_data=x)
    found = tflite_predict(tmp_path / "model.tflite", x)
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(model(x)), rtol=1e-4, atol=1e-5)


def test_integer_inputs_such_as_tokens(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    x = np.random.default_rng(0).integers(0, 7, (4, 5)).astype("int32")
    export_tflite(model, tmp_path / "model.tflite", representative_data=x)
    expected = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(run(tmp_path / "model.tflite", x), expected, rtol=1e-4, atol=1e-5)
    export_tflite(model, tmp_path / "drawn.tflite")
    np.testing.assert_allclose(run(tmp_path / "drawn.tflite", x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("last", "nest"),
    [("bool", lambda v: v), ("uint8", lambda v: [v]), ("float", lambda v: {"x": v})],
    ids=["bool", "list", "dict"],
)
def test_an_output_of_any_nesting_and_type(tmp_path, last, nest):
    x = keras.Input((4,), name="x")
    v = keras.layers.Dense(3)(x)
    if last == "bool":
        v = v > 0
    if last == "uint8":
        v = keras.ops.cast(3 + keras.ops.sign(v), "uint8")
    model = randomize(keras.Model(nest(x), nest(v)))
    data = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    path = tmp_path / "model.tflite"
    report = export_tflite(model, path, representative_data=data)
    kernel, bias = (np.asarray(w, "float64") for w in model.get_weights())
    expected = data @ kernel + bias
    expected = {"float": expected, "bool": expected > 0, "uint8": 3 + np.sign(expected)}[last]
    np.testing.assert_allclose(run(path, data).astype("float64"), expected, atol=1e-5)
    assert report.max_difference == (0 if last != "float" else report.max_difference)


def test_integers_that_differ_do_not_wrap(tmp_path):
    path = tmp_path / "model.tflite"
    x = keras.Input((1,))
    export_tflite(keras.Model(x, keras.ops.cast(keras.ops.relu(x), "uint8")), path)
    samples = np.array([[3.0]], "float32")
    expected = [np.array([[250]], "uint8")]
    for found in compare(outputs_by(str(path), [samples], batch=None), expected):
        assert found.difference == 247


def test_data_in_a_dict_by_the_name_of_the_input(tmp_path):
    x = keras.Input((2,), name="x")
    model = randomize(keras.Model(x, keras.layers.Dense(2)(x)))
    path = tmp_path / "model.tflite"
    data = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")
    other = np.zeros((3, 9), "float32")
    found = export_tflite(model, path, representative_data={"other": other, "x": data})
    alone = export_tflite(model, path, representative_data=data)
    assert (found.samples, found.tolerance) == (3, alone.tolerance)
    with pytest.raises(ValueError, match=r"takes 1 input.*Received.*2 array"):
        export_tflite(model, path, representative_data={"wrong": data, "other": other})


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.few(2)
def test_a_file_of_a_fixed_batch_takes_any_number_of_samples(tmp_path, n):
    layers = [keras.layers.Reshape((4,)), keras.layers.Dense(3)]
    model = randomize(keras.Sequential([keras.Input(batch_shape=(2, 2, 2)), *layers]))
    export_tflite(model, tmp_path / "model.tflite")
    x = np.random.default_rng(0).normal(size=(n, 2, 2)).astype("float32")
    kernel, bias = (np.asarray(w, "float64") for w in model.get_weights())
    found = tflite_predict(tmp_path / "model.tflite", x)
    np.testing.assert_allclose(found, x.reshape(n, 4) @ kernel + bias, atol=1e-5)


def recurrent():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 3, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True)),
            keras.layers.GRU(3),
            keras.layers.Dense(2),
        ]
    )


def convolutional_recurrent():
    return keras.Sequential(
        [
            keras.Input((3, 6, 6, 2)),
            keras.layers.TimeDistributed(keras.layers.Conv2D(2, 3)),
            keras.layers.ConvLSTM2D(2, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )


@pytest.mark.long
@pytest.mark.parametrize("make", [recurrent, convolutional_recurrent])
@pytest.mark.few(1)
def test_recurrent_layers_are_written_step_by_step(tmp_path, make):
    model = sparse(randomize(make()))
    x = np.random.default_rng(0).integers(0, 7, (4, *model.input_shape[1:]))
    x = x.astype(model.inputs[0].dtype)
    loops = loops_of(model)
    export_tflite(model, tmp_path / "model.tflite", representative_data=x)
    assert loops_of(model) == loops != []
    expected = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(run(tmp_path / "model.tflite", x), expected, rtol=1e-4, atol=1e-5)


def test_layers_that_change_images_at_random_are_left_out(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.RandomFlip(seed=0),
            keras.layers.RandomRotation(0.2, seed=0),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5, seed=0),
            keras.layers.Dense(3),
        ]
    )
    x = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 1)).astype("uint8")
    export_tflite(model, tmp_path / "model.tflite", representative_data=x)
    expected = x.reshape(5, -1) / 255 @ np.asarray(model.layers[-1].kernel)
    np.testing.assert_allclose(
        run(tmp_path / "model.tflite", x.astype("float32")), expected, rtol=1e-4, atol=1e-5
    )


def raising(*args, **kwargs):
    raise OSError("no space left on device")


def several_inputs():
    a, b = keras.Input((2,)), keras.Input((2,))
    return keras.Model([a, b], keras.layers.Dense(2)(keras.layers.Add()([a, b])))


def open_size():
    return keras.Sequential(
        [keras.Input((None, 2)), keras.layers.Dense(2), keras.layers.GlobalMaxPooling1D()]
    )


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 2), "float32"))
    return model


def plain():
    return randomize(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]))


def rounding():
    """Return a model whose outputs a LiteRT file rounds otherwise than Keras does."""
    layers = [keras.layers.Dense(64, activation="gelu") for _ in range(4)]
    return randomize(keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(3)]))


def infinite():
    model = plain()
    model.weights[0].assign(np.full((2, 2), 3e38, "float32"))
    return model  # of finite weights; its outputs are not


def not_convertible():
    a = keras.Input((4,))

    def python_only(x):
        return tf.ensure_shape(tf.py_function(lambda t: t, [x], tf.float32), (None, 4))

    outputs = keras.layers.Lambda(python_only, output_shape=(4,))(a)
    return keras.Model(a, keras.layers.Dense(2)(outputs))


def open_length():
    return keras.Sequential([keras.Input((None, 2)), keras.layers.LSTM(3)])


def stateful():
    layers = [keras.layers.GRU(3, stateful=True, name="memory"), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input(batch_shape=(2, 4, 2)), *layers])


FAILURES = {
    "stateful": (stateful, {}, ValueError, r"state between calls.*Received.*memory"),
    "recurrent, open length": (
        open_length,
        {"representative_data": np.zeros((3, 4, 2), "float32")},
        ExportError,
        "length that is fixed in keras.Input.*Received",
    ),
    "own call": (
        subclassed,
        {},
        ValueError,
        "Pass some inputs as repres.*Received.*Own",
    ),
    "too few inputs": (
        several_inputs,
        {"representative_data": np.zeros((3, 2), "float32")},
        ValueError,
        r"takes 2 input\(s\).*1 array",
    ),
    "open size": (open_size, {}, ValueError, r"Pass representative_data.*\(None, None, 2\)"),
    "not a model": (lambda: "model", {}, TypeError, "must be a keras.Model.*str"),
    "rounding": (rounding, {"tolerance": 0.0}, ExportError, "computes something else.*0 is all"),
    "infinite outputs": (infinite, {}, ExportError, "Received"),
    "not convertible": (not_convertible, {}, ExportError, "Received"),
    "data of another shape": (
        plain,
        {"representative_data": np.zeros((3, 4), "float32")},
        ValueError,
        r"representative_data do not have the shape.*\(3, 4\)",
    ),
    "no data": (
        plain,
        {"representative_data": np.zeros((0, 2), "float32")},
        ValueError,
        "representative_data hold no samples",
    ),
    "nan data": (
        plain,
        {"representative_data": np.full((3, 2), np.nan, "float32")},
        ValueError,
        "representative_data hold NaN",
    ),
    "whole numbers": (
        plain,
        {"representative_data": np.ones((3, 2), "int32")},
        ValueError,
        "representative_data hold whole numbers",
    ),
    "a list of data": (
        plain,
        {"representative_data": [[0.0, 1.0]]},
        ValueError,
        "representative_data",
    ),
    **{
        f"tolerance {t!r}": (plain, {"tolerance": t}, ValueError, "tolerance must be.*Received")
        for t in (-1.0, float("nan"), "small", None)
    },
}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("older", [b"older file", None], ids=["older", "new"])
@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.few(6)
def test_a_failure_leaves_an_older_file_as_it_was(tmp_path, name, older):
    make, options, error, match = FAILURES[name]
    model = make()
    path = tmp_path / "model.tflite"
    if older is not None:
        path.write_bytes(older)
    with pytest.raises(error, match=match):
        export_tflite(model, path, **options)
    assert [p.name for p in tmp_path.iterdir()] == ([] if older is None else ["model.tflite"])
    if older is not None:
        assert path.read_bytes() == older


def test_a_failed_write_leaves_an_older_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"older file")
    monkeypatch.setattr(os, "replace", raising)
    with pytest.raises(OSError, match="no space left"):
        export_tflite(plain(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
    assert path.read_bytes() == b"older file"


def test_exporting_into_a_directory_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        export_tflite(plain(), tmp_path / "missing" / "model.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a LiteRT file", b"\x1c\x00\x00\x00TFL3" * 40])
def test_rejects_files_that_are_not_litert(tmp_path, content):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"could not run the file.*Received: path="):
        tflite_predict(path, np.zeros((1, 2), "float32"))


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises((ExportError, FileNotFoundError), match=r"missing\.tflite"):
        tflite_predict(tmp_path / "missing.tflite", np.zeros((1, 2), "float32"))


def test_running_a_file_on_inputs_of_another_shape(tmp_path):
    export_tflite(plain(), tmp_path / "model.tflite")
    with pytest.raises(ExportError, match="could not run the file"):
        tflite_predict(tmp_path / "model.tflite", np.zeros((1, 3), "float32"))
