"""Moments of what the layers of a model read, from unlabelled inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_ntt.core.channels.graph import ChannelGraph
from keras_ntt.pruning.channels import linear


class Moments(NamedTuple):
    """Mean and covariance of the features that a layer reads, as `linear.patches` has them.

    Attributes:
        mean: Means ``[features]``.
        covariance: Covariances ``[features, features]``.
    """

    mean: np.ndarray
    covariance: np.ndarray


class _Sums:
    def __init__(self, features: int) -> None:
        self.count = 0
        self.total, self.products = np.zeros(features), np.zeros((features, features))

    def add(self, rows: np.ndarray) -> None:
        self.count += len(rows)
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.products += rows.T @ rows

    def moments(self) -> Moments:
        mean = self.total / self.count
        return Moments(mean, self.products / self.count - np.outer(mean, mean))


def moments_read(graph: ChannelGraph, batches: Iterable[Any]) -> dict[int, Moments]:
    """Return the moments of what each layer reads that `linear.is_linear` and called once.

    Args:
        graph: The graph of the model.
        batches: Inputs, nested as the model takes them.

    Returns:
        Moments by ``id(layer)``.
    """
    calls = [call.operation for call in graph.network.calls]
    once = {id(c) for c in calls if sum(c is other for other in calls) == 1}
    sums: dict[int, _Sums] = {}
    for batch in batches:
        tensors = dict(zip(graph.network.inputs, graph.network.prepare(batch), strict=True))
        for call in graph.network.calls:
            layer = call.operation
            read = [tensors[slot] for slot in call.inputs]
            if id(layer) in once and linear.is_linear(layer):
                for piece in linear.pieces_of(layer, read[0]):
                    rows = keras.ops.convert_to_numpy(linear.patches(layer, read[0][piece]))
                    sums.setdefault(id(layer), _Sums(rows.shape[-1])).add(rows)
            args, kwargs = call.with_tensors(read)
            outputs = keras.tree.flatten(layer(*args, **kwargs))
            tensors.update(zip(call.outputs, outputs, strict=True))
    return {key: found.moments() for key, found in sums.items()}
