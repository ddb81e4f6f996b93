"""Mistakes planted in files: the judge of faults finds them, however little they change."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.architectures import sequential
from helpers.litert_graphs import run
from keras import layers

from keras_ntt import ExportError, export_tflite
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import rewrite, storage
from keras_ntt.litert.format.dead_channels import without_dead_channels
from keras_ntt.litert.judge import check_alike, check_weights, twin_of
from keras_ntt.litert.reencode import reencode
from keras_ntt.litert.runtime import run as runs

pytestmark = pytest.mark.oldest


def network():
    """Weights of four operators, 60 % zeros, one channel dead but for rounding."""
    model = sequential(
        (10, 10, 8),
        layers.Conv2D(24, 3, activation="relu"),
        layers.DepthwiseConv2D(3),
        layers.Flatten(),
        layers.Dense(32, "relu"),
        layers.Dense(5),
    )
    rng = np.random.default_rng(0)
    values = [rng.normal(size=w.shape) * (rng.random(w.shape) < 0.4) for w in model.get_weights()]
    values[0][..., 3] = 1e-12 * rng.normal(size=values[0][..., 3].shape)
    model.set_weights(values)
    return model


def inputs(n=8):
    return np.random.default_rng(1).normal(size=(n, 10, 10, 8)).astype("float32")


@pytest.fixture(scope="module")
def files():
    """The converter's files, and what is made of them: by quantization."""
    x = inputs(32)
    kinds = [None, "float16", "int8_weights", "int8"]
    contents = dict(zip(kinds, convert(network(), kinds, [x]), strict=True))
    found = {}
    for kind, content in contents.items():
        dense = fb.read(content)
        if kind in (None, "float16"):
            base, model = dense, reencode(dense, target="size").model
        else:
            base = model = without_dead_channels(dense)
        found[kind] = (dense, base, fb.write(model))
    dense = fb.read(contents[None])
    found["size"] = (dense, dense, fb.write(reencode(dense, target="size", int8=True).model))
    return found


KINDS = [None, "float16", "int8_weights", "int8", "size"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_has_no_faults(kind, files):
    dense, _, content = files[kind]
    check_weights(content, dense, "model")


@pytest.mark.parametrize("kind", ["float16", "size"])
def test_a_file_computes_what_its_dense_twin_does(kind, files, tmp_path):
    _, base, content = files[kind]
    twin = twin_of(base, content)
    names = {fb.operator_name(fb.read(twin), op) for op in fb.read(twin).subgraphs[0].operators}
    assert "DENSIFY" not in names
    paths = [tmp_path / name for name in ("ours", "twin")]
    for path, data in zip(paths, (content, twin), strict=True):
        path.write_bytes(data)
    ours, theirs = (runs.outputs_by(str(path), [inputs()], batch=None) for path in paths)
    check_alike(ours, theirs, "model")
    np.testing.assert_allclose(run(content, inputs()), run(twin, inputs()), rtol=1e-3, atol=1e-3)
    wrong = [(way, [outputs[0] * (1 + 2e-4)]) for way, outputs in ours]
    with pytest.raises(ExportError, match=r"computes something else than the dense.*Received"):
        check_alike(wrong, theirs, "model")


def _buffers(model):
    """Return the buffers of weights of at least 32 entries, largest first."""
    sizes = [0 if b.data is None else len(b.data) for b in model.buffers]
    return [int(i) for i in np.argsort(sizes)[::-1] if sizes[i] >= 32]


def one_value(model, dtype):
    """Change the largest constant in one entry, by its smallest step."""
    buffer = model.buffers[_buffers(model)[0]]
    values = np.frombuffer(bytes(buffer.data), dtype).copy()
    place = int(np.flatnonzero(values)[7])
    if dtype == np.int8:
        values[place] += 1 if values[place] < 0 else -1
    else:
        values[place] = np.nextafter(values[place], dtype(np.inf))
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(None, np.float32), ("float16", np.float16), ("int8", np.int8), ("int8_weights", np.int8)],
)
def test_one_value_that_is_one_step_off(kind, dtype, files):
    dense, _, content = files[kind]
    model = fb.read(content)
    one_value(model, dtype)
    with pytest.raises(ExportError, match=r"has other weights.*with other values"):
        check_weights(fb.write(model), dense, "model")


@pytest.mark.parametrize("kind", ["int8", "size"])
def test_scales_of_two_channels_that_are_swapped(kind, files):
    dense, _, content = files[kind]
    model = fb.read(content)
    swapped = 0
    for tensor in model.subgraphs[0].tensors:
        scales = getattr(tensor.quantization, "scale", None)
        if scales is not None and len(scales) == 24:
            scales = np.array(scales)
            scales[[0, 1]] = scales[[1, 0]]
            tensor.quantization.scale = scales
            swapped += 1
    assert swapped
    with pytest.raises(ExportError, match="has other weights"):
        check_weights(fb.write(model), dense, "model")


@pytest.mark.parametrize("kind", [None, "size"])
def test_an_entry_at_another_place(kind, files):
    dense, _, content = files[kind]
    model = fb.read(content)
    moved = 0
    for tensor in model.subgraphs[0].tensors:
        for level in [] if tensor.sparsity is None else tensor.sparsity.dimMetadata:
            indices = getattr(level.arrayIndices, "values", None)
            if indices is not None and len(indices) > 1 and not moved:
                indices = np.array(indices)
                gaps = np.flatnonzero(np.diff(indices.astype(int)) > 1)
                indices[gaps[0]] += 1
                level.arrayIndices.values = indices
                moved += 1
    assert moved
    with pytest.raises(ExportError, match="has other weights"):
        check_weights(fb.write(model), dense, "model")


def test_a_living_channel_that_was_taken_for_a_dead_one(files):
    dense, _, content = files["int8"]
    model = fb.read(content)
    buffer = model.buffers[_buffers(model)[0]]
    values = np.frombuffer(bytes(buffer.data), np.int8).copy()
    values[: len(values) // 32] = 0
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    with pytest.raises(ExportError, match="has other weights"):
        check_weights(fb.write(model), dense, "model")


def test_an_operator_that_is_missing(files):
    dense, _, content = files[None]
    model = fb.read(content)
    graph = model.subgraphs[0]
    last = graph.operators.pop()
    graph.outputs = [int(last.inputs[0])]
    with pytest.raises(ExportError, match="operators with 3 weights instead of 4"):
        check_weights(fb.write(model), dense, "model")


def test_a_fault_of_the_writer_is_no_matter_of_tolerance(tmp_path, monkeypatch):
    def shifted(array, axis, *, mixed=False):
        rounded, scales = quantize(array, axis, mixed=mixed)
        return rounded, np.roll(scales, 1)

    quantize = storage.quantize
    monkeypatch.setattr(rewrite.storage, "quantize", shifted)
    options = {"quantization": "int8_weights", "representative_data": inputs(), "tolerance": 1e9}
    with pytest.raises(ExportError, match=r"a fault of keras_ntt.*sparse=False"):
        export_tflite(network(), tmp_path / "m.tflite", **options)
    assert list(tmp_path.iterdir()) == []
    export_tflite(network(), tmp_path / "m.tflite", sparse=False, **options)  # the advice
