"""The exporter: targets, quantizations, what the converter's sparse mode gets wrong, reports."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import sequential
from helpers.litert_graphs import run
from keras import layers

from keras_ntt import (
    ExportError,
    edge_mobilenet,
    explain_edge_latency,
    export_tflite,
    inspect_tflite,
)
from keras_ntt.cli.program import main
from keras_ntt.litert.convert import in_float32
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import sizes

pytestmark = pytest.mark.oldest


def pruned(model, sparsity, seed=0):
    """Give kernels normal values and random masks of exactly this sparsity."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and "epthwise" not in type(layer).__name__:
            size = int(np.prod(kernel.shape))
            mask = rng.permutation(size) >= round(size * sparsity)
            kernel.assign(rng.normal(size=kernel.shape) * mask.reshape(kernel.shape))
            if layer.bias is not None:
                layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model


def mlp(inputs=98):
    return sequential(
        (inputs,), layers.Dense(60, "relu"), layers.Dense(50, "relu"), layers.Dense(7)
    )


def lenet():
    return sequential(
        (12, 12, 1),
        layers.Conv2D(6, 5, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(250, "relu"),
        layers.Dense(10),
    )


def inputs_of(model, n=4):
    return np.random.default_rng(5).normal(size=(n, *model.input_shape[1:])).astype("float32")


# --- what the converter's sparse mode gets wrong -----------------------------------------------


@pytest.mark.parametrize("inputs", [66, 98, 250])
@pytest.mark.few(1)
def test_float32_above_97_per_cent_with_inputs_that_four_does_not_divide(inputs, tmp_path):
    # There the converter writes blocks of four and drops the last columns.
    model = pruned(mlp(inputs), 0.98)
    for target in ("size", "latency"):
        export_tflite(model, tmp_path / "m.tflite", target=target, cpu="arm")
        x = inputs_of(model)
        expected = keras.ops.convert_to_numpy(model(x))
        for xnnpack in (True, False):
            found = run((tmp_path / "m.tflite").read_bytes(), x, xnnpack=xnnpack)
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_float16_of_a_transposed_convolution(tmp_path):
    # Unpacked, XNNPACK computes it as NaN for every batch but the first.
    model = keras.Sequential(
        [
            keras.Input((5, 6, 7)),
            keras.layers.Conv2DTranspose(11, 3, 2, activation="relu"),
            keras.layers.Conv2D(4, 3),
        ]
    )
    report = export_tflite(pruned(model, 0.9), tmp_path / "m.tflite", quantization="float16")
    stored = {t.operators: t.storage for t in report.tensors}
    assert stored == {"TRANSPOSE_CONV": "dense", "CONV_2D": "densify"}


@pytest.mark.parametrize("quantization", [None, "int8_weights"])
def test_a_pruned_transposed_convolution(quantization, tmp_path):
    # By int8 that DENSIFY unpacks, XNNPACK computes it wrongly in batches.
    model = sequential((6, 6, 8), layers.Conv2DTranspose(32, 3, 2), layers.Conv2DTranspose(4, 3))
    x = inputs_of(model, 8)
    path = tmp_path / "m.tflite"
    report = export_tflite(
        pruned(model, 0.7), path, quantization=quantization, representative_data=x
    )
    expected = keras.ops.convert_to_numpy(model(x))
    error = {None: 1e-5, "int8_weights": 0.02}[quantization]
    for xnnpack in (True, False):
        found = run(path.read_bytes(), x, xnnpack=xnnpack)
        np.testing.assert_allclose(found, expected, atol=error * np.abs(expected).max())
    assert report.sizes.raw < report.dense.raw


@pytest.mark.parametrize("make", [mlp, lenet])
@pytest.mark.few(1)
def test_float16_above_97_per_cent(make, tmp_path):
    # There the converter's files give NaN or end the process.
    model = pruned(make(), 0.98)
    report = export_tflite(model, tmp_path / "m.tflite", quantization="float16")
    assert {t.storage for t in report.tensors} >= {"densify"}
    assert report.max_difference < 3e-3 * report.tolerance / 1e-2
    assert inspect_tflite(tmp_path / "m.tflite").operators["DENSIFY"] >= 1


@pytest.mark.parametrize("sparsity", [0.9, 0.99])
@pytest.mark.parametrize("quantization", ["int8_weights", "int8"])
@pytest.mark.few(2)
def test_int8_loads_and_is_right_with_xnnpack(quantization, sparsity, tmp_path):
    # The converter's files do not load, or drop columns where 16 does not divide them.
    model = pruned(lenet(), sparsity)
    x = inputs_of(model, 64)
    report = export_tflite(
        model, tmp_path / "m.tflite", quantization=quantization, representative_data=x
    )
    # At 99 % the scales of int8 cost more than they save: such weights stay float.
    if quantization == "int8" or sparsity == 0.9:
        assert {t.dtype for t in report.tensors} & {"int8"}
    assert any(r.xnnpack and r.batch == 1 for r in report.runs)
    storages = {t.storage for t in report.tensors if t.dtype == "int8"}
    assert storages <= ({"dense"} if quantization == "int8" else {"densify"})


def test_97_per_cent_is_smaller_than_95(tmp_path):
    found = [
        export_tflite(pruned(mlp(), s), tmp_path / "m.tflite").size for s in (0.95, 0.97, 0.99)
    ]
    assert found == sorted(found, reverse=True)


def test_inspect_tells_the_converters_sparse_files_that_are_wrong(tmp_path):
    def by_the_converter(inputs):
        model = pruned(sequential((inputs,), layers.Dense(60), layers.Dense(60)), 0.98)
        model.export(str(tmp_path / "saved"))
        converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
        (tmp_path / "m.tflite").write_bytes(converter.convert())
        return tmp_path / "m.tflite", model

    path, model = by_the_converter(100)
    (first, *_) = inspect_tflite(path).weights
    assert "blocks 1x4" in first.layout
    assert first.nonzeros in {np.count_nonzero(layer.kernel) for layer in model.layers}
    path, _ = by_the_converter(66)
    with pytest.raises(ValueError, match=r"blocks \(1, 4\) do not divide the shape \(60, 66\)"):
        inspect_tflite(path)


# --- policies --------------------------------------------------------------------------------

POLICIES = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64")


@contextlib.contextmanager
def policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    ("name", "compact"), [*((name, False) for name in POLICIES), ("mixed_float16", True)]
)
@pytest.mark.few(2)
def test_a_model_of_another_precision_is_written_in_float32(name, compact, tmp_path):
    with policy(name):
        # Built late, so that its input is of the type that the layers compute in.
        model = keras.Sequential([layers.Dense(40, "relu"), layers.Dense(30), layers.Dense(5)])
        model.build((None, 98))
        model = pruned(model, 0.98)
        report = export_tflite(model, tmp_path / "m.tflite", compact=compact)
        assert keras.config.dtype_policy().name == name
    weights = [np.asarray(w, "float64") for w in model.get_weights()]
    x = np.random.default_rng(5).normal(size=(4, 98)).astype("float32")
    hidden = np.maximum(x @ weights[0] + weights[1], 0) @ weights[2] + weights[3]
    expected = hidden @ weights[4] + weights[5]
    found = run((tmp_path / "m.tflite").read_bytes(), x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert bool(report.removed) == compact
    assert {layer.compute_dtype for layer in model.layers} == {name.removeprefix("mixed_")}


@pytest.mark.long
def test_layers_in_layers_are_written_in_float32(tmp_path):
    with policy("mixed_float16"):
        x = keras.Input((2, 4))
        v = layers.Bidirectional(layers.LSTM(2, return_sequences=True))(x)
        v = layers.MultiHeadAttention(2, 2)(v, v) + v
        v = keras.ops.cast(keras.ops.tanh(v), "float16")
        scale = layers.Normalization(mean=[0.3] * 4, variance=[2.0] * 4)
        v = layers.TimeDistributed(scale)(v)
        inner = keras.Sequential([layers.Flatten(), layers.Dense(9, "gelu")])
        model = keras.Model(x, {"last": layers.Dense(4, dtype="float32")(inner(v))})
    data = np.random.default_rng(0).normal(size=(5, 2, 4)).astype("float32")
    export_tflite(model, tmp_path / "m.tflite", representative_data=data)
    expected = keras.ops.convert_to_numpy(model(data)["last"])
    found = run((tmp_path / "m.tflite").read_bytes(), data)
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())


def test_a_policy_that_no_layer_has_does_not_matter(tmp_path):
    with policy("mixed_float16"):
        model = sequential((4,), layers.Dense(3, dtype="float32"))
    assert in_float32(model) is model
    with policy("mixed_float16"):
        twice = layers.Lambda(lambda x: x * 2, dtype="float32")
        export_tflite(sequential((4,), twice), tmp_path / "m.tflite")


def test_the_advice_for_a_model_of_another_precision():
    with policy("mixed_float16"):
        advice = explain_edge_latency(sequential((4,), layers.Dense(3)))
    assert [row.shape for row in advice.layers] == [(3, 4)]


class Scaled(layers.Layer):
    """A layer that is not registered, with a function that is not, either."""

    def __init__(self, factor, function=None, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.function = factor, function

    def call(self, x):
        return self.function(x * self.factor)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor, "function": self.function}


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_another_precision_needs_nothing_registered(name, tmp_path):
    with policy(name):
        model = sequential(
            (4,), layers.Dense(3, lambda x: x + 1), Scaled(2.0, keras.ops.tanh), layers.Lambda(abs)
        )
    samples = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    export_tflite(model, tmp_path / "m.tflite", representative_data=samples)
    kernel, bias = (np.asarray(w, "float64") for w in model.get_weights())
    expected = np.abs(np.tanh(2 * (samples @ kernel + bias + 1)))
    found = run((tmp_path / "m.tflite").read_bytes(), samples)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class Closed(Scaled):
    def get_config(self):
        raise NotImplementedError("nobody may see this")


def test_a_model_of_another_precision_that_cannot_be_copied(tmp_path):
    with policy("mixed_bfloat16"):
        model = sequential((4,), layers.Dense(3), Closed(2.0, abs))
    match = (
        r"cannot be copied.*nobody may see this.*set_dtype_policy.*"
        r"Received: layers that compute in bfloat16"
    )
    with pytest.raises(ExportError, match=match):
        export_tflite(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


# --- targets ---------------------------------------------------------------------------------


def test_the_dense_target_is_what_the_converter_writes(tmp_path):
    report = export_tflite(pruned(mlp(), 0.95), tmp_path / "m.tflite", target="dense")
    assert {t.storage for t in report.tensors} == {"dense"}
    assert abs(report.size - report.dense.raw) < 1000
    assert any("stored densely" in w for w in report.warnings)


def test_latency_on_any_cpu_takes_what_wins_on_both(tmp_path):
    model = pruned(mlp(200), 0.9)
    storages = {}
    for cpu in ("any", "arm"):
        report = export_tflite(model, tmp_path / "m.tflite", target="latency", cpu=cpu)
        storages[cpu] = {t.storage for t in report.tensors}
    assert storages == {"any": {"dense"}, "arm": {"direct"}}


@pytest.mark.parametrize("target", ["size", "latency"])
def test_storing_nothing_sparsely_is_the_dense_target(target, tmp_path):
    model = pruned(mlp(), 0.95)
    export_tflite(model, tmp_path / "dense.tflite", target="dense")
    report = export_tflite(model, tmp_path / "m.tflite", target=target, sparse=False)
    assert (tmp_path / "m.tflite").read_bytes() == (tmp_path / "dense.tflite").read_bytes()
    assert report.target == "dense"


@pytest.mark.long
def test_a_mobilenet_by_target(tmp_path):
    model = pruned(
        edge_mobilenet((32, 32, 3), 4, width=1, blocks=((32, 1), (64, 2), (256, 1))), 0.9
    )
    for layer in model.layers:  # the stem is not pruned
        if isinstance(layer, layers.Conv2D) and layer.kernel.shape[2] == 3:
            layer.kernel.assign(np.random.default_rng(0).normal(size=layer.kernel.shape))
    report = export_tflite(model, tmp_path / "m.tflite", target="latency")
    assert report.verdict.kind == "sparse"
    assert report.verdict.sparsity == pytest.approx(0.9, abs=1e-3)
    assert any("this host is" in w for w in report.warnings)
    small = export_tflite(
        model, tmp_path / "m.tflite", target="latency", quantization="int8_weights"
    )
    assert small.verdict.kind == "sparse"
    assert small.size < report.size


def test_dead_units_are_removed_and_counted(tmp_path):
    model = pruned(mlp(), 0.99)
    plain = export_tflite(model, tmp_path / "m.tflite")
    report = export_tflite(model, tmp_path / "m.tflite", compact=True)
    assert sum(count for _, count in report.removed) > 20
    assert report.size < plain.size
    assert report.dense == plain.dense  # of the whole model, not of the smaller one
    assert "dead units removed" in str(report)


def test_a_batch_that_the_model_fixes(tmp_path):
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(2, 6, 6, 1)),
            layers.Conv2D(3, 3),
            layers.Flatten(),
            layers.Dense(40),
        ]
    )
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 1)).astype("float32")
    report = export_tflite(pruned(model, 0.8), tmp_path / "m.tflite", representative_data=x)
    assert report.samples == 4
    assert {r.batch for r in report.runs} == {2}
    with pytest.raises(ValueError, match=r"fill a batch.*1 samples for batches of 2"):
        export_tflite(model, tmp_path / "m.tflite", representative_data=x[:1])


WRONG = {
    "target": ({"target": "small"}, "target must be one of 'size'"),
    "quantization": ({"quantization": "int4"}, "quantization must be one of 'float16'"),
    "cpu": ({"cpu": "gpu"}, "cpu must be one of"),
    "int8 without data": ({"target": "int8"}, "Pass representative_data"),
    "int8 twice": ({"target": "int8", "quantization": "float16"}, "quantization cannot be chosen"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_do_not_fit(name, tmp_path):
    options, match = WRONG[name]
    with pytest.raises(ValueError, match=f"{match}.*Received"):
        export_tflite(mlp(), tmp_path / "m.tflite", **options)
    assert list(tmp_path.iterdir()) == []


# --- reports ---------------------------------------------------------------------------------


def test_the_report_says_what_is_in_the_file(tmp_path):
    model, path = pruned(mlp(200), 0.9), tmp_path / "m.tflite"
    report = export_tflite(model, path, benchmark=True)
    content = path.read_bytes()
    assert report.sizes.raw == report.size == len(content)
    assert report.sizes.gzip == len(gzip.compress(content, 9))
    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers]
    biases = sum(layer.bias.shape[0] * 4 for layer in model.layers)
    assert report.limit == pytest.approx(sum(map(sizes.limit, kernels)) + biases)
    by_shape = {t.shape: t for t in report.tensors}
    for kernel in kernels:
        row = by_shape[kernel.T.shape]
        assert row.nonzeros == np.count_nonzero(kernel)
        assert row.reason
        data = [b.data for b in fb.read(content).buffers if b.data is not None]
        assert row.size <= kernel.nbytes
        assert any(len(d) == row.nonzeros * 4 for d in data) or row.storage == "dense"
    timed = report.benchmark
    assert timed.seconds > 0
    assert timed.low <= timed.speedup <= timed.high
    assert timed.memory is None or timed.memory > 0
    data = json.loads(json.dumps(report.to_dict()))
    assert data["xnnpack"]["kind"] == "dense"
    assert data["benchmark"]["cpu"] in str(report)
    for words in ("entropy limit", "XNNPACK on ARM", "batch 1", "levels"):
        assert words in str(report)


def silent():
    model = sequential((8,), layers.Dense(4))
    model.layers[0].kernel.assign(np.zeros((8, 4)))
    return model


@pytest.mark.parametrize("make", [silent, lambda: sequential((8,), layers.ReLU())])
def test_the_report_of_a_model_that_needs_no_bytes(make, tmp_path):
    report = export_tflite(make(), tmp_path / "m.tflite")
    assert report.limit == 0
    (line,) = (line for line in str(report).splitlines() if line.startswith("raw"))
    assert line.split()[1] == f"{report.size:,}"
    assert line.split()[-1] == "-"


def test_inspect_agrees_with_the_export(tmp_path):
    report = export_tflite(pruned(lenet(), 0.9), tmp_path / "m.tflite")
    found = inspect_tflite(tmp_path / "m.tflite")
    stripped = [(t.shape, t.storage, t.size, t.nonzeros, t.layout) for t in report.tensors]
    assert [(t.shape, t.storage, t.size, t.nonzeros, t.layout) for t in found.weights] == stripped
    names = [t.name for t in found.weights]  # of a file without names
    assert all(re.fullmatch(r"tensor \d+", name) for name in names)
    assert len(set(names)) == len(names)
    assert all(t.name and not t.name.startswith("tensor ") for t in report.tensors)
    assert found.sizes == report.sizes
    assert found.verdict == report.verdict


# --- the command line ------------------------------------------------------------------------


def test_export_and_inspect_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = pruned(mlp(), 0.97)
    model.save("model.keras")
    np.save("data.npy", inputs_of(model))
    command = "export model.keras out.tflite --target latency --cpu arm --data data.npy"
    assert main(command.split()) == 0
    assert "out.tflite: " in capsys.readouterr().out
    assert main(["inspect", "out.tflite"]) == 0
    assert "direct float32" in capsys.readouterr().out
    assert main(["inspect", "out.tflite", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["sizes"]["raw"] == os.path.getsize("out.tflite")
    assert data["operators"] == {"FULLY_CONNECTED": 3}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("inspect missing.tflite", "missing.tflite"),
        ("inspect broken.tflite", "not a LiteRT"),
        ("export missing.keras out.tflite", "no such model file"),
    ],
)
def test_errors_from_the_command_line(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.tflite").write_bytes(b"broken")
    assert main(command.split()) == 1
    assert words in capsys.readouterr().err
