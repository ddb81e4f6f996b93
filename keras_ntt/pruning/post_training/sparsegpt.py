"""SparseGPT: inputs are visited once, and errors are passed on to those that come later.

Frantar & Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot",
ICML 2023 (arXiv 2301.00774), algorithm 1. All outputs share one inverse: with the upper Cholesky
factor U of H^-1, the score of an entry of input j is ``w**2 / U_jj**2``, its removal leaves ``e =
w / U_jj``, and later inputs are corrected by ``-e U[j, j:]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from keras_ntt.pruning.post_training.refit import LeastSquares
from keras_ntt.pruning.post_training.structure import Structure
from keras_ntt.selection.counts import round_to_total

BLOCK = 128
"""Inputs whose entries are compared with each other, as in the published code."""

Choose = Callable[[slice, np.ndarray], np.ndarray]
"""Inputs of a block and their scores ``[block, outputs]`` -> the mask of the block."""


def prune(
    problems: list[LeastSquares],
    weights: np.ndarray,
    structure: Structure,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose entries block after block of inputs, and correct what comes later.

    Single entries have the same sparsity in each block of 128 inputs, to an exact total. For n:m
    the blocks are groups of m inputs. Other patterns, and the entries of layers of several groups,
    are chosen at once, by the scores before any error is passed on.

    Args:
        problems: The problem of each group.
        weights: Their solutions with all entries, ``[groups, features, outputs]``.
        structure: How many entries are kept, in what pattern.
        importance: What a squared error of each output counts, ``[groups, outputs]``.

    Returns:
        The mask and the weights, zero off the mask.
    """
    factors = [_upper_factor(problem.hessian) for problem in problems]
    importance = np.ones((len(weights), weights.shape[2])) if importance is None else importance
    unit, features = structure.unit, weights.shape[1]
    if unit is not None and unit.height * unit.width == 1 and len(weights) == 1:
        size = unit.group or BLOCK
        blocks = [slice(i, min(i + size, features)) for i in range(0, features, size)]
        if unit.group:
            choose = _largest_of_each_output(unit.group - unit.most)
        else:
            choose = _largest_of_block(blocks, structure.count, importance[0])
        mask, kept = sweep(factors[0], weights[0], blocks, choose)
        return mask[None], kept[None]
    diagonals = np.stack([np.diag(u) for u in factors])[:, :, None]
    mask = structure.select((weights / diagonals) ** 2 * importance[:, None, :])
    parts = []
    for factor, weight, given in zip(factors, weights, mask, strict=True):
        whole = slice(0, features)
        parts.append(sweep(factor, weight, [whole], _given(given))[1])
    return mask, np.stack(parts)


def sweep(
    factor: np.ndarray, weights: np.ndarray, blocks: Sequence[slice], choose: Choose
) -> tuple[np.ndarray, np.ndarray]:
    """Remove the entries of one group block after block.

    Args:
        factor: The upper Cholesky factor of the inverse Hessian, ``[features, features]``.
        weights: Weights ``[features, outputs]``.
        blocks: Consecutive blocks of inputs.
        choose: The choice among the entries of a block.

    Returns:
        The mask and the weights.
    """
    kept, mask = np.array(weights), np.ones(weights.shape, bool)
    for block in blocks:
        scores = (kept[block] / np.diag(factor)[block, None]) ** 2
        mask[block] = choose(block, scores)
        errors = np.zeros_like(kept[block])
        for row, j in enumerate(range(block.start, block.stop)):
            errors[row] = np.where(mask[j], 0.0, kept[j]) / factor[j, j]
            kept[j : block.stop] -= factor[j, j : block.stop, None] * errors[row]
            kept[j][~mask[j]] = 0.0
        kept[block.stop :] -= factor[block, block.stop :].T @ errors
    return mask, kept


def _given(mask: np.ndarray) -> Choose:
    return lambda block, scores: mask[block]


def _largest_of_block(blocks: Sequence[slice], count: int, importance: np.ndarray) -> Choose:
    sizes = [(block.stop - block.start) * len(importance) for block in blocks]
    wanted = [count * size / sum(sizes) for size in sizes]
    counts = round_to_total(wanted, sizes, count, minimum=0)
    kept = {block.start: n for block, n in zip(blocks, counts, strict=True)}

    def choose(block: slice, scores: np.ndarray) -> np.ndarray:
        mask = np.zeros(scores.size, bool)
        order = np.argsort(-(scores * importance).ravel(), kind="stable")
        mask[order[: kept[block.start]]] = True
        return mask.reshape(scores.shape)

    return choose


def _largest_of_each_output(count: int) -> Choose:
    def choose(block: slice, scores: np.ndarray) -> np.ndarray:
        ranks = np.argsort(np.argsort(-scores, axis=0, kind="stable"), axis=0, kind="stable")
        return ranks < count

    return choose


def _upper_factor(hessian: np.ndarray) -> np.ndarray:
    """Return the upper triangular U with ``inverse of hessian = U'U``."""
    inverse = np.linalg.inv(hessian)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T
