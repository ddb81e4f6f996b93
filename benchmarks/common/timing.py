"""Timing in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.common.processes import Infeasible

SLOW = 5.0  # seconds: one step of such a contestant a round, in at most SLOW_ROUNDS
SLOW_ROUNDS = 2


@dataclass
class Contestant:
    """Something that is timed in rounds.

    Attributes:
        run: Takes a number of repetitions, returns the seconds of each.
        repeats: Repetitions a round.
        rounds: The seconds, by round.
        first: Seconds of the first call, compilation included.
        memory: Peak resident size of its process, before and added by the first steps.
        loss_difference: Relative difference of the first loss from ours.
        slow: Whether to time it in fewer rounds, once in each.
    """

    run: Callable[[int], list[float]]
    repeats: int = 1
    rounds: list[list[float]] = field(default_factory=list)
    first: float | None = None
    memory: dict[str, int] | None = None
    loss_difference: float | None = None
    slow: bool = False

    @property
    def seconds(self) -> list[float]:
        """All seconds."""
        return [s for one in self.rounds for s in one]

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)

    def report(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return {
            "median_seconds": self.median,
            "quartiles_seconds": [float(low), float(high)],
            "range_seconds": [min(self.seconds), max(self.seconds)],
            "first_call_seconds": self.first,
            "memory_bytes": self.memory,
            "first_loss_difference": self.loss_difference,
            "rounds_seconds": self.rounds,
        }


def run_rounds(contestants: dict[str, Contestant], rounds: int) -> dict[str, str]:
    """Time the contestants in turns; every other round in the reverse order.

    Returns:
        Those that failed, and why.
    """
    failed: dict[str, str] = {}
    for i in range(rounds):
        order = list(contestants.items())
        for key, contestant in order if i % 2 == 0 else reversed(order):
            if key in failed or (contestant.slow and i >= SLOW_ROUNDS):
                continue
            repeats = 1 if contestant.slow else contestant.repeats
            try:
                contestant.rounds.append(contestant.run(repeats))
            except Infeasible as reason:
                failed[key] = str(reason)
    return failed


def ratio_by_round(one: Contestant, other: Contestant) -> list[float]:
    """Return the ratio of the medians in each round that both took part in."""
    pairs = zip(one.rounds, other.rounds, strict=False)
    return [statistics.median(a) / statistics.median(b) for a, b in pairs]
