"""Time and memory of pruning from unlabelled inputs, and how they grow.

    python -m benchmarks.speed.post_training [--parts NAME ...] [--output FILE]

``growth`` changes one number at a time of a chain of dense layers: width, inputs (samples), layers.
``layer`` times the solvers on one layer of 4,608 inputs and 512 outputs (the largest of ResNet50),
and the operations of the published algorithms at the speed of a matrix product of this size in
float64. ``models`` prunes ResNet50 and MobileNetV2 of `keras.applications` (random weights, images
of 224, which do not matter to the time). Each figure is of a separate process: seconds on the
clock and of the processor, and the most memory that it took, imports included. Rows that the output
has already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_ntt
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from keras_ntt.core.tables import table
from keras_ntt.pruning.post_training import layerwise, obc, refit
from keras_ntt.pruning.post_training.moments import Moments
from keras_ntt.pruning.post_training.problems import problems_of
from keras_ntt.pruning.post_training.structure import Structure

FEATURES, OUTPUTS = 4_608, 512
SPARSITY = 0.9
METHODS = ("magnitude", "sparsegpt", "obc")
GROWTH = {
    "width": [64, 128, 256, 512, 1024],
    "inputs": [256, 1024, 4096],
    "layers": [2, 4, 8],
}
USUAL = {"width": 256, "inputs": 1024, "layers": 2}
MODELS = {"ResNet50": ("sparsegpt", "magnitude"), "MobileNetV2": ("sparsegpt", "magnitude")}
IMAGES = 256


def jobs(parts: list[str]) -> list[dict[str, Any]]:
    """Return what is to be measured, a dictionary a row."""
    found: list[dict[str, Any]] = []
    if "growth" in parts:
        chains = [{**USUAL, name: value} for name, values in GROWTH.items() for value in values]
        unique = {tuple(chain.values()): chain for chain in chains}.values()
        found += [{"part": "growth", **c, "method": m} for c in unique for m in METHODS]
    if "layer" in parts:
        found += [
            {"part": "layer", "method": method}
            for method in ("product", "statistics", "sparsegpt", "alps", "magnitude + refit", "obc")
        ]
    if "models" in parts:
        found += [
            {"part": "models", "network": network, "method": method}
            for network, methods in MODELS.items()
            for method in methods
        ]
    return found


def growth(job: dict[str, Any]) -> dict[str, float]:
    """Prune a chain of dense layers."""
    width = job["width"]
    parts = [keras.layers.Dense(width, "relu") for _ in range(job["layers"] - 1)]
    model = keras.Sequential([keras.Input((width,)), *parts, keras.layers.Dense(10)])
    x = np.random.default_rng(0).normal(size=(job["inputs"], width)).astype("float32")
    return timed(lambda: prune(model, x, job["method"], samples=None))


def models(job: dict[str, Any]) -> dict[str, float]:
    """Prune a network of `keras.applications`."""
    model = getattr(keras.applications, job["network"])(weights=None)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(IMAGES, 224, 224, 3)).astype("float32")
    return timed(lambda: prune(model, x, job["method"]))


def prune(model: keras.Model, x: np.ndarray, method: str, **options: Any) -> None:
    """Prune at the benchmark's sparsity."""
    keras_ntt.prune_post_training(model, x, sparsity=SPARSITY, method=method, verbose=0, **options)


def layer(job: dict[str, Any]) -> dict[str, float]:
    """Time a solver on one layer, or what it is measured by."""
    rng, method = np.random.default_rng(0), job["method"]
    x = rng.normal(size=(8_192, FEATURES)) @ np.diag(np.linspace(0.2, 2, FEATURES))
    weights = rng.normal(size=(1, FEATURES, OUTPUTS))
    if method == "product":
        return {**timed(lambda: x.T @ x), "operations": 2.0 * len(x) * FEATURES**2}
    moments = Moments()
    if method == "statistics":
        found = timed(lambda: moments.add(x[None], x[None] @ weights))
        return {**found, "operations": len(x) * FEATURES * (FEATURES + 4.0 * OUTPUTS)}
    moments.add(x[None], x[None] @ weights)
    (problem,) = refit.damped(moments.statistics(), weights)
    dense = keras.layers.Dense(OUTPUTS)
    dense.build((None, FEATURES))
    (described,) = problems_of(dense, [dense.kernel])
    assert described.layout is not None
    kept = round((1 - SPARSITY) * FEATURES)
    operations = published(method, kept)
    if method == "obc":  # some columns stand for all, which are alike
        some = 4
        found = timed(lambda: obc.traces(problem, weights[0, :, :some]))
        scaled = {name: value * OUTPUTS / some for name, value in found.items()}
        return {**scaled, "operations": operations, "columns": float(some)}
    structure = Structure(described.layout, described.axes, kept * OUTPUTS, None)
    name = method.split(" ")[0]

    def solve() -> None:
        mask, _ = layerwise.METHODS[name]([problem], weights, structure, None)
        if "refit" in method:
            refit.solve(problem, mask[0])

    return {**timed(solve), "operations": operations}


def published(method: str, kept: int) -> float:
    """Return the floating-point operations of a published algorithm on the layer.

    SparseGPT: an inverse by Cholesky and the factor of it (``4 / 3 n**3``), and the updates of the
    columns to the right. ExactOBS: a rank-one update of a shrinking inverse for each weight. ALPS:
    one eigendecomposition (``9 n**3``), then two products of an ``n x n`` matrix a step, of some 60
    steps. Refit: a Cholesky factor of the kept entries of each output.

    Args:
        method: The method.
        kept: Entries that each output keeps.

    Returns:
        Multiplications and additions.
    """
    n, m = float(FEATURES), float(OUTPUTS)
    if method == "sparsegpt":
        return 4 / 3 * n**3 + n**2 * m
    if method == "obc":
        return m * 2 * (n**3 / 3)
    if method == "alps":
        return 9 * n**3 + 60 * 4 * n**2 * m
    return m * (kept**3 / 3 + 2 * kept**2)


def timed(act: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of an act, on the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


PARTS = {"growth": growth, "layer": layer, "models": models}


def run(job: dict[str, Any], limit: float) -> dict[str, Any]:
    """Measure a row in its own process."""
    command = [sys.executable, "-m", "benchmarks.speed.post_training", "--job", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {**job, "not_timed": f"it took over {limit:.0f} s"}
    if done.returncode:
        return {**job, "not_timed": done.stderr.strip().splitlines()[-1][:200]}
    return {**job, **json.loads(done.stdout.strip().splitlines()[-1])}


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS / "post_training.json")
    parser.add_argument("--limit", type=float, default=1_800, help="seconds that a row may take")
    parser.add_argument("--only", help="rows whose description holds this text")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        job = json.loads(asked.job)
        found = PARTS[job["part"]](job)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**found, "peak_bytes": peak}))
        return
    results: dict[str, Any] = {"rows": []}
    if asked.output.exists():
        results = json.loads(asked.output.read_text())
    for job in jobs(asked.parts):
        if any(job.items() <= row.items() for row in results["rows"]):
            continue
        if asked.only and asked.only not in json.dumps(job):
            continue
        load = os.getloadavg()[0]
        results["rows"].append({**run(job, asked.limit), "load_average_before": load})
        results["machine"] = machine()
        asked.output.write_text(json.dumps(results, indent=1) + "\n")
    print(text(results["rows"]))


def text(rows: list[dict[str, Any]]) -> str:
    """Return the rows as tables."""
    products = [row for row in rows if row.get("method") == "product" and "seconds" in row]
    rate = products[0]["operations"] / products[0]["seconds"] if products else None
    lines = []
    for part in PARTS:
        mine = [row for row in rows if row["part"] == part]
        if not mine:
            continue
        names = [name for name in ("network", *USUAL, "method") if name in mine[0]]
        head = [*names, "seconds", "CPU s", "peak MiB"]
        if part == "layer":
            head += ["operations", "x matrix product"]
        body = []
        for row in mine:
            cells = [str(row[name]) for name in names]
            if "not_timed" in row:
                body.append([*cells, row["not_timed"], *[""] * (len(head) - len(cells) - 1)])
                continue
            cells += [f"{row['seconds']:.1f}", f"{row['cpu_seconds']:.1f}"]
            cells.append(f"{row['peak_bytes'] / 2**20:,.0f}")
            if part == "layer":
                cells.append(f"{row['operations']:.2g}")
                cells.append(f"{row['seconds'] / row['operations'] * rate:.1f}" if rate else "")
            body.append(cells)
        lines += ["", part, table(head, body, right=range(len(names), len(head)))]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
