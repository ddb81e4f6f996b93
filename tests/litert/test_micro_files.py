"""Files for microcontrollers: from Keras models and from other files, what is refused, C source."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
from helpers.litert_graphs import fully_connected
from helpers.micro_graphs import random_model
from helpers.paths import ROOT
from keras import layers

from keras_ntt import ExportError, export_tflite, inspect_tflite, shrink_tflite, tflite_predict
from keras_ntt.cli import main
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro import graph
from keras_ntt.litert.micro.c_array import name_of
from keras_ntt.litert.micro.report import resolver_call
from keras_ntt.litert.runtime import micro as runtime
from keras_ntt.litert.runtimes import LITERT, MICRO, closed, is_closed, runtimes_of


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Flatten()(layers.AveragePooling2D(2)(x))
    found = keras.Model(inputs, layers.Dense(10)(layers.Dense(48, activation="relu")(x)))
    rng = np.random.default_rng(0)
    for layer in found.layers:
        if isinstance(layer, layers.Dense):
            kernel = rng.normal(size=layer.kernel.shape)
            layer.kernel.assign(kernel * (rng.random(kernel.shape) < 0.2))
    return found


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(1).normal(size=(12, 8, 8, 3)).astype("float32")


def types_of(content):
    found = fb.read(content).subgraphs[0]
    ends = [*found.inputs, *found.outputs]
    return [fb.dtypes()[found.tensors[int(i)].type].name for i in ends]


def test_a_model_becomes_a_file_and_c_source(model, data, tmp_path):
    path = tmp_path / "m.tflite"
    report = export_tflite(
        model, path, target="micro", representative_data=data, c_array=tmp_path / "net-1.cc"
    )
    content = path.read_bytes()
    assert types_of(content) == ["int8", "int8"]
    assert report.size == len(content) < 0.5 * report.micro.dense_size
    assert report.micro.constants > 4
    assert runtime.is_installed() == (report.micro.runs > 0) == report.micro.measured
    assert {t.storage for t in report.tensors} == {"dense", "pruning"}
    assert report.micro.decoded == 4 * 4 * 16 * 48 + 48 * 10
    assert "AddDecode();" in report.micro.resolver
    assert report.runtimes[LITERT].startswith("no")
    assert report.runtimes[MICRO] == "yes"
    assert json.loads(json.dumps(report.to_dict()))["micro"]["size"] == len(content)
    assert "MicroMutableOpResolver<6>" in str(report)
    source, header = [(tmp_path / f"net-1{end}").read_text() for end in (".cc", ".h")]
    written = bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2})", source))
    assert written == content
    assert "alignas(16) const unsigned char net_1[]" in source
    assert f"net_1_size = {len(content)};" in header
    names = {
        fb.operator_name(fb.read(content), op) for op in fb.read(content).subgraphs[0].operators
    }
    assert not {"SHAPE", "PACK", "STRIDED_SLICE"} & names


MAIN = """
#include <cstdio>
#include <cstdint>
#include "net-1.h"

struct Resolver {
  int added = 0;
  int AddAveragePool2D() { return 0 * ++added; }
  int AddConv2D() { return 0 * ++added; }
  int AddDecode() { return 0 * ++added; }
  int AddDepthwiseConv2D() { return 0 * ++added; }
  int AddFullyConnected() { return 0 * ++added; }
  int AddReshape() { return 0 * ++added; }
};

int main() {
  Resolver resolver;
  if (!net_1_register(resolver) || resolver.added != net_1_operators) return 1;
  if (reinterpret_cast<uintptr_t>(net_1) % 16) return 2;
  return fwrite(net_1, 1, net_1_size, stdout) == net_1_size ? 0 : 3;
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_c_source_compiles_to_the_bytes_of_the_file(model, data, tmp_path):
    path, program = tmp_path / "m.tflite", tmp_path / "program"
    options = {"representative_data": data, "c_array": tmp_path / "net-1"}
    export_tflite(model, path, target="micro", **options)
    (tmp_path / "main.cc").write_text(MAIN)
    words = ["g++", "-std=c++17", "-Wall", "-Werror", "-o", program, "main.cc", "net-1.cc"]
    subprocess.run(words, cwd=tmp_path, check=True)
    done = subprocess.run([program], capture_output=True, check=True)
    assert done.stdout == path.read_bytes()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_example_says_that_it_is_not_built_without_sources():
    words = ["make", "-C", str(ROOT / "examples" / "micro"), "run"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "not built: TFLM=" in done.stdout


@pytest.mark.parametrize(
    ("options", "types"),
    [
        ({"quantization": "int16"}, ["int16", "int16"]),
        ({"quantization": "float32"}, ["float32", "float32"]),
        (
            {"inference_input_type": "uint8", "inference_output_type": "float32"},
            ["uint8", "float32"],
        ),
    ],
)
def test_types_of_micro_files(options, types, model, data, tmp_path):
    path = tmp_path / "m.tflite"
    report = export_tflite(model, path, target="micro", representative_data=data, **options)
    assert types_of(path.read_bytes()) == types
    assert any(t.storage == "pruning" for t in report.tensors)


def test_int8_files_take_integers_too(model, data, tmp_path):
    path = tmp_path / "m.tflite"
    report = export_tflite(
        model, path, target="int8", representative_data=data, inference_output_type="float32"
    )
    assert types_of(path.read_bytes()) == ["int8", "float32"]
    assert report.max_difference <= report.tolerance
    expected = keras.ops.convert_to_numpy(model(data))
    found = tflite_predict(path, data)
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


@pytest.mark.long
def test_limits_and_npu(model, data, tmp_path):
    whole = export_tflite(model, tmp_path / "m.tflite", target="micro", representative_data=data)
    limit = whole.micro.arena - 6_000
    less = export_tflite(
        model, tmp_path / "m.tflite", target="micro", representative_data=data, arena_limit=limit
    )
    assert less.micro.arena <= limit
    assert less.size < less.micro.slim_size
    dense = export_tflite(
        model, tmp_path / "n.tflite", target="micro", representative_data=data, npu="ethos-u"
    )
    assert dense.micro.code_size == 0
    assert all(answer == "yes" for answer in dense.runtimes.values())
    found = tflite_predict(tmp_path / "n.tflite", data)
    assert found.shape == (12, 10)
    before = (tmp_path / "m.tflite").read_bytes()
    options = {"target": "micro", "representative_data": data}
    with pytest.raises(ValueError, match="Received: arena_limit=1000") as caught:
        export_tflite(model, tmp_path / "m.tflite", arena_limit=1000, **options)
    assert (tmp_path / "m.tflite").read_bytes() == before
    smallest = int(caught.value.args[0].split("takes ")[1].split(" ")[0].replace(",", ""))
    least = export_tflite(model, tmp_path / "m.tflite", arena_limit=smallest, **options)
    assert least.micro.arena <= smallest
    with pytest.raises(ValueError, match=f"takes {smallest:,} bytes"):
        export_tflite(model, tmp_path / "m.tflite", arena_limit=smallest - 64, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "size", "arena_limit": 1000},
        {"target": "size", "huffman": True},
        {"target": "size", "inference_input_type": "int8"},
        {"target": "micro", "quantization": "float16"},
        {"target": "micro", "arena_limit": 0},
        {"target": "micro", "arena_limit": "small"},
        {"target": "micro", "npu": "other"},
        {"target": "micro", "npu": "ethos-u", "huffman": True},
        {"target": "micro", "inference_input_type": "int16"},
        {"target": "micro", "c_array": "123"},
        {"target": "micro", "levels": 1},
        {"target": "micro", "levels": 15, "quantization": "float32"},
        {"target": "int8", "levels": 15},
    ],
)
def test_options_that_do_not_fit(options, model, data, tmp_path):
    with pytest.raises(ValueError, match="Received: "):
        export_tflite(model, tmp_path / "m.tflite", representative_data=data, **options)
    assert not list(tmp_path.iterdir())


def test_files_of_other_targets_say_what_microcontrollers_do_with_them(model, data, tmp_path):
    path = tmp_path / "m.tflite"
    report = export_tflite(
        model, path, quantization="int8_weights", representative_data=data, sparse=False
    )
    assert report.runtimes[MICRO].startswith("no")
    report = export_tflite(model, path, representative_data=data)
    assert "DENSIFY" in report.runtimes[MICRO]
    with pytest.raises(ExportError, match="DENSIFY"):
        shrink_tflite(path, tmp_path / "n.tflite", target="micro")
    assert "DENSIFY" in inspect_tflite(path).runtimes[MICRO]


def test_a_scale_a_channel_behind_dequantize_is_called_dangerous(data, tmp_path):
    model = keras.Sequential([keras.Input((40,)), layers.Dense(60)])
    path = tmp_path / "m.tflite"
    report = export_tflite(model, path, quantization="int8_weights", tolerance=10)
    assert any("microcontrollers" in warning for warning in report.warnings)
    assert "does not load this file" in report.runtimes[MICRO]
    assert "first scale" in report.runtimes[MICRO]


def closed_files(tmp_path):
    """Return files that TensorFlow Lite Micro would compute wrongly, by what they are."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((40,)), layers.Dense(60)])
    export_tflite(model, tmp_path / "channels", quantization="int8_weights", tolerance=10)
    weight = rng.normal(size=(60, 40)).astype("float32") * (rng.random((60, 40)) < 0.05)
    model.layers[0].kernel.assign(weight.T)
    export_tflite(model, tmp_path / "direct", target="latency")
    assert [w.storage for w in inspect_tflite(tmp_path / "direct").weights] == ["direct"]
    # A file from elsewhere, which has the scales but not the tensor of strings.
    foreign = fb.read((tmp_path / "channels").read_bytes())
    graph.drop_tensors(foreign)
    assert not is_closed(foreign)
    (tmp_path / "foreign").write_bytes(fb.write(foreign))
    shrink_tflite(tmp_path / "foreign", tmp_path / "shrunk")
    return {name: tmp_path / name for name in ("channels", "direct", "shrunk")}


def test_what_microcontrollers_would_compute_wrongly_does_not_load_there(tmp_path):
    x = np.random.default_rng(1).normal(size=(3, 40)).astype("float32")
    for path in closed_files(tmp_path).values():
        model = fb.read(path.read_bytes())
        assert is_closed(model)
        assert closed(model) is model
        assert tflite_predict(path, x).shape == (3, 60)  # strings that nothing reads do no harm
        if runtime.is_installed():
            with pytest.raises(ExportError, match="exit code 1"):  # an error, not a fault
                runtime.run(path.read_bytes(), [x[:, None]], outputs=1)


@pytest.mark.skipif(not runtime.is_installed(), reason="tflite_micro is not installed")
def test_without_the_tensor_of_strings_they_would_load(tmp_path):
    x = np.random.default_rng(1).normal(size=(3, 40)).astype("float32")
    content = (closed_files(tmp_path)["channels"].parent / "foreign").read_bytes()
    (found,) = runtime.run(content, [x[:, None]], outputs=1).outputs
    here = tflite_predict(tmp_path / "foreign", x)
    assert np.abs(found[:, 0] - here).max() > 0.1 * np.abs(here).max()


def test_files_that_compute_rightly_everywhere_are_left_open(model, data, tmp_path):
    for options in ({"target": "dense"}, {"target": "int8"}):
        path = tmp_path / "m.tflite"
        export_tflite(model, path, representative_data=data, **options)
        assert not is_closed(fb.read(path.read_bytes()))


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_files_from_anywhere_shrink_for_both(seed, tmp_path):
    source, path = tmp_path / "m.tflite", tmp_path / "n.tflite"
    model = random_model(seed)
    source.write_bytes(fb.write(model))
    found = shrink_tflite(source, path, target="micro", huffman=True)
    assert found.micro.constants > 0
    rows = inspect_tflite(path).weights
    assert len({w.name for w in rows}) == len(rows)  # numbers, where names are gone
    assert sum(w.nonzeros for w in rows) >= found.nonzeros
    assert path.stat().st_size <= source.stat().st_size
    again = shrink_tflite(path, path, target="micro", huffman=True)  # encoded already
    assert again.size == found.size


def test_float_files_shrink_to_what_litert_computes(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(80, 90)).astype("float32") * (rng.random((80, 90)) < 0.1)
    source, path = tmp_path / "m.tflite", tmp_path / "n.tflite"
    source.write_bytes(
        fb.write(fully_connected(weight, rng.normal(size=(7, 80)).astype("float32")))
    )
    report = shrink_tflite(source, path)
    assert report.size < 0.5 * source.stat().st_size
    x = rng.normal(size=(3, 90)).astype("float32")
    np.testing.assert_allclose(tflite_predict(path, x), tflite_predict(source, x), atol=1e-4)
    assert "of the source" in str(report)


def test_damaged_files_raise_our_errors_only(model, data, tmp_path):
    path, other = tmp_path / "m.tflite", tmp_path / "n.tflite"
    export_tflite(model, path, target="micro", representative_data=data, huffman=True)
    content, rng, said = path.read_bytes(), np.random.default_rng(0), []
    for number in range(40):
        broken = bytearray(content)
        for place in rng.integers(8, len(broken), 3):
            broken[place] = rng.integers(256)
        if number % 4 == 0:
            broken = broken[: int(rng.integers(len(broken)))]
        path.write_bytes(bytes(broken))
        for call in (inspect_tflite, lambda p: shrink_tflite(p, other, target="micro")):
            try:
                call(path)
            except (ValueError, ExportError) as error:
                said.append("Received: " in str(error))
    assert said
    assert all(said)


def test_a_signature_of_a_tensor_that_nothing_uses_is_our_error(model, tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(model, path, target="dense")
    damaged = fb.read(path.read_bytes())
    damaged.subgraphs[0].tensors.append(copy.copy(damaged.subgraphs[0].tensors[0]))
    damaged.signatureDefs[0].inputs[0].tensorIndex = len(damaged.subgraphs[0].tensors) - 1
    path.write_bytes(fb.write(damaged))
    for target in ("size", "micro"):
        with pytest.raises(ValueError, match="Received"):
            shrink_tflite(path, tmp_path / "n.tflite", target=target)


def test_damaged_pairs_of_decode_are_our_errors(tmp_path):
    from keras_ntt.litert.micro import fit

    sparse = np.eye(40, dtype="float32")
    packed = fit.pack(fully_connected(sparse))
    operator = next(
        op for op in packed.model.subgraphs[0].operators if graph.is_decode(packed.model, op)
    )
    operator.inputs = operator.inputs[:1]
    path = tmp_path / "m.tflite"
    path.write_bytes(fb.write(packed.model))
    with pytest.raises(ValueError, match="two inputs for each output"):
        inspect_tflite(path)


def test_names_of_calls_and_arrays():
    assert resolver_call("RESIZE_NEAREST_NEIGHBOR") == "AddResizeNearestNeighbor();"
    assert resolver_call("MAX_POOL_2D") == "AddMaxPool2D();"
    assert resolver_call("TFLM_DECODE") == "AddDecode();"
    assert resolver_call("PADV2") == "AddPadV2();"


def test_runtimes_of_a_plain_file():
    assert runtimes_of(fully_connected(np.ones((3, 4), "float32")))[MICRO] == "yes"


def test_commands(model, data, tmp_path, capsys):
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", data)
    words = ["export", tmp_path / "m.keras", tmp_path / "m.tflite", "--target", "micro"]
    words += ["--data", tmp_path / "x.npy", "--c-array", tmp_path / "net", "--arena-limit", "1MiB"]
    words += ["--levels", 31]
    assert main(list(map(str, words))) == 0
    printed = capsys.readouterr().out
    assert "MicroMutableOpResolver" in printed
    assert "weights rounded to 31" in printed
    assert name_of(tmp_path / "net.cc") in (tmp_path / "net.cc").read_text()
    words = ["shrink", tmp_path / "m.tflite", tmp_path / "n.tflite", "--target", "micro", "--json"]
    assert main(list(map(str, words))) == 0
    assert json.loads(capsys.readouterr().out)["micro"]["size"] > 0
