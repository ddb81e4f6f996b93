"""Curves: of a transfer, of training, and of accuracy against sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_ntt.plots import data
from keras_ntt.plots.style import add_legend, add_title, drawing, percent, styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OBJECTIVE = {
    "loss": "objective",
    "ntk_distance": "distance of the kernels",
    "output_distance": "distance of the outputs",
}


def transfer_curves(history: Any, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw how the objective of a transfer and its two distances fall.

    Args:
        history: What `NeuralTangentTransfer.fit` returns, or its ``history``; of
            `prune_neural_tangent` that of a callback ``keras.callbacks.History()``. Curves of
            validation data are dashed.
        title: None says what happened to the distance of the kernels.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there are no such curves.
    """
    curves = getattr(history, "history", history)
    if not isinstance(curves, Mapping) or not set(_OBJECTIVE) <= set(curves):
        raise ValueError(
            f"history must have the curves {', '.join(_OBJECTIVE)}, as that of "
            "NeuralTangentTransfer.fit has. "
            f"Received: {list(curves) if isinstance(curves, Mapping) else type(curves).__name__}"
        )
    styles = styles_of(_OBJECTIVE)
    with drawing(ax) as (figure, (axes,)):
        values = []
        for name, label in _OBJECTIVE.items():
            for key, dash in ((name, "-"), (f"val_{name}", "--")):
                if key in curves:
                    epochs = np.arange(1, len(curves[key]) + 1)
                    style = {**styles[name].line, "linestyle": dash}
                    if key != name and len(epochs) > 1:
                        style["marker"] = None
                    text = label if key == name else f"{label}, validation"
                    mark = _every(len(epochs))
                    axes.plot(epochs, curves[key], **style, markevery=mark, label=text)
                    values += list(curves[key])
        if min(values) > 0:
            axes.set_yscale("log")
        _count_epochs(axes, len(curves["loss"]))
        axes.set_xlabel("epochs of the transfer, without labels")
        axes.set_ylabel("mean over the epoch")
        add_title(axes, title or _course_of(curves["ntk_distance"]), ax is None)
        add_legend(axes, ax is None)
    return figure


def training_curves(
    curves: Mapping[str, Any],
    *,
    metric: str = "val_accuracy",
    reference: str | None = "dense",
    label: str | None = None,
    names: Mapping[str, str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw training curves of several methods, with the spread over seeds.

    Lines are means, and the bands around them one sample standard deviation to either side.

    Args:
        curves: Name of a method to its curves: a Keras History or a list of them, or numbers
            ``[epochs]`` or ``[seeds, epochs]``.
        metric: Which curve of a History, or what the numbers are. With ``accuracy`` in its name
            it is a fraction and drawn in per cent; with ``loss`` or ``distance`` lower is better.
        reference: The name that the others are measured by, drawn in black and no part of the
            title's comparison.
        label: What the vertical axis is called; None makes it from the metric.
        names: Longer names for the legend.
        title: None says which method is best in the last epoch, and whether the difference is
            more than twice its standard error.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there is nothing to draw.
    """
    data.check_named(curves, "curves")
    scale = 100.0 if "accuracy" in metric else 1.0
    found = {name: scale * data.series_of(v, metric, name) for name, v in curves.items()}
    styles = styles_of(found, reference)
    with drawing(ax) as (figure, (axes,)):
        for i, (name, runs) in enumerate(found.items()):
            epochs, style = np.arange(1, runs.shape[1] + 1), styles[name]
            mean, band = runs.mean(axis=0), data.spread(runs)
            text = (names or {}).get(name, name)
            mark = _every(len(epochs), i)
            axes.plot(epochs, mean, **style.line, markevery=mark, label=text)
            if len(runs) > 1:
                low, high = mean - band, mean + band
                axes.fill_between(epochs, low, high, color=style.color, alpha=0.13, lw=0)
        longest = max(runs.shape[1] for runs in found.values())
        _count_epochs(axes, longest)
        axes.set_xlabel("epochs of training")
        axes.set_ylabel(label or _words(metric))
        add_title(axes, title or _best_at_end(found, reference, metric), ax is None)
        add_legend(axes, ax is None, note=_seeds_note([len(runs) for runs in found.values()]))
    return figure


def accuracy_by_sparsity(
    results: Mapping[str, Mapping[float, Any]],
    *,
    dense: Any = None,
    label: str = "test accuracy (%)",
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw accuracy against sparsity for several methods, with the spread over seeds.

    The horizontal axis is the logarithm of the density, so that 90, 99 and 99.9 % are equally far
    apart. The points of one sparsity stand side by side.

    Args:
        results: Name of a method to its accuracies, in [0, 1], by sparsity: one, or one a seed.
        dense: Accuracies of the dense network, or None.
        label: What the vertical axis is called.
        title: None says which method is best at the highest sparsity, and whether the difference
            is more than twice its standard error.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there is nothing to draw, or a sparsity is outside [0, 1).
    """
    data.check_named(results, "results")
    found = {
        name: {s: 100 * np.atleast_1d(np.asarray(v, "float64")) for s, v in sorted(row.items())}
        for name, row in results.items()
    }
    levels = sorted({s for row in found.values() for s in row})
    if not levels or not 0 <= levels[0] <= levels[-1] < 1:
        raise ValueError(
            "results must map each method to accuracies by sparsity, the fraction of zeros in "
            f"[0, 1). Received: sparsities {levels}"
        )
    styles = styles_of(found)
    with drawing(ax) as (figure, (axes,)):
        for i, (name, row) in enumerate(found.items()):
            aside = 1.03 ** ((len(found) - 1) / 2 - i)
            places = [(1 - s) * aside for s in row]
            mean = [values.mean() for values in row.values()]
            band = [float(data.spread(values[:, None])[0]) for values in row.values()]
            axes.errorbar(
                places, mean, yerr=band, **styles[name].line, elinewidth=1, capsize=2, label=name
            )
        if dense is not None:
            level = 100 * float(np.mean(dense))
            axes.axhline(level, color="black", lw=1.2, label="dense")
        density_axis(axes, levels)
        axes.set_ylabel(label)
        last = {name: row[levels[-1]] for name, row in found.items() if levels[-1] in row}
        sentence = data.verdict(last, f"At {percent(levels[-1])} zeros", unit=" points")
        add_title(axes, title or sentence, ax is None)
        seeds = [len(values) for row in found.values() for values in row.values()]
        add_legend(axes, ax is None, note=_seeds_note(seeds))
    return figure


def density_axis(axes: Axes, levels: Sequence[float]) -> None:
    """Make the horizontal axis one of sparsities, at equal distances for equal ratios."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([1 - s for s in levels], [percent(s) for s in levels])
    low, high = 1 - levels[-1], 1 - levels[0]
    room = max((high / low) ** 0.06, 1.2)
    axes.set_xlim(high * room, low / room)
    axes.set_xlabel("sparsity")


def _every(count: int, first: int = 0) -> tuple[int, int]:
    """Return which points get a marker: about eight a curve, not all curves the same."""
    step = max(1, count // 8)
    return (first % step, step)


def _count_epochs(axes: Axes, count: int) -> None:
    """Ask for whole numbers on the horizontal axis."""
    axes.xaxis.get_major_locator().set_params(**{"integer": True})
    if count > 1:
        axes.set_xlim(0 if count > 12 else 0.8, count + 0.02 * count)
    else:
        axes.set_xticks([1])


def _words(metric: str) -> str:
    words = metric.removeprefix("val_").replace("ntk", "kernel").replace("_", " ")
    words = f"validation {words}" if metric.startswith("val_") else words
    return f"{words} (%)" if "accuracy" in metric else words


def _course_of(distances: Sequence[float]) -> str:
    first, last, count = distances[0], distances[-1], len(distances)
    if count == 1 or not first:
        after = "1 epoch" if count == 1 else f"{count} epochs"
        return f"The distance of the kernels is {last:.3g} after {after}"
    if last < first:
        return f"The distance of the kernels falls by {1 - last / first:.0%} in {count} epochs"
    return f"The distance of the kernels does not fall in {count} epochs: raise ntk_weight"


def _best_at_end(found: Mapping[str, np.ndarray], reference: str | None, metric: str) -> str:
    compared = {name: runs for name, runs in found.items() if name != reference} or found
    end = min(runs.shape[1] for runs in compared.values())
    final = {name: [float(v) for v in runs[:, end - 1]] for name, runs in compared.items()}
    higher = not any(word in metric for word in ("loss", "distance", "error"))
    unit = " points" if "accuracy" in metric else ""
    return data.verdict(final, f"After {end} epochs", unit=unit, higher=higher)


def _seeds_note(seeds: Sequence[int]) -> str | None:
    if max(seeds) < 2:
        return None
    if min(seeds) == max(seeds):
        return f"mean ± standard deviation of {seeds[0]} seeds"
    return "mean ± standard deviation over seeds"
