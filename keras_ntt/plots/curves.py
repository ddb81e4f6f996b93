"""Plot curves of a transfer, of training, and of accuracy against sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_ntt.core.checks import is_number
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
    """Draw the objective of a transfer and its two distances over the epochs.

    Args:
        history: The result of `NeuralTangentTransfer.fit`, or its ``history``. For
            `prune_neural_tangent` pass a callback ``keras.callbacks.History()``. Curves of
            validation data are dashed.
        title: The title; None says how the distance of the kernels changed.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there are no such curves, or they have no epochs.
    """
    curves = getattr(history, "history", history)
    if not isinstance(curves, Mapping) or not set(_OBJECTIVE) <= set(curves):
        raise ValueError(
            f"history must have the curves {', '.join(_OBJECTIVE)}, as that of "
            "NeuralTangentTransfer.fit has. "
            f"Received: {list(curves) if isinstance(curves, Mapping) else type(curves).__name__}"
        )
    if not len(curves["loss"]):
        raise ValueError(
            "history must have an epoch at least: fit the transfer first. Received: 0 epochs"
        )
    styles = styles_of(_OBJECTIVE)
    with drawing(ax) as (figure, (axes,)):
        values, series = [], []
        for name, label in _OBJECTIVE.items():
            for key, dash in ((name, "-"), (f"val_{name}", "--")):
                if key in curves:
                    epochs = np.arange(1, len(curves[key]) + 1)
                    style = {**styles[name].line, "linestyle": dash}
                    if key != name and len(epochs) > 1:
                        style["marker"] = None
                    text = label if key == name else f"{label}, validation"
                    mark = _every(len(epochs))
                    (line,) = axes.plot(epochs, curves[key], **style, markevery=mark, label=text)
                    series.append((text, line))
                    values += list(curves[key])
        if min(values) > 0:
            axes.set_yscale("log")
        _count_epochs(axes, len(curves["loss"]))
        axes.set_xlabel("epochs of the transfer, without labels")
        axes.set_ylabel("mean over the epoch")
        add_title(axes, title or _course_of(curves["ntk_distance"]), ax is None)
        add_legend(axes, ax is None, series)
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

    Lines are means, and bands show one sample standard deviation to either side. Epochs with NaN
    are skipped, such as those in which `keras_ntt.TrainingDynamics` measures nothing.

    Args:
        curves: Name of a method to its curves: a Keras History or a list of them, or numbers
            ``[epochs]`` or ``[seeds, epochs]``.
        metric: The name of a curve of a History, or of the numbers. With ``accuracy`` in its name
            it is a fraction and is drawn in per cent; with ``loss`` or ``distance`` lower is
            better.
        reference: The name of the reference, drawn in black and left out of the comparison in the
            title.
        label: The label of the vertical axis; None derives it from the metric.
        names: Longer names for the legend.
        title: The title; None says which method is best in the last epoch, and whether the
            difference is more than twice its standard error.
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
    series = []
    with drawing(ax) as (figure, (axes,)):
        for i, (name, runs) in enumerate(found.items()):
            measured = np.isfinite(runs.mean(axis=0))
            epochs, style = np.arange(1, runs.shape[1] + 1)[measured], styles[name]
            mean, band = runs[:, measured].mean(axis=0), data.spread(runs[:, measured])
            text = (names or {}).get(name, name)
            mark = _every(len(epochs), i)
            (line,) = axes.plot(epochs, mean, **style.line, markevery=mark, label=text)
            series.append((text, line))
            if len(runs) > 1:
                low, high = mean - band, mean + band
                axes.fill_between(epochs, low, high, color=style.color, alpha=0.13, lw=0)
        longest = max(runs.shape[1] for runs in found.values())
        _count_epochs(axes, longest)
        axes.set_xlabel("epochs of training")
        axes.set_ylabel(label or _words(metric))
        add_title(axes, title or _best_at_end(found, reference, metric), ax is None)
        note = _seeds_note([len(runs) for runs in found.values()])
        add_legend(axes, ax is None, series, note=note)
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
        results: Name of a method to its accuracies, in [0, 1], by sparsity: one number, or one per
            seed.
        dense: Accuracies of the dense network, or None.
        label: The label of the vertical axis.
        title: The title; None says which method is best at the highest sparsity, and whether the
            difference is more than twice its standard error.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there is nothing to draw, or a sparsity is outside [0, 1).
    """
    found = _accuracies(results)
    levels = sorted({s for row in found.values() for s in row})
    styles = styles_of(found)
    series: list[tuple[str, Any]] = []
    with drawing(ax) as (figure, (axes,)):
        for i, (name, row) in enumerate(found.items()):
            aside = 1.03 ** ((len(found) - 1) / 2 - i)
            places = [(1 - s) * aside for s in row]
            mean = [values.mean() for values in row.values()]
            band = [float(data.spread(values[:, None])[0]) for values in row.values()]
            drawn = axes.errorbar(
                places, mean, yerr=band, **styles[name].line, elinewidth=1, capsize=2, label=name
            )
            series.append((name, drawn))
        if dense is not None:
            level = 100 * float(np.mean(dense))
            series.append(("dense", axes.axhline(level, color="black", lw=1.2, label="dense")))
        density_axis(axes, levels)
        axes.set_ylabel(label)
        last = {name: row[levels[-1]] for name, row in found.items() if levels[-1] in row}
        sentence = data.verdict(last, f"At {percent(levels[-1])} zeros", unit=" points")
        add_title(axes, title or sentence, ax is None)
        seeds = [len(values) for row in found.values() for values in row.values()]
        add_legend(axes, ax is None, series, note=_seeds_note(seeds))
    return figure


def _accuracies(results: Any) -> dict[str, dict[float, np.ndarray]]:
    """Return accuracies in per cent, by method and sparsity, in the order of sparsity."""
    data.check_named(results, "results")
    levels: list[Any] = []
    for row in results.values():
        levels += list(row) if isinstance(row, Mapping) else [f"a {type(row).__name__}"]
    if not levels or not all(is_number(s) and 0 <= s < 1 for s in levels):
        raise ValueError(
            "results must map each method to accuracies by sparsity, the fraction of zeros in "
            "[0, 1) as a number, for example {'NTT': {0.9: 0.85}}. "
            f"Received: sparsities {levels}"
        )
    found: dict[str, dict[float, np.ndarray]] = {}
    for name, row in results.items():
        points = {s: data.numbers_of(value, name) for s, value in row.items()}
        found[name] = {s: 100 * points[s] for s in sorted(points)}
    return found


def density_axis(axes: Axes, levels: Sequence[float]) -> None:
    """Make the horizontal axis one of sparsities, with equal distances for equal ratios."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([1 - s for s in levels], [percent(s) for s in levels])
    low, high = 1 - levels[-1], 1 - levels[0]
    room = max((high / low) ** 0.06, 1.2)
    axes.set_xlim(high * room, low / room)
    axes.set_xlabel("sparsity")


def _every(count: int, first: int = 0) -> tuple[int, int]:
    """Return which points get a marker: about eight per curve, different for each curve."""
    step = max(1, count // 8)
    return (first % step, step)


def _count_epochs(axes: Axes, count: int) -> None:
    """Set integer ticks on the horizontal axis, unless it was configured already."""
    from matplotlib.ticker import MaxNLocator

    locator = axes.xaxis.get_major_locator()
    if axes.get_xscale() != "linear" or not isinstance(locator, MaxNLocator):
        return
    locator.set_params(integer=True)
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
    if not np.isfinite([first, last]).all():
        return f"The distance of the kernels is NaN or infinite after {count} epochs"
    if count == 1 or not first:
        after = "1 epoch" if count == 1 else f"{count} epochs"
        return f"The distance of the kernels is {last:.3g} after {after}"
    if last < first:
        return f"The distance of the kernels falls by {1 - last / first:.0%} in {count} epochs"
    return f"The distance of the kernels does not fall in {count} epochs: raise ntk_weight"


def _best_at_end(found: Mapping[str, np.ndarray], reference: str | None, metric: str) -> str:
    compared = {name: runs for name, runs in found.items() if name != reference} or found
    end = min(runs.shape[1] for runs in compared.values())
    means = [runs[:, :end].mean(axis=0) for runs in compared.values()]
    measured = np.flatnonzero(np.isfinite(means).any(axis=0))
    end = int(measured[-1]) + 1 if len(measured) else end
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
