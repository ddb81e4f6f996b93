"""One step of Neural Tangent Transfer, a function of its state (Liu & Zenke, ICML 2020)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.pruning.neural_tangent.adversarial import Attack, attacked
from keras_ntt.pruning.neural_tangent.gradient import loss_and_gradient
from keras_ntt.pruning.neural_tangent.latent_weights import gate
from keras_ntt.pruning.neural_tangent.lookahead import Plan
from keras_ntt.pruning.neural_tangent.objective import NTTLoss, Weighting, objective
from keras_ntt.pruning.neural_tangent.state import TransferState


def training_step(
    state: TransferState,
    x: Any,
    counted: tf.Tensor | float,
    *,
    weighting: Weighting,
    optimizer: keras.optimizers.Optimizer,
    plan: Plan,
    attack: Attack | None = None,
    parts: int = 1,
) -> NTTLoss:
    """Take one step of the transfer on a batch: gradient, update, masks, and the student's zeros.

    Args:
        state: The state, which the step changes.
        x: A batch of inputs, of at least one sample.
        counted: The weight of this replica in the mean, 1 or 0.
        weighting: Settings of the objective.
        optimizer: The optimizer of the latent weights.
        plan: The decisions of the schedule for the steps of this execution.
        attack: The attack that moves the inputs first, or None.
        parts: The number of parts of each half of the batch.

    Returns:
        The objective before the update. Its total is NaN if the update was skipped because
        something was not finite.
    """
    variables = state.student.trainable_variables
    sources = [host.raw(v) for v in variables]
    pair = state.pair(weighting)
    if attack is not None:
        x = attacked(attack, pair, x)
    loss, gradients = loss_and_gradient(pair, x, sources, parts=parts, scale=optimizer.scale_loss)
    gradients = gate(variables, gradients, state.latent.by_id())
    # Nothing is counted before a batch is read: at the end of data of unknown length the step
    # begins and finds none.
    with tf.control_dependencies([loss.total]):
        moved = state.latent.trained()
        sound = state.update.apply(optimizer, loss.total, gradients, moved, counted)
        state.step.assign_add(tf.cast(sound, tf.int64))
        counts, density = plan.at(host.value_of(state.step))
        state.latent.refresh(tf.where(sound, counts, -1), density)
        state.latent.write()
    total = tf.where(sound, loss.total, tf.constant(np.nan, loss.total.dtype))
    return loss._replace(total=total)


def evaluation_step(state: TransferState, x: Any, weighting: Weighting) -> NTTLoss:
    """Return the objective on a batch, with the same random choices at each call."""
    return objective(state.pair(weighting, step=-1), x)
