import json

import keras
import numpy as np
import pytest

import keras_ntt
from keras_ntt.cli.jobs import demo_before as demo
from keras_ntt.cli.jobs.digits import load_digits

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("with space é") / "out"
    lines = []
    settings = demo.Settings(seeds=2, transfer_epochs=2, epochs=2)
    results = demo.run(output, settings, lines.append)
    return output, results, "\n".join(lines)


@pytest.mark.long
def test_demo_writes_its_files(short_run):
    output, _, _ = short_run
    assert {p.name for p in output.iterdir()} == {
        "sparse.keras",
        "sparse.tflite",
        "curves.png",
        "results.json",
    }
    assert json.loads((output / "results.json").read_text())["methods"].keys() == {*demo.METHODS}
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_demo_reports_what_it_measured(short_run):
    output, results, text = short_run
    data = load_digits()
    model = keras.models.load_model(output / "sparse.keras", compile=False)
    answers = keras.ops.convert_to_numpy(model(data.x_test)).argmax(axis=1)
    accuracy = (answers == data.y_test).mean()
    assert results["methods"]["NTT"]["accuracy"][0][-1] == pytest.approx(accuracy)
    assert results["keras_accuracy"] == results["tflite_accuracy"] == pytest.approx(accuracy)
    last = 100 * np.array(results["methods"]["NTT"]["accuracy"])[:, -1]
    (row,) = [line for line in text.splitlines() if line.startswith(demo.ABOUT["NTT"])]
    assert f"{last.mean():.1f} ± {last.std(ddof=1):.1f}" in row
    nonzeros = sum(np.count_nonzero(w) for w in model.get_weights())
    assert results["methods"]["NTT"]["nonzeros"] == nonzeros
    assert f"{nonzeros:,}" in row
    kernels = [w for w in model.get_weights() if w.ndim == 2]
    assert [np.count_nonzero(w) for w in kernels] == [627, 689, 190]
    for method in ("magnitude", "random", "ERK", "balanced"):
        assert results["methods"][method]["nonzeros"] == nonzeros


@pytest.mark.long
def test_random_masks_are_uniform():
    """Every entry is as likely as every other, along both axes."""
    model, images = demo.make_model(), load_digits().x_train
    total = np.zeros((64, 300))
    for seed in range(50):
        sparse = demo.sparse_version("random", model, images, seed, demo.Settings())
        (first, *_) = keras_ntt.get_masks(sparse).values()
        assert first.sum() == 576
        total += first
    for axis in (0, 1):
        counts = total.sum(axis=axis)
        deviation = (counts - counts.mean()) / np.sqrt(counts.mean())
        assert np.abs(deviation).max() < 5
        assert 0.7 < deviation.std() < 1.3
