"""Query a Python schedule before each compiled execution, and begin and end runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.pruning.neural_tangent.divergence import check_scale
from keras_ntt.selection.compiled_schedule import warn_if_idle
from keras_ntt.selection.schedules import PruningSchedule, decide


class Plan:
    """Calls a schedule, which is plain Python, for the steps of the next execution.

    Args:
        schedule: The schedule.
        steps: The number of steps in one execution of the compiled step.
        counts: A function from the sparsity to the numbers of entries to keep.
        numbers: The number of these numbers.
    """

    def __init__(
        self,
        schedule: PruningSchedule,
        steps: int,
        counts: Callable[[float], list[int]],
        numbers: int,
    ):
        self._given = schedule
        self._schedule = schedule
        self._steps = steps
        self._counts_at = counts
        self._idle = True
        self._none = [-1] * numbers
        self._first = tf.Variable(1, dtype=tf.int64, trainable=False)
        self._counts = tf.Variable([self._none] * steps, dtype=tf.int32, trainable=False)
        self._density = tf.Variable(tf.ones([steps], tf.float64), trainable=False)

    def end_at(self, last_step: int | None) -> None:
        """Set the last step of the run, None if it is not known yet."""
        given = self._given
        self._schedule = given if last_step is None else given.ending_at(last_step)

    def warn(self, first: int, last: int) -> None:
        """Warn if nothing will be pruned from step `first` to step `last`."""
        warn_if_idle(self._schedule, first, last)

    def look_ahead(self, done: int) -> None:
        """Call the schedule for the steps after `done`, up to the end of the execution."""
        answers = [decide(self._schedule, done + 1 + i) for i in range(self._steps)]
        idle = not any(prune for prune, _ in answers)
        if not (idle and self._idle):
            rows = [self._counts_at(s) if prune else self._none for prune, s in answers]
            self._counts.assign(rows)
            self._density.assign([1.0 - s for _, s in answers])
            self._first.assign(done + 1)
        self._idle = idle

    def at(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the decision after `step`: the counts, -1 for no update, and the density."""
        index = tf.clip_by_value(step - self._first, 0, self._steps - 1)
        return tf.gather(self._counts, index), tf.gather(self._density, index)


class RunLifecycle(keras.callbacks.Callback):
    """Begins and ends a transfer together with ``fit``, after callbacks that restore its state.

    Args:
        state: The state of the transfer.
        plan: The plan, which gets the last step as soon as the length of an epoch is known.
        first_epoch: The first epoch, unless a restored state has another one.
    """

    def __init__(self, state: Any, plan: Any, first_epoch: int = 0):
        super().__init__()
        self._state = state
        self._plan = plan
        self._given_epoch = first_epoch

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin after `keras.callbacks.BackupAndRestore`, at the step that it restored."""
        self._first = self._state.steps_taken
        self._first_epoch = host.initial_epoch(self.model) or self._given_epoch
        steps = self.params.get("steps")
        self._tell(steps)
        if self._first == 0 and steps is not None:
            self._plan.warn(0, (self.params["epochs"] - self._first_epoch) * steps)
        self._state.begin()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Fix the order of the samples, before Keras reads the first one."""
        check_scale(self.model.optimizer)
        self._state.begin_epoch()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Record the length of an epoch, if it was not known beforehand."""
        if self._state.steps_taken == self._first:
            raise ValueError("inputs hold no batches. Received: data that ended at once")
        if self.params.get("steps") is None and epoch == self._first_epoch:
            self._tell(self._state.steps_taken - self._first)

    def on_train_end(self, logs: Any = None) -> None:
        """End."""
        self._state.finish()

    def _tell(self, steps: int | None) -> None:
        epochs = self.params["epochs"] - self._first_epoch
        self._plan.end_at(None if steps is None else self._first + epochs * steps)
