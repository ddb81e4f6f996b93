"""When to prune and how much: ``schedule(step) -> (should_prune, sparsity)``.

The protocol is that of tensorflow-model-optimization: the first batch is step 1, step 0 is the
moment before it, and a schedule is plain Python, called outside the graph.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import keras

from keras_ntt import checks


class PruningSchedule(ABC):
    """Base class of schedules; a subclass defines ``__call__`` and ``get_config``."""

    @abstractmethod
    def __call__(self, step: int) -> tuple[bool, float]:
        """Return whether to prune after `step` and to which fraction of zeros."""

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Return the arguments to rebuild the schedule from."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PruningSchedule:
        """Rebuild a schedule from `get_config`."""
        return cls(**config)

    def ending_at(self, end_step: int) -> PruningSchedule:
        """Return the schedule for a run that is known to end after `end_step`."""
        return self


@keras.saving.register_keras_serializable(package="keras_ntt")
class NTTSchedule(PruningSchedule):
    """One sparsity from the start, with masks refreshed at regular steps.

    The masks are chosen before the first step and refreshed after every `frequency` steps, but
    not in the last interval, so that the chosen weights can settle (Liu & Zenke, "Finding
    trainable sparse networks through Neural Tangent Transfer", ICML 2020).

    Args:
        sparsity: Fraction of zeros, in [0, 1).
        frequency: Steps from one refresh to the next.
        end_step: The last step of the run; None leaves it to the trainer to find out. Of data
            of unknown length, such as a generator, it knows the length after one epoch only.

    Raises:
        ValueError: If an argument is out of range.

    >>> schedule = NTTSchedule(0.9, frequency=5, end_step=30)
    >>> [step for step in range(31) if schedule(step)[0]]
    [0, 5, 10, 15, 20]
    """

    def __init__(self, sparsity: float, frequency: int = 100, end_step: int | None = None):
        self.sparsity = check_sparsity(sparsity)
        self.frequency = checks.check_count("frequency", frequency)
        self.end_step = end_step

    def __call__(self, step: int) -> tuple[bool, float]:
        """Return whether the masks are refreshed after `step`, and the sparsity."""
        due = step % self.frequency == 0
        early = self.end_step is None or step + self.frequency < self.end_step
        return step == 0 or (due and early), self.sparsity

    def ending_at(self, end_step: int) -> NTTSchedule:
        """Return the schedule with its last step filled in where it was left open."""
        if self.end_step is not None:
            return self
        return NTTSchedule(self.sparsity, self.frequency, end_step)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to rebuild the schedule from."""
        return {
            "sparsity": self.sparsity,
            "frequency": self.frequency,
            "end_step": self.end_step,
        }


class _Called(PruningSchedule):
    """A callable taken as a schedule."""

    def __init__(self, function: Callable[[int], Any]):
        self.function = function

    def __call__(self, step: int) -> tuple[bool, float]:
        return self.function(step)

    def get_config(self) -> dict[str, Any]:
        return {"function": self.function}


def decide(schedule: PruningSchedule, step: int) -> tuple[bool, float]:
    """Ask a schedule about a step and check its answer.

    Args:
        schedule: Any schedule.
        step: The number of the step.

    Returns:
        Whether to prune after the step, and the sparsity, in [0, 1).

    Raises:
        ValueError: If the schedule returns something else than ``(should_prune, sparsity)``.
    """
    answer = schedule(step)
    try:
        should_prune, sparsity = answer
        prune, value = bool(should_prune), float(sparsity)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "A pruning schedule is called with a step and must return (should_prune, sparsity). "
            f"Received: schedule({step}) returned {answer!r}"
        ) from error
    return prune, check_sparsity(value) if prune else 0.0


def as_schedule(schedule: Any) -> PruningSchedule:
    """Return a `PruningSchedule` for a schedule, a callable or a number.

    Args:
        schedule: A `PruningSchedule`; a number, which becomes ``NTTSchedule(number)``; or any
            callable ``step -> (should_prune, sparsity)``, such as a schedule of
            tensorflow-model-optimization.

    Returns:
        The schedule.

    Raises:
        ValueError: If it is none of these or the number is not in [0, 1).
    """
    if isinstance(schedule, PruningSchedule):
        return schedule
    if checks.is_number(schedule):
        return NTTSchedule(schedule)
    if callable(schedule) and not inspect.isclass(schedule):
        return _Called(schedule)
    raise ValueError(
        "pruning_schedule must be a sparsity in [0, 1), a PruningSchedule such as "
        "keras_ntt.NTTSchedule(0.9), or a callable step -> (should_prune, sparsity). "
        f"Received: pruning_schedule={schedule!r}"
    )


def check_sparsity(sparsity: Any) -> float:
    """Return `sparsity` as a float in [0, 1).

    Raises:
        ValueError: If it is not one.
    """
    if not checks.is_number(sparsity) or not 0 <= sparsity < 1:
        raise ValueError(
            "sparsity is the fraction of zeros and must be a number in [0, 1): 0.97 leaves 3 % "
            f"of the weights. Received: sparsity={sparsity!r}"
        )
    return float(sparsity)
