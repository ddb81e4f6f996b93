"""Skip an optimizer's update if the loss or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.pruning.neural_tangent import replicas


def watched(run: Callable[[Any], Any], transfer: Any) -> Callable[[Any], Any]:
    """Return a compiled execution that ends the run when the loss is no longer finite.

    Args:
        run: The execution, iterator -> logs.
        transfer: The transfer whose steps it takes.

    Returns:
        The same, but it raises a FloatingPointError after a step that is not finite, and leaves the
        last good state.
    """

    def checked(iterator: Any) -> Any:
        logs = run(iterator)
        loss = float(logs["loss"])
        if not np.isfinite(loss):
            raise FloatingPointError(_advice(loss, transfer))
        return logs

    return checked


def _advice(loss: float, transfer: Any) -> str:
    weights = [keras.ops.convert_to_numpy(v) for v in transfer.trainable_variables]
    whole = all(np.isfinite(w.astype("float32")).all() for w in weights)
    state = "are as that step left them" if whole else "overflowed in that step and are of no use"
    layers = host.layers_of(transfer.student)
    short = sorted({d for d in (layer.compute_dtype for layer in layers) if "16" in d})
    overflow = f"outputs or their derivatives overflow in {short[0]}, " if short else ""
    rate = float(keras.ops.convert_to_numpy(transfer.optimizer.learning_rate))
    return (
        f"The loss or its gradient became NaN or infinite after step {transfer.step}. The weights "
        f"{state}. Either the inputs hold NaN or infinity, {overflow}or the learning rate is too "
        "high: lower it and start from the dense model again. "
        f"Received: loss={loss}, learning_rate={rate:g}"
    )


def check_scale(optimizer: Any) -> None:
    """Raise if gradients overflow even though the loss is not scaled up.

    Args:
        optimizer: Any optimizer; one that scales the loss halves the scale at each overflow.

    Raises:
        FloatingPointError: If the scale has fallen below one.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return
    scale = float(keras.ops.convert_to_numpy(optimizer.dynamic_scale))
    if scale < 1:
        raise FloatingPointError(
            "The gradients overflow in float16 at every step, so that nothing is learned. Use "
            "the policy 'mixed_bfloat16' or 'float32', or scale the inputs down. "
            f"Received: a loss scale of {scale:g}"
        )


class Update:
    """Applies gradients while they and the loss are finite, on one replica or several.

    After the first that is not finite, nothing more is applied. Weights and state of the optimizer
    then stay unchanged, even if a compiled execution continues for some steps.

    A `keras.optimizers.LossScaleOptimizer` handles overflowing gradients itself: it skips the step
    and scales less. Then only the loss is checked.
    """

    def __init__(self) -> None:
        self._ended = tf.Variable(False, trainable=False, name="ended")

    def begin(self) -> None:
        """Forget what ended an earlier run."""
        self._ended.assign(False)

    def apply(
        self,
        optimizer: Any,
        loss: tf.Tensor,
        gradients: Sequence[tf.Tensor | None],
        variables: Sequence[keras.Variable],
        counted: tf.Tensor | float = 1.0,
    ) -> tf.Tensor:
        """Apply the mean of the replicas' gradients, if everything is finite.

        Args:
            optimizer: The optimizer.
            loss: The loss of this replica.
            gradients: Its gradients, scaled for the optimizer; None where the loss does not depend
                on the variable.
            variables: The variables to update.
            counted: The weight of this replica in the mean, 1 or 0.

        Returns:
            Whether the step counts, a boolean.
        """
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        values = [g for g, _ in pairs]
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        finite = _all_finite([loss]) if scaled else _all_finite([loss, *values])
        if replicas.number() > 1:
            values, finite = _shared(values, finite, tf.convert_to_tensor(counted), scaled)
        sound = finite & ~tf.convert_to_tensor(self._ended)
        moved = [v for _, v in pairs]
        _apply_if(sound, lambda own: optimizer.apply(own, moved), values)
        self._ended.assign(~sound)
        return sound


def _shared(
    values: list[tf.Tensor], finite: tf.Tensor, counted: tf.Tensor, scaled: bool
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Return this replica's share of the mean gradient, and whether all replicas are finite."""
    overflows = ~_all_finite(values) if scaled else tf.constant(False)
    here = tf.stack([~finite, overflows, tf.constant(True)])
    here = tf.cast(here, tf.float32) * counted
    unsound, overflowing, count = tf.unstack(replicas.total(here))
    # A replica without samples adds zeros.
    shares = [tf.where(counted > 0, v / tf.cast(count, v.dtype), tf.zeros_like(v)) for v in values]
    if scaled:  # Keras asks one replica whether any overflows
        nan = [tf.constant(np.nan, v.dtype) for v in shares]
        shares = [tf.where(overflowing > 0, n, v) for n, v in zip(nan, shares, strict=True)]
    return shares, tf.equal(unsound, 0)


def _all_finite(values: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(v)) for v in values]))


def _apply_if(
    sound: tf.Tensor, apply: Callable[[list[tf.Tensor]], Any], values: list[tf.Tensor]
) -> None:
    """Call a function on this replica's gradients if `sound`, which is equal on all replicas."""

    def applied(own: list[tf.Tensor]) -> tf.Tensor:
        apply(own)
        return tf.constant(True)

    def nothing() -> tf.Tensor:
        return tf.constant(False)

    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        tf.cond(sound, lambda: applied(values), nothing)
        return

    # An optimizer merges the replicas, which is impossible inside a branch of one of them.
    def across(strategy: Any, sound: Any, values: Any) -> None:
        def on_each() -> tf.Tensor:
            strategy.extended.call_for_each_replica(applied, args=(values,))
            return tf.constant(True)

        tf.cond(strategy.experimental_local_results(sound)[0], on_each, nothing)

    tf.distribute.get_replica_context().merge_call(across, args=(sound, values))
