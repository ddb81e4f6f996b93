"""Labels of channels, and which of them can only be removed together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Labels = np.ndarray  # of int64, one label for each index of an axis
Axes = tuple[Labels | None, ...]  # the labels of each axis of a tensor; None: nothing to remove


class LabelSets:
    """Disjoint sets of labels: the labels of a set are kept, or removed, together.

    A set may be fixed: its channels cannot be removed, and there is a reason why.
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> Labels:
        """Return new labels, each in a set of its own."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def couple(self, first: Labels, second: Labels) -> None:
        """Join the sets of two arrays of labels, entry by entry."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._join(a, b)

    def couple_all(self, labels: Labels) -> None:
        """Join the sets of all labels of an array."""
        for label in labels[1:].tolist():
            self._join(int(labels[0]), label)

    def fix(self, labels: Labels, reason: str) -> None:
        """State why labels cannot be removed; the first reason of a set counts."""
        for label in labels.tolist():
            self._reasons.setdefault(self._find(label), reason)

    def roots(self, labels: Labels) -> Labels:
        """Return for each label the one that stands for its set."""
        return np.array([self._find(label) for label in labels.tolist()], np.int64)

    def reasons(self) -> dict[int, str]:
        """Return why sets are fixed, by the label that stands for the set."""
        return dict(self._reasons)

    def _find(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def _join(self, a: int, b: int) -> None:
        a, b = sorted((self._find(a), self._find(b)))
        if a == b:
            return
        self._parents[b] = a
        if b in self._reasons:
            self._reasons.setdefault(a, self._reasons.pop(b))
            self._reasons.pop(b, None)


def labelled(axes: Iterable[Labels | None]) -> list[Labels]:
    """Return the labels of those axes that have some."""
    return [labels for labels in axes if labels is not None]
