"""How the cost of a step of Neural Tangent Transfer grows: outputs, batch, width and depth.

Times our step on a small convolutional network (16x16x3 inputs, `depth` convolutions of 3x3 with
`width` channels and padding, the mean over the pixels, one dense layer), changing one number at a
time, and fits exponents: least squares of log seconds by log number over the upper half of the
range. The memory of a step is the estimate from its graph.

    python -m benchmarks.speed.growth [--sweeps NAME ...] [--repeats N] [--output FILE]

Writes JSON, and a plot for each number next to it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import matplotlib as mpl
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.common.networks import SETTINGS, SPARSITY
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine

mpl.use("agg")
from matplotlib import pyplot

MEMORY_LIMIT = 3 * 2**30  # by the estimate; larger points are left out
TIME_LIMIT = 15.0  # seconds a step; points that would take longer by the trend are left out
STEEPEST = 2.0  # exponent that a trend is taken to have at most: two points can deceive
FEW_ABOVE = 1.5  # seconds a step; longer ones are repeated twice only
SIDE = 16


class Case(NamedTuple):
    """A network, a batch and how many combinations stand for the outputs; None: no combinations."""

    outputs: int = 10
    batch: int = 32
    width: int = 16
    depth: int = 3
    projections: int | None = None


class Series(NamedTuple):
    """Points in which one number changes.

    Attributes:
        name: What the series is called in the plot.
        cases: The points, in growing order.
    """

    name: str
    cases: tuple[Case, ...]


def _cases(changed: str, values: Sequence[int], **fixed: Any) -> tuple[Case, ...]:
    return tuple(Case(**{**fixed, changed: value}) for value in values)


SWEEPS = {
    "outputs": (
        Series("all outputs", _cases("outputs", (1, 3, 10, 30, 100, 300, 1000))),
        Series(
            "8 random combinations",
            _cases("outputs", (1, 3, 10, 30, 100, 300, 1000), projections=8),
        ),
    ),
    "batch": (Series("10 outputs", _cases("batch", (8, 16, 32, 64, 128, 256))),),
    "width": (Series("10 outputs", _cases("width", (8, 16, 32, 64, 128))),),
    "depth": (Series("10 outputs", _cases("depth", (1, 2, 4, 8, 16))),),
}


def build(case: Case) -> keras.Model:
    """Return the network of a case."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = inputs
    for _ in range(case.depth):
        x = keras.layers.Conv2D(case.width, 3, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(case.outputs)(x))


def measure(case: Case, repeats: int) -> dict[str, Any] | None:
    """Time a case.

    Args:
        case: What to time.
        repeats: Number of steps after the first.

    Returns:
        Seconds of the steps and of the first with its compilation, and the estimate of the memory;
        None if that is over the limit.
    """
    keras.backend.clear_session()
    shape = (case.batch, SIDE, SIDE, 3)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    transfer = keras_ntt.NeuralTangentTransfer(
        build(case),
        pruning_schedule=SPARSITY,
        ntk_weight=SETTINGS["ntk_weight"],
        l2=SETTINGS["l2"],
        output_projections=case.projections,
        seed=0,
    )
    memory = transfer.estimate_memory(x)
    if memory > MEMORY_LIMIT:
        return None
    transfer.compile(keras.optimizers.Adam(SETTINGS["learning_rate"]))
    data = tf.data.Dataset.from_tensors(x)
    begin = time.perf_counter()
    transfer.fit(data, verbose=0)
    first = time.perf_counter() - begin
    iterator = iter(data.repeat())
    seconds = []
    for i in range(repeats + 1):
        begin = time.perf_counter()
        transfer.train_function(iterator)
        if i:  # the first is to warm up
            seconds.append(time.perf_counter() - begin)
        if i >= 2 and seconds[-1] > FEW_ABOVE:
            break
    return {
        **case._asdict(),
        "median_seconds": statistics.median(seconds),
        "seconds": seconds,
        "first_call_seconds": first,
        "estimated_bytes": memory,
    }


def sweep(changed: str, series: Series, repeats: int) -> dict[str, Any]:
    """Time the cases of a series until one takes too much time or memory.

    Args:
        changed: The number that changes.
        series: The cases.
        repeats: Number of steps of each.

    Returns:
        The points, why others were left out, and the fitted exponents.
    """
    points: list[dict[str, Any]] = []
    left_out = None
    for case in series.cases:
        value = getattr(case, changed)
        if expected(changed, points, value) > TIME_LIMIT:
            left_out = f"{value} and more: a step would take over {TIME_LIMIT:.0f} s"
            break
        point = measure(case, repeats)
        if point is None:
            left_out = f"{value} and more: over {MEMORY_LIMIT / 2**30:.0f} GiB by the estimate"
            break
        points.append(point)
        median = point["median_seconds"]
        print(f"{changed}, {series.name}: {value:5d} {1000 * median:10.2f} ms", flush=True)
    values = [p[changed] for p in points]
    return {
        "series": series.name,
        "points": points,
        "left_out": left_out,
        "exponent_of_seconds": fit_exponent(values, [p["median_seconds"] for p in points]),
        "exponent_of_bytes": fit_exponent(values, [p["estimated_bytes"] for p in points]),
    }


def expected(changed: str, points: Sequence[dict[str, Any]], value: int) -> float:
    """Return the seconds of a step to expect, by the trend of the last two points."""
    if len(points) < 2:
        return 0.0
    fit = fit_exponent(
        [p[changed] for p in points[-2:]], [p["median_seconds"] for p in points[-2:]]
    )
    assert fit is not None
    last = points[-1]
    return last["median_seconds"] * (value / last[changed]) ** min(fit["exponent"], STEEPEST)


def fit_exponent(values: Sequence[float], costs: Sequence[float]) -> dict[str, Any] | None:
    """Fit ``cost = a * value ** exponent`` to the upper half of the points.

    Args:
        values: The numbers, growing.
        costs: What they cost.

    Returns:
        The exponent, its factor a, and the first and last number that were used; None for fewer
        than two points.

    >>> fit = fit_exponent([1, 2, 4, 8], [9.0, 9.0, 32.0, 128.0])
    >>> round(fit["exponent"], 6), fit["from"], fit["to"]
    (2.0, 4, 8)
    """
    if len(values) < 2:
        return None
    start = min(len(values) // 2, len(values) - 2)
    x, y = np.log(values[start:]), np.log(costs[start:])
    exponent, constant = np.polyfit(x, y, 1)
    return {
        "exponent": float(exponent),
        "factor": float(np.exp(constant)),
        "from": values[start],
        "to": values[-1],
    }


def plot(changed: str, found: list[dict[str, Any]], path: Path) -> None:
    """Draw the points of a sweep and the fitted lines, to be read without colour."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    looks = (("o", "black", "-"), ("s", "0.45", "--"))
    sayings = []
    for (marker, colour, line), one in zip(looks, found, strict=False):
        values = [p[changed] for p in one["points"]]
        costs = [1000 * p["median_seconds"] for p in one["points"]]
        axes.plot(values, costs, marker, color=colour, label=one["series"])
        fit = one["exponent_of_seconds"]
        if fit is None:
            continue
        ends = np.array([fit["from"], fit["to"]], float)
        exponent = round(fit["exponent"], 2) + 0.0  # no -0.00
        label = f"fit: {changed}$^{{{exponent:.2f}}}$"
        axes.plot(
            ends, 1000 * fit["factor"] * ends ** fit["exponent"], line, color=colour, label=label
        )
        sayings.append(
            f"{changed}^{exponent:.2f}" + (f" ({one['series']})" if len(found) > 1 else "")
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [getattr(case, changed) for case in SWEEPS[changed][0].cases]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel(
        {"batch": "samples in a batch", "width": "channels", "depth": "convolutions"}.get(
            changed, changed
        )
    )
    axes.set_ylabel("milliseconds a step")
    axes.set_title("A step's time grows as " + "\nand ".join(sayings), fontsize=10)
    axes.legend()
    axes.grid(color="0.9")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each point")
    parser.add_argument("--output", type=Path, default=RESULTS / "growth.json")
    chosen = parser.parse_args(given)
    if chosen.repeats < 1:
        parser.error("--repeats must be at least 1")
    return chosen


def main() -> None:
    """Measure, print, write and draw."""
    chosen = arguments()
    tf.get_logger().setLevel("ERROR")  # each point is traced again, on purpose
    report: dict[str, Any] = {"machine": machine(), "repeats": chosen.repeats, "sweeps": {}}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    for changed in chosen.sweeps:
        found = [sweep(changed, series, chosen.repeats) for series in SWEEPS[changed]]
        report["sweeps"][changed] = found
        for one in found:
            seconds, size = one["exponent_of_seconds"], one["exponent_of_bytes"]
            if seconds is not None:
                print(
                    f"  {changed}, {one['series']}: seconds ~ {changed}^{seconds['exponent']:.2f}, "
                    f"bytes ~ {changed}^{size['exponent']:.2f}, from {seconds['from']} to "
                    f"{seconds['to']}"
                    + (f"; left out {one['left_out']}" if one["left_out"] else "")
                )
        plot(changed, found, chosen.output.with_name(f"{chosen.output.stem}_{changed}.png"))
        chosen.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"Written: {chosen.output}")


if __name__ == "__main__":
    main()
