"""Latency of exported LiteRT files and of their dense twins, in turns, on this host.

    python -m benchmarks.export.latency [--without-avx] [--rounds N] [--networks NAME ...]

For each network and sparsity the file of `target="latency"` for any CPU, and one in which all
fully-connected weights are stored for the sparse kernel, are timed against the dense file at
batch 1 on one thread. `--without-avx` hides AVX from the LiteRT library (see
sparse_inference.py), where its 128-bit kernels and its sparse inference run, as on ARM.

Prints a table and writes JSON. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.common.paths import RESULTS
from benchmarks.export.networks import NETWORKS, prune
from benchmarks.export.sparse_inference import UNSUPPORTED, build_library
from keras_ntt.core.tables import table
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import storage
from keras_ntt.litert.format.rewrite import rewrite
from keras_ntt.litert.format.weights import weights_of
from keras_ntt.litert.reencode import reencode
from keras_ntt.litert.runtime.benchmark import cpu_class, measure

SPARSITIES = (0.8, 0.9, 0.95, 0.97, 0.99)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--without-avx", action="store_true")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [
            (name, sparsity, kind, *write(Path(folder), name, sparsity, kind))
            for name in options.networks
            for sparsity in options.sparsities
            for kind in ("latency", "direct")
        ]
        if options.without_avx:  # after the converter, which has chosen its kernels
            library = build_library(Path(folder))
            if library is None or ctypes.CDLL(library).hide_avx() != 0:
                return UNSUPPORTED
        rows = [time_file(*file, options) for file in files]
    print(show(rows))
    default = RESULTS / f"export_latency{'_without_avx' * options.without_avx}.json"
    output = options.output or default
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def write(folder: Path, name: str, sparsity: float, kind: str) -> tuple[Path, Path, list[int]]:
    """Write a file and its dense twin."""
    network = prune(NETWORKS[name](), sparsity)
    (content,) = convert(network, [None])
    model = fb.read(content)
    if kind == "latency":
        ours = reencode(model, target="latency").model
    else:
        weights = {(w.subgraph, w.tensor): w for w in weights_of(model) if w.may_be_direct}
        ours = rewrite(model, {key: (w, storage.direct(w)) for key, w in weights.items()})
    paths = [folder / f"{name}-{sparsity}-{kind}-{which}.tflite" for which in ("ours", "dense")]
    for path, data in zip(paths, (fb.write(ours), content), strict=True):
        path.write_bytes(data)
    return paths[0], paths[1], [1, *network.input_shape[1:]]


def time_file(
    name: str, sparsity: float, kind: str, path: Path, dense: Path, shape: list[int], options: Any
) -> dict[str, Any]:
    sample = np.random.default_rng(0).normal(size=shape).astype("float32")
    found = measure(str(path), str(dense), [sample], rounds=options.rounds)
    cpu = f"{cpu_class()}, AVX hidden" if options.without_avx else cpu_class()
    numbers = {**found.to_dict(), "cpu": cpu, "load": os.getloadavg()[0]}
    return {"network": name, "sparsity": sparsity, "file": kind, **numbers}


def show(rows: list[dict[str, Any]]) -> str:
    head = ["network", "zeros", "file", "us", "dense us", "times as fast", "quartiles", "MB"]
    body = [
        [
            row["network"],
            f"{row['sparsity']:.0%}",
            row["file"],
            f"{row['seconds'] * 1e6:.1f}",
            f"{row['dense_seconds'] * 1e6:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            "-" if row["memory"] is None else f"{row['memory'] / 1e6:.1f}",
        ]
        for row in rows
    ]
    loads = max(row["load"] for row in rows)
    title = f"{rows[0]['cpu']}, batch 1, 1 thread, load up to {loads:.1f}"
    return f"{title}\n{table(head, body, right=(1, 3, 4, 5, 6, 7))}"


if __name__ == "__main__":
    sys.exit(main())
