"""Plot size against agreement: the candidates of a search for a small file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_ntt.plots.style import BLACK, add_legend, add_title, drawing, percent, styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def size_by_agreement(report: Any, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw the size of files against their agreement with the dense model.

    Each line is one way to make the model smaller, and its points are different amounts of it. The
    dashed line is the allowed loss. With labelled data the vertical axis is accuracy.

    Args:
        report: The result of `keras_ntt.compress`.
        title: The title; None says how much smaller the best file is.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If `report` is not a report, or has no measured file.
    """
    rows = getattr(report, "rows", ())
    measured = [row for row in rows if getattr(row, "size", 0) and row.agreement is not None]
    if not measured:
        raise ValueError(
            "report must be what compress returned, with one measured file at least. "
            f"Received: report of type {type(report).__name__}"
        )
    with_labels = measured[0].accuracy is not None
    lines: dict[str, list[Any]] = {}
    for row in measured:
        lines.setdefault(_way(row), []).append(row)
    styles = styles_of([name for name in lines if name != _DENSE], _DENSE)
    series: list[tuple[str, Any]] = []
    with drawing(ax) as (figure, (axes,)):
        for name, points in lines.items():
            x = [(row.flash or 0) / 1000 for row in points]
            y = [_height(row, with_labels) for row in points]
            look = styles[name].line | ({"linestyle": ""} if name == _DENSE else {})
            (line,) = axes.plot(x, y, **look, label=name)
            series.append((name, line))
            for row, place in zip(points, zip(x, y, strict=True), strict=True):
                amount = row.sparsity or row.channels
                text = percent(amount) if amount else row.quantization or "float32"
                axes.annotate(text, place, xytext=(5, 4), textcoords="offset points", fontsize=7)
        best = report.best
        (ring,) = axes.plot(
            [(best.flash or 0) / 1000],
            [_height(best, with_labels)],
            linestyle="",
            marker="o",
            markersize=13,
            color=BLACK,
            fillstyle="none",
            label="best",
        )
        series.append(("best", ring))
        floor = _height(measured[0], with_labels) - 100 * report.max_drop
        if not with_labels:
            floor = 100 - 100 * report.max_drop
        limit = axes.axhline(floor, color=BLACK, lw=1, ls="--", label="what may be lost")
        series.append(("what may be lost", limit))
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.set_xlabel("kB of the file" + (" and its code" if report.target == "micro" else ""))
        axes.set_ylabel(f"{'accuracy' if with_labels else 'agreement with the dense model'} (%)")
        add_title(axes, title or _words(report), ax is None)
        add_legend(axes, ax is None, series)
    return figure


_DENSE = "dense"


def _way(row: Any) -> str:
    kind = row.quantization or "float32"
    if row.sparsity:
        return f"zeros, {kind}"
    return f"fewer channels, {kind}" if row.channels else _DENSE


def _height(row: Any, with_labels: bool) -> float:
    return 100 * float((row.accuracy if with_labels else row.agreement) or 0.0)


def _words(report: Any) -> str:
    whole, best = report.rows[0].flash or 0, report.best.flash or 1
    return f"{report.best.name}: {whole / best:.1f} times smaller than the dense float32 file"
