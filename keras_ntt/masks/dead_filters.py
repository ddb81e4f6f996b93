"""Filters that are pruned as a whole: their biases and normalization shifts become zero too.

A filter of zeros still outputs its bias, and what a normalization adds to it. If the next layer
pads with zeros, its bias cannot absorb that output, and the filter could not be removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.core.channels.constants import constants_read
from keras_ntt.core.channels.graph import ChannelGraph, channel_graph

_SHIFTS = ("bias", "beta", "moving_mean")


def drop_shifts_of_dead_filters(model: keras.Model, kernels: Sequence[keras.Variable]) -> None:
    """Set the biases and shifts of pruned filters to zero, where the channel is then zero.

    Behind ReLU a filter without a shift stays zero in training, because its derivative is zero.
    Shifts stay where the channel would not be zero without them: where another layer also adds to
    the channel, where an activation does not map zero to zero, and at the outputs of the model.

    Args:
        model: The model. It is changed in place.
        kernels: Its pruned weights. Filters of other weights do not count.
    """
    graph = channel_graph(model)
    dead = _dead_labels(graph, {id(kernel) for kernel in kernels})
    shifts = [
        (axis.variable, axis.labels, host.array_of(axis.variable))
        for axis in graph.weights
        if axis.labels is not None
        and axis.variable.name in _SHIFTS
        and len(axis.variable.shape) == 1
        and np.isin(axis.labels, dead).any()
    ]
    if not shifts:
        return
    for variable, labels, value in shifts:
        variable.assign(np.where(np.isin(labels, dead), 0, value))
    for reader, (known, values) in zip(graph.readers, constants_read(graph), strict=True):
        dead = np.setdiff1d(dead, reader.labels[~known | (values != 0)])
    for variable, labels, value in shifts:
        variable.assign(np.where(np.isin(labels, dead), 0, value))


def _dead_labels(graph: ChannelGraph, kernels: set[int]) -> np.ndarray:
    """Return the channels that only pruned kernels of zeros make."""
    made: list[np.ndarray] = []
    alive: list[np.ndarray] = [np.array(sorted(graph.fixed), np.int64)]
    for axis in graph.weights:
        if axis.role == "out" and axis.labels is not None and len(axis.variable.shape) > 1:
            value = np.moveaxis(host.array_of(axis.variable), axis.axis, -1)
            used = (value != 0).any(axis=tuple(range(value.ndim - 1)))
            alive.append(axis.labels[used])
            if id(axis.variable) in kernels:
                made.append(axis.labels[~used])
    return np.setdiff1d(np.concatenate(made), np.concatenate(alive)) if made else np.zeros(0, int)
