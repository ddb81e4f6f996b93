import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.paths import ROOT

import keras_ntt
from keras_ntt import cli
from keras_ntt.cli.jobs import demo

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
    data = demo.load_digits()
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
    model, images = demo.make_model(), demo.load_digits().x_train
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


def test_split_is_fixed_and_disjoint():
    first, second = demo.load_digits(), demo.load_digits()
    np.testing.assert_array_equal(first.x_test, second.x_test)
    assert (len(first.x_train), len(first.x_test)) == (1347, 450)
    assert not {row.tobytes() for row in first.x_test} <= {r.tobytes() for r in first.x_train}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "demo"),
        (["demo", "--help"], 0, "--transfer-epochs"),
        (["--version"], 0, keras_ntt.__version__),
        ([], 2, "Usage: keras-ntt"),
        (["demo", "--seeds", "0"], 2, "not in the range x>=1"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_command_line(arguments, code, text, capsys):
    assert cli.main(arguments) == code
    captured = capsys.readouterr()
    assert text in captured.out + captured.err


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "file" / "out")]) == 1
    assert "keras-ntt: " in capsys.readouterr().err


@pytest.mark.long
def test_import_needs_and_changes_nothing_more():
    """Only numpy, keras, tensorflow and the loader are imported, nothing is printed or set."""
    code = (
        "import logging, os, sys; before = dict(os.environ)\n"
        "import keras, tensorflow, numpy\n"
        "environment, handlers = dict(os.environ), list(logging.root.handlers)\n"
        "state = numpy.random.get_state()[1].tolist()\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "from keras_ntt import *\n"
        "new = {name.partition('.')[0] for name in sys.modules} - loaded\n"
        "third = sorted(n for n in new if n not in sys.stdlib_module_names)\n"
        "assert third == ['keras_ntt', 'lazy_loader'], third\n"
        "assert dict(os.environ) == environment and list(logging.root.handlers) == handlers\n"
        "assert numpy.random.get_state()[1].tolist() == state\n"
    )
    root = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
