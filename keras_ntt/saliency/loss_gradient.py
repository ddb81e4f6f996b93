"""The gradient of a model's loss, without changing the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host, input_checks
from keras_ntt.core.logits import logits_of
from keras_ntt.saliency.base import flat, gradient
from keras_ntt.saliency.losses import Given, fitting, loss_for


def loss_gradient(
    model: keras.Model, variables: Sequence[keras.Variable], x: Any, y: Any, loss: Given = None
) -> list[tf.Tensor]:
    """Return the gradient of the mean loss of a batch with respect to some weights.

    The model runs in inference mode. The batch is not counted in its metrics or in its losses per
    output.

    Args:
        model: A built model.
        variables: The weights.
        x: Inputs.
        y: Labels.
        loss: A loss, or one for each output, see `keras_ntt.saliency.SNIP`; None is the loss that
            the model is compiled with, or the cross-entropy of its logits if there is none.

    Returns:
        One tensor for each weight.

    Raises:
        ValueError: If the loss does not fit these labels.
    """
    # Layers compute the regularization of a weight from the value that replaces it.
    weights = {id(v): v for v in (*model.trainable_variables, *variables)}
    values = {key: (v, tf.convert_to_tensor(host.first_copy(v))) for key, v in weights.items()}
    sources = [values[id(v)][1] for v in variables]
    with (
        tf.GradientTape(watch_accessed_variables=False) as tape,
        host.values_in_place(values, losses=True),
        host.one_replica(),
    ):
        tape.watch(sources)
        outputs = model(x, training=False)
        labels = _as_labels(y, outputs)
        if loss is None and _has_loss(model, y):
            with fitting(labels):
                found = model.compute_loss(x=x, y=labels, y_pred=outputs, sample_weight=None)
                found = tf.convert_to_tensor(found)
        else:
            _check_labelled(y)
            chosen = loss_for(model, loss)
            instead = logits_of(model)
            if chosen.takes_logits and instead.names:
                outputs = instead.model(x, training=False)
            found = chosen.function(outputs, labels)
            found = found / tf.cast(tf.shape(flat(outputs))[0], found.dtype)
    return gradient(tape, found, sources)


def _has_loss(model: keras.Model, y: Any) -> bool:
    """Tell whether a model has a loss, not counting regularization of its weights."""
    if not getattr(model, "compiled", False):
        return False
    base, kind = keras.Model, type(model)
    if kind.compute_loss is not base.compute_loss:
        return True
    if model.loss is None:
        # In Keras's training step the losses of layers are the whole loss; in a custom one not
        # always.
        regularized = sum(v.regularizer is not None for v in model.trainable_weights)
        return kind.train_step is base.train_step and len(model.losses) > regularized
    _check_labelled(y)
    return True


def _check_labelled(y: Any) -> None:
    if y is None:
        raise ValueError("y must be labels, because a loss is taken of them. Received: y=None")


def _as_labels(y: Any, outputs: Any) -> Any:
    """Return labels as tensors, one for each output of the model.

    Args:
        y: Labels as ``fit`` takes them; those of one output may be a list of numbers.
        outputs: The outputs of the model.
    """
    if y is None or tf.is_tensor(y):
        return y
    if isinstance(y, dict):
        named = outputs if isinstance(outputs, dict) else {}
        return {key: _as_labels(part, named.get(key)) for key, part in y.items()}
    if isinstance(y, list | tuple):
        if keras.tree.is_nested(outputs):
            ends = list(outputs.values() if isinstance(outputs, dict) else outputs)
            wanted = ends if len(ends) == len(y) else [None for _ in y]
            return [_as_labels(part, end) for part, end in zip(y, wanted, strict=True)]
        if len(y) == 1 and input_checks.is_array(y):
            return _as_labels(y[0], outputs)
    return tf.convert_to_tensor(input_checks.as_array("y", y))
