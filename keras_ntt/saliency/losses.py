"""Losses on labels, summed over samples, with checks for common mistakes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.logits import logits_of, looks_like_probabilities
from keras_ntt.saliency.base import flat

Given = Callable[[Any, Any], Any] | str | Mapping[str, Any] | Sequence[Any] | None
"""A loss as users pass it: one, or one for each output as in ``compile``, or None."""


class ChosenLoss(NamedTuple):
    """A loss of the outputs of a network.

    Attributes:
        function: ``(outputs, labels) -> the sum of the loss over the samples``, both nested as the
            model has them.
        takes_logits: Whether it takes the outputs without the last softmax or sigmoid.
    """

    function: Callable[[Any, Any], tf.Tensor]
    takes_logits: bool


def check_logits(outputs: tf.Tensor, name: str) -> None:
    """Raise a ValueError if outputs are probabilities instead of logits."""
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
        labels: Class numbers ``[n]`` or ``[n, 1]``, or one row of class weights per sample.

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
    _check_of_one(labels)
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


def binary_crossentropy(outputs: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the sigmoid cross-entropy of logits, its mean over outputs, summed over samples.

    Args:
        outputs: Logits ``[n, c]``.
        labels: For each output a number from 0 to 1, ``[n, c]``, or ``[n]`` for one output. With
            class numbers, which exclude each other, it is the softmax cross-entropy.

    Returns:
        A scalar.

    Raises:
        ValueError: If the labels do not fit.
    """
    n, c = outputs.shape
    _check_of_one(labels)
    if c == 1 and tuple(labels.shape) == (n,):
        labels = labels[:, None]
    if c > 1 and tuple(labels.shape) in ((n,), (n, 1)):
        return crossentropy(outputs, labels)
    if tuple(labels.shape) != (n, c):
        raise ValueError(
            f"labels must be numbers from 0 to 1 of shape ({n}, {c}), as the model ends in "
            f"sigmoid. Or pass your own loss. Received: labels of shape {tuple(labels.shape)}"
        )
    labels = tf.cast(labels, outputs.dtype)
    low, high = float(tf.reduce_min(labels)), float(tf.reduce_max(labels))
    if low < 0 or high > 1:
        raise ValueError(
            "labels must be numbers from 0 to 1, as the model ends in sigmoid. Or pass a loss of "
            f"your own. Received: labels from {low:g} to {high:g}"
        )
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=outputs)
    return tf.reduce_sum(tf.reduce_mean(losses, axis=1))


def _check_of_one(labels: Any) -> None:
    if keras.tree.is_nested(labels):
        raise ValueError(
            "The default loss is that of one output. Compile the model with a loss for each "
            "output, or pass them by the outputs' names, for example "
            "saliency=keras_ntt.saliency.SNIP(loss={'kind': 'mse', 'place': 'mse'}). "
            f"Received: labels of {len(keras.tree.flatten(labels))} outputs"
        )


@contextlib.contextmanager
def fitting(labels: Any) -> Iterator[None]:
    """Raise a ValueError if TensorFlow or Keras finds that labels do not fit a loss."""
    try:
        yield
    except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
        shapes = [getattr(leaf, "shape", None) for leaf in keras.tree.flatten(labels)]
        raise ValueError(
            "The loss cannot be taken of these labels and the outputs of the model. Pass labels as "
            f"fit takes them. Received: labels of shape {shapes} "
            f"({getattr(error, 'message', error)})"
        ) from error


def check_loss(loss: Given, loss_weights: Any = None) -> None:
    """Raise a ValueError unless a loss is one that `loss_for` takes.

    Args:
        loss: A Keras loss or its name, or a function of labels and outputs that returns a mean or
            one number per sample; or a mapping or list of such, one for each output. None is the
            default.
        loss_weights: Weights of the losses, nested as they are, or None.
    """
    for one in _each(loss):
        function = keras.losses.get(one) if isinstance(one, str) else one
        if one is not None and (not callable(function) or isinstance(function, type)):
            raise ValueError(
                "loss must be a Keras loss, its name, a function of labels and outputs, or a "
                f"dictionary or list of such, one for each output. Received: loss={one!r}"
            )
    if loss_weights is not None and not isinstance(loss, Mapping | list | tuple):
        raise ValueError(
            "loss_weights weigh the losses of several outputs, so loss must be a dictionary or "
            f"list of them. Received: loss_weights={loss_weights!r} with loss={loss!r}"
        )


def _each(loss: Given) -> list[Any]:
    if isinstance(loss, Mapping):
        return list(loss.values())
    return list(loss) if isinstance(loss, list | tuple) else [loss]


def loss_for(model: keras.Model, loss: Given = None, loss_weights: Any = None) -> ChosenLoss:
    """Return the loss of a model's outputs.

    Args:
        model: A built model.
        loss: As for `check_loss`. A single loss gets the labels and all outputs, concatenated. For
            a model with several outputs, None is the loss that it is compiled with. Otherwise None
            is the softmax cross-entropy of its logits, or the sigmoid cross-entropy if it ends in
            sigmoid.
        loss_weights: Weights of several losses, nested as they are.

    Returns:
        The `ChosenLoss`.

    Raises:
        ValueError: If it is none of these, or does not fit the model.
    """
    check_loss(loss, loss_weights)
    if isinstance(loss, Mapping | list | tuple):
        return ChosenLoss(_by_output(model, loss, loss_weights), False)
    if loss is not None:
        one = _summed(loss)
        return ChosenLoss(lambda outputs, labels: one(flat(outputs), labels), False)
    graph: Any = host.functional_of(model)
    several = graph is not None and len(graph.outputs) > 1
    if several and getattr(model, "compiled", False) and model.loss is not None:
        compiled = model.loss
        if not isinstance(compiled, Mapping | list | tuple):
            compiled = [compiled for _ in graph.outputs]
        return ChosenLoss(_by_output(model, compiled, host.loss_weights_of(model)), False)
    default = crossentropy
    if not several and "sigmoid" in logits_of(model).activations:
        default = binary_crossentropy
    return ChosenLoss(lambda outputs, labels: default(flat(outputs), labels), True)


def _by_output(model: keras.Model, losses: Any, weights: Any) -> Callable[[Any, Any], tf.Tensor]:
    """Return the weighted sum of the losses of several outputs.

    Args:
        model: The model.
        losses: One loss for each output, by name or in order; None leaves an output out.
        weights: Their weights, likewise, or None.
    """

    def total(outputs: Any, labels: Any) -> tf.Tensor:
        ends = _named(outputs, model)
        chosen = _matched("loss", losses, ends)
        factors = _matched("loss_weights", weights, ends) if weights is not None else {}
        wanted = [name for name, loss in chosen.items() if loss is not None]
        targets = _matched("labels", labels, ends, wanted)
        parts = []
        for name in wanted:
            factor = 1.0 if factors.get(name) is None else factors[name]
            found = _summed(chosen[name])(ends[name], targets[name])
            parts.append(tf.cast(factor, found.dtype) * found)
        return tf.add_n([tf.cast(part, parts[0].dtype) for part in parts])

    return total


def _named(outputs: Any, model: keras.Model) -> dict[str, tf.Tensor]:
    """Return the outputs by name: their keys, or the names of the layers that return them."""
    if isinstance(outputs, Mapping):
        return {str(key): tf.convert_to_tensor(value) for key, value in outputs.items()}
    ends = keras.tree.flatten(outputs)
    names = list(getattr(model, "output_names", None) or [])
    if len(names) != len(ends):
        names = [str(number) for number in range(len(ends))]
    return {name: tf.convert_to_tensor(end) for name, end in zip(names, ends, strict=True)}


def _matched(
    what: str, given: Any, ends: Mapping[str, Any], wanted: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the value for each output, by name.

    Args:
        what: The name of the values in messages.
        given: A mapping by name, or a list in the order of the outputs.
        ends: The outputs by name.
        wanted: The names that must have a value; None for none.
    """
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in ends]
        missing = [name for name in wanted or () if name not in given]
        found = {name: given.get(name) for name in ends}
    else:
        several = list(given) if isinstance(given, list | tuple) else [given]
        unknown, missing = [], []
        if len(several) != len(ends):
            missing = list(ends)
        found = dict(zip(ends, several, strict=False))
    if unknown or missing:
        keys = list(given) if isinstance(given, Mapping) else f"a {type(given).__name__}"
        raise ValueError(
            f"{what} must be a dictionary by the names of the outputs, {', '.join(ends)}, or a "
            f"list in their order. Received: {what} with {keys}"
        )
    return found


def _summed(loss: Any) -> Callable[[tf.Tensor, Any], tf.Tensor]:
    """Return a loss that is summed over samples."""
    function = keras.losses.get(loss) if isinstance(loss, str) else loss

    def summed(outputs: tf.Tensor, labels: Any) -> tf.Tensor:
        with fitting(labels):
            found = tf.convert_to_tensor(function(labels, outputs))
        return tf.reduce_mean(found) * tf.cast(outputs.shape[0], found.dtype)

    return summed
