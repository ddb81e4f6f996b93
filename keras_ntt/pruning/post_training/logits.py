"""Logits behind a final softmax or sigmoid: outputs before they become probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_ntt.core.network import unroll


class Head(NamedTuple):
    """What an output of a model is.

    Attributes:
        kind: ``"softmax"``, ``"sigmoid"`` or ``"linear"``.
        layer: The layer that makes the probabilities; None if there is none, or it is not known.
    """

    kind: str
    layer: Any | None = None


def heads_of(model: keras.Model, sample: Any) -> list[Head]:
    """Return what each output of a model is.

    Args:
        model: A built model.
        sample: A few inputs. Where the code of the model is the user's own, outputs that are not
            negative and have the sum 1 along the last axis count as those of a softmax.

    Returns:
        One `Head` an output, in flat order.
    """
    network = unroll(model)
    if network.calls:
        makers = {slot: call.operation for call in network.calls for slot in call.outputs}
        return [_head_of(makers.get(slot)) for slot in network.outputs]
    outputs = [np.asarray(t, np.float64) for t in keras.tree.flatten(model(sample, training=False))]
    return [Head("softmax" if _are_probabilities(y) else "linear") for y in outputs]


def _head_of(operation: Any) -> Head:
    if isinstance(operation, layers.Softmax):
        return Head("softmax" if operation.axis in (-1, [-1]) else "linear", operation)
    activation = getattr(operation, "activation", None)
    if activation is keras.activations.softmax:
        return Head("softmax", operation)
    if activation is keras.activations.sigmoid and not isinstance(operation, layers.RNN):
        return Head("sigmoid", operation)
    return Head("linear")


def _are_probabilities(y: np.ndarray) -> bool:
    sums = y.ndim > 1 and y.shape[-1] > 1 and np.abs(y.sum(axis=-1) - 1).max() < 1e-3
    return bool(sums and y.min() >= 0)


@contextlib.contextmanager
def as_logits(heads: list[Head]) -> Iterator[None]:
    """Let models return logits while the context lasts; they are as they were afterwards.

    Args:
        heads: The outputs of the models.
    """
    changed = [head.layer for head in heads if head.kind != "linear" and head.layer is not None]
    names = ["call" if isinstance(layer, layers.Softmax) else "activation" for layer in changed]
    before = [vars(layer).get(name) for layer, name in zip(changed, names, strict=True)]
    try:
        for layer, name in zip(changed, names, strict=True):
            vars(layer)[name] = _unchanged
        yield
    finally:
        for layer, name, held in zip(changed, names, before, strict=True):
            if held is None:
                vars(layer).pop(name, None)
            else:
                vars(layer)[name] = held


def _unchanged(inputs: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    return inputs


def logits_of(outputs: Any, heads: list[Head]) -> list[tf.Tensor]:
    """Return the flat outputs of a model as logits.

    Args:
        outputs: What the model returned inside `as_logits`.
        heads: What its outputs are.

    Returns:
        Float32 tensors. Probabilities whose layer is not known become their logarithms, which are
        logits but for a constant a sample.
    """
    found = []
    for y, head in zip(keras.tree.flatten(outputs), heads, strict=True):
        y = tf.cast(y, tf.float32)
        if head.kind == "softmax" and head.layer is None:
            y = tf.math.log(tf.maximum(y, 1e-30))
        found.append(y)
    return found
