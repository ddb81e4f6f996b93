"""Plot size and latency of exported files against sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_ntt.core.checks import is_number
from keras_ntt.litert.report import ExportReport
from keras_ntt.litert.runtime.benchmark import Benchmark
from keras_ntt.plots.curves import density_axis
from keras_ntt.plots.style import add_legend, add_title, drawing, percent, styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Levels = Mapping[float, Any]


def size_by_sparsity(
    reports: Levels | Mapping[str, Levels],
    *,
    packed: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the size of exported files against sparsity.

    Args:
        reports: A mapping from sparsity to the result of `keras_ntt.export_tflite`, or to a number
            of bytes; or several such mappings by name. For reports, the dense float32 file and the
            entropy limit of the first series are also drawn.
        packed: Whether to draw sizes after gzip; then the limit is left out.
        title: The title; None says how many times smaller than dense the smallest file is.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there is nothing to draw, or a sparsity is outside [0, 1).
    """
    series = _series(reports, "the file")
    kind = "gzip" if packed else "raw"
    sizes = {
        name: {s: _bytes(value, kind) for s, value in row.items()} for name, row in series.items()
    }
    first = next(iter(series.values()))
    extra: dict[str, dict[float, float]] = {}
    if all(isinstance(report, ExportReport) for report in first.values()):
        extra["dense float32"] = {
            s: float(r.dense.gzip if packed else r.dense.raw) for s, r in first.items()
        }
        if not packed:
            whose = "" if len(series) == 1 else f", {next(iter(series))}"
            extra[f"entropy limit{whose}"] = {s: r.limit for s, r in first.items()}
    styles = styles_of(sizes)
    drawn: list[tuple[str, Any]] = []
    with drawing(ax) as (figure, (axes,)):
        for name, row in sizes.items():
            values = [size / 1000 for size in row.values()]
            (curve,) = axes.plot([1 - s for s in row], values, **styles[name].line, label=name)
            drawn.append((name, curve))
        for (name, row), dash in zip(extra.items(), ("-", ":"), strict=False):
            values = [size / 1000 for size in row.values()]
            places = [1 - s for s in row]
            (curve,) = axes.plot(places, values, color="black", ls=dash, lw=1.2, label=name)
            drawn.append((name, curve))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        density_axis(axes, sorted({s for row in sizes.values() for s in row}))
        axes.set_ylabel("kB by gzip" if packed else "kB")
        add_title(axes, title or _smallest(sizes, extra.get("dense float32")), ax is None)
        add_legend(axes, ax is None, drawn)
    return figure


def latency_by_sparsity(
    reports: Levels | Mapping[str, Levels], *, title: str | None = None, ax: Axes | None = None
) -> Figure:
    """Draw the speed-up of exported files over the dense file, against sparsity.

    Args:
        reports: A mapping from sparsity to the result of ``export_tflite(..., benchmark=True)``,
            whose quartiles are drawn as bars, or to a number, the dense time divided by the time;
            or several such mappings by name.
        title: The title; None says from which sparsity on the files are faster than dense, and on
            which CPU.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there is nothing to draw, a sparsity is outside [0, 1), or a report has no
            measurements.
    """
    series = _series(reports, "the file")
    found = {name: {s: _speedup(value) for s, value in row.items()} for name, row in series.items()}
    cpus = {
        report.benchmark.cpu
        for row in series.values()
        for report in row.values()
        if isinstance(report, ExportReport) and report.benchmark is not None
    }
    styles = styles_of(found)
    with drawing(ax) as (figure, (axes,)):
        dense = "as fast as dense"
        drawn: list[Any] = [(dense, axes.axhline(1.0, color="black", lw=1.2, label=dense))]
        for name, row in found.items():
            low, middle, high = np.array(list(row.values())).T
            bars = axes.errorbar(
                [1 - s for s in row],
                middle,
                yerr=[(middle - low).tolist(), (high - middle).tolist()],
                **styles[name].line,
                elinewidth=1,
                capsize=2,
                label=name,
            )
            drawn.append((name, bars))
        axes.set_yscale("log")
        axes.minorticks_off()
        _ratio_ticks(axes, [v for row in found.values() for three in row.values() for v in three])
        density_axis(axes, sorted({s for row in found.values() for s in row}))
        axes.set_ylabel("times as fast as dense")
        add_title(axes, title or _faster(found, sorted(cpus)), ax is None)
        note = "median and quartiles" if cpus else None
        add_legend(axes, ax is None, drawn, note=note)
    return figure


def _series(reports: Any, alone: str) -> dict[str, dict[float, Any]]:
    """Return series by name, each in the order of sparsity."""
    if isinstance(reports, Mapping) and reports and all(map(is_number, reports)):
        reports = {alone: reports}
    if isinstance(reports, Mapping) and reports:
        rows = reports.values()
        if all(isinstance(row, Mapping) and row and all(map(is_number, row)) for row in rows):
            levels = [s for row in rows for s in row]
            if 0 <= min(levels) <= max(levels) < 1:
                return {str(name): dict(sorted(row.items())) for name, row in reports.items()}
    raise ValueError(
        "reports must map sparsities in [0, 1) to reports of export_tflite or to numbers, or "
        f"names to such mappings. Received: reports={reports!r}"
    )


def _bytes(value: Any, kind: str) -> float:
    if isinstance(value, ExportReport):
        return float(value.sizes.gzip if kind == "gzip" else value.sizes.raw)
    return float(value)


def _speedup(value: Any) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of a speed-up."""
    measured: Any = value.benchmark if isinstance(value, ExportReport) else value
    if isinstance(measured, Benchmark):
        return measured.low, measured.speedup, measured.high
    if not is_number(measured):
        raise ValueError(
            "A report has no measured latency. Export with benchmark=True on the machine in "
            f"question. Received: benchmark={measured!r}"
        )
    return float(measured), float(measured), float(measured)


def _ratio_ticks(axes: Axes, values: list[float]) -> None:
    low, high = min([*values, 1.0]), max([*values, 1.0])
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low / 2 <= t <= high * 2]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_ylim(low / 1.25, high * 1.25)


def _smallest(
    sizes: Mapping[str, Mapping[float, float]], dense: Mapping[float, float] | None
) -> str:
    name, level = min(
        ((n, s) for n, row in sizes.items() for s in row), key=lambda p: sizes[p[0]][p[1]]
    )
    who = "the file" if len(sizes) == 1 else name
    if dense is None or level not in dense:
        return f"At {percent(level)} zeros {who} has {sizes[name][level] / 1000:,.1f} kB"
    times = dense[level] / sizes[name][level]
    return f"At {percent(level)} zeros {who} is {times:.3g} times smaller than dense float32"


def _faster(
    found: Mapping[str, Mapping[float, tuple[float, float, float]]], cpus: list[str]
) -> str:
    """Say from which sparsity on files are faster than dense: their lower quartile is above 1."""
    where = f" on {', '.join(cpus)}" if cpus else ""
    parts = []
    for name, row in found.items():
        who = "The file is" if len(found) == 1 else f"{name}:"
        loses = [s for s, (low, _, _) in row.items() if low <= 1]
        wins = [s for s in row if not loses or s > max(loses)]
        if not wins:
            parts.append(f"{who} not faster than dense at {percent(max(row))} zeros")
        else:
            last = max(wins)
            parts.append(
                f"{who} faster than dense from {percent(min(wins))} zeros, "
                f"{row[last][1]:.2g} times at {percent(last)}"
            )
    return "; ".join(parts) + where
