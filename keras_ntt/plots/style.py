"""The style that all pictures share: curves, titles and legends."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Okabe & Ito, "Color universal design", 2008, without the yellow, which is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLACK = "#000000"
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_LOOK: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}


class Style(NamedTuple):
    """The style of one series, the same in every picture with the same names."""

    color: str
    dash: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """The arguments of ``Axes.plot``."""
        return {
            "color": self.color,
            "linestyle": self.dash,
            "marker": self.marker,
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
        }


def styles_of(names: Iterable[str], reference: str | None = None) -> dict[str, Style]:
    """Return a style for each name; that of the reference is black and solid.

    >>> styles_of(["dense", "a", "b"], "dense")["a"].color == COLOURS[0]
    True
    """
    others = [name for name in names if name != reference]
    found = {
        name: Style(COLOURS[i % 6], DASHES[i % 5], MARKERS[(i + 1) % 7])
        for i, name in enumerate(others)
    }
    return {**found, **({} if reference is None else {reference: Style(BLACK, "-", "o")})}


@contextlib.contextmanager
def drawing(
    ax: Axes | None = None,
    *,
    columns: int = 1,
    rows: int = 1,
    size: tuple[float, float] = (7.0, 4.4),
    **options: Any,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Draw in the style of the package, in given axes or a new figure.

    Args:
        ax: Axes to draw in; None makes a figure.
        columns: Columns of axes in a new figure.
        rows: Rows of them.
        size: Width and height of a new figure in inches.
        **options: As in `matplotlib.figure.Figure.subplots`.

    Yields:
        The figure and its axes, row by row.

    Raises:
        ImportError: If Matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "Pictures are drawn with Matplotlib: pip install 'keras-ntt[plots]'."
        ) from error
    from keras_ntt.plots.picture import Picture

    with matplotlib.rc_context(_LOOK):
        if ax is not None:
            yield cast("Figure", ax.figure), [ax]
            return
        figure = Picture(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
        yield figure, list(axes.ravel())


def add_title(ax: Axes, text: str, own: bool, *, beside: int = 0) -> None:
    """Set a title, broken into lines that fit.

    Args:
        ax: The axes.
        text: The title.
        own: Whether the figure is ours, so that its layout may be changed.
        beside: Number of letters of the labels left of the axes.
    """
    figure = cast("Figure", ax.figure)
    inches = 0.88 * figure.get_figwidth() if own else ax.get_window_extent().width / figure.dpi
    as_written([ax.set_title(textwrap.fill(text, max(20, int(11 * inches) - beside)))])


def add_legend(
    ax: Axes, own: bool, series: Sequence[tuple[str, Any]], *, note: str | None = None
) -> None:
    """Add a legend: below the axes of our figures, inside the axes of other figures.

    Args:
        ax: Axes with curves; curves of others that have labels are in the legend as well.
        own: Whether the figure is ours.
        series: Our curves: their names, and what was drawn.
        note: The title of the legend.
    """
    ours = {id(handle) for _, handle in series}
    labelled = zip(*ax.get_legend_handles_labels(), strict=True)
    theirs = [(label, handle) for handle, label in labelled if id(handle) not in ours]
    labels = [str(label) for label, _ in (*theirs, *series)]
    handles = [handle for _, handle in (*theirs, *series)]
    columns = 1 if len(labels) == 1 else min(len(labels), 3 if max(map(len, labels)) < 24 else 2)
    # Matplotlib leaves labels out that begin with "_".
    stand_ins = ["?"] * len(labels)
    if own:
        legend = ax.figure.legend(
            handles,
            stand_ins,
            loc="outside lower center",
            ncols=columns,
            title=note,
            handlelength=3.6,
        )
    else:
        legend = ax.legend(
            handles, stand_ins, title=note, handlelength=3.6, fontsize=8, title_fontsize=8
        )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
    as_written(legend.get_texts())


def as_written(texts: Iterable[Text]) -> None:
    """Show texts unchanged: text between two "$" is not set as mathematics."""
    for text in texts:
        text.set_parse_math(False)


def percent(fraction: float) -> str:
    """Return a fraction in per cent, with enough digits to distinguish it from 100 %.

    >>> percent(0.9), percent(0.995), percent(2 / 3)
    ('90%', '99.5%', '66.7%')
    """
    return f"{round(100 * fraction, 1 if fraction < 0.999 else 3):g}%"
