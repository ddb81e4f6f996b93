"""The loss of the reproduction's transfers as they went: a table and a picture."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accuracy.accuracies import cell, markdown, method_of
from benchmarks.accuracy.experiment import NETWORKS, TRANSFERS, Run
from keras_ntt.plots.style import BLACK, COLOURS, add_title, drawing

MEASURES = {
    "loss": "loss",
    "ntk_distance": "kernel distance",
    "output_distance": "output distance",
}
DASHES = {"ntt-all": "-", "ntt-kept": "--"}
SHARES = {"layerwise": "every layer alike", "global": "one threshold"}


class Part(NamedTuple):
    """Means over consecutive steps of a transfer, from `start` to before `stop`."""

    start: int
    stop: int
    means: dict[str, float]


def parts(curve: Sequence[dict[str, Any]], epoch: float) -> list[Part]:
    """Return the means between the rows of a curve.

    Args:
        curve: Rows of running means, which begin anew with each epoch, and the ``step`` that each
            was taken after.
        epoch: Steps of an epoch.

    Returns:
        A part for each row, from the row before or the beginning of the epoch.
    """
    found, before = [], None
    for row in curve:
        begin = round((row["step"] - 1) // epoch * epoch)
        if before is None or before["step"] <= begin:
            before = {"step": begin, **dict.fromkeys(MEASURES, 0.0)}
        start, stop = before["step"], row["step"]
        sums = {
            name: (stop - begin) * row[name] - (start - begin) * before[name] for name in MEASURES
        }
        found.append(Part(start, stop, {name: sums[name] / (stop - start) for name in MEASURES}))
        before = row
    return found


def losses(runs: Sequence[dict[str, Any]]) -> str:
    """Return how far the loss and its distances fell, as mean ± standard deviation over seeds.

    Args:
        runs: The contents of the files of the runs, of which those on test images without a
            pattern are taken. A transfer that several have trained counts once.

    Returns:
        A heading and a Markdown table of the means over the first and the last part of the curves;
        nothing if there is no transfer.
    """
    rows: dict[tuple[Any, ...], list[list[float]]] = {}
    for run, transfer in _transfers(runs):
        key = (run.network, -run.density, run.allocation, method_of(vars(run)), transfer["steps"])
        curve = parts(transfer["curve"], transfer["steps"] / run.transfer_epochs)
        ends = [curve[i].means[name] for name in MEASURES for i in (0, -1)]
        rows.setdefault(key, []).append(ends)
    if not rows:
        return ""
    head = ["network", "density", "allocation", "method", "steps", "seeds"]
    head += [f"{name}, {when}" for name in MEASURES.values() for when in ("first", "last")]
    lines = []
    for (network, density, allocation, method, steps), values in sorted(rows.items()):
        words = [network, f"{-density:.4g}", allocation, method, str(steps), str(len(values))]
        lines.append(words + [_three_digits(column) for column in zip(*values, strict=True)])
    table = markdown(head, lines, ("network", "allocation", "method"))
    return f"\n### Losses of the transfers\n\n{table}\n"


def draw(runs: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw the losses, a panel for each network and allocation, means over the seeds.

    Args:
        runs: As for `losses`; of those, the ones with the published settings.
        path: The picture to write.

    Returns:
        Whether there was something to draw.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    lines: dict[tuple[Any, ...], list[list[float]]] = {}
    for run, transfer in _transfers(runs):
        if method_of(vars(run)) in DASHES and run.allocation in SHARES:
            curve = parts(transfer["curve"], transfer["steps"] / run.transfer_epochs)
            middles = tuple((part.start + part.stop) / 2 for part in curve)
            key = (run.network, run.allocation, run.density, run.method, middles)
            lines.setdefault(key, []).append([part.means["loss"] for part in curve])
    if not lines:
        return False
    panels = sorted(
        {key[:2] for key in lines},
        key=lambda panel: (list(NETWORKS).index(panel[0]), list(SHARES).index(panel[1])),
    )
    densities = sorted({density for _, _, density, *_ in lines}, reverse=True)
    colours = dict(zip(densities, itertools.cycle(COLOURS), strict=False))
    rows = math.ceil(len(panels) / 2)
    with drawing(columns=2, rows=rows, size=(9.0, 3.1 * rows + 0.8)) as (figure, axes):
        axis_of = dict(zip(panels, axes, strict=False))
        for (network, allocation, density, method, middles), curves in lines.items():
            means = [statistics.mean(column) for column in zip(*curves, strict=True)]
            ax = axis_of[network, allocation]
            ax.plot(middles, means, DASHES[method], color=colours[density])
        for (network, allocation), ax in axis_of.items():
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
            ax.set_xlabel("steps, without labels")
            ax.set_ylabel("loss of the transfer")
            add_title(ax, f"{network}, {SHARES[allocation]}", False)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for density, colour in colours.items():
            axes[0].plot([], [], color=colour, label=f"{density:.0%} of the weights")
        for method, dash in DASHES.items():
            axes[0].plot([], [], dash, color=BLACK, label=method)
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(path, dpi=100, metadata={"Software": None})
    return True


def _transfers(runs: Sequence[dict[str, Any]]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Yield the transfers on test images without a pattern, each once."""
    seen = set()
    for result in runs:
        run = Run(**result["settings"])
        plain = run.split == "test" and run.pattern == "none"
        if run.method in TRANSFERS and plain and run.finding not in seen:
            seen.add(run.finding)
            yield run, result["transfer"]


def _three_digits(values: Sequence[float]) -> str:
    mean = abs(statistics.mean(values))
    return cell(values, max(0, 2 - math.floor(math.log10(mean))) if mean else 1)
