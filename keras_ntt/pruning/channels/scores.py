"""The scores that `prune_channels` knows by name, and those of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.channels.graph import ChannelGraph
from keras_ntt.core.channels.groups import ChannelGroup
from keras_ntt.pruning.channels import importance as importance_
from keras_ntt.pruning.channels.moments import moments_read
from keras_ntt.saliency.data import Batches

IMPORTANCES = ("magnitude", "batch_norm", "activation", "reconstruction", "taylor", "random")

Importance = str | Callable[[keras.Model, ChannelGroup], Any]


def scores_of(
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    importance: Importance,
    *,
    batches: Sequence[Any] | None,
    data: Any,
    loss: Any,
    batch_size: int,
    seed: int,
) -> list[np.ndarray]:
    """Return a score for each channel of each group.

    Args:
        graph: The graph of the model.
        groups: The groups.
        importance: One of `IMPORTANCES`, or a function of the model and a group.
        batches: Inputs, for the scores that are taken on some.
        data: Inputs and labels, for ``"taylor"``.
        loss: The loss, for ``"taylor"``.
        batch_size: Samples a batch of `data`.
        seed: Seed of random scores.

    Returns:
        Arrays, one a group.

    Raises:
        ValueError: If a function returns something else than scores, or labels or loss are missing.
    """
    if callable(importance):
        found = [np.asarray(importance(graph.model, group), np.float64) for group in groups]
        for group, score in zip(groups, found, strict=True):
            if score.shape != (group.channels,) or not np.isfinite(score).all():
                raise ValueError(
                    "importance must return a finite score for each channel of a group. Received: "
                    f"an array of shape {score.shape} for {group.channels} channels"
                )
        return found
    if importance == "magnitude":
        return importance_.magnitude(graph, groups)
    if importance == "batch_norm":
        return importance_.batch_norm(graph, groups)
    if importance == "random":
        return importance_.random(groups, seed)
    if importance == "taylor":
        return importance_.taylor(graph, groups, gradients_of(graph.model, data, loss, batch_size))
    assert batches is not None
    moments = moments_read(graph, batches)
    if importance == "activation":
        return importance_.activation(graph, groups, moments)
    return importance_.reconstruction(graph, groups, moments)


def gradients_of(
    model: keras.Model, data: Any, loss: Any, batch_size: int
) -> dict[int, np.ndarray]:
    """Return the gradients of the mean loss of a model.

    Args:
        model: The model.
        data: Inputs and labels.
        loss: The loss, None for the model's own.
        batch_size: Samples a batch, for arrays.

    Returns:
        Gradients by ``id(variable)``.

    Raises:
        ValueError: If labels or the loss are missing.
    """
    function = keras.losses.get(getattr(model, "loss", None) if loss is None else loss)
    if function is None:
        raise ValueError(
            'importance="taylor" needs a loss: pass loss, or compile the model. Received: none'
        )
    variables = model.trainable_variables
    total: list[np.ndarray] = [np.zeros(v.shape) for v in variables]
    count = 0
    for x, y in Batches(data, model, batch_size):
        if y is None:
            raise ValueError('importance="taylor" needs labels. Received: data without labels')
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.convert_to_tensor(function(y, model(x, training=False))))
        found = tape.gradient(value, [host.raw(v) for v in variables])
        for sums, gradient in zip(total, found, strict=True):
            if gradient is not None:
                sums += keras.ops.convert_to_numpy(tf.convert_to_tensor(gradient))
        count += int(keras.tree.flatten(x)[0].shape[0])
    return {id(v): sums / count for v, sums in zip(variables, total, strict=True)}
