"""Outputs of two models as they are compared: logits, and what kind of answer they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import logits as of_models


class Heads(NamedTuple):
    """A model whose outputs can be compared with another one's.

    Attributes:
        model: The model without the softmax or sigmoid that it ends in, with its variables.
        kinds: What each output of the whole model is, in flat order: ``"softmax"``,
            ``"sigmoid"`` or ``"linear"``.
        own: Whether probabilities are made by the user's own code, where no logits are found.
    """

    model: keras.Model
    kinds: tuple[str, ...]
    own: tuple[bool, ...]

    def logits(self, x: Any, *, training: bool) -> list[tf.Tensor]:
        """Return the flat outputs of the model as logits.

        Args:
            x: Inputs, nested as the model takes them.
            training: The mode.

        Returns:
            Float32 tensors. Probabilities of the user's own code become their logarithms, which
            are logits but for a constant a sample.
        """
        outputs = keras.tree.flatten(self.model(x, training=training))
        found = [tf.cast(y, tf.float32) for y in outputs]
        return [
            tf.math.log(tf.maximum(y, 1e-30)) if own else y
            for y, own in zip(found, self.own, strict=True)
        ]


def heads_of(model: keras.Model, sample: Any) -> Heads:
    """Return a model for comparisons.

    Args:
        model: A built model.
        sample: A few inputs. Where the code of the model is the user's own, outputs that are not
            negative and have the sum 1 along the last axis count as those of a softmax.

    Returns:
        The `Heads`.
    """
    found = of_models.logits_of(model)
    outputs = [np.asarray(y) for y in keras.tree.flatten(found.model(sample, training=False))]
    names = found.activations or (None,) * len(outputs)
    own = tuple(
        name is None and not found.certain and _are_probabilities(y)
        for name, y in zip(names, outputs, strict=True)
    )
    kinds = tuple(
        name or ("softmax" if mine else "linear") for name, mine in zip(names, own, strict=True)
    )
    return Heads(found.model, kinds, own)


def _are_probabilities(y: np.ndarray) -> bool:
    return y.ndim > 1 and of_models.looks_like_probabilities(y.reshape(-1, y.shape[-1]))
