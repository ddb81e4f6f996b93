"""Which channels go: as many of each group as a target takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.core.channels.graph import ChannelGraph
from keras_ntt.core.channels.groups import ChannelGroup


class Cost(NamedTuple):
    """What a model costs.

    Attributes:
        parameters: Its weights.
        multiply_adds: Products of its kernels for one sample.
    """

    parameters: int
    multiply_adds: int


def cost_of(graph: ChannelGraph, removed: set[int]) -> Cost:
    """Return what a model costs without some channels.

    Args:
        graph: The graph of the model.
        removed: Labels of what is removed.

    Returns:
        The cost. Where a model takes inputs of any size, its multiply-adds are those of one
        position.
    """
    gone = np.array(sorted(removed), np.int64)
    sizes = {id(w): math.prod(w.shape) for w in graph.model.weights}
    for axis in graph.weights:
        if axis.labels is not None:
            kept = int((~np.isin(axis.labels, gone)).sum())
            key = id(axis.variable)
            sizes[key] = sizes[key] // len(axis.labels) * kept
    work = sum(sizes[id(w.kernel)] * w.positions for w in graph.work)
    return Cost(sum(sizes.values()), work)


class Plan(NamedTuple):
    """How channels are chosen.

    Attributes:
        groups: The groups that may lose some.
        levels: For each group the level of each channel, in (0, 1]: those of at most some level
            go.
        round_to: What the number of channels that stay is a multiple of, where there are more.
        min_channels: How many stay of each group.
    """

    groups: Sequence[ChannelGroup]
    levels: Sequence[np.ndarray]
    round_to: int
    min_channels: int

    def removed(self, level: float) -> set[int]:
        """Return the labels that go at a level between 0 and 1."""
        found: set[int] = set()
        for group, levels in zip(self.groups, self.levels, strict=True):
            keep = group.channels - int((levels <= level + 1e-12).sum())
            keep = self._rounded(max(keep, self.min_channels, 1), group)
            found |= {group.labels[number] for number in _least(levels, group.channels - keep)}
        return found

    def _rounded(self, keep: int, group: ChannelGroup) -> int:
        return min(-(-keep // self.round_to) * self.round_to, group.channels)

    def refilled(
        self, removed: set[int], cost: Callable[[set[int]], float], target: float
    ) -> set[int]:
        """Return what is removed if channels come back for as long as a cost stays within a target.

        Where groups lose channels at the same levels, or many at once, more goes than has to. The
        channels of the highest levels come back first.

        Args:
            removed: Labels that go, as `removed` returns them.
            cost: The cost by what is removed.
            target: The cost that is wanted; `removed` meets it.

        Returns:
            The labels.
        """
        counts = [len(removed.intersection(group.labels)) for group in self.groups]
        open_groups = {number for number, count in enumerate(counts) if count}
        while open_groups:
            tops = {n: float(np.sort(self.levels[n])[counts[n] - 1]) for n in open_groups}
            number = max(sorted(open_groups), key=lambda n: tops[n])
            group, levels = self.groups[number], self.levels[number]
            fewer = group.channels - self._rounded(group.channels - counts[number] + 1, group)
            gone = set(group.labels)
            back = (removed - gone) | {group.labels[i] for i in _least(levels, fewer)}
            if cost(back) <= target:
                removed, counts[number] = back, fewer
            if not fewer or removed is not back:
                open_groups.discard(number)
        return removed


def _least(levels: np.ndarray, count: int) -> list[int]:
    found: list[int] = np.argsort(levels, kind="stable")[:count].tolist()
    return found


def uniform(scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return levels at which each group loses the same share of its channels.

    >>> uniform([np.array([5.0, 1.0]), np.array([2.0])])
    [array([1. , 0.5]), array([1.])]
    """
    found = []
    for score in scores:
        level = np.empty(len(score))
        level[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1) / len(score)
        found.append(level)
    return found


def across_groups(scores: Sequence[np.ndarray], prices: Sequence[float]) -> list[np.ndarray]:
    """Return levels by the rank, among all groups, of a score relative to what a removal brings.

    >>> across_groups([np.array([5.0, 1.0]), np.array([4.0])], [1.0, 1.0])
    [array([1.        , 0.33333333]), array([0.66666667])]
    >>> across_groups([np.array([5.0, 1.0]), np.array([4.0])], [1.0, 10.0])
    [array([1.        , 0.66666667]), array([0.33333333])]
    """
    relative = [score / max(price, 1.0) for score, price in zip(scores, prices, strict=True)]
    (ranks,) = uniform([np.concatenate(relative)])
    return np.split(ranks, np.cumsum([len(score) for score in scores])[:-1])


def level_for(
    plan: Plan, cost: Callable[[set[int]], float], target: float
) -> tuple[set[int], float]:
    """Return the fewest channels whose removal brings a cost down to a target.

    Args:
        plan: How they are chosen.
        cost: The cost by what is removed; it falls as more is.
        target: The cost that is wanted.

    Returns:
        The labels, and the cost that they leave, which is above the target if no more can go.
    """
    steps: list[float] = np.unique(np.concatenate([[0.0], *plan.levels])).tolist()
    low, high = 0, len(steps) - 1
    seen: dict[int, Any] = {}

    def at(number: int) -> tuple[set[int], float]:
        if number not in seen:
            removed = plan.removed(steps[number])
            seen[number] = (removed, cost(removed))
        return seen[number]

    while low < high:
        middle = (low + high) // 2
        if at(middle)[1] <= target:
            high = middle
        else:
            low = middle + 1
    return at(high)
