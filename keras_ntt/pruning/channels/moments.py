"""Moments of what the layers of a model read, from unlabelled inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_ntt.core.channels.graph import ChannelGraph
from keras_ntt.pruning.channels import linear
from keras_ntt.pruning.post_training.moments import Moments, Statistics


def moments_read(graph: ChannelGraph, batches: Iterable[Any]) -> dict[int, Statistics]:
    """Return the moments of what each layer reads that `linear.is_linear` and called once.

    Args:
        graph: The graph of the model.
        batches: Inputs, nested as the model takes them.

    Returns:
        Centred `Statistics` by ``id(layer)``, of one group and without targets.
    """
    calls = [call.operation for call in graph.network.calls]
    once = {id(c) for c in calls if sum(c is other for other in calls) == 1}
    sums: dict[int, Moments] = {}
    for batch in batches:
        tensors = dict(zip(graph.network.inputs, graph.network.prepare(batch), strict=True))
        for call in graph.network.calls:
            layer = call.operation
            read = [tensors[slot] for slot in call.inputs]
            if id(layer) in once and linear.is_linear(layer):
                for piece in linear.pieces_of(layer, read[0]):
                    rows = keras.ops.convert_to_numpy(linear.patches(layer, read[0][piece]))
                    none = np.zeros((1, len(rows), 0))
                    sums.setdefault(id(layer), Moments()).add(rows[None], none)
            args, kwargs = call.with_tensors(read)
            outputs = keras.tree.flatten(layer(*args, **kwargs))
            tensors.update(zip(call.outputs, outputs, strict=True))
    return {key: found.statistics() for key, found in sums.items()}
