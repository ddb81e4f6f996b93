"""Steps on several replicas, under a strategy of ``tf.distribute``.

Each replica takes a part of a batch. The gradients of the parts are averaged. From the average
every replica computes weights, masks and the state of the optimizer itself, so they are the same on
all replicas and need not be sent.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host


def number() -> int:
    """Return the number of replicas; 1 without a strategy."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def total(values: tf.Tensor) -> tf.Tensor:
    """Return the sum of values over all replicas. Call it on each of them."""
    if number() == 1:
        return values
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def seed_of_step(seed: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Return two integers for random numbers of a step, different on each replica.

    Args:
        seed: The seed of the run.
        step: The step.

    Returns:
        ``[2]``, int64; ``[seed, step]`` on the first replica.
    """
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    return tf.stack([seed, step + tf.cast(replica, tf.int64) * 2**40])


def at_least_one(x: Any) -> tuple[Any, tf.Tensor | float]:
    """Give a replica that got no samples of a small batch one sample that does not count.

    Args:
        x: Inputs ``[n, ...]`` of this replica, nested as the model takes them.

    Returns:
        Inputs of at least one sample, and their weight: 1 or 0.
    """
    if number() == 1:
        return x, 1.0
    n = tf.shape(keras.tree.flatten(x)[0])[0]

    def filled(leaf: tf.Tensor) -> tf.Tensor:
        leaf = tf.convert_to_tensor(leaf)
        missing = tf.cast(tf.equal(n, 0), tf.int32)
        return tf.pad(leaf, [[0, missing], *([0, 0] for _ in leaf.shape[1:])])

    return keras.tree.map_structure(filled, x), tf.cast(n > 0, tf.float32)


def agreed(value: int) -> int:
    """Return on each worker the number of the first worker."""
    if not host.is_among_workers():
        return value
    # When a variable is created, the first worker sends its value to the others.
    return int(tf.Variable(value, dtype=tf.int64, trainable=False).numpy())


def as_logs(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return scalars of a step in a form that Keras can average over replicas.

    Between workers Keras takes the mean over the first axis, which a scalar does not have.
    """
    if not host.is_among_workers():
        return logs
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}


def check_scope(student: keras.Model, what: str) -> None:
    """Raise unless a model was built under the current strategy.

    Args:
        student: The model.
        what: The object to create in the scope, for the message.

    Raises:
        ValueError: If it was built under another strategy, or without one.
    """
    here = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
    homes = [host.strategy_of(variable) for variable in student.trainable_variables]
    if all(home is here for home in homes):
        return
    home = next(home for home in homes if home is not here)
    if home is None:
        raise ValueError(
            f"{what} was created in the scope of a strategy, but its student was built outside "
            "of it. Build the student in the scope too: with strategy.scope(): ... "
            f"Received: student={student.name!r}, strategy={type(here).__name__}"
        )
    raise ValueError(
        f"The student was built in the scope of a strategy. Create and compile {what} in the "
        "scope of the same one: with strategy.scope(): ... "
        f"Received: student={student.name!r} of a {type(home).__name__}, in "
        f"{'no scope' if here is None else 'the scope of another ' + type(here).__name__}"
    )
