"""Schedules say when to prune and how much: ``schedule(step) -> (should_prune, sparsity)``.

The protocol is that of tensorflow-model-optimization: the first batch is step 1, step 0 is the
moment before it, and a schedule is plain Python, called outside the graph.
`keras_ntt.selection.compiled_schedule` has the form for compiled steps.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.core.checks import check_sparsity
from keras_ntt.core.kinds import rule_for

_TFMOT = "tensorflow_model_optimization"


class PruningSchedule(ABC):
    """Base class of schedules. A subclass defines ``__call__`` and ``get_config``.

    Step 0 is before training. In a transfer step t is the moment after batch t; in
    `keras_ntt.prune_low_magnitude` it is the moment before it, as in tfmot.
    """

    @abstractmethod
    def __call__(self, step: int) -> tuple[bool, float]:
        """Return whether to prune at `step`, and the fraction of zeros."""

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Return the arguments to rebuild the schedule from."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PruningSchedule:
        """Rebuild a schedule from what `get_config` returns, here or in tfmot."""
        if set(config) == {"class_name", "config"}:
            config = config["config"]
        return cls(**config)

    def ending_at(self, end_step: int) -> PruningSchedule:
        """Return the schedule for a run that ends after `end_step`."""
        return self


class FormulaSchedule(PruningSchedule):
    """Base class of schedules that are a formula of the step, for numbers and tensors.

    A compiled training step calls `formula` itself. For any other schedule it uses a table.
    """

    @abstractmethod
    def formula(self, step: Any) -> tuple[Any, Any]:
        """Return whether to prune, and the fraction of zeros.

        Args:
            step: A number, or an int64 scalar tensor.

        Returns:
            A boolean and a number, or tensors where `step` is one.
        """

    def __call__(self, step: int) -> tuple[bool, float]:
        """Return whether to prune at `step`, and the fraction of zeros."""
        due, sparsity = self.formula(step)
        return bool(due), float(sparsity)


@keras.saving.register_keras_serializable(package="keras_ntt")
class NTTSchedule(FormulaSchedule):
    """One sparsity from the start, with masks that are updated at regular steps.

    The masks are chosen before the first step and updated after every `frequency` steps. They are
    not updated within the last `frequency` steps, so that the chosen weights can settle (Liu &
    Zenke, "Finding trainable sparse networks through Neural Tangent Transfer", ICML 2020). A
    transfer sets its last step by itself; for `keras_ntt.prune_low_magnitude` pass it as
    `end_step`.

    Args:
        sparsity: Fraction of zeros, in [0, 1).
        frequency: Steps from one update to the next; None keeps the first masks.
        end_step: The last step of the run. With None the transfer finds out. If the data have an
            unknown length, as a generator has, it knows the length only after one epoch.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> schedule = NTTSchedule(0.9, frequency=5, end_step=30)
        >>> [step for step in range(31) if schedule(step)[0]]
        [0, 5, 10, 15, 20]
    """

    def __init__(self, sparsity: float, frequency: int | None = 100, end_step: int | None = None):
        self.sparsity = check_sparsity(sparsity)
        self.frequency = None if frequency is None else checks.check_count("frequency", frequency)
        self.end_step = None if end_step is None else checks.whole(end_step)
        if end_step is not None and (self.end_step is None or self.end_step < 0):
            raise ValueError(
                f"end_step must be the last step, an integer, or None. Received: {end_step=!r}"
            )

    def formula(self, step: Any) -> tuple[Any, Any]:
        """Return whether the masks are updated after `step`, and the sparsity."""
        if self.frequency is None:
            return step == 0, self.sparsity
        due = step % self.frequency == 0
        if self.end_step is not None:
            due &= step + self.frequency < self.end_step
        return (step == 0) | due, self.sparsity

    def ending_at(self, end_step: int) -> NTTSchedule:
        """Return the schedule with its last step, if it had none."""
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


@keras.saving.register_keras_serializable(package="keras_ntt")
class ConstantSparsity(FormulaSchedule):
    """One sparsity, with masks that are updated at regular steps, as in tfmot.

    It prunes at ``begin_step, begin_step + frequency, ...`` up to `end_step`, but never at step 0:
    with ``begin_step=0`` the first time is step `frequency`. ``begin_step=1`` prunes before the
    first batch in `keras_ntt.prune_low_magnitude`, and after it in a transfer.

    Args:
        target_sparsity: Fraction of zeros, in [0, 1).
        begin_step: The first step at which to prune.
        end_step: The last step at which to prune; -1 means the end of training.
        frequency: Steps from one update to the next.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> schedule = ConstantSparsity(0.5, begin_step=2, end_step=8, frequency=3)
        >>> [step for step in range(12) if schedule(step)[0]]
        [2, 5, 8]
    """

    def __init__(
        self, target_sparsity: float, begin_step: int, end_step: int = -1, frequency: int = 100
    ):
        self.target_sparsity = check_sparsity(target_sparsity, "target_sparsity")
        self.begin_step, self.end_step = _check_steps(begin_step, end_step, endless=True)
        self.frequency = checks.check_count("frequency", frequency)

    def formula(self, step: Any) -> tuple[Any, Any]:
        """Return whether the masks are updated at `step`, and the sparsity."""
        return _is_due(self, step), self.target_sparsity

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to rebuild the schedule from."""
        return {
            "target_sparsity": self.target_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
        }


@keras.saving.register_keras_serializable(package="keras_ntt")
class PolynomialDecay(FormulaSchedule):
    """A sparsity that grows, fast at first, as in tfmot.

    At step t it is ``final + (initial - final) * (1 - (t - begin) / (end - begin)) ** power``
    (Zhu & Gupta, "To prune, or not to prune", 2017). It prunes every `frequency` steps from
    `begin_step` on, and always at `end_step`. So it reaches the final sparsity even if `frequency`
    does not divide the interval, which tfmot's schedule does not.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: The first step at which to prune.
        end_step: The last step at which to prune, after `begin_step`.
        power: The exponent.
        frequency: Steps from one update to the next.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=10, power=1, frequency=4)
        >>> [(step, round(schedule(step)[1], 6)) for step in range(12) if schedule(step)[0]]
        [(4, 0.32), (8, 0.64), (10, 0.8)]
    """

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        power: float = 3,
        frequency: int = 100,
    ):
        self.initial_sparsity = check_sparsity(initial_sparsity, "initial_sparsity")
        self.final_sparsity = check_sparsity(final_sparsity, "final_sparsity")
        self.begin_step, self.end_step = _check_steps(begin_step, end_step, endless=False)
        self.power = checks.check_number("power", power)
        self.frequency = checks.check_count("frequency", frequency)

    def formula(self, step: Any) -> tuple[Any, Any]:
        """Return whether the masks are updated at `step`, and the sparsity."""
        done = _progress(step - self.begin_step, self.end_step - self.begin_step)
        missing = (self.initial_sparsity - self.final_sparsity) * (1 - done) ** self.power
        return _is_due(self, step) | (step == self.end_step), self.final_sparsity + missing

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to rebuild the schedule from."""
        return {
            "initial_sparsity": self.initial_sparsity,
            "final_sparsity": self.final_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "power": self.power,
            "frequency": self.frequency,
        }


@keras.saving.register_keras_serializable(package="keras_ntt")
class StepwiseSparsity(PruningSchedule):
    """A sparsity that changes at given steps, such as one for each group of epochs.

    Args:
        sparsities: ``step -> sparsity from that step on``, with an entry for step 0.

    Examples:
        >>> schedule = StepwiseSparsity({0: 0.8, 5: 0.4})
        >>> schedule(0), schedule(4), schedule(5)
        ((True, 0.8), (False, 0.8), (True, 0.4))
    """

    def __init__(self, sparsities: Mapping[int, float]):
        self.sparsities = {
            int(step): check_sparsity(value, "a sparsity") for step, value in sparsities.items()
        }

    def __call__(self, step: int) -> tuple[bool, float]:
        """Return whether a new sparsity begins at `step`, and the sparsity."""
        begun = max(first for first in self.sparsities if first <= step)
        return step in self.sparsities, self.sparsities[begun]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to rebuild the schedule from."""
        return {"sparsities": {str(step): value for step, value in self.sparsities.items()}}


def _is_due(schedule: ConstantSparsity | PolynomialDecay, step: Any) -> Any:
    due = (step >= max(schedule.begin_step, 1)) & (
        (step - schedule.begin_step) % schedule.frequency == 0
    )
    return due if schedule.end_step < 0 else due & (step <= schedule.end_step)


def _progress(steps: Any, whole: int) -> Any:
    """Return the elapsed part of an interval, in [0, 1]; for a tensor in float32, as in tfmot."""
    if isinstance(steps, tf.Tensor):
        return tf.clip_by_value(tf.cast(steps, tf.float32) / whole, 0.0, 1.0)
    return min(max(steps / whole, 0.0), 1.0)


def _check_steps(begin_step: Any, end_step: Any, endless: bool) -> tuple[int, int]:
    """Return the first and the last step as integers, or raise a ValueError."""
    for name, value in (("begin_step", begin_step), ("end_step", end_step)):
        if checks.whole(value) is None:
            raise ValueError(f"{name} must be an integer. Received: {name}={value!r}")
    if begin_step < 0:
        raise ValueError(f"begin_step must be at least 0. Received: begin_step={begin_step!r}")
    if endless and end_step == -1:
        return int(begin_step), -1
    # A growing sparsity needs an interval.
    if end_step < max(begin_step, 1) or (not endless and end_step == begin_step):
        raise ValueError(
            f"end_step must be {'-1 or ' if endless else ''}a step after begin_step: the first "
            "batch is step 1. Multiply the epochs by the batches of one. "
            f"Received: begin_step={begin_step!r}, end_step={end_step!r}"
        )
    return int(begin_step), int(end_step)


class _Called(PruningSchedule):
    """A callable that is used as a schedule."""

    def __init__(self, function: Callable[[int], Any]):
        self.function = function

    def __call__(self, step: int) -> tuple[bool, float]:
        return self.function(step)

    def get_config(self) -> dict[str, Any]:
        return {"function": self.function}


def decide(schedule: PruningSchedule, step: int) -> tuple[bool, float]:
    """Call a schedule for a step and check the result.

    Args:
        schedule: Any schedule.
        step: The number of the step.

    Returns:
        Whether to prune after the step, and the sparsity, in [0, 1).

    Raises:
        ValueError: If the schedule does not return ``(should_prune, sparsity)``.
    """
    answer = schedule(step)
    try:
        should_prune, sparsity = answer
        prune, value = bool(should_prune), float(sparsity)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            "A pruning schedule is called with a step and must return (should_prune, sparsity). "
            f"Received: schedule({step}) returned {answer!r}"
        ) from error
    return prune, check_sparsity(value) if prune else 0.0


def asked_for(schedule: PruningSchedule) -> list[float]:
    """Return the sparsities that a schedule asks for, as far as they are known beforehand.

    These are the settings of the classes of this module, and of subclasses that change only the
    constructor. Other schedules are functions of the step, which are not called in advance.

    >>> asked_for(PolynomialDecay(0.5, 0.8, begin_step=0, end_step=10))
    [0.5, 0.8]
    """
    return [getattr(schedule, name) for name in rule_for(schedule, _SPARSITIES) or ()]


_SPARSITIES: dict[type[PruningSchedule], tuple[str, ...]] = {
    NTTSchedule: ("sparsity",),
    ConstantSparsity: ("target_sparsity",),
    PolynomialDecay: ("initial_sparsity", "final_sparsity"),
}


def as_schedule(schedule: Any) -> PruningSchedule:
    """Return a `PruningSchedule` for a schedule, a callable or a number.

    Args:
        schedule: A `PruningSchedule`; a number, which becomes ``NTTSchedule(number)``; or any
            callable ``step -> (should_prune, sparsity)``, such as a schedule of
            tensorflow-model-optimization. Its two known classes and `keras_ntt.tfmot.NTTSchedule`
            become those of this package.

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
        return _native(schedule) or _Called(schedule)
    raise ValueError(
        "pruning_schedule must be a sparsity in [0, 1), a PruningSchedule such as "
        "keras_ntt.NTTSchedule(0.9), or a callable step -> (should_prune, sparsity). "
        f"Received: pruning_schedule={schedule!r}"
    )


def _native(schedule: Any) -> PruningSchedule | None:
    """Return the schedule of this package for one of tfmot or `keras_ntt.tfmot`; else None."""
    kind = type(schedule)
    classes: dict[tuple[str, str], type[PruningSchedule]] = {
        (_TFMOT, "ConstantSparsity"): ConstantSparsity,
        (_TFMOT, "PolynomialDecay"): PolynomialDecay,
        ("keras_ntt", "NTTSchedule"): NTTSchedule,
    }
    cls = classes.get((kind.__module__.split(".")[0], kind.__name__))
    return None if cls is None else cls.from_config(schedule.get_config()["config"])


def is_of_tfmot(schedule: Any) -> bool:
    """Tell whether a schedule's class, or one of its bases, is tfmot's."""
    return any(cls.__module__.split(".")[0] == _TFMOT for cls in type(schedule).__mro__)


def last_step(schedule: Any) -> int | None:
    """Return the step at which a schedule reaches its final sparsity, None if there is none.

    >>> last_step(PolynomialDecay(0.0, 0.8, 0, 8, frequency=1)), last_step(ConstantSparsity(0.8, 5))
    (8, None)
    """
    end = getattr(schedule, "end_step", None)
    if isinstance(schedule, ConstantSparsity) or end is None or end < 0:
        return None
    return int(end)


def identity_of(schedule: PruningSchedule) -> tuple[Any, ...]:
    """Return a value that is equal for schedules with the same answers.

    >>> identity_of(ConstantSparsity(0.5, 1)) == identity_of(ConstantSparsity(0.5, 1))
    True
    """
    if isinstance(schedule, _Called):  # a notebook cell may define it again
        return (getattr(schedule.function, "__code__", schedule.function),)
    return (type(schedule), *sorted(schedule.get_config().items()))
