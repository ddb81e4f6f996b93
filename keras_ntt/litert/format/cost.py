"""The cost of a sparse layout, and the cheapest one, computed without encoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from keras_ntt.litert.format.encoding import Layout, blocked, index_type, kept

BLOCK_SIZES = (2, 4, 8, 16)


def layouts(shape: Sequence[int]) -> Iterator[Layout]:
    """Yield every layout without blocks, and with blocks of the usual sizes that fit.

    Blocks are offered on the first axis, the last axis and both, where channels are.

    Args:
        shape: The array's shape.
    """
    rank = len(shape)
    for blocks in _block_shapes(tuple(shape)):
        for order in itertools.permutations(range(rank)):
            for compressed in itertools.product((False, True), repeat=rank):
                if any(compressed):
                    yield Layout(order, compressed, blocks)


def _block_shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    rank = len(shape)
    yield (1,) * rank
    if rank < 2:
        return
    for first, last in itertools.product((1, *BLOCK_SIZES), repeat=2):
        if (first, last) != (1, 1) and shape[0] % first == 0 and shape[-1] % last == 0:
            yield (first, *[1] * (rank - 2), last)


class Cost:
    """What any layout of one array costs, from a few counts of its non-zeros.

    The number of nodes of a compressed level is the number of different coordinates that the
    non-zeros have on the axes so far: it depends on the set of these axes, not on their order.
    Sixteen counts therefore answer for all 360 layouts of a convolution's weight.

    Args:
        array: The array.
    """

    def __init__(self, array: np.ndarray):
        self._mask = kept(array)
        self._tables: dict[tuple[int, ...], dict[frozenset[int], int]] = {}
        self.shape = array.shape
        axes = range(array.ndim)
        self._largest = [
            int(np.flatnonzero(self._mask.any(axis=tuple(a for a in axes if a != axis))).max())
            for axis in axes
        ]
        self.stored = int(self._mask.sum())

    def _counts(self, blocks: tuple[int, ...]) -> dict[frozenset[int], int]:
        """Return, for each set of axes, how many coordinates on them the blocks have."""
        if blocks not in self._tables:
            rank = len(self.shape)
            plain = Layout(tuple(range(rank)), (False,) * rank, blocks)
            mask = blocked(self._mask, plain)
            mask = np.asarray(mask.any(axis=tuple(range(rank, mask.ndim))))
            table: dict[frozenset[int], int] = {}
            _project(mask, tuple(range(rank)), table)
            self._tables[blocks] = table
        return self._tables[blocks]

    def of(self, layout: Layout, itemsize: int) -> int:
        """Return the bytes of values, segments and indices.

        Args:
            layout: The layout.
            itemsize: Bytes of one value.
        """
        counts = self._counts(layout.blocks)
        nodes, total, axes = 1, 0, frozenset[int]()
        for axis, packed in zip(layout.order, layout.compressed, strict=True):
            axes |= {axis}
            size = self.shape[axis] // layout.blocks[axis]
            if packed:
                parents, nodes = nodes, counts[axes]
                total += (parents + 1) * index_type(nodes).itemsize
                total += nodes * index_type(self._largest[axis] // layout.blocks[axis]).itemsize
            else:
                nodes *= size
        return total + nodes * math.prod(layout.blocks) * itemsize

    def best(self, itemsize: int) -> tuple[Layout, int]:
        """Return the layout of the fewest bytes, and its bytes.

        Args:
            itemsize: Bytes of one value.
        """
        chosen, least = None, -1
        hopeless: set[tuple[int, ...]] = set()
        for layout in layouts(self.shape):
            if layout.blocks in hopeless:
                continue
            full = frozenset(range(len(self.shape)))
            if math.prod(layout.blocks) > 1 and layout.blocks not in self._tables:
                stored = self._counts(layout.blocks)[full] * math.prod(layout.blocks)
                if stored * itemsize >= least:
                    hopeless.add(layout.blocks)
                    continue
            size = self.of(layout, itemsize)
            if chosen is None or size < least:
                chosen, least = layout, size
        if chosen is None:
            raise ValueError(f"a tensor of shape {self.shape} has no sparse form")
        return chosen, least


def _project(mask: np.ndarray, axes: tuple[int, ...], table: dict[frozenset[int], int]) -> None:
    """Count the non-zeros of a mask and of its projections onto all sets of its axes."""
    table[frozenset(axes)] = int(np.count_nonzero(mask))
    for i in range(len(axes)):
        rest = axes[:i] + axes[i + 1 :]
        if rest and frozenset(rest) not in table:
            _project(np.asarray(mask.any(axis=i)), rest, table)
