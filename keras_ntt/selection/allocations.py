"""Allocate a sparsity across weights: the exact numbers of entries to keep.

``layerwise`` gives each weight the same sparsity. A mapping gives some weights another one. ``er``
and ``erk`` give large weights a higher sparsity. With ``global`` and ``plsr`` the scores decide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_ntt.core import checks
from keras_ntt.selection.allocation_names import ALLOCATIONS, BY_SCORE
from keras_ntt.selection.counts import keep_count, round_to_total

Allocation = str | Mapping[str, float]
"""One of `ALLOCATIONS`, or ``layer name, path or regular expression -> sparsity``.

A key that equals the name of a layer, or the path of a weight, applies only to that one.
"""


def erdos_renyi(
    shapes: Sequence[Sequence[int]], density: float, *, kernel: bool = True
) -> list[float]:
    """Return Erdős-Rényi densities of weights.

    Weight l has the density ``min(1, eps * p_l)``. eps is chosen so that all weights together have
    the requested density. ERK takes ``p_l = sum(shape) / prod(shape)`` (Evci, Gale, Menick, Castro
    & Elsen, "Rigging the lottery", ICML 2020), ER the same of the last two axes only, the channels.

    Args:
        shapes: Shapes of the weights.
        density: Fraction of all entries to keep, in [0, 1].
        kernel: True for ERK, False for ER.

    Returns:
        One density per weight.

    Raises:
        ValueError: If a shape or the density is not valid.

    Examples:
        >>> [round(d, 5) for d in erdos_renyi([(784, 300), (300, 100), (100, 10)], 0.1)]
        [0.07957, 0.23019, 1.0]
    """
    if not checks.is_number(density) or not 0 <= density <= 1:
        raise ValueError(f"density must be a number in [0, 1]. Received: density={density!r}")
    if not all(_is_shape(shape) for shape in (shapes if isinstance(shapes, Sequence) else [None])):
        raise ValueError(
            "shapes must be a list of shapes, each of one axis or more. "
            f"Received: shapes={shapes!r}"
        )
    sizes = [math.prod(shape) for shape in shapes]
    parts = [tuple(shape) if kernel else tuple(shape)[-2:] for shape in shapes]
    odds = [sum(part) / max(math.prod(part), 1) for part in parts]
    dense: set[int] = set()
    while True:
        sparse = [i for i in range(len(shapes)) if i not in dense]
        left = density * sum(sizes) - sum(sizes[i] for i in dense)
        total = sum(odds[i] * sizes[i] for i in sparse)
        factor = left / total if total else 0.0
        over = {i for i in sparse if factor * odds[i] > 1}
        if not over:
            return [1.0 if i in dense else factor * odds[i] for i in range(len(shapes))]
        dense |= over


def _is_shape(shape: Any) -> bool:
    axes = list(shape) if isinstance(shape, Sequence) else []
    return bool(axes) and all((checks.whole(axis) or 0) >= 1 for axis in axes)


@dataclass(frozen=True)
class Shares:
    """An allocation for the weights of one model.

    Attributes:
        names: Paths of the weights.
        shapes: Their shapes.
        allocation: The allocation.
        count_rule: See `keras_ntt.keep_count`.
        layers: Names of layers of the model. As keys of a mapping they match only themselves. Names
            in the paths of the weights need not be listed.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    allocation: Allocation = "layerwise"
    count_rule: str = "nearest"
    layers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if isinstance(self.allocation, Mapping):
            self._of_layers(0.0)
        elif not isinstance(self.allocation, str) or self.allocation not in ALLOCATIONS:
            raise ValueError(
                f"allocation must be one of {', '.join(map(repr, ALLOCATIONS))}, or map names or "
                "regular expressions of layers to sparsities. "
                f"Received: allocation={self.allocation!r}"
            )

    @property
    def sizes(self) -> list[int]:
        """The numbers of entries of the weights."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def by_score(self) -> bool:
        """Whether the scores decide how many entries each weight keeps."""
        return isinstance(self.allocation, str) and self.allocation in BY_SCORE

    def total(self, sparsity: float) -> int:
        """Return how many entries all weights together keep."""
        return keep_count(sum(self.sizes), sparsity, self.count_rule)

    def check_room(self, sparsity: float) -> None:
        """Raise a ValueError if all weights together keep fewer entries than there are weights.

        A mapping is explicit about each weight, and ``"layerwise"`` keeps at least one entry in
        each.
        """
        shared = isinstance(self.allocation, str) and self.allocation != "layerwise"
        if shared and self.total(sparsity) < len(self.sizes):
            raise ValueError(
                "There are fewer entries to keep than weights to prune, and no signal passes a "
                "weight without entries. Lower the sparsity, leave small weights out by filters=, "
                "or pass allow_empty_layers=True, where it is an argument. "
                f"Received: sparsity={sparsity!r}, allocation={self.allocation!r}, "
                f"{len(self.sizes)} weights of {sum(self.sizes)} entries"
            )

    def counts(self, sparsity: float) -> list[int]:
        """Return how many entries each weight keeps, if its scores do not decide it.

        >>> Shares(("a", "b"), ((10, 10), (4, 5)), {"b": 0.5}).counts(0.9)
        [10, 10]
        """
        if isinstance(self.allocation, Mapping):
            return self._of_layers(sparsity)
        if self.allocation == "layerwise":
            return [keep_count(size, sparsity, self.count_rule) for size in self.sizes]
        if self.by_score:
            raise ValueError(
                "The scores decide how many entries each weight keeps. "
                f"Received: allocation={self.allocation!r}"
            )
        densities = erdos_renyi(self.shapes, 1 - sparsity, kernel=self.allocation == "erk")
        wanted = [d * size for d, size in zip(densities, self.sizes, strict=True)]
        return round_to_total(wanted, self.sizes, self.total(sparsity))

    def _of_layers(self, sparsity: float) -> list[int]:
        assert isinstance(self.allocation, Mapping)
        for given, value in self.allocation.items():
            if not isinstance(given, str) or not checks.is_number(value) or not 0 <= value <= 1:
                raise ValueError(
                    "allocation must map names or regular expressions of layers to sparsities in "
                    "[0, 1], where 1 prunes a layer to nothing. "
                    f"Received: allocation with {given!r}: {value!r}"
                )
        layers = self.layers.union(*(_own_names(name) for name in self.names))
        expressions = [key for key in self.allocation if key not in layers]
        used, counts = set(), []
        for name, size in zip(self.names, self.sizes, strict=True):
            own_names = _own_names(name)
            key = next((own for own in own_names if own in self.allocation), None)
            if key is None:
                key = _first_match(expressions, own_names)
            used.add(key)
            own = sparsity if key is None else float(self.allocation[key])
            counts.append(0 if own == 1 else keep_count(size, own, self.count_rule))
        if unused := [key for key in self.allocation if key not in used]:
            raise ValueError(
                "allocation names layers that are not pruned, or only such as an earlier entry "
                f"matches. Received: allocation with {unused}, weights {list(self.names)}"
            )
        return counts


def _own_names(path: str) -> list[str]:
    """Return the exact names of a weight: its path, and its layers from the inside out.

    >>> _own_names("block/dense/kernel")
    ['block/dense/kernel', 'dense', 'block']
    """
    return [path, *reversed(path.split("/")[:-1])]


def _first_match(expressions: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first regular expression that matches one of a weight's names."""
    for key in expressions:
        try:
            if any(re.search(key, name) for name in names):
                return key
        except re.error as error:
            raise ValueError(
                f"{key!r} is neither a layer's name nor a regular expression: {error}. "
                f"Received: allocation with {key!r}"
            ) from error
    return None
