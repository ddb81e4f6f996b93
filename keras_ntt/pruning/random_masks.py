"""Random masks of an Erdős-Rényi allocation, which sparse training from the start begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.saliency.names import as_saliency
from keras_ntt.selection.find_masks import find_masks, recipe_of, subject_of


def random_masks(
    model: keras.Model, variables: Sequence[Any], sparsity: float, seed: int
) -> list[np.ndarray]:
    """Return a random mask for each of some weights of a model, densities by ERK."""
    subject = subject_of(model, variables, None, seed=seed)
    recipe = recipe_of(model, variables, as_saliency("random"), allocation="erk")
    return list(find_masks(subject, recipe, sparsity))
