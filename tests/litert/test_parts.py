"""Where the bytes of files are, against lengths that are known from how they were made."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.litert_graphs import fully_connected
from helpers.micro_graphs import random_model

from keras_ntt import export_tflite, inspect_tflite
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.parts import PARTS, parts_of
from keras_ntt.litert.micro import fit


def test_parts_of_a_chain_of_layers():
    weights = [np.ones((8, 5), "float32"), np.full((3, 8), 2, "float32")]
    model = fully_connected(*weights)
    found = parts_of(fb.write(model))
    assert tuple(found) == PARTS
    assert found["weights"] == 4 * (40 + 24)
    assert found["other constants"] == 4 * (8 + 3)
    assert found["scales"] == found["zero points"] == 0
    names = {t.name for t in model.subgraphs[0].tensors}
    assert found["names and metadata"] == sum(map(len, names))  # equal ones are stored once
    assert sum(found.values()) == len(fb.write(model))


@pytest.mark.parametrize("seed", range(6))
def test_parts_of_quantized_models(seed):
    model = random_model(seed)
    for name in ("zeroPoint", "scale"):
        vectors = {
            np.asarray(getattr(t.quantization, name)).tobytes()
            for t in model.subgraphs[0].tensors
            if t.quantization is not None
        }
        kind = {"zeroPoint": "zero points", "scale": "scales"}[name]
        dtype = np.int64 if name == "zeroPoint" else np.float32
        sizes = [len(np.frombuffer(v, dtype)) * np.dtype(dtype).itemsize for v in vectors]
        assert parts_of(fb.write(model))[kind] == sum(sizes)
    packed = fit.pack(model)
    found = parts_of(fb.write(packed.model))
    held = {}
    for constant in packed.constants:
        if "not a weight" not in constant.reason:
            values = constant.array if constant.encoded is None else constant.encoded.encoded
            held[values.tobytes()] = values.nbytes
            if constant.encoded is not None:
                ancillary = constant.encoded.ancillary
                held[ancillary.tobytes()] = ancillary.nbytes
    assert found["weights"] >= sum(held.values())
    assert found["names and metadata"] == 0


def test_indices_of_sparse_weights_are_weights(tmp_path):
    import keras

    rng, path = np.random.default_rng(0), tmp_path / "m.tflite"
    model = keras.Sequential([keras.Input((60,)), keras.layers.Dense(50)])
    kernel = rng.normal(size=(60, 50)) * (rng.random((60, 50)) < 0.1)
    model.layers[0].kernel.assign(kernel)
    export_tflite(model, path)
    report = inspect_tflite(path)
    (row,) = report.weights
    assert row.storage in ("densify", "direct")
    assert report.parts["weights"] == row.size
    assert sum(report.parts.values()) == path.stat().st_size
    assert f"weights {row.size:,}" in str(report)
    assert report.to_dict()["parts"] == dict(report.parts)


def test_files_that_are_cut_off_raise_our_error():
    content = fb.write(fully_connected(np.ones((8, 5), "float32")))
    for length in range(0, len(content), 7):
        with pytest.raises(fb.FileFormatError):
            parts_of(content[:length])
