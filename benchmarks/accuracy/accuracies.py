"""Tables of the reproduction's runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.experiment import NETWORKS

SHOWN_EPOCHS = (1, 2, 5, 10, 20, 50, 100)
PUBLISHED = {"learning_rate": 5e-4, "ntk_weight": 1e-3}
SAME = ("dataset", "network", "split", "label_fraction", "epochs")


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the results of all finished runs."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def tables(runs: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown: accuracy in per cent, mean ± standard deviation.

    Args:
        runs: The contents of the files of the runs.

    Returns:
        A heading and a table for each dataset, network and way to train.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run["settings"][s] for s in SAME), []).append(run)
    parts = []
    for group, members in sorted(groups.items(), key=lambda item: (*item[0][:3], -item[0][3])):
        values = dict(zip(SAME, group, strict=True))
        few = f", {values['label_fraction']:.0%} of the labels" * (values["label_fraction"] < 1)
        tuned = f", {values['split']} images" * (values["split"] != "test")
        parts.append(f"### {values['network']} on {values['dataset']}{few}{tuned}")
        parts.append(_table(members, values["epochs"]))
    environments = {json.dumps(run["environment"], sort_keys=True) for run in runs}
    for one in sorted(environments):
        parts.append("*" + ", ".join(f"{k} {v}" for k, v in json.loads(one).items()) + "*")
    return "\n\n".join(parts) + "\n"


def insert(text: str, report: Path | None) -> str:
    """Return a report with its tables replaced.

    Args:
        text: The tables.
        report: A Markdown file with two lines ``<!-- tables -->``, or None.

    Returns:
        The report, with the tables between those lines, or the tables alone.

    Raises:
        ValueError: If the file does not have the two lines.
    """
    if report is None:
        return text
    mark = "<!-- tables -->\n"
    parts = report.read_text().split(mark)
    if len(parts) != 3:
        raise ValueError(f"The report needs two lines {mark.strip()}. Received: {report}")
    return f"{parts[0]}{mark}\n{text}\n{mark}{parts[2]}"


def _table(members: list[dict[str, Any]], epochs: int) -> str:
    shown = [epoch for epoch in SHOWN_EPOCHS if epoch <= epochs]
    rows: dict[tuple[Any, ...], list[list[float]]] = {}
    for member in members:
        s = member["settings"]
        shared = s["allocation"] if s["pattern"] == "none" else s["pattern"]
        key = (-s["density"], shared, method_of(s), s["transfer_epochs"] or "")
        rows.setdefault(key, []).append(member["accuracy"])
    order = sorted(rows, key=lambda key: (*key[:2], -statistics.mean(a[-1] for a in rows[key])))
    head = ["density", "allocation", "method", "transfer epochs", "seeds"]
    head += [f"epoch {epoch}" for epoch in shown]
    lines = []
    for key in order:
        found = [cell([100 * accuracy[e - 1] for accuracy in rows[key]]) for e in shown]
        lines.append([f"{-key[0]:.4g}", *map(str, key[1:]), str(len(rows[key])), *found])
    return markdown(head, lines, ("allocation", "method"))


def method_of(settings: Mapping[str, Any]) -> str:
    """Return a method's name, and settings: of a transfer if not published, of moving masks."""
    published = {**PUBLISHED, "l2": NETWORKS[settings["network"]]["l2"]}
    names = {"learning_rate": "Adam", "ntk_weight": "kernel weight", "l2": "L2"}
    other = [
        f"{names[key]} {settings[key]:g}"
        for key, value in published.items()
        if settings["transfer_epochs"] and settings[key] != value
    ]
    if settings.get("frequency"):
        share = settings["drop_fraction"]
        other += [f"{share:.0%}"] * bool(share)
        other += [f"every {settings['frequency']}"]
        other += [f"{settings['begin']:.0%} to {settings['end']:.0%}"]
    return settings["method"] + (f" ({', '.join(other)})" if other else "")


def cell(values: Sequence[float], decimals: int = 1) -> str:
    """Return a mean, and of several values the standard deviation.

    >>> cell([1.0]), cell([1.0, 2.0, 3.0], 0)
    ('1.0', '2 ± 1')
    """
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{spread}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str]) -> str:
    """Return a table in Markdown, in which the named columns of words stand on the left."""
    below = ["---" if name in words else "---:" for name in head]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, below, *rows))
