"""The samples on which scores are computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, host, input_checks, inputs

BATCH_SIZE = 256
"""Samples per batch when scores are computed on arrays; the scores do not depend on it."""


class Batches:
    """Batches ``(x, y)`` that can be read repeatedly; y is None if there are no labels.

    Args:
        data: Inputs, or a tuple of inputs and labels: arrays, a ``tf.data.Dataset`` of batches or
            a ``keras.utils.PyDataset``.
        model: The model that takes them.
        batch_size: Samples per batch, for arrays.

    Raises:
        ValueError: If they do not fit the model, or can be read only once.
    """

    def __init__(self, data: Any, model: keras.Model, batch_size: int = BATCH_SIZE):
        self._size = checks.check_count("batch_size", batch_size)
        x = inputs.without_labels(data)
        if inputs.is_generator(data) or inputs.is_generator(x):
            raise ValueError(
                "A generator can be read only once, and scores may need several passes. Pass "
                "arrays, a tf.data.Dataset or a keras.utils.PyDataset. "
                f"Received: data of type {type(data).__name__}"
            )
        if isinstance(x, list):
            x = keras.tree.map_structure(np.asarray, x)
        inputs.check(x, model, "data")
        if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                "data must end, because scores are taken on all of them. Shorten them by "
                "take(number of batches). Received: a tf.data.Dataset that repeats for ever"
            )
        labels = data[1] if isinstance(data, tuple) and len(data) > 1 else None
        if labels is not None and not input_checks.is_array(x):
            raise ValueError(
                "Labels can be passed only with arrays; a data set yields them in batches (x, y). "
                f"Received: data of a {type(x).__name__} and labels"
            )
        if labels is not None:
            n = sample_count(x)
            check = functools.partial(_checked_labels, n)
            nested = _are_by_output(labels, model, n)
            labels = keras.tree.map_structure(check, labels) if nested else check(labels)
        self._data = data if not input_checks.is_array(x) else (x, labels)
        self._is_array = input_checks.is_array(x)
        self._model = model

    def __iter__(self) -> Iterator[tuple[Any, tf.Tensor | None]]:
        """Yield the batches, in the same order each time if the data set has an order."""
        for batch in self._raw():
            x = inputs.without_labels(batch)
            y = batch[1] if isinstance(batch, tuple) and len(batch) > 1 else None
            if not self._is_array:
                input_checks.check_arrays(x, self._model, "data")
            x = keras.tree.map_structure(tf.convert_to_tensor, x)
            yield x, None if y is None else keras.tree.map_structure(tf.convert_to_tensor, y)

    def _raw(self) -> Iterator[Any]:
        if isinstance(self._data, keras.utils.PyDataset):
            yield from (self._data[i] for i in range(self._data.num_batches))
        elif not self._is_array:
            yield from self._data
        else:
            n = sample_count(self._data[0])
            for start in range(0, n, self._size):
                rows = slice(start, min(start + self._size, n))
                yield tuple(
                    None if part is None else keras.tree.map_structure(_take(rows), part)
                    for part in self._data
                )


def _are_by_output(labels: Any, model: keras.Model, n: int) -> bool:
    """Tell whether labels of n samples are nested as the outputs of a model are."""
    if isinstance(labels, dict):
        return True
    if not isinstance(labels, list | tuple) or not input_checks.is_array(labels):
        return False  # a list of numbers, for example
    leaves, functional = keras.tree.flatten(labels), host.functional_of(model)
    if functional is not None:
        return len(leaves) == len(functional.outputs) > 1
    return all(leaf.shape[:1] == (n,) for leaf in leaves)


def _checked_labels(n: int, labels: Any) -> np.ndarray:
    """Return labels as an array, one for each of n samples."""
    labels = input_checks.as_array("data", labels)
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            f"data must have numbers as labels. Received: labels of dtype {labels.dtype}"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError(
            "data must have finite numbers as labels. Received: "
            f"{int((~np.isfinite(labels)).sum())} of {labels.size} are NaN or infinite"
        )
    if labels.ndim == 0 or len(labels) != n:
        raise ValueError(
            "data must have one label for each sample. Received: "
            f"{n} samples and labels of shape {labels.shape}"
        )
    return labels


def _take(rows: slice) -> Callable[[Any], Any]:
    return lambda array: array[rows]


def sample_count(x: Any) -> int:
    """Return the number of samples of a batch."""
    return int(keras.tree.flatten(x)[0].shape[0])
