"""The reproduction script on a few images: what it measures, that it resumes, and its tables."""

from __future__ import annotations

import gzip
import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def reproduce():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("reproduce", BENCHMARKS / "reproduce.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["reproduce"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype("uint8").tobytes()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten classes of images, told apart by a bright row, in four IDX files."""
    folder, rng = tmp_path_factory.mktemp("idx"), np.random.default_rng(0)
    for stem, n in (("train", 320), ("t10k", 100)):
        labels = np.arange(n) % 10
        pictures = rng.integers(0, 60, (n, 28, 28))
        pictures[np.arange(n), 2 * labels + 4] = 255
        content = gzip.compress(idx(pictures))
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(content)
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def words(images, output, *more):
    return [
        *("--idx-dir", str(images), "--output", str(output), "--seeds", "2", "--epochs", "2"),
        *("--densities", "0.05", "--allocations", "layerwise", "--transfer-epochs", "1"),
        *("--score-samples", "64", *more),
    ]


def test_images_are_read_as_they_are(reproduce, images):
    data = reproduce.load("fashion_mnist", idx_dir=images, tfds_dir=None, split="test")
    assert data.x_train.shape == (320, 28, 28, 1)
    assert data.y_test.tolist() == [i % 10 for i in range(100)]
    assert (data.x_train[3, 10] == 1).all()
    assert data.x_train.max() == 1
    assert data.x_train[3, 0].max() < 60 / 255 + 1e-6


def test_runs_that_are_done_are_not_repeated(reproduce, images, tmp_path, capsys):
    methods = ("dense", "ntt-kept", "erk-random")
    first = words(images, tmp_path, "--methods", *methods[:2])
    assert reproduce.main(first) == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").iterdir()}
    assert len(files) == 4
    assert reproduce.main(words(images, tmp_path, "--methods", *methods)) == 0
    assert "6 runs, 4 done." in capsys.readouterr().out
    for path, time in files.items():
        assert path.stat().st_mtime_ns == time
    results = [json.loads(p.read_text()) for p in (tmp_path / "runs").iterdir()]
    assert len(results) == 6
    sizes = {784 * 300: 11760, 300 * 100: 1500, 100 * 10: 50}
    for result in results:
        method, kept = result["settings"]["method"], list(result["kept"].values())
        if method == "dense":
            assert kept == []
        elif method == "erk-random":
            assert sum(kept) == round(266_200 * 0.05)
        else:
            assert kept == list(sizes.values())
        if method == "ntt-kept":
            assert result["transfer"]["steps"] == 5
            assert [row["step"] for row in result["transfer"]["curve"]] == [1]
    assert not any((tmp_path / "unfinished").iterdir())
    table = (tmp_path / "RESULTS.md").read_text()
    dense = [100 * r["accuracy"][1] for r in results if r["settings"]["method"] == "dense"]
    (row,) = [line for line in table.splitlines() if "| dense |" in line]
    assert row.endswith(
        f"| 2 | {row.split('|')[-3].strip()} | {np.mean(dense):.1f} ± {np.std(dense, ddof=1):.1f} |"
    )


def test_runs_are_listed_and_told_apart(reproduce, images, tmp_path, capsys):
    assert reproduce.main(words(images, tmp_path, "--list")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "22 runs, 0 done."
    assert len(set(lines[1:])) == 22
    assert not tmp_path.joinpath("runs").exists()
    reproduce.main(words(images, tmp_path, "--list", "--label-fraction", "0.1"))
    assert not {*lines[1:]} & {*capsys.readouterr().out.splitlines()[1:]}


# Kernels and biases. Conv-4 without padding: 32 -> 30 -> 28 -> 14 -> 12 -> 10 -> 5.
SIZES = {
    "lenet-300-100": (784 * 300, 300 * 100, 1000, 300 + 100 + 10),
    "lenet-5-caffe": (500, 25_000, 800 * 500, 5000, 20 + 50 + 500 + 10),
    "conv-4": (27 * 64, 576 * 64, 576 * 128, 1152 * 128, 3200 * 512, 5120, 64 * 6 + 512 + 10),
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_the_published_sizes(reproduce, name):
    model = reproduce.network(name, (32, 32, 3) if name == "conv-4" else (28, 28, 1))
    assert model.output_shape == (None, 10)
    assert model.count_params() == sum(SIZES[name])
