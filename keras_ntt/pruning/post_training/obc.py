"""ExactOBS: entries removed one by one, each time the one that costs least.

Frantar, Singh & Alistarh, "Optimal brain compression", NeurIPS 2022 (arXiv 2208.11580). For one
output with weights w and Hessian H, removing entry p costs ``w_p**2 / [H^-1]_pp`` (eq. 3) if the
others are corrected by ``-w_p / [H^-1]_pp * H^-1[:, p]``; then row and column p leave the inverse
(lemma 1). A block B costs ``w_B' ([H^-1]_BB)^-1 w_B``.

The inverse is updated in blocks of steps: between them, the products of removed columns stand
aside, so that most of the work is a matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keras_ntt.pruning.post_training.refit import LeastSquares, solve
from keras_ntt.pruning.post_training.structure import SINGLE, Structure, Unit

_LAZY = 32  # steps between two updates of the inverse
_BYTES = 2**28  # of inverses at once


class Trace(NamedTuple):
    """The order in which the units of each column of a matrix are removed.

    A unit is `Unit.height` features of a column of `Unit.width` outputs.

    Attributes:
        order: The number of the unit that is removed at each step, ``[steps, columns]``.
        costs: What each removal costs, in the same order.
    """

    order: np.ndarray
    costs: np.ndarray


def traces(problem: LeastSquares, weights: np.ndarray, unit: Unit = SINGLE) -> Trace:
    """Remove units of each column one by one, as long as the unit's limits allow.

    Args:
        problem: The problem; only its Hessian is used.
        weights: Its solution with all entries, ``[features, outputs]``.
        unit: What is removed as one.

    Returns:
        The `Trace` to the end, from which any sparsity can be read.

    >>> hessian = np.array([[2.0, 1, 1], [1, 2, 1], [1, 1, 3]])
    >>> weights = np.array([[2.0], [1.0], [-1.0]])
    >>> trace = traces(LeastSquares(hessian, hessian @ weights), weights)
    >>> trace.order.ravel().tolist(), trace.costs.ravel().round(9).tolist()
    ([1, 2, 0], [1.4, 1.6, 8.0])
    """
    features, outputs = weights.shape
    inverse = np.linalg.inv(problem.hessian)
    inverse = (inverse + inverse.T) / 2
    columns = weights.reshape(features, outputs // unit.width, unit.width).transpose(1, 0, 2)
    at_once = max(1, _BYTES // (inverse.nbytes * 2))
    parts = []
    for start in range(0, len(columns), at_once):
        part = columns[start : start + at_once]
        if unit.height == 1:
            parts.append(_remove_entries(inverse, part, unit))
        else:
            parts += [_remove_blocks(inverse, column, unit) for column in part]
    return Trace(*(np.concatenate(found, axis=1) for found in zip(*parts, strict=True)))


def _remove_entries(inverse: np.ndarray, weights: np.ndarray, unit: Unit) -> Trace:
    """Remove the features of some columns ``[columns, features, width]`` one by one."""
    count, features, _ = weights.shape
    steps = features if not unit.group else features // unit.group * unit.most
    w, now = np.array(weights), np.broadcast_to(inverse, (count, features, features))
    names = np.tile(np.arange(features), (count, 1))
    diagonal = np.tile(np.diag(inverse), (count, 1))
    open_ = np.ones((count, features), bool)  # may still be removed
    gone = np.zeros((count, features), bool)
    taken = np.zeros((count, features // unit.group), int) if unit.group else None
    aside = np.zeros((count, features, _LAZY))
    each, order, costs, j = np.arange(count), [], [], 0
    for _ in range(steps):
        cost = np.where(open_, (w**2).sum(axis=2) / diagonal, np.inf)
        p = cost.argmin(axis=1)
        order.append(names[each, p])
        costs.append(cost[each, p])
        column = now[each, p] - np.matmul(aside[:, :, :j], aside[each, p, :j, None])[..., 0]
        size = diagonal[each, p]
        w -= column[:, :, None] * (w[each, p] / size[:, None])[:, None]
        scaled = column / np.sqrt(size)[:, None]
        aside[:, :, j] = scaled
        j += 1
        gone[each, p], open_[each, p] = True, False
        w[gone] = 0.0
        diagonal = np.maximum(diagonal - scaled**2, 1e-300)
        if taken is not None:
            place = names[each, p] // unit.group
            taken[each, place] += 1
            full = np.take_along_axis(taken >= unit.most, names // unit.group, axis=1)
            open_ &= ~full
        if j == _LAZY:
            left = np.argsort(gone, axis=1, kind="stable")[:, : gone.shape[1] - j]
            aside = np.take_along_axis(aside, left[:, :, None], axis=1)
            rows = np.take_along_axis(now, left[:, :, None], axis=1)
            now = np.take_along_axis(rows, left[:, None, :], axis=2)
            now -= aside @ np.swapaxes(aside, 1, 2)
            w = np.take_along_axis(w, left[:, :, None], axis=1)
            names, open_, gone = (
                np.take_along_axis(part, left, axis=1) for part in (names, open_, gone)
            )
            diagonal = np.maximum(np.einsum("cff->cf", now), 1e-300)
            j = 0
    return Trace(np.array(order).reshape(steps, count), np.array(costs).reshape(steps, count))


def _remove_blocks(inverse: np.ndarray, weights: np.ndarray, unit: Unit) -> Trace:
    """Remove the blocks of one column ``[features, width]`` one by one."""
    height = unit.height
    number = len(weights) // height
    names, w, now = np.arange(number), np.array(weights), np.array(inverse)
    order, costs = [], []
    for _ in range(number):
        left = len(names)
        tiles = now.reshape(left, height, left, height)
        corner = np.einsum("bhbk->bhk", tiles)
        parts = w.reshape(left, height, -1)
        cost = np.einsum("bhw,bhw->b", parts, np.linalg.solve(corner, parts))
        p = int(cost.argmin())
        order.append(names[p])
        costs.append(cost[p])
        at = slice(p * height, (p + 1) * height)
        gain = np.linalg.solve(now[at, at], now[at])  # [height, features]
        w = w - gain.T @ w[at]
        now = now - now[:, at] @ gain
        keep = np.ones(len(w), bool)
        keep[at] = False
        w, now, names = w[keep], now[np.ix_(keep, keep)], np.delete(names, p)
    return Trace(np.array(order)[:, None], np.array(costs)[:, None])


def increments(problems: list[LeastSquares], weights: np.ndarray, unit: Unit) -> np.ndarray:
    """Return what the removal of each entry costs, made to rise along each column.

    Args:
        problems: The problem of each group.
        weights: Their solutions ``[groups, features, outputs]``.
        unit: What is removed as one.

    Returns:
        Costs of the weights' shape, a block's shared by its entries. Entries that are never
        removed are infinite.
    """
    found = np.full(weights.shape, np.inf)
    for group, problem in enumerate(problems):
        trace = traces(problem, weights[group], unit)
        rising = np.maximum.accumulate(trace.costs, axis=0) / (unit.height * unit.width)
        # Of equal costs, those of earlier steps are the lower.
        rising *= 1 + 1e-9 * np.linspace(0, 1, len(rising))[:, None]
        for column, (order, costs) in enumerate(zip(trace.order.T, rising.T, strict=True)):
            wide = slice(column * unit.width, (column + 1) * unit.width)
            part = found[group, :, wide].reshape(-1, unit.height, unit.width)
            part[order] = costs[:, None, None]
            found[group, :, wide] = part.reshape(-1, unit.width)
    return found


def single_costs(problems: list[LeastSquares], weights: np.ndarray) -> np.ndarray:
    """Return what it costs to remove each entry alone, OBC eq. 3.

    Args:
        problems: The problem of each group.
        weights: Their solutions ``[groups, features, outputs]``.

    Returns:
        An array of the weights' shape.
    """
    found = np.empty_like(weights)
    for group, problem in enumerate(problems):
        diagonal = np.diag(np.linalg.inv(problem.hessian))
        found[group] = weights[group] ** 2 / diagonal[:, None]
    return found


def prune(
    problems: list[LeastSquares],
    weights: np.ndarray,
    structure: Structure,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose entries by ExactOBS and correct what is kept.

    Args:
        problems: The problem of each group.
        weights: Their solutions with all entries, ``[groups, features, outputs]``.
        structure: How many entries are kept, in what pattern.
        importance: What a squared error of each output counts, ``[groups, outputs]``.

    Returns:
        The mask and the weights, zero off the mask.
    """
    unit = structure.unit
    costs = single_costs(problems, weights) if unit is None else increments(problems, weights, unit)
    if importance is not None:
        costs = costs * importance[:, None, :]
    mask = structure.select(costs)
    kept = np.stack([solve(p, m) for p, m in zip(problems, mask, strict=True)])
    return mask, kept
