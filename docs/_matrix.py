"""Figures of the page of results: one matrix a job, network and sparsity by method.

The best mean of a row is bold, and so is what lies within its standard deviation. Each cell is the
mean over seeds; the page says how many there are.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from _tables import missing, read, table

FIRST = (
    "dense",
    "balanced",
    "erk-random",
    "random",
    "magnitude",
    "synflow",
    "ntk-sap",
    "ntt-all",
    "ntt-balanced",
    "snip",
    "rigl",
    "set",
    "granet",
    "gradual",
)
NAMES = {
    "resnet8": "ResNet-8, CIFAR-10",
    "mobilenet": "MobileNetV1 0.25, CIFAR-10",
    "ds_cnn": "DS-CNN, spoken digits",
    "lenet": "LeNet-300-100, Fashion-MNIST",
}
Cells = dict[tuple[str, ...], dict[str, list[float]]]


def from_scratch(results: Path) -> str:
    """Return the accuracy of networks that are trained after or while they are pruned."""
    runs = read(results / "reproduce.json")
    if not runs:
        return missing("benchmarks.accuracy.reproduce")
    cells: Cells = {}
    dense: dict[str, list[float]] = {}
    for run in runs:
        what, accuracy = run["settings"], 100 * run["accuracy"][-1]
        if what["split"] != "test" or what["label_fraction"] < 1 or what["pattern"] != "none":
            continue
        if what["method"] == "dense":
            dense.setdefault(what["network"], []).append(accuracy)
            continue
        row = (what["network"], what["allocation"], f"{1 - what['density']:.1%}")
        cells.setdefault(row, {}).setdefault(what["method"], []).append(accuracy)
    for row, found in cells.items():
        found["dense"] = dense.get(row[0], [])
    order = sorted(cells, key=lambda row: (row[0], row[1], float(row[2][:-1])))
    return _matrix({row: cells[row] for row in order}, ("network", "allocation", "zeros"))


def trained(results: Path) -> str:
    """Return the accuracy of trained networks that were pruned, with labels and without."""
    found = read(results / "trained.json")
    if found is None:
        return missing("benchmarks.accuracy.trained")
    cells: Cells = {}
    for row in found["rows"]:
        if row["part"] != "test":
            continue
        network = NAMES[row.get("network", "resnet8")]
        zeros = row.get("pattern") or f"{row['sparsity']:.0%}"
        name = "labels" if row["method"] == "labels" else f"no labels, {row['method']}"
        name += f" {row['recovery']}" if row["recovery"] not in ("", "labels") else ""
        cell = cells.setdefault((network, zeros, f"{row['steps']:,}"), {})
        cell.setdefault(f"{name}, {row['images']:,}", []).append(100 * row["accuracy"])
        if "dense_test" in found and network == NAMES["resnet8"]:
            cell["dense"] = [100 * found["dense_test"]]
    order = sorted(cells, key=lambda row: (row[0], row[1], int(row[2].replace(",", ""))))
    seeds = max(len(x) for row in cells.values() for x in row.values())
    shown = _matrix({row: cells[row] for row in order}, ("network", "zeros", "steps"))
    return f"{shown}\n\nSeeds: {seeds}. The last number of a title is that of the images."


def channels(results: Path) -> str:
    """Return the accuracy of trained networks without some of their channels."""
    found = read(results / "channels.json")
    if found is None:
        return missing("benchmarks.accuracy.channels")
    cells: Cells = {}
    for row in found["rows"]:
        if row["part"] == "test" and row["method"] != "dense":
            removed = "" if row["flops"] is None else f"{row['flops']:.0%}"
            where = (row["network"], removed, f"{row['images']:,}")
            cells.setdefault(where, {}).setdefault(row["method"], []).append(100 * row["accuracy"])
    return _matrix(dict(sorted(cells.items())), ("network", "multiply-adds removed", "images"))


def _matrix(cells: Mapping[tuple[str, ...], Mapping[str, list[float]]], head: Iterable[str]) -> str:
    """Return rows of cells as a table, with the best of each row in bold."""
    names = list(dict.fromkeys(name for row in cells.values() for name, x in row.items() if x))
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    body = []
    for row, found in cells.items():
        sparse = {name: x for name, x in found.items() if x and name != "dense"}
        best = max(sparse.values(), key=statistics.mean)
        least = statistics.mean(best) - (statistics.stdev(best) if len(best) > 1 else 0)
        body.append([*row, *(_cell(found.get(name, []), name, least) for name in names)])
    head = [*head, *names]
    return table(head, body, right=range(len(head) - len(names), len(head)))


def _cell(values: list[float], name: str, least: float) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.1f}"
    return f"**{mean}**" if name != "dense" and statistics.mean(values) >= least else mean
