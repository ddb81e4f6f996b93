"""A long transfer: memory does not grow, and no step is traced again."""

from __future__ import annotations

import argparse
import gc
import json
import pathlib
import time
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

import keras_ntt
from benchmarks.common.paths import RESULTS
from benchmarks.common.processes import resident_memory
from benchmarks.common.table import machine

BATCH, BATCHES = 16, 50
GROWTH = 8 * 2**20
"""Bytes that the process may grow by over the last three quarters of a run, whatever its length."""


def main() -> None:
    """Run the transfer, write what was measured, and fail if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "soak_long_run.json")
    options = parser.parse_args()
    found = measure(options.steps)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print(
        f"{found['steps']} steps in {found['seconds']:.0f} s, traced {found['traces'][-1]} times, "
        f"grown by {found['growth'] / 2**20:.1f} MiB since a quarter of them"
    )
    check(found)


def measure(steps: int) -> dict[str, Any]:
    """Take steps of a transfer on a small MLP, and watch memory and traces by the epoch.

    Args:
        steps: How many, at least; epochs are of 50 steps and a smaller batch at their end.

    Returns:
        Seconds, resident sizes in bytes and numbers of traces at the end of each epoch.
    """
    keras.utils.set_random_seed(0)
    student = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(5)]
    )
    transfer = keras_ntt.NeuralTangentTransfer(
        student, pruning_schedule=keras_ntt.NTTSchedule(0.9, frequency=10), seed=0
    )
    transfer.compile(keras.optimizers.Adam(5e-4))
    x = np.random.default_rng(0).standard_normal((BATCH * BATCHES - 3, 20)).astype("float32")
    watch = _Watch()
    begin = time.perf_counter()
    epochs = -(-steps // BATCHES)
    transfer.fit(x, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[watch])
    quarter = watch.memory[len(watch.memory) // 4]
    return {
        "steps": transfer.step,
        "seconds": time.perf_counter() - begin,
        "memory_bytes": watch.memory,
        "growth": watch.memory[-1] - quarter,
        "traces": watch.traces,
        "sparsity": keras_ntt.sparsity_report(student).sparsity,
    }


def check(found: dict[str, Any]) -> None:
    """Raise an AssertionError if memory or the number of traces grew."""
    first, last = found["traces"][0], found["traces"][-1]
    assert first == last > 0, f"traced {first} times in the first epoch, {last} in the end"
    assert found["growth"] < GROWTH, f"grown by {found['growth']} bytes"


class _Watch(keras.callbacks.Callback):
    """Notes memory and traces when an epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[int] = []
        self.traces: list[int] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        gc.collect()
        self.memory.append(resident_memory("self"))
        self.traces.append(traces(self.model.train_function))


def traces(function: Any) -> int:
    """Return how often TensorFlow traced the compiled functions behind a function of Python."""
    found = {id(f): f for f in _compiled(function, set())}
    return sum(f.experimental_get_tracing_count() for f in found.values())


def _compiled(function: Any, seen: set[int]) -> Iterator[Any]:
    """Yield the functions of TensorFlow that a function refers to."""
    if id(function) in seen:
        return
    seen.add(id(function))
    if hasattr(function, "experimental_get_tracing_count"):
        yield function
    inner = getattr(function, "python_function", None) or function
    for cell in getattr(inner, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        python = isinstance(content, types.FunctionType)
        if python or hasattr(content, "experimental_get_tracing_count"):
            yield from _compiled(content, seen)


if __name__ == "__main__":
    main()
