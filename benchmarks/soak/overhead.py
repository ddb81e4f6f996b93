"""What masks add to a training step of LeNet-5-Caffe: steps with and without them, in turns."""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.common import networks
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine

BATCH = 64


def main() -> None:
    """Time the three kinds of models, print and write what they take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=25, help="steps of each kind a round")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "soak_overhead.json")
    options = parser.parse_args()
    found = measure(options.rounds, options.steps)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    for name, figures in found["kinds"].items():
        print(
            f"{name:20}{1e3 * figures['median_seconds']:8.2f} ms a step"
            f"{100 * figures['added']:+7.1f} %  quartiles of the rounds "
            f"{100 * figures['quartiles'][0]:+.1f} to {100 * figures['quartiles'][1]:+.1f} %"
        )


def measure(rounds: int, steps: int) -> dict[str, Any]:
    """Time training steps of a dense model, one with masks and one that is pruned by a schedule.

    Args:
        rounds: How often they take turns.
        steps: Steps of each in a round.

    Returns:
        For each kind the median seconds of a step, what it takes more than the dense one (the
        median over the rounds, each compared within itself), and the quartiles of that.
    """
    makers = {"dense": _dense, "masks": _masked, "prune_low_magnitude": _scheduled}
    run = {name: _training(make()) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for one in run.values():
        one(10)  # to warm up
    for i in range(rounds):
        names = list(run)
        for name in names[i % 3 :] + names[: i % 3]:
            begin = time.perf_counter()
            run[name](steps)
            seconds[name].append((time.perf_counter() - begin) / steps)
    kinds = {}
    for name, own in seconds.items():
        added = [a / b - 1 for a, b in zip(own, seconds["dense"], strict=True)]
        kinds[name] = {
            "median_seconds": statistics.median(own),
            "added": statistics.median(added),
            "quartiles": [float(q) for q in np.quantile(added, [0.25, 0.75])],
            "seconds": own,
        }
    return {"network": "lenet-5-caffe", "batch": BATCH, "steps_a_round": steps, "kinds": kinds}


def _dense() -> keras.Model:
    return networks.build(networks.NETWORKS["lenet-5-caffe"])


def _masked() -> keras.Model:
    return keras_ntt.prune_at_init(_dense(), sparsity=0.97, saliency="magnitude")


def _scheduled() -> keras.Model:
    # Masks are updated every 100 steps, as in tfmot.
    return keras_ntt.prune_low_magnitude(_dense(), keras_ntt.ConstantSparsity(0.97, 0))


def _training(model: keras.Model) -> Callable[[int], None]:
    """Return a function that takes compiled training steps, as `fit` does."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    chance = np.random.default_rng(0)
    x = chance.standard_normal((BATCH, *model.input_shape[1:])).astype("float32")
    data = tf.data.Dataset.from_tensors((x, chance.integers(0, 10, BATCH))).repeat()
    batches = iter(data)
    model.make_train_function()

    def run(steps: int) -> None:
        for _ in range(steps):
            logs = model.train_function(batches)
        float(logs["loss"])

    return run


if __name__ == "__main__":
    main()
