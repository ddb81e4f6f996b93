"""Optimizer steps that use only the kept entries of a pruned weight.

A pruned entry has a gradient as well, because it is a zero that the network computes with. If an
optimizer treats each entry separately, as SGD and Adam do, this does no harm, because the mask
undoes the update there. But those entries change a norm, or a product of the gradient with itself:
steps that are clipped by norm become too short. Here

- clipping by norm measures only the kept entries,
- an optimizer in which entries of a weight influence each other gets zeros for masked entries, in
  gradients and in its state; Adafactor's means are over the kept entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import optimizers

from keras_ntt.core import host

_NAME = "pruning_mask"
# Each entry of a weight depends only on its own gradients.
_ENTRYWISE = (
    "SGD",
    "RMSprop",
    "Adam",
    "AdamW",
    "Adadelta",
    "Adagrad",
    "Adamax",
    "Nadam",
    "Ftrl",
    "Lion",
    "ScheduleFreeAdamW",
)


def note(held: tf.Variable, constraint: Any) -> None:
    """Record on a ``tf.Variable`` which constraint holds its mask; None removes the record."""
    if constraint is None:
        delattr(held, _NAME)
    else:
        setattr(held, _NAME, constraint)
        host.before_each_step(_see_kept_entries)


def kept_gradients(gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Return gradients with zeros where masks keep a weight zero.

    Keras's optimizers do this automatically where it matters. Call it in training loops that clip
    gradients, or use their norms, before an optimizer gets them, and in loops without an optimizer.

    Args:
        gradients: A tensor, ``tf.IndexedSlices`` or None for each variable.
        variables: The variables, in the same order.

    Returns:
        The gradients; those of weights without a mask are unchanged.

    Raises:
        TypeError: If `gradients` or `variables` is not a list or tuple.
        ValueError: If there is not one gradient a variable, of its shape.

    Examples:
        >>> import keras, numpy as np, tensorflow as tf
        >>> from keras_ntt import apply_masks, kept_gradients
        >>> layer = keras.layers.Dense(2, use_bias=False)
        >>> model = keras.Sequential([keras.Input((2,)), layer])
        >>> model = apply_masks(model, {layer.kernel.path: np.eye(2)})
        >>> (gradient,) = kept_gradients([tf.ones((2, 2))], model.trainable_variables)
        >>> gradient.numpy().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    for name, things in (("gradients", gradients), ("variables", variables)):
        if not isinstance(things, list | tuple):
            raise TypeError(f"{name} must be a list or a tuple. Received: {name}={things!r}")
    given, theirs = list(gradients), list(variables)
    if len(given) != len(theirs):
        raise ValueError(
            "There must be one gradient a variable, None where there is none. "
            f"Received: {len(given)} gradients for {len(theirs)} variables"
        )
    for gradient, variable in zip(given, theirs, strict=True):
        if gradient is None or isinstance(gradient, tf.IndexedSlices):
            continue
        shape = tuple(getattr(gradient, "shape", ("?",)))
        if shape != tuple(getattr(variable, "shape", ())):
            raise ValueError(
                "A gradient must be a tensor of the shape of its variable, or None. "
                f"Received: a gradient of shape {shape} for {variable!r}"
            )
    return [_masked(g, _constraint_of(v)) for g, v in zip(given, theirs, strict=True)]


def _constraint_of(variable: Any) -> Any:
    held = host.raw(variable) if isinstance(variable, host.VARIABLE) else variable
    return getattr(held, _NAME, None)


def _masked(gradient: Any, constraint: Any) -> Any:
    if gradient is None or constraint is None:
        return gradient
    mask = constraint.tensor
    if isinstance(gradient, tf.IndexedSlices):
        rows = tf.gather(mask, gradient.indices)
        values = tf.where(rows, gradient.values, tf.zeros_like(gradient.values))
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    gradient = tf.convert_to_tensor(gradient)
    return tf.where(mask, gradient, tf.zeros_like(gradient))


def _see_kept_entries(optimizer: Any, variables: list[Any]) -> None:
    """Let an optimizer take its next step, for some variables, on their kept entries."""
    constraints = [_constraint_of(v) for v in variables]
    held = [c for c in constraints if c is not None]
    for constraint in held:
        constraint.optimizer = optimizer
    clips = optimizer.clipnorm or optimizer.global_clipnorm
    host.set_clipping(optimizer, _clipping(constraints) if held and clips else None)
    coupled = bool(held) and not _is_entrywise(optimizer)
    moved = [c for c in held if c.exchange is not None]
    for constraint in moved:
        constraint.moved_with = moved
    watched = coupled or bool(moved)
    host.set_update_step(optimizer, _update_step if watched else None)
    if not coupled:
        host.set_root_mean_square(optimizer, None)


def _is_entrywise(optimizer: Any) -> bool:
    classes = [getattr(optimizers, name, None) for name in _ENTRYWISE]
    step = type(optimizer).update_step
    return any(step is cls.update_step for cls in classes if cls is not None)


def _clipping(constraints: list[Any]) -> Any:
    """Return how gradients are clipped by the norm of the kept entries.

    Masked entries are scaled in the same way: a schedule may bring back an entry that has grown.
    """

    def clip(optimizer: Any, gradients: list[Any]) -> list[Any]:
        kept = [_masked(g, c) for g, c in zip(gradients, constraints, strict=True)]
        squares = [tf.reduce_sum(tf.square(_values(g))) for g in kept]
        if optimizer.clipnorm:
            limit = optimizer.clipnorm
            scales = [_scale(tf.sqrt(square), limit) for square in squares]
        else:
            limit = optimizer.global_clipnorm
            # Layers may compute in different precisions, and squares overflow in float16.
            total = tf.add_n([tf.cast(square, tf.float32) for square in squares])
            scales = [_scale(tf.sqrt(total), limit)] * len(gradients)
        return [_scaled(g, scale) for g, scale in zip(gradients, scales, strict=True)]

    return clip


def _values(gradient: Any) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _scale(norm: tf.Tensor, limit: float) -> tf.Tensor:
    """Return the factor that reduces a norm to a limit; NaN if it is not finite, as in Keras."""
    limits = tf.cast(limit, norm.dtype)
    return limits / tf.maximum(norm, limits) + (norm - norm)


def _scaled(gradient: Any, scale: tf.Tensor) -> Any:
    values = _values(gradient)
    values = values * tf.cast(scale, values.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def _update_step(optimizer: Any, gradient: Any, held: Any, learning_rate: Any) -> None:
    """Take the step of an optimizer for one weight, and update its mask if it is due."""
    constraint = _constraint_of(held)

    def take() -> None:
        _step_of_kept(optimizer, gradient, held, learning_rate, constraint)

    if constraint is None or constraint.exchange is None:
        take()
    else:
        variable = host.raw(held) if isinstance(held, host.VARIABLE) else held
        constraint.exchange(optimizer, gradient, variable, constraint.held_mask, take)


def _step_of_kept(
    optimizer: Any, gradient: Any, held: Any, learning_rate: Any, constraint: Any
) -> None:
    """Take the step of an optimizer for one weight, with zeros where it is pruned."""
    step = type(optimizer).update_step
    if constraint is None or _is_entrywise(optimizer):
        host.set_root_mean_square(optimizer, None)
        step(optimizer, gradient, held, learning_rate)
        return
    mask = constraint.tensor
    variable = host.raw(held) if isinstance(held, host.VARIABLE) else held
    if constraint.rest is not None:  # frozen values are not zero, but not a part of a norm either
        type(variable).assign(variable, tf.where(mask, variable, tf.zeros_like(variable)))
    # Otherwise the state of entries pruned since then would be part of the next norm.
    for slot in host.slots_of(optimizer, variable):
        slot.assign(tf.where(mask, slot, tf.zeros_like(slot)))
    host.set_root_mean_square(optimizer, lambda _, x: _root_mean_square(x, mask))
    step(optimizer, _masked(gradient, constraint), held, learning_rate)
    # Division by the zeros gives NaN, which the constraint must not choose from.
    variable.assign(tf.where(mask, variable, tf.zeros_like(variable)))


def _root_mean_square(x: Any, mask: tf.Tensor) -> tf.Tensor:
    """Return the root of the mean square of the kept entries."""
    value = tf.convert_to_tensor(x)
    square = tf.where(mask, tf.square(value), tf.zeros_like(value))
    count = tf.maximum(tf.math.count_nonzero(mask, dtype=tf.int32), 1)
    return tf.sqrt(tf.reduce_sum(square) / tf.cast(count, value.dtype))
