"""Plot masks: which weights are kept in each layer, and how many."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.masks.apply import kept_entries
from keras_ntt.masks.names import weights_by_name
from keras_ntt.masks.report import SparsityReport, sparsity_report
from keras_ntt.plots.style import (
    add_legend,
    add_title,
    as_written,
    drawing,
    percent,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PIXELS = 100  # maximum along each axis of a map


def mask_maps(
    masks: keras.Model | Mapping[str, Any],
    *,
    image_shape: tuple[int, ...] | None = None,
    limit: int = 12,
    title: str | None = None,
) -> Figure:
    """Draw the masks of a model, layer by layer.

    A mask is drawn as a matrix, with the inputs of a unit (for convolutions: everything under its
    filter) from top to bottom and the units from left to right. Masks of more than 100 rows or
    columns are drawn in blocks, whose colour is the fraction of kept weights. If the first layer is
    dense and reads an image, its mask is drawn as that image: each pixel shows the number of kept
    weights that read it.

    Args:
        masks: A model with masks, or with exact zeros if it was stripped; or masks by path, as
            `keras_ntt.get_masks` returns them.
        image_shape: Height and width, with or without channels, of the image that the first
            weight reads. None takes that of the model's input, if it is an image.
        limit: Maximum number of layers to draw, from the first.
        title: The title; None says how the kept weights of the first layer are spread.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If there are no masks, or the image does not fit.
    """
    limit = checks.check_count("limit", limit)
    found = _masks_of(masks)
    if not found:
        raise ValueError(
            "There are no masks to draw. Prune the model first, for example by "
            "keras_ntt.prune_at_init. Received: masks with no entries"
        )
    first = next(iter(found.values()))
    if image_shape is None and isinstance(masks, keras.Model):
        image_shape = _image_read(masks, first)
    cover = None if image_shape is None else pixel_coverage(first, image_shape)
    shown = dict(list(found.items())[:limit])
    columns = min(len(shown), 4)
    rows = math.ceil(len(shown) / columns)
    width = max(3.1 * columns, 5.2)
    with drawing(columns=columns, rows=rows, size=(width, 3.0 * rows + 0.7)) as (figure, axes):
        for i, (ax, (name, mask)) in enumerate(zip(axes, shown.items(), strict=False)):
            ax.grid(False)
            kept = f"{name}\n{int(mask.sum()):,} of {mask.size:,} kept"
            as_written([ax.set_title(kept, fontsize=10, fontweight="normal")])
            if i == 0 and cover is not None:
                image = ax.imshow(cover, cmap="cividis", interpolation="nearest", vmin=0)
                figure.colorbar(image, ax=ax, shrink=0.8, label="kept weights a pixel")
                ax.set_xticks([])
                ax.set_yticks([])
                continue
            blocks = in_blocks(mask.reshape(-1, mask.shape[-1]), _PIXELS)
            image = ax.imshow(
                blocks, cmap="cividis", interpolation="nearest", aspect="auto", vmin=0
            )
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_xlabel("units")
            ax.set_ylabel("inputs")
            if not set(np.unique(blocks)) <= {0.0, 1.0}:
                figure.colorbar(image, ax=ax, shrink=0.8, label="fraction kept")
        for ax in axes[len(shown) :]:
            ax.set_axis_off()
        text = title or _spread_of(found, cover, len(shown))
        as_written([figure.suptitle(textwrap.fill(text, int(11 * width)), x=0.01, ha="left")])
    return figure


def pixel_coverage(mask: Any, image_shape: tuple[int, ...]) -> np.ndarray:
    """Return how many kept weights read each pixel of an image.

    Args:
        mask: The mask of a dense kernel ``[pixels * channels, units]``.
        image_shape: Height and width, with or without channels.

    Returns:
        Numbers ``[height, width]``, summed over channels.

    Raises:
        ValueError: If the number of entries of the image is not that of the kernel's rows.

    >>> pixel_coverage([[1, 1], [0, 0], [1, 0], [0, 0]], (2, 2)).tolist()
    [[2, 0], [1, 0]]
    """
    mask, shape = np.asarray(mask, bool), tuple(image_shape)
    if len(shape) not in (2, 3) or mask.ndim != 2 or math.prod(shape) != len(mask):
        raise ValueError(
            "image_shape must be (height, width) or (height, width, channels) of what the first "
            f"pruned kernel reads, a dense one. Received: image_shape={image_shape} for a kernel "
            f"of shape {mask.shape}"
        )
    return mask.sum(axis=1).reshape(*shape[:2], -1).sum(axis=2)


def in_blocks(matrix: Any, most: int) -> np.ndarray:
    """Return the means of the blocks of a matrix, with a maximum number of rows and columns.

    >>> in_blocks([[1, 1, 0, 0], [1, 0, 0, 0]], 2).tolist()
    [[1.0, 0.0], [0.5, 0.0]]
    """
    found = np.asarray(matrix, "float64")
    for axis in (0, 1):
        size = found.shape[axis]
        step = math.ceil(size / most)
        starts = np.arange(0, size, step)
        counts = np.diff([*starts, size])
        sums = np.add.reduceat(found, starts, axis=axis)
        found = sums / (counts[:, None] if axis == 0 else counts)
    return found


def sparsity_by_layer(models: Any, *, title: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw the fraction of kept weights of each layer, on a logarithmic axis.

    Args:
        models: A model or a `SparsityReport`; or several by name with the same layers, for example
            of different allocations.
        title: The title; None says which layers are the densest and the sparsest.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If the models have different layers.
    """
    named = models if isinstance(models, Mapping) else {"": models}
    rows = {name: _density_by_layer(model) for name, model in named.items()}
    layers = list(next(iter(rows.values()), {}))
    if not layers or any(list(row) != layers for row in rows.values()):
        raise ValueError(
            "models must be one model or report, or several of the same layers by name. "
            f"Received: layers { {name: list(row) for name, row in rows.items()} }"
        )
    styles = styles_of(rows)
    series: list[tuple[str, Any]] = []
    height = 1.6 + 0.34 * len(layers) + 0.2 * len(rows)
    with drawing(ax, size=(7.0, height)) as (figure, (axes,)):
        places = np.arange(len(layers))
        for i, (name, row) in enumerate(rows.items()):
            aside = 0.14 * (i - (len(rows) - 1) / 2)
            kept = [100 * nonzeros / size for nonzeros, size in row.values()]
            line = {**styles[name].line, "linestyle": "none"}
            series += [(name, p) for p in axes.plot(kept, places + aside, **line, label=name)]
            if len(rows) == 1:
                for place, (nonzeros, size) in zip(places, row.values(), strict=True):
                    axes.annotate(
                        f"{nonzeros:,} of {size:,}",
                        (100 * nonzeros / size, place),
                        xytext=(0, 7),
                        textcoords="offset points",
                        ha="center",
                        fontsize=8,
                    )
        axes.set_yticks(places, layers)
        as_written(axes.get_yticklabels())
        axes.set_ylim(len(layers) - 0.4, -0.6)
        _percent_axis(axes, [100 * n / s for row in rows.values() for n, s in row.values()])
        axes.set_xlabel("weights kept (%)")
        add_title(axes, title or _extremes(rows), ax is None, beside=max(map(len, layers)))
        if len(rows) > 1:
            add_legend(axes, ax is None, series)
    return figure


def _percent_axis(axes: Axes, values: list[float]) -> None:
    """Make the horizontal axis logarithmic, with ticks at round numbers of per cent."""
    low = min([v for v in values if v > 0], default=1.0)
    axes.set_xscale("log")
    axes.minorticks_off()
    powers = [10.0**k for k in range(math.floor(math.log10(low)) - 1, 3)]
    steps = (1,) if low < 0.1 else (1, 3)
    ticks = [p * f for p in powers for f in steps if low / 3.4 < p * f <= 100]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlim(low / 2, 160)


def _density_by_layer(model: Any) -> dict[str, tuple[int, int]]:
    report = model if isinstance(model, SparsityReport) else sparsity_report(model)
    names = _short(row.path for row in report.pruned)
    rows = zip(names, report.pruned, strict=True)
    return {name: (row.nonzeros, row.size) for name, row in rows}


def _masks_of(masks: Any) -> dict[str, np.ndarray]:
    """Return boolean masks by short name."""
    if isinstance(masks, Mapping):
        pairs = [(str(path), np.asarray(mask, bool)) for path, mask in masks.items()]
    else:
        checks.check_model(masks)
        kept = kept_entries(masks)
        named = weights_by_name(masks).items()
        pairs = [(path, kept[id(v)]) for path, v in named if id(v) in kept]
    return dict(zip(_short(path for path, _ in pairs), (m for _, m in pairs), strict=True))


def _short(paths: Iterable[str]) -> list[str]:
    """Return paths without their common beginning and end.

    >>> _short(["model/a/kernel", "model/b/kernel"]), _short(["model/a/kernel"])
    (['a', 'b'], ['a'])
    """
    split = [path.split("/") for path in paths]
    ends = {parts[-1] for parts in split}
    if len(ends) == 1 and all(len(parts) > 1 for parts in split):
        split = [parts[:-1] for parts in split]
    while len({parts[0] for parts in split}) == 1 and all(len(parts) > 1 for parts in split):
        split = [parts[1:] for parts in split]
    return ["/".join(parts) for parts in split]


def _image_read(model: keras.Model, first: np.ndarray) -> tuple[int, ...] | None:
    """Return the shape of the image that a first dense layer reads, or None."""
    functional = host.functional_of(model)
    if functional is None or len(functional.inputs) != 1 or first.ndim != 2:
        return None
    shape = tuple(functional.inputs[0].shape)[1:]
    known = len(shape) in (2, 3) and None not in shape
    return shape if known and math.prod(shape) == len(first) else None


def _spread_of(found: Mapping[str, np.ndarray], cover: np.ndarray | None, shown: int) -> str:
    if cover is not None and cover.sum():
        counts = np.sort(cover.ravel())[::-1]
        half = int(np.searchsorted(counts.cumsum(), counts.sum() / 2)) + 1
        unread = int((counts == 0).sum())
        blind = f"{unread} are read by none" if unread else "every one is read"
        return f"{half} of {counts.size} pixels have half of the first layer's weights; {blind}"
    kept, size = (sum(int(f(m)) for m in found.values()) for f in (np.sum, np.size))
    text = f"{percent(1 - kept / size)} of the weights of {len(found)} layers are pruned"
    return text if shown == len(found) else f"{text}; the first {shown} are shown"


def _extremes(rows: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    if len(rows) > 2:
        return _most_disputed(rows)
    parts = []
    for name, row in rows.items():
        dense = {layer: nonzeros / size for layer, (nonzeros, size) in row.items()}
        most, least = max(dense, key=lambda k: dense[k]), min(dense, key=lambda k: dense[k])
        who = f"{name} keeps" if name else "Kept are"
        if dense[most] < 1.1 * dense[least]:
            parts.append(f"{who} {100 * dense[most]:.2g}% of every layer")
        else:
            parts.append(
                f"{who} {100 * dense[least]:.2g}% of {least} and {100 * dense[most]:.3g}% of {most}"
            )
    return "; ".join(parts)


def _most_disputed(rows: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    """Say for which layer the kept fraction differs most between models."""
    shares = {
        layer: {name: row[layer][0] / row[layer][1] for name, row in rows.items()}
        for layer in next(iter(rows.values()))
    }
    ratios = {s: max(v.values()) / max(min(v.values()), 1e-12) for s, v in shares.items()}
    layer = max(ratios, key=lambda k: ratios[k])
    low, high = (pick(shares[layer], key=shares[layer].__getitem__) for pick in (min, max))
    few, many = (f"{100 * shares[layer][name]:.3g}% ({name})" for name in (low, high))
    return f"Kept of {layer}: from {few} to {many}"
