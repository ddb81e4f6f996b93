"""Magnitude: the largest entries are kept."""

from __future__ import annotations

import numpy as np

from keras_ntt.pruning.post_training.refit import LeastSquares
from keras_ntt.pruning.post_training.structure import Structure


def prune(
    problems: list[LeastSquares],
    weights: np.ndarray,
    structure: Structure,
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the largest entries as they are.

    Args:
        problems: Not used.
        weights: The weights, ``[groups, features, outputs]``.
        structure: How many entries are kept, in what pattern.
        importance: Not used.

    Returns:
        The mask and the weights, zero off the mask.
    """
    mask = structure.select(np.abs(weights))
    return mask, np.where(mask, weights, 0.0)
