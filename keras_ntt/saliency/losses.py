"""Losses on labels, summed over samples, with checks of what is usually mistaken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core.logits import looks_like_probabilities
from keras_ntt.saliency.base import Loss


def check_logits(outputs: tf.Tensor, name: str) -> None:
    """Raise a ValueError if outputs are probabilities where logits are wanted."""
    if looks_like_probabilities(outputs):
        raise ValueError(
            f"{name} is taken on logits, and the model's outputs are probabilities. Leave out the "
            "softmax of the last layer and train with from_logits=True. "
            "Received: outputs that sum to 1 for each sample"
        )


def crossentropy(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the softmax cross-entropy of logits, summed over samples.

    Args:
        outputs: Logits ``[n, c]``.
        labels: Class numbers ``[n]`` or ``[n, 1]``, or one row of class weights a sample.

    Returns:
        A scalar.

    Raises:
        ValueError: If outputs or labels do not fit.
    """
    n, c = outputs.shape
    if c < 2:
        raise ValueError(
            "The default loss is the softmax cross-entropy of several classes. Pass a loss, for "
            "example saliency=keras_ntt.saliency.SNIP(loss=keras.losses.MeanSquaredError()). "
            f"Received: {c} output"
        )
    check_logits(tf.stop_gradient(outputs), "The default loss, cross-entropy,")
    if keras.tree.is_nested(labels):
        raise ValueError(
            "The default loss is that of one output. Pass a loss of the labels and of all outputs "
            f"side by side. Received: labels of {len(keras.tree.flatten(labels))} outputs"
        )
    if tuple(labels.shape) == (n, c):
        labels = tf.cast(labels, outputs.dtype)
        return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels, outputs))
    if tuple(labels.shape) not in ((n,), (n, 1)):
        raise ValueError(
            f"labels must be class numbers of shape ({n},) or rows of shape ({n}, {c}). Or pass a "
            f"loss of your own. Received: labels of shape {tuple(labels.shape)}"
        )
    numbers = tf.reshape(tf.cast(labels, tf.int64), [n])
    low, high = int(tf.reduce_min(numbers)), int(tf.reduce_max(numbers))
    if low < 0 or high >= c:
        raise ValueError(
            f"labels must be class numbers from 0 to {c - 1}, as the model has {c} outputs. "
            f"Received: labels from {low} to {high}"
        )
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(numbers, outputs))


@contextlib.contextmanager
def fitting(labels: Any) -> Iterator[None]:
    """Raise a ValueError where TensorFlow or Keras finds that labels do not fit in a loss."""
    try:
        yield
    except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
        shapes = [getattr(leaf, "shape", None) for leaf in keras.tree.flatten(labels)]
        raise ValueError(
            "The loss cannot be taken of these labels and the outputs of the model. Pass labels as "
            f"fit takes them. Received: labels of shape {shapes} "
            f"({getattr(error, 'message', error)})"
        ) from error


def as_loss(loss: Callable[[Any, Any], Any] | str | None) -> Loss:
    """Return a loss on flat outputs that is summed over samples.

    Args:
        loss: A Keras loss or its name, or a function of labels and outputs that returns a mean
            or one number a sample. None is softmax cross-entropy of logits.

    Returns:
        The loss.

    Raises:
        ValueError: If it is none of these.
    """
    if loss is None:
        return crossentropy
    function = keras.losses.get(loss) if isinstance(loss, str) else loss
    if not callable(function) or isinstance(function, type):
        raise ValueError(
            "loss must be a Keras loss, its name, or a function of labels and outputs. "
            f"Received: loss={loss!r}"
        )

    def summed(outputs: tf.Tensor, labels: Any) -> tf.Tensor:
        with fitting(labels):
            found = tf.convert_to_tensor(function(labels, outputs))
        return tf.reduce_mean(found) * tf.cast(outputs.shape[0], found.dtype)

    return summed
