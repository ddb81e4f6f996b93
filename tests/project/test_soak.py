"""The programs of `benchmarks` and `examples`, run small, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import keras
import pytest
from helpers.paths import ROOT


def run(*words):
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **quiet},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def kill(tmp_path, kills, *jobs):
    output = tmp_path / "kills.json"
    chosen = ["--jobs", *jobs] if jobs else []
    run("-m", "benchmarks.soak.kills", "--kills", kills, *chosen, "--output", output)
    found = json.loads(output.read_text())
    assert found["faults"] == []
    assert found["kills"] >= kills
    for counts in found["jobs"].values():
        assert counts["same_masks"] == counts["runs_ended"]
    return found["jobs"]


@pytest.mark.long
def test_a_transfer_that_is_killed_goes_on_to_the_same_masks(tmp_path):
    counts = kill(tmp_path, 3, "transfer")["transfer"]
    assert counts["runs_ended"] >= 1
    assert counts["kills"] >= 3
    assert counts["files_looked_at"] > 0


@pytest.mark.long
@pytest.mark.parametrize("job", ["RigL", "SET"])
def test_masks_that_move_go_on_after_a_kill(tmp_path, job):
    counts = kill(tmp_path, 2, job)[job]
    assert counts["runs_ended"] >= 1
    assert counts["kills"] >= 2


@pytest.mark.soak
def test_jobs_that_are_killed_a_hundred_times(tmp_path):
    assert all(counts["runs_ended"] for counts in kill(tmp_path, 100).values())


@pytest.mark.long
@pytest.mark.skipif(
    keras.__version__.startswith("3.3."), reason="its replicas differ without pruning, too"
)
def test_the_example_of_several_devices():
    output = run("examples/distributed.py", "--samples", 256, "--epochs", 1)
    assert output.splitlines()[-1] == "90.0% zeros on each of 2 replicas"


@pytest.mark.long
def test_the_example_of_two_networks(tmp_path):
    short = ("--steps", 12, "--width", 4, "--output", tmp_path / "gan")
    output = run("examples/sparse_gan.py", *short)
    rows = json.loads((tmp_path / "gan.json").read_text())
    assert [round(row["generator"], 2) for row in rows.values()] == [0.0, 0.9, 0.9]
    assert [len(row["ratios"]) for row in rows.values()] == [12, 12, 12]
    assert len(rows["ADAPT"]["densities"]) == 1
    assert len(output.splitlines()) == 3
    assert (tmp_path / "gan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_example_of_reinforcement_learning(tmp_path):
    pytest.importorskip("gymnasium", reason="the extra rl is not installed")
    short = ("--steps", 240, "--every", 8, "--seeds", 1, "--sparsities", 0.9)
    run("examples/sparse_dqn.py", *short, "--output", tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == 6
    sizes = {row["method"]: row["bytes"] for row in rows}
    assert sizes["static"] < sizes["dense"] / 2
    assert (tmp_path / "returns.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.soak
def test_the_example_of_an_edge_cpu(tmp_path):
    short = ("--samples", 128, "--transfer-epochs", 1, "--epochs", 1)
    output = run("examples/edge.py", *short, "--output", tmp_path / "lenet5.tflite")
    assert "measured on this" in output
    (dense,) = [line for line in output.splitlines() if "500x800" in line and "direct" in line]
    assert "no dense copy in memory" in dense
    assert (tmp_path / "lenet5.tflite").stat().st_size < 400_000


@pytest.mark.soak
def test_the_example_of_a_microcontroller(tmp_path):
    output = run("examples/micro/export.py", "--epochs", 1, "--output", tmp_path)
    assert "MicroMutableOpResolver" in output
    assert (tmp_path / "model.cc").read_text().count("0x") == (
        (tmp_path / "model.tflite").stat().st_size
    )


@pytest.mark.soak
def test_how_a_transfer_scales(tmp_path):
    output = tmp_path / "scaling.json"
    program = ("-m", "benchmarks.speed.scaling", "--networks", "lenet-300-100", "--steps", 3)
    run(*program, "--output", output)
    rows = json.loads(output.read_text())["networks"]["lenet-300-100"]["workers"]
    assert rows["1"]["bytes_reduced"] == 0
    weights = 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    # All gradients in float32, and three numbers: the replicas that fail, overflow and count.
    assert rows["2"]["trained_bytes"] == 4 * weights
    assert rows["2"]["bytes_reduced"] == 4 * (weights + 3)


@pytest.mark.soak
def test_what_masks_cost(tmp_path):
    output = tmp_path / "overhead.json"
    run("-m", "benchmarks.soak.overhead", "--rounds", 3, "--steps", 5, "--output", output)
    kinds = json.loads(output.read_text())["kinds"]
    assert list(kinds) == ["dense", "masks", "prune_low_magnitude"]
    assert kinds["dense"]["added"] == 0
    assert all(len(figures["seconds"]) == 3 for figures in kinds.values())
