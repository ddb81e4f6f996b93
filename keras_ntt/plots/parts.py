"""Where the bytes of files are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from keras_ntt.litert.inspect import FileReport
from keras_ntt.plots.style import BLACK, COLOURS, add_legend, add_title, as_written, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CODE = "code that unpacks"


def bytes_by_part(
    files: Mapping[str, FileReport | Mapping[str, float]],
    *,
    code: Mapping[str, int] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw how many bytes of files are weights, scales, names and so on, a bar a file.

    Args:
        files: What `keras_ntt.inspect_tflite` returns, by name; or bytes by part, by name.
        code: Bytes of code that a file adds to a firmware, by the same names
            (`MicroReport.code_size`).
        title: None says how large the first and the last file are.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there is no file, files have different parts, or `code` is of a file that is
            not there.
    """
    code = code or {}
    sizes = {
        str(name): dict(given.parts if isinstance(given, FileReport) else given)
        for name, given in files.items()
    }
    names = list(next(iter(sizes.values()), ()))
    alike = all(list(row) == names for row in sizes.values())
    if not names or not alike or not {str(name) for name in code} <= set(sizes):
        raise ValueError(
            "files must have one or more reports of inspect_tflite or sizes of the same parts, and "
            f"code none but their names. Received: files={list(files)}, code={list(code)}"
        )
    added = {str(name): size for name, size in code.items()}
    rows = {name: {**row, CODE: added.get(name, 0)} for name, row in sizes.items()}
    parts = [part for part in (*names, CODE) if any(row[part] for row in rows.values())]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)} | {CODE: BLACK}
    series: list[tuple[str, Any]] = []
    with drawing(ax, size=(7.0, 1.9 + 0.55 * len(rows))) as (figure, (axes,)):
        starts = dict.fromkeys(rows, 0.0)
        for part in parts:
            widths = [row[part] / 1000 for row in rows.values()]
            lefts = list(starts.values())
            bars = axes.barh(range(len(rows)), widths, left=lefts, color=colours[part], label=part)
            series.append((part, bars))
            starts = {n: s + w for (n, s), w in zip(starts.items(), widths, strict=True)}
        for place, total in enumerate(starts.values()):
            axes.annotate(
                f"{total:.1f}",
                (total, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(rows)), list(rows))
        as_written(axes.get_yticklabels())
        axes.invert_yaxis()
        axes.margins(x=0.08)
        axes.set_xlabel("kB")
        first, *_, last = [*starts.items(), *list(starts.items())[-1:]]
        words = f"{first[0]}: {first[1]:.1f} kB"
        if len(rows) > 1:
            words += f"; {last[0]}: {last[1]:.1f} kB, {first[1] / last[1]:.1f} times fewer"
        add_title(axes, title or words, ax is None, beside=max(map(len, rows)))
        add_legend(axes, ax is None, series)
    return figure
