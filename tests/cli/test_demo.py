"""The demo: what it writes, what it reports, and that only one method sees labels."""

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
from keras_ntt.cli.jobs.digits import load_digits

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("with space é") / "out"
    lines = []
    settings = demo.Settings(seeds=1, training_epochs=2, epochs=1)
    results = demo.run(output, settings, lines.append)
    return output, results, "\n".join(lines)


@pytest.mark.long
def test_demo_writes_what_it_measured(short_run):
    output, results, text = short_run
    names = {"small.tflite", "small.keras", "accuracy.png", "files.png", "results.json"}
    assert {p.name for p in output.iterdir()} == names
    assert (output / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    data = demo.as_images(load_digits())
    found = keras_ntt.tflite_predict(output / "small.tflite", data.x_test).argmax(axis=1)
    right = float((found == data.y_test).mean())
    best = results["files"]["best"]
    assert best["accuracy"] == pytest.approx(right)
    assert best["size"] == (output / "small.tflite").stat().st_size
    assert best["seconds"] > 0
    model = keras.models.load_model(output / "small.keras", compile=False)
    assert abs(demo.accuracy(model, data.x_test, data.y_test) - right) < 0.02
    assert json.loads((output / "results.json").read_text())["dense"] == results["dense"]
    assert f"dense {results['dense'][0]:.1%}" in text
    for method, name in demo.METHODS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(name)]
        assert f"{100 * results['accuracy'][method][0.9][0]:.1f} ± 0.0" in row


@pytest.mark.long
@pytest.mark.parametrize("method", demo.METHODS)
def test_all_methods_reach_the_sparsity_and_one_sees_labels(method):
    data = demo.as_images(load_digits())
    few = data._replace(x_train=data.x_train[:64], y_train=data.y_train[:64])
    keras.utils.set_random_seed(0)
    dense = demo.make_model()
    before = [np.asarray(v).copy() for v in dense.weights]
    given = few if method == "labels" else few._replace(y_train=None)
    sparse = demo.sparse_version(method, dense, given, 0.9, 0, epochs=1)
    assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(0.9, abs=0.01)
    for variable, value in zip(dense.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_split_is_fixed_and_disjoint():
    first, second = load_digits(), load_digits()
    np.testing.assert_array_equal(first.x_test, second.x_test)
    assert (len(first.x_train), len(first.x_test)) == (1347, 450)
    assert not {row.tobytes() for row in first.x_test} <= {r.tobytes() for r in first.x_train}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "demo"),
        (["demo", "--help"], 0, "--transfer-epochs"),
        (["demo", "--transfer-epochs", "3"], 2, "is of --what before"),
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
