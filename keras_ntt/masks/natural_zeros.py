"""Zeros that a weight has without having been pruned: identities, empty rows of a table."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.masks.policies import KernelPolicy


def pruned_entries(layer: keras.layers.Layer, variable: keras.Variable) -> np.ndarray:
    """Return which entries of a weight are zeros that only pruning can explain.

    Three kinds of zeros are natural. First, a weight may be initialized with zeros only, as in the
    last layers of residual branches. Second, an identity, also of a convolution or for each gate of
    a recurrent layer, has the same number once in each row and column. Third, zero rows of an
    Embedding stand for padding or for words without a vector, if it has no other zeros.

    Args:
        layer: The layer.
        variable: One of its weights.

    Returns:
        A boolean array of the weight's shape.
    """
    value = host.array_of(variable)
    zeros = value == 0
    natural = zeros.all() or _is_identity(value)
    if isinstance(layer, keras.layers.Embedding) and not natural:
        natural = np.array_equal(zeros, np.broadcast_to(zeros.all(-1, keepdims=True), zeros.shape))
    return np.zeros_like(zeros) if natural else zeros


def was_pruned(layer: keras.layers.Layer, variable: keras.Variable) -> bool:
    """Tell whether a weight has zeros that only pruning can explain."""
    return bool(pruned_entries(layer, variable).any())


def kernels_with_layers(
    model: keras.Model,
) -> Iterator[tuple[keras.layers.Layer, keras.Variable]]:
    """Yield every weight that some method could prune, also frozen ones, with its layer."""
    everything = KernelPolicy(depthwise=True, embeddings=True)
    seen: set[int] = set()
    for layer in host.layers_of(model):
        for variable in everything.prunable_weights(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                yield layer, variable


def _is_identity(value: np.ndarray) -> bool:
    """Tell whether a weight is a multiple of the identity, of a filter, or one for each gate."""
    if value.ndim < 2 or not value.any():
        return False
    matrix = value.reshape(-1, value.shape[-1])
    rows, columns = matrix.shape
    if np.count_nonzero(value) > max(rows, columns):
        return False
    gates = columns // rows if columns % rows == 0 else 1
    return all(_is_one_number_a_row(part) for part in np.split(matrix, gates, axis=1))


def _is_one_number_a_row(matrix: np.ndarray) -> bool:
    nonzero = matrix != 0
    numbers = np.unique(matrix[nonzero])
    once = nonzero.sum(0).max() <= 1 and nonzero.sum(1).max() <= 1
    # With fewer numbers than the shorter side has entries it is a pruned identity, not a whole one.
    return bool(
        once and len(numbers) == 1 and nonzero.sum() >= min(matrix.shape[0], matrix.shape[1])
    )
