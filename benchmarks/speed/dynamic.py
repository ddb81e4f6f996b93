"""Time training steps with RigL and SET, and steps with fixed masks.

    python -m benchmarks.speed.dynamic [--rounds N] [--steps N] [--output FILE]

LeNet-300-100 and LeNet-5 at 95 % zeros, batches of 128, Adam, the callbacks' own settings. Each
round trains each network for the same number of steps, in turns. Prints the medians of a step, and
the ratios to held masks of the same round, and writes JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_ntt
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from benchmarks.common.timing import Contestant, ratio_by_round, run_rounds
from keras_ntt.core.tables import table

BATCH, SPARSITY, FOREVER = 128, 0.95, 10**9
HELD = "held"
METHODS: dict[str, Any] = {HELD: None, "RigL": keras_ntt.RigL, "SET": keras_ntt.SET}


def mlp() -> keras.Model:
    """Return LeNet-300-100."""
    dense = keras.layers.Dense
    parts = [dense(300, "relu"), dense(100, "relu"), dense(10)]
    return keras.Sequential([keras.Input((784,)), *parts])


def cnn() -> keras.Model:
    """Return LeNet-5 of Caffe."""
    layers = keras.layers
    parts = [layers.Conv2D(20, 5), layers.MaxPooling2D(), layers.Conv2D(50, 5)]
    parts += [layers.MaxPooling2D(), layers.Flatten(), layers.Dense(500, "relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *parts])


NETWORKS = {"LeNet-300-100": mlp, "LeNet-5": cnn}


class Training:
    """A network in training with a method.

    Args:
        make: Makes the network.
        method: A callback's class, or None.
        steps: Steps of each repetition.
    """

    def __init__(self, make: Any, method: Any, steps: int):
        keras.utils.set_random_seed(0)
        self.model = keras_ntt.prune_at_init(
            make(), sparsity=SPARSITY, saliency="random", allocation="erk"
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile("adam", loss, jit_compile=False)
        rng = np.random.default_rng(0)
        shape = (steps * BATCH, *self.model.input_shape[1:])
        self.x, self.y = rng.normal(size=shape).astype("float32"), rng.integers(0, 10, shape[0])
        self.callbacks = [] if method is None else [method(end_step=FOREVER)]
        self.steps = steps

    def seconds(self, repeats: int) -> list[float]:
        """Return the seconds of a step, for some repetitions."""
        clock = Clock()
        for _ in range(repeats):
            fit = functools.partial(self.model.fit, self.x, self.y, batch_size=BATCH, epochs=2)
            fit(verbose=0, callbacks=[*self.callbacks, clock])
        return [epoch / self.steps for epoch in clock.epochs]


class Clock(keras.callbacks.Callback):
    """Times each epoch but the first of a run, in which the step is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start."""
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop."""
        if epoch:
            self.epochs.append(time.perf_counter() - self._begin)


def main() -> None:
    """Time all networks, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path, default=RESULTS / "dynamic.json")
    asked = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "steps": asked.steps, "networks": {}}
    rows = []
    for name, make in NETWORKS.items():
        contestants = {
            method: Contestant(Training(make, callback, asked.steps).seconds)
            for method, callback in METHODS.items()
        }
        run_rounds(contestants, asked.rounds)
        report["networks"][name] = {}
        for method, contestant in contestants.items():
            ratios = ratio_by_round(contestant, contestants[HELD])
            report["networks"][name][method] = {**contestant.report(), "ratios": ratios}
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            rows.append((name, method, f"{1e3 * contestant.median:.2f}", spread))
    print(table(("network", "masks", "ms a step", "ratio to held"), rows, right=range(2, 4)))
    asked.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
