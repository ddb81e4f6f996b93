"""Plot tangent kernels as matrices side by side, and their eigenvalues."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_ntt.plots import data
from keras_ntt.plots.style import add_legend, add_title, as_written, drawing, styles_of
from keras_ntt.pruning.dynamics import ntk_alignment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def kernel_matrices(
    kernels: Mapping[str, Any], *, labels: Any = None, shared: bool = True, title: str | None = None
) -> Figure:
    """Draw tangent kernels side by side, for example those of a network before and after pruning.

    Args:
        kernels: A mapping from names to kernels ``[n1, n2]`` or ``[n1, n2, c, c]``, see
            `keras_ntt.empirical_ntk`. Of the latter the mean over equal outputs is drawn. All have
            the same shape, and the others are compared with the first, entry by entry.
        labels: Classes of the samples, numbers or names. Samples are sorted by class, with lines
            between classes; None does not sort. With labels, kernels must be of samples with
            themselves.
        shared: Whether all share one scale of colours. Otherwise each has its own, which shows
            patterns but not sizes.
        title: The title; None says which kernel is best aligned with the first.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If the kernels or labels do not fit each other.
    """
    data.check_named(kernels, "kernels")
    found = {name: _per_sample(kernel, name) for name, kernel in kernels.items()}
    _check_shapes(kernels)
    borders: list[int] = []
    if labels is not None:
        order, borders = _by_class(labels, found)
        found = {name: kernel[np.ix_(order, order)] for name, kernel in found.items()}
    low = min(float(k.min()) for k in found.values())
    high = max(float(k.max()) for k in found.values())
    scale: dict[str, Any] = {"vmin": low, "vmax": high} if shared else {}
    first, *others = found
    near = {name: ntk_alignment(kernels[name], kernels[first]) for name in others}
    size = (2.6 * len(found) + 1.0, 3.5)
    with drawing(columns=len(found), size=size, sharey=True) as (figure, axes):
        for ax, (name, kernel) in zip(axes, found.items(), strict=True):
            image = ax.imshow(kernel, cmap="viridis", interpolation="nearest", **scale)
            ax.grid(False)
            beside = f"alignment {near[name]:.2f}" if name in near else "the one to match"
            as_written([ax.set_title(f"{name}\n{beside}", fontsize=10, fontweight="normal")])
            ax.set_xticks([])
            ax.set_yticks([])
            for border in borders:
                ax.axhline(border - 0.5, color="white", lw=0.5, alpha=0.5)
                ax.axvline(border - 0.5, color="white", lw=0.5, alpha=0.5)
            if not shared:
                figure.colorbar(image, ax=ax, shrink=0.6, location="bottom")
            ax.set_xlabel("samples" if labels is None else "samples, by class")
        axes[0].set_ylabel("samples" if labels is None else "samples, by class")
        if shared:
            figure.colorbar(image, ax=axes, shrink=0.8, label="kernel, mean over outputs")
        text = title or _closest(near, first)
        text = textwrap.fill(text, 14 + 26 * len(found))
        as_written([figure.suptitle(text, x=0.01, ha="left")])
    return figure


def eigenvalue_spectra(
    kernels: Mapping[str, Any],
    *,
    reference: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the eigenvalues of tangent kernels, the largest first.

    The larger an eigenvalue, the faster gradient descent learns along its eigenvector. Eigenvalues
    below 1e-6 of the largest of their kernel are left out: in float32 they are rounding errors.

    Args:
        kernels: A mapping from names to symmetric kernels ``[n, n]`` or ``[n, n, c, c]``. The
            latter are used as matrices ``[n * c, n * c]``.
        reference: The kernel that the others are compared with; None is the first.
        title: The title; None says how many eigenvalues are above 1 % of the largest of the
            reference: these directions are learned at most a hundred times as slowly.
        ax: Axes to draw in; None makes a figure.

    Returns:
        The figure.

    Raises:
        ImportError: If Matplotlib is not installed.
        ValueError: If a kernel is not one of samples with themselves, or is all zero.
    """
    data.check_named(kernels, "kernels")
    reference = next(iter(kernels)) if reference is None else reference
    if reference not in kernels:
        raise ValueError(
            f"reference must be one of {', '.join(map(repr, kernels))}. "
            f"Received: reference={reference!r}"
        )
    found = {name: eigenvalues(kernel, name) for name, kernel in kernels.items()}
    if zero := [name for name, values in found.items() if values[0] <= 0]:
        raise ValueError(
            "Eigenvalues are drawn on a logarithmic axis, so each kernel must have a positive one. "
            f"Leave kernels that are all zero out. Received: kernels without: {zero}"
        )
    styles = styles_of(found, reference)
    series: list[tuple[str, Any]] = []
    with drawing(ax) as (figure, (axes,)):
        for i, (name, values) in enumerate(found.items()):
            kept = values[values > 1e-6 * values[0]]
            ranks = np.arange(1, len(kept) + 1)
            marks = np.unique(np.geomspace(1, max(len(kept), 1), 8).astype(int) - 1)
            marks = np.unique(np.clip(marks + i, 0, max(len(kept) - 1, 0)))
            line = {**styles[name].line, "markevery": marks.tolist()}
            series += [(name, drawn) for drawn in axes.plot(ranks, kept, **line, label=name)]
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("rank")
        axes.set_ylabel("eigenvalue of the tangent kernel")
        add_title(axes, title or _like(found, reference), ax is None)
        add_legend(axes, ax is None, series)
    return figure


def eigenvalues(kernel: Any, name: str = "kernel") -> np.ndarray:
    """Return the eigenvalues of a symmetric kernel, the largest first.

    Args:
        kernel: ``[n, n]`` or ``[n, n, c, c]``.
        name: Its name in messages.

    Returns:
        ``[n]`` or ``[n * c]``.

    Raises:
        ValueError: If it is not symmetric.

    >>> eigenvalues([[2.0, 1.0], [1.0, 2.0]]).round(6).tolist()
    [3.0, 1.0]
    """
    array = np.asarray(kernel, "float64")
    if array.ndim == 4 and array.shape[2] == array.shape[3]:
        n1, n2, c, _ = array.shape
        array = array.transpose(0, 2, 1, 3).reshape(n1 * c, n2 * c)
    square = array.ndim == 2 and array.shape[0] == array.shape[1] and array.size
    if not square or not np.allclose(array, array.T, atol=1e-3 * np.abs(array).max()):
        raise ValueError(
            f"The kernel {name!r} must be that of some samples with themselves, empirical_ntk("
            f"model, x), symmetric. Received: a kernel of shape {np.shape(kernel)}"
        )
    return np.linalg.eigvalsh((array + array.T) / 2)[::-1]


def _per_sample(kernel: Any, name: str) -> np.ndarray:
    array = np.asarray(kernel, "float64")
    if array.ndim == 4 and array.shape[2] == array.shape[3]:
        array = np.trace(array, axis1=2, axis2=3) / array.shape[2]
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"The kernel {name!r} must be [n1, n2] or [n1, n2, c, c], as empirical_ntk returns "
            f"it. Received: a kernel of shape {np.shape(kernel)}"
        )
    return array


def _check_shapes(kernels: Mapping[str, Any]) -> None:
    shapes = {name: np.shape(kernel) for name, kernel in kernels.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "kernels must be of the same samples, so that they can be compared. "
            f"Received: shapes {shapes}"
        )


def _by_class(labels: Any, kernels: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Return the order of samples by class, and where a new class begins."""
    labels = np.asarray(labels)
    shape = next(iter(kernels.values())).shape
    if labels.ndim != 1 or shape != (len(labels), len(labels)):
        raise ValueError(
            "labels must be one class for each sample of kernels of samples with themselves. "
            f"Received: labels of shape {labels.shape} for kernels of shape {shape}"
        )
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    borders = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, borders.tolist()


def _closest(near: Mapping[str, float], first: str) -> str:
    if not near:
        return f"The tangent kernel of {first}"
    best = max(near, key=lambda name: near[name])
    if len(near) == 1:
        return f"The kernel of {best} has an alignment of {near[best]:.2f} with that of {first}"
    return f"The kernel of {best} is the closest in shape to that of {first}: {near[best]:.2f}"


def _like(found: Mapping[str, np.ndarray], reference: str) -> str:
    """Say which kernel has the most large eigenvalues, except the reference."""
    level = 0.01 * found[reference][0]
    counts = {name: int((values > level).sum()) for name, values in found.items()}
    most = max((n for n in counts if n != reference), key=lambda n: counts[n], default=None)
    above = f"eigenvalues above 1% of the largest of {reference}"
    if most is None:
        return f"{counts[reference]} {above}"
    has = "has" if len(counts) == 2 else "has the most,"
    what = above[0].upper() + above[1:]
    return f"{what}: {most} {has} {counts[most]}; {reference} has {counts[reference]}"
