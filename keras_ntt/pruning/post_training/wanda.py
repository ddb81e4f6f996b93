"""Wanda: magnitudes times the norms of the inputs, compared within each output.

Sun, Liu, Bair & Kolter, "A simple and effective pruning approach for large language models",
2023 (arXiv 2306.11695).
"""

from __future__ import annotations

import numpy as np

from keras_ntt.pruning.post_training.refit import LeastSquares
from keras_ntt.pruning.post_training.structure import Structure


def scores(problems: list[LeastSquares], weights: np.ndarray) -> np.ndarray:
    """Return ``|W_ij| * |X_i|``, where the Hessian's diagonal has the squared norms.

    Args:
        problems: The problem of each group.
        weights: Weights ``[groups, features, outputs]``.

    Returns:
        An array of the weights' shape.

    >>> hessian = np.array([[2.0, 1, 1], [1, 2, 1], [1, 1, 3]])
    >>> weights = np.array([[[2.0], [1.0], [-1.0]]])
    >>> scores([LeastSquares(hessian, hessian @ weights[0])], weights).ravel().round(3).tolist()
    [2.828, 1.414, 1.732]
    """
    norms = np.stack([np.sqrt(np.diag(problem.hessian)) for problem in problems])
    return np.abs(weights) * norms[:, :, None]


def prune(
    problems: list[LeastSquares],
    weights: np.ndarray,
    structure: Structure,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Keep as many entries of each output, those with the largest scores, as they are.

    Args:
        problems: The problem of each group.
        weights: The weights, ``[groups, features, outputs]``.
        structure: How many entries are kept, in what pattern.
        importance: Not used: outputs are not compared.

    Returns:
        The mask and the weights, zero off the mask.
    """
    mask = structure.select_by_output(scores(problems, weights))
    return mask, np.where(mask, weights, 0.0)
