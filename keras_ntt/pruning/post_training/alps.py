"""ALPS: the support by ADMM with a top-k projection, the entries by least squares.

Meng, Behdin, Wang & Mazumder, "ALPS: improved optimization for highly sparse one-shot pruning for
large language models", NeurIPS 2024 (arXiv 2406.07831). With H scaled to a unit diagonal:
``B = (H + rho I)^-1 (C - V + rho D)``, ``D = top_k(B + V / rho)``, ``V += rho (B - D)``; rho rises
every three steps, the faster the more of the support still changes. One eigendecomposition serves
all rho.
"""

from __future__ import annotations

import numpy as np

from keras_ntt.pruning.post_training.refit import LeastSquares, solve
from keras_ntt.pruning.post_training.structure import Structure

_STEPS = 300
_RHO = 0.1


def prune(
    problems: list[LeastSquares],
    weights: np.ndarray,
    structure: Structure,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose entries by ADMM and correct what is kept.

    Args:
        problems: The problem of each group.
        weights: Their solutions with all entries, ``[groups, features, outputs]``.
        structure: How many entries are kept, in what pattern.
        importance: What a squared error of each output counts, ``[groups, outputs]``.

    Returns:
        The mask and the weights, zero off the mask.
    """
    weigh = np.ones((len(weights), weights.shape[2])) if importance is None else importance
    weigh = np.sqrt(weigh / max(float(weigh.mean()), 1e-300))[:, None, :]
    scale: np.ndarray = np.stack([np.sqrt(np.diag(problem.hessian)) for problem in problems])[
        :, :, None
    ]
    hessians = np.stack([problem.hessian for problem in problems])
    hessians = hessians / (scale * np.swapaxes(scale, 1, 2))
    values, vectors = np.linalg.eigh(hessians)
    dense = weights * scale * weigh
    target = hessians @ dense
    support = structure.select(dense**2)
    first, before = support, support
    kept, dual, rho = np.where(support, dense, 0.0), np.zeros_like(dense), _RHO
    for step in range(1, _STEPS + 1):
        right = np.swapaxes(vectors, 1, 2) @ (target - dual + rho * kept)
        whole = vectors @ (right / (values[:, :, None] + rho))
        moved = whole + dual / rho
        support = structure.select(moved**2)
        kept = np.where(support, moved, 0.0)
        dual = dual + rho * (whole - kept)
        if step % 3:
            continue
        change = float((support != before).sum()) / max(float(support.sum()), 1.0)
        before = support
        if change == 0 and ((support != first).any() or rho > 1e3):
            break
        rho *= 1.3 if change > 0.1 or change == 0 else 1.2 if change > 0.005 else 1.1
    found = np.stack([solve(p, m) for p, m in zip(problems, support, strict=True)])
    return support, found
