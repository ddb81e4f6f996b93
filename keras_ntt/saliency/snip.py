"""SNIP (Lee et al., ICLR 2019): how much a weight's removal changes a loss."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.saliency.base import NetworkSaliency, Subject, flat, sensitivity, summed_gradient
from keras_ntt.saliency.losses import Given, check_loss, loss_for


class SNIP(NetworkSaliency):
    """Score weights by ``|w * dL/dw|``, divided by the sum of all scores.

    L is the mean loss over all samples: the absolute value is that of the mean gradient (Lee,
    Ajanthan & Torr, "SNIP: Single-shot network pruning based on connection sensitivity", ICLR
    2019). With several rounds it is iterative SNIP.

    Args:
        loss: A Keras loss, its name, or a function of labels and outputs, where several outputs are
            concatenated; or a dictionary or list with one of these for each output, as in
            ``compile``. None is the cross-entropy of logits: of sigmoid if the model ends in
            sigmoid and the labels are not class numbers, else of softmax. For a compiled model with
            several outputs, None is the loss that it is compiled with.
        loss_weights: Weights of the losses of several outputs, nested as they are.
        rounds: The default number of rounds in which to prune.
    """

    needs_data: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    def __init__(self, loss: Given = None, *, loss_weights: Any = None, rounds: int = 1):
        check_loss(loss, loss_weights)
        self.loss, self.loss_weights = loss, loss_weights
        self.rounds = checks.check_count("rounds", rounds)

    def looks_at_logits(self, model: keras.Model) -> bool:
        """Tell whether the loss is one of logits; one that is given is of what comes out."""
        return loss_for(model, self.loss, self.loss_weights).takes_logits

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the scores, which sum to 1."""
        return normalized(sensitivity(subject.values, self.gradients(subject)))

    def gradients(self, subject: Subject) -> list[tf.Tensor]:
        """Return the gradients of the loss, summed over all samples."""
        chosen = loss_for(subject.model, self.loss, self.loss_weights)
        return summed_gradient(subject, chosen.function, logits=chosen.takes_logits)[0]


class LossGradient(SNIP):
    """Score weights by ``|dL/dw|``, divided by the sum of all scores: SNIP without the weight.

    It chooses entries to train where the others keep their values, whose size then does not matter
    (Wimmer, Mehnert & Condurache, "FreezeNet: Full performance by reduced storage costs", 2020).

    Args:
        loss: See `SNIP`.
        loss_weights: See `SNIP`.
        rounds: The default number of rounds.
    """

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the scores, which sum to 1."""
        return normalized([tf.abs(g) for g in self.gradients(subject)])


class LogitSNIP(NetworkSaliency):
    """Score weights by ``|w * dL/dw|`` with L the sum of the squares of all logits.

    It needs no labels (Liu & Zenke, "Finding trainable sparse networks through Neural Tangent
    Transfer", ICML 2020, who use it for the first masks).

    Args:
        rounds: The default number of rounds in which to prune.
    """

    needs_data: ClassVar[bool] = True
    takes_logits = True

    def __init__(self, *, rounds: int = 1):
        self.rounds = checks.check_count("rounds", rounds)

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the scores."""
        gradients, _ = summed_gradient(
            subject, lambda f, _: tf.reduce_sum(tf.square(flat(f))), logits=True
        )
        return sensitivity(subject.values, gradients)


def normalized(scores: list[tf.Tensor]) -> list[tf.Tensor]:
    """Divide scores by their sum over all tensors; scores that are all zero stay zero."""
    total = tf.add_n([tf.reduce_sum(tf.cast(s, tf.float64)) for s in scores])
    return [tf.cast(tf.math.divide_no_nan(tf.cast(s, tf.float64), total), s.dtype) for s in scores]
