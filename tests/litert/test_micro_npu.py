"""Files for an Ethos-U: what Vela says of them, and that they are dense."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from keras_ntt import export_tflite
from keras_ntt.litert.micro.report import micro_warnings
from keras_ntt.litert.runtime import vela
from keras_ntt.litert.runtimes import VELA

# Of Vela 5.2.0 and the person detector of MLPerf Tiny.
ROW = {
    "total_original_weights": "208128",
    "total_npu_encoded_weights": "47456",
    "off_chip_flash_memory_used": "74.21875",
    "sram_memory_used": "72.734375",
}


def test_the_summary_of_vela_is_read():
    found = vela.read(ROW, "x\nCPU operators = 2 (3.4%)\nNPU operators = 57 (96.6%)\n")
    assert found["weights"] == 208_128
    assert found["encoded_weights"] == 47_456
    assert found["flash"] == 76_000
    assert found["sram"] == 74_480
    assert found["cpu_operators"] == 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return reports of a model at 0 and 80 % zeros, and at 80 % with few levels."""
    keras.utils.set_random_seed(0)
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("npu") / "m.tflite"
    x = rng.normal(size=(16, 8, 8, 8)).astype("float32")
    model = keras.Sequential(
        [keras.Input((8, 8, 8)), layers.Conv2D(64, 3, activation="relu"), layers.Conv2D(64, 3)]
    )
    found = []
    for zeros, levels in ((0.0, None), (0.8, None), (0.8, 15)):
        for layer in model.layers:
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            layer.kernel.assign(kernel * (rng.random(kernel.shape) >= zeros))
        options = {"npu": "ethos-u", "levels": levels, "tolerance": 1}
        found.append(export_tflite(model, path, target="micro", representative_data=x, **options))
    return found


@pytest.mark.long
def test_files_for_vela_are_dense(exported):
    for report in exported:
        assert report.runtimes[VELA] == "yes"
        assert all(tensor.storage == "dense" for tensor in report.tensors)
        assert (report.micro.npu is not None) == vela.is_installed()


@pytest.mark.skipif(not vela.is_installed(), reason="ethos-u-vela is not installed")
def test_vela_packs_zeros_and_levels(exported):
    sizes = [report.micro.npu["encoded_weights"] for report in exported]
    assert sizes[0] > 0.8 * 64 * 9 * (8 + 64)
    assert sizes[1] < 0.4 * sizes[0]
    assert sizes[2] < sizes[1]
    assert all(report.micro.npu["cpu_operators"] == 0 for report in exported)
    assert not any("CPU" in warning for warning in micro_warnings(exported[0].micro))
    assert "operators on the CPU 0" in str(exported[0])


@pytest.mark.skipif(not vela.is_installed(), reason="ethos-u-vela is not installed")
def test_what_vela_does_not_take_is_said():
    found = vela.compiled(b"no model")
    assert found is not None
    assert found["error"]
