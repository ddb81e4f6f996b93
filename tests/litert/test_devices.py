"""Files for devices: a fixed batch, inputs and outputs of integers, and what both save."""

from __future__ import annotations

import json
import warnings

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers.architectures import sequential
from keras import layers

from keras_ntt import export_tflite, inspect_tflite, tflite_predict
from keras_ntt.cli.program import main
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import storage
from keras_ntt.litert.micro import arena

pytestmark = pytest.mark.oldest

X = np.random.default_rng(0).normal(size=(32, 12, 12, 3)).astype("float32")


def cnn():
    keras.utils.set_random_seed(0)
    return sequential(
        (12, 12, 3),
        layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(5, "softmax"),
    )


def head(path):
    return arena.plan(fb.read(path.read_bytes())).head


def options(**kwargs):
    return {"target": "int8", "representative_data": X, **kwargs}


LIKE_A_CPU_S = {
    "batch_size": "any",
    "inference_input_type": "float32",
    "inference_output_type": "float32",
}


def test_the_default_is_for_devices_and_others_are_told_what_it_would_save(tmp_path):
    model, plain, small = cnn(), tmp_path / "plain.tflite", tmp_path / "small.tflite"
    report = export_tflite(model, plain, **options(**LIKE_A_CPU_S))
    (given,) = Interpreter(str(plain)).get_input_details()
    assert given["dtype"] == np.float32
    assert given["shape_signature"][0] == -1
    export_tflite(model, small, **options(batch_size="any"))
    (note,) = (w for w in report.warnings if "inference_input_type" in w)
    assert "inference_input_type='int8' and inference_output_type='int8'" in note
    saved, whole = head(plain) - head(small), head(plain)
    assert saved > 1000
    assert f"2 operators and {saved:,} of {whole:,} bytes" in note
    fixed = export_tflite(model, small, **options())
    assert not any("would" in w for w in fixed.warnings)
    assert [(port.dtype, port.shape[0]) for port in fixed.ports] == [("int8", 1)] * 2
    gone = inspect_tflite(plain).operators.keys() - inspect_tflite(small).operators.keys()
    shapes = {"PACK", "SHAPE", "STRIDED_SLICE"} & inspect_tflite(plain).operators.keys()
    assert gone == {"QUANTIZE", "DEQUANTIZE"} | shapes
    (note,) = (w for w in report.warnings if "batch_size=1" in w)
    # Keras 3.3 flattens without them.
    assert ("save 3 operators (PACK, SHAPE, STRIDED_SLICE)" in note) == bool(shapes)
    export_tflite(model, small, target="dense", quantization="int8", representative_data=X)
    assert inspect_tflite(small).operators == inspect_tflite(plain).operators


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.few(1)
def test_integers_in_and_out_with_their_scales(kind, tmp_path):
    model, path = cnn(), tmp_path / "m.tflite"
    kinds = {"inference_input_type": kind, "inference_output_type": getattr(np, kind)}
    report = export_tflite(model, path, **options(batch_size=1), **kinds)
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    details = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    assert [tuple(d["shape_signature"]) for d in details] == [(1, 12, 12, 3), (1, 5)]
    for port, detail in zip(report.ports, details, strict=True):
        assert port.dtype == kind == detail["dtype"].__name__
        assert (port.scale, port.zero_point) == pytest.approx(detail["quantization"])
        assert port.shape == tuple(detail["shape"])
        assert f"{port.kind} {port.name}: {kind}" in str(report)
    (scale, zero), (out, out_zero) = (d["quantization"] for d in details)
    low, high = (0, 255) if kind == "uint8" else (-128, 127)
    integers = np.clip(np.rint(X[:1] / scale) + zero, low, high).astype(kind)
    interpreter.set_tensor(details[0]["index"], integers)
    interpreter.invoke()
    found = (interpreter.get_tensor(details[1]["index"]).astype(float) - out_zero) * out
    np.testing.assert_allclose(found, model.predict(X[:1], verbose=0), atol=0.03)
    np.testing.assert_allclose(tflite_predict(path, X[:1]), found, atol=1e-6)
    assert inspect_tflite(path).ports == report.ports
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ports"][0]["zero_point"] == zero


@pytest.mark.parametrize("target", ["size", "latency", "dense", "int8"])
@pytest.mark.few(2)
def test_a_fixed_batch_of_any_target(target, tmp_path):
    model, path = cnn(), tmp_path / "m.tflite"
    data = {"representative_data": X} if target == "int8" else {}
    report = export_tflite(model, path, target=target, batch_size=1, **data)
    assert {run.batch for run in report.runs} == {1}
    assert not {"SHAPE", "PACK"} & inspect_tflite(path).operators.keys()
    found = tflite_predict(path, X)
    assert found.shape == (32, 5)
    np.testing.assert_allclose(found, model.predict(X, verbose=0), atol=0.03)


def test_batches_of_several(tmp_path):
    path = tmp_path / "m.tflite"
    report = export_tflite(cnn(), path, batch_size=3, representative_data=X)
    assert report.samples == 30
    assert [port.shape[0] for port in report.ports] == [3, 3]
    assert export_tflite(cnn(), path, batch_size=3).samples == 18
    with pytest.raises(ValueError, match=r"fill a batch.*32 samples for batches of 33"):
        export_tflite(cnn(), path, batch_size=33, representative_data=X)
    with pytest.raises(ValueError, match=r"batch_size must be a whole number.*or .any"):
        export_tflite(cnn(), path, batch_size=0)
    fixed = keras.Sequential([keras.Input(batch_shape=(4, 12, 12, 3)), *cnn().layers])
    with pytest.raises(ValueError, match=r"fixes the number.*batch_size=1, 4 in the model"):
        export_tflite(fixed, path, batch_size=1)
    assert export_tflite(fixed, path, batch_size=4).ports[0].shape[0] == 4


def test_batch_size_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cnn().save("model.keras")
    np.save("data.npy", X)
    words = "export model.keras m.tflite --target int8 --data data.npy --batch-size 1"
    assert main(f"{words} --input-type int8 --output-type uint8".split()) == 0
    assert "value = " in capsys.readouterr().out
    assert [port.dtype for port in inspect_tflite("m.tflite").ports] == ["int8", "uint8"]
    assert main(["inspect", "m.tflite"]) == 0
    assert "input serving_default" in capsys.readouterr().out


def test_a_model_that_keras_quantized_is_named_as_such(tmp_path):
    model = sequential((6,), layers.Dense(8, "relu"), layers.Dense(3, name="last"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras's own code
        model.quantize("int8")
    match = r"by model\.quantize\(\).*as it was before.*target='int8'.*Received.*last"
    with pytest.raises(ValueError, match=match):
        export_tflite(model, tmp_path / "m.tflite")


# --- channels that training has left dead but for rounding ------------------------------------


def with_dead_channels(last=False):
    keras.utils.set_random_seed(0)
    model = sequential((6, 6, 16), layers.Conv2D(64, 3, activation="relu"), layers.Conv2D(20, 1))
    rng = np.random.default_rng(0)
    kernel, bias, *rest = model.get_weights()
    kernel *= 1e3
    kernel[..., ::2] = 1e-6 * rng.normal(size=kernel[..., ::2].shape)
    bias[::2] = 0.25
    if last:
        rest[0] *= 1e3
        rest[0][..., ::2] = 1e-6 * rng.normal(size=rest[0][..., ::2].shape)
    model.set_weights([kernel, bias, *rest])
    return model


FILES = {
    "our int8 weights": {"quantization": "int8_weights"},
    "the converter's int8 weights": {"quantization": "int8_weights", "target": "dense"},
    "int8": {"target": "int8"},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.few(2)
def test_dead_channels_become_zeros_and_not_noise(name, tmp_path):
    x = np.random.default_rng(1).normal(size=(16, 6, 6, 16)).astype("float32")
    model, path = with_dead_channels(), tmp_path / "m.tflite"
    report = export_tflite(model, path, representative_data=x, **FILES[name])
    (first, _) = report.tensors
    assert first.nonzeros <= 32 * 9 * 16 < first.entries
    found, expected = tflite_predict(path, x), model.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.few(1)
def test_channels_of_an_output_have_units_of_their_own(name, tmp_path):
    x = np.random.default_rng(1).normal(size=(16, 6, 6, 16)).astype("float32")
    report = export_tflite(
        with_dead_channels(last=True), tmp_path / "m.tflite", representative_data=x, **FILES[name]
    )
    (_, second) = report.tensors
    assert second.nonzeros > 0.9 * 20 * 64


def test_which_channels_are_dead():
    array = np.array([[1.0, -0.5], [2.0**-23, 0], [2.0**-25, 2.0**-25], [0, 0]], "float32")
    kept, _ = storage.quantize(array, 0)
    assert np.abs(kept).max(axis=1).tolist() == [126, 126, 126, 0]
    dropped, scales = storage.quantize(array, 0, mixed=True)
    assert np.abs(dropped).max(axis=1).tolist() == [126, 126, 0, 0]
    assert (scales > 0).all()
    everything = storage.quantize(np.zeros((2, 3), "float32"), 0, mixed=True)
    assert not everything[0].any()


def test_unmixed_channels_through_other_operators(tmp_path):
    # Through a pooling and a softmax the channels of the last convolution reach the output alone.
    model = sequential(
        (6, 6, 16),
        layers.Conv2D(64, 3),
        layers.DepthwiseConv2D(3),
        layers.GlobalAveragePooling2D(),
        layers.Softmax(),
    )
    kernel, *rest = model.get_weights()
    kernel[..., 0] *= 1e-12
    model.set_weights([kernel, *rest])
    report = export_tflite(model, tmp_path / "m.tflite", quantization="int8_weights")
    assert report.tensors[0].nonzeros > 0.95 * 64 * 9 * 16
