"""What each way to compare kernels of many outputs costs, and how close it comes.

    python -m benchmarks.speed.outputs [--steps N] [--output FILE]

One network of 100 outputs is transferred with all outputs, with some numbers of random
combinations, and with the trace. All take the same steps of the same batches. Then the distance of
the whole kernels, all outputs with all, is taken on inputs that none of them has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from benchmarks.speed.growth import SIDE, Case, build
from keras_ntt.core.tables import table

CASE, SPARSITY = Case(outputs=100), 0.9
WAYS: dict[str, dict[str, Any]] = {
    "all outputs": {},
    "32 combinations": {"output_projections": 32},
    "8 combinations": {"output_projections": 8},
    "2 combinations": {"output_projections": 2},
    "trace": {"outputs": "trace"},
}


def measure(settings: dict[str, Any], x: np.ndarray, unseen: np.ndarray) -> dict[str, Any]:
    """Transfer a network and compare it with the dense one.

    Args:
        settings: Of the transfer: how outputs are compared.
        x: A batch a step.
        unseen: Other inputs.

    Returns:
        Median seconds of a step, and the distances of all kernels and of the outputs on `unseen`.
    """
    student, teacher = build(CASE), build(CASE)
    transfer = keras_ntt.NeuralTangentTransfer(
        student, pruning_schedule=SPARSITY, wrt="kept", ntk_weight=10.0, seed=0, **settings
    )
    transfer.compile(keras.optimizers.Adam(2e-3))
    seconds = _Seconds()
    transfer.fit(
        x.reshape(-1, SIDE, SIDE, 3),
        batch_size=CASE.batch,
        shuffle=False,
        verbose=0,
        callbacks=[seconds],
    )
    loss = keras_ntt.ntt_loss(student, teacher, unseen, sparsity=SPARSITY, wrt="kept")
    return {
        "median_seconds": statistics.median(seconds.each[5:]),
        "ntk_distance": float(loss.ntk_distance),
        "output_distance": float(loss.output_distance),
    }


class _Seconds(keras.callbacks.Callback):
    """Notes how long each step takes."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.each.append(time.perf_counter() - self._begun)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULTS / "outputs.json")
    options = parser.parse_args()
    tf.get_logger().setLevel("ERROR")
    chance = np.random.default_rng(0)
    shape = (CASE.batch, SIDE, SIDE, 3)
    x = chance.standard_normal((options.steps, *shape)).astype("float32")
    unseen = chance.standard_normal(shape).astype("float32")
    before = {"median_seconds": None, **untransferred(unseen)}
    found = {"magnitude, no transfer": before}
    found |= {name: measure(settings, x, unseen) for name, settings in WAYS.items()}
    body = [
        [
            name,
            "" if one["median_seconds"] is None else f"{1000 * one['median_seconds']:.1f}",
            f"{one['ntk_distance'] / before['ntk_distance']:.3f}",
            f"{one['output_distance'] / before['output_distance']:.3f}",
        ]
        for name, one in found.items()
    ]
    head = ["", "ms a step", "kernel distance", "output distance"]
    print(table(head, body, right=(1, 2, 3)))
    content = {"machine": machine(), "steps": options.steps, "ways": found}
    options.output.write_text(json.dumps(content, indent=1) + "\n")


def untransferred(unseen: np.ndarray) -> dict[str, float]:
    """Return the distances of a network pruned by magnitude, where a transfer begins."""
    sparse = keras_ntt.prune_at_init(
        build(CASE), sparsity=SPARSITY, saliency="magnitude", allocation="layerwise"
    )
    loss = keras_ntt.ntt_loss(sparse, build(CASE), unseen, sparsity=SPARSITY, wrt="kept")
    return {
        "ntk_distance": float(loss.ntk_distance),
        "output_distance": float(loss.output_distance),
    }


if __name__ == "__main__":
    main()
