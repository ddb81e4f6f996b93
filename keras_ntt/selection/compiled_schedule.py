"""Schedules inside compiled training steps, and checks for runs of known length.

A schedule is plain Python, but inside a compiled step its answer must be a tensor. A
`FormulaSchedule` computes its formula with tensors, and schedules of tfmot return tensors
themselves. For other schedules a table of their answers is made.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ntt.selection.schedules import FormulaSchedule, PolynomialDecay, decide, is_of_tfmot

ASKED_AHEAD = 100_000
"""How many steps of a schedule without a formula are computed beforehand."""


class Timetable:
    """The answers of a schedule as tensors.

    Args:
        schedule: A `PruningSchedule`. One that is neither of this package nor of tfmot is called at
            once for its first `ASKED_AHEAD` steps. After these it no longer prunes, with a warning
            if it still would.

    Raises:
        ValueError: If the schedule returns something else than ``(should_prune, sparsity)``.
    """

    def __init__(self, schedule: Any):
        self.schedule = schedule
        self._table: np.ndarray | None = None
        self._formula: Any = None
        # A subclass that defines __call__ may differ from the formula.
        if type(schedule).__call__ is FormulaSchedule.__call__:
            self._formula = _by_formula
        elif is_of_tfmot(getattr(schedule, "function", None)):
            self._formula = _of_tfmot
        if self._formula is None:
            answers = [decide(schedule, step) for step in range(ASKED_AHEAD)]
            self._table = np.array([s if due else -1.0 for due, s in answers], np.float32)
            if (self._table[-ASKED_AHEAD // 10 :] >= 0).any():
                warnings.warn(
                    f"A schedule that is a plain function is asked about its first {ASKED_AHEAD:,} "
                    "steps only, and this one still prunes at the last of them. For longer runs "
                    "use keras_ntt.ConstantSparsity, PolynomialDecay or NTTSchedule. "
                    f"Received: {getattr(schedule, 'function', schedule)!r}",
                    stacklevel=2,
                )

    def at(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return whether the masks are chosen for `step`, and to which float32 sparsity.

        Args:
            step: An int64 scalar, which may be symbolic.

        Returns:
            A boolean and a float32 scalar.
        """
        if self._formula is not None:
            return self._formula(self.schedule, step)
        # Beyond the table the answer is no, which a last entry stands for.
        assert self._table is not None
        table = tf.constant(np.append(self._table, np.float32(-1)))
        sparsity = tf.gather(table, tf.minimum(step, ASKED_AHEAD))
        return sparsity >= 0, tf.maximum(sparsity, 0)


def _of_tfmot(schedule: Any, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    due, sparsity = schedule(step)
    return tf.cast(due, tf.bool), tf.cast(sparsity, tf.float32)


def _by_formula(schedule: Any, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    due, sparsity = schedule.formula(step)
    return tf.cast(due, tf.bool), tf.cast(sparsity, tf.float32)


def warn_if_idle(schedule: Any, first: int, last: int) -> None:
    """Warn if a run will end without pruning, or before the final sparsity.

    Args:
        schedule: A `PruningSchedule`.
        first: The first step of the run.
        last: The last step.
    """
    steps = range(first, min(last, first + ASKED_AHEAD) + 1)
    begin, end = getattr(schedule, "begin_step", None), getattr(schedule, "end_step", None)
    ended = end is not None and 0 <= end < first
    if not ended and not any(decide(schedule, step)[0] for step in steps):
        warnings.warn(
            f"Nothing will be pruned: the schedule does not fire from step {first} to step {last}, "
            "where the run ends. Steps are batches: train longer, or lower begin_step or "
            f"frequency. Received: {_described(schedule)}",
            stacklevel=2,
        )
    elif isinstance(schedule, PolynomialDecay) and (begin or 0) <= last < schedule.end_step:
        warnings.warn(
            f"The run ends at step {last}, before the schedule's end_step: it will not reach "
            f"final_sparsity. Train longer or lower end_step. Received: {_described(schedule)}",
            stacklevel=2,
        )


def _described(schedule: Any) -> str:
    config = ", ".join(f"{key}={value}" for key, value in schedule.get_config().items())
    return f"{type(schedule).__name__}({config})"
