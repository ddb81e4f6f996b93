"""Which entries of a matrix may be kept together: single ones, n:m, blocks, or any pattern.

Solvers see the kernel of one layer as ``[groups, features, outputs]``, and choose entries through
a `Structure`, which knows how many are kept and in what pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ntt.core.axes import Axes
from keras_ntt.pruning.post_training.problems import Layout
from keras_ntt.selection.counts import round_to_total
from keras_ntt.selection.named_patterns import Blocks, OfConsecutive, choose
from keras_ntt.selection.patterns import Pattern


class Unit(NamedTuple):
    """What is removed as one, and how much of it.

    Attributes:
        height: Features of a unit.
        width: Outputs of a unit.
        group: Features among which `most` units may be removed; 0 for no such limit.
        most: Units that are removed of each such group.
    """

    height: int = 1
    width: int = 1
    group: int = 0
    most: int = 0


SINGLE = Unit()
"""Single entries."""


@dataclass(frozen=True, eq=False)
class Structure:
    """How the entries of one kernel are chosen.

    Attributes:
        layout: How the kernel is a stack of matrices; None for one that only single scores are of.
        axes: What the kernel's axes stand for.
        count: How many entries are kept. A pattern may keep somewhat more or fewer.
        pattern: The pattern; None keeps the largest scores.
    """

    layout: Layout
    axes: Axes
    count: int
    pattern: Pattern | None = None

    def on_the_way(self, share: float) -> Structure:
        """Return the same with the count after a share of the way from all entries to `count`."""
        size = int(np.prod(self.layout.shape))
        return replace(self, count=math.ceil(size * (self.count / size) ** share - 1e-6))

    def select(self, scores: np.ndarray) -> np.ndarray:
        """Return the mask of the largest scores, in the pattern.

        Args:
            scores: Scores ``[groups, features, outputs]``, all of the kernel.

        Returns:
            A boolean array of that shape; of equal scores the first are kept.
        """
        if self.pattern is None or self.count == 0:
            mask = np.zeros(scores.size, bool)
            mask[np.argsort(-scores.ravel(), kind="stable")[: self.count]] = True
            return mask.reshape(scores.shape)
        kernel = tf.constant(self.layout.kernel(scores))
        mask = choose(self.pattern, kernel, 1 - self.count / scores.size, self.axes)
        return self.layout.matrix(mask.numpy())

    def select_by_output(self, scores: np.ndarray) -> np.ndarray:
        """Return the mask that keeps as many of the largest scores of each output.

        Args:
            scores: Scores ``[groups, features, outputs]``.

        Returns:
            A boolean array of that shape. With a pattern, it is that of `select`.
        """
        if self.pattern is not None:
            return self.select(scores)
        groups, features, outputs = scores.shape
        columns = groups * outputs
        kept = round_to_total(
            [self.count / columns] * columns, [features] * columns, self.count, minimum=0
        )
        ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
        return ranks < np.reshape(kept, (groups, 1, outputs))

    @property
    def unit(self) -> Unit | None:
        """What a greedy solver removes as one; None for patterns that it cannot follow."""
        layout, pattern = self.layout, self.pattern
        if pattern is None:
            return Unit()
        channels = self._channels
        if layout.groups > 1 or not self.axes.inputs:
            return None
        if isinstance(pattern, OfConsecutive) and channels % pattern.m == 0:
            return Unit(group=pattern.m, most=pattern.m - pattern.n)
        if isinstance(pattern, Blocks):
            whole = layout.features % pattern.height == 0 and layout.outputs % pattern.width == 0
            return Unit(pattern.height, pattern.width) if whole else None
        return None

    @property
    def _channels(self) -> int:
        sizes: Sequence[int] = [self.layout.shape[axis] for axis in self.axes.inputs]
        return int(np.prod(sizes))
