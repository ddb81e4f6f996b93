"""How an array with zeros is stored sparsely, and what that costs: pure functions over NumPy.

LiteRT stores a tensor level by level. The levels are the array's axes in any order, called the
traversal order; axes that are cut into blocks come once more at the end, for the place inside a
block. At each level, each node of the level above has

- *dense*: all entries of the axis, or
- *compressed*: the entries below which something is not zero: `indices` lists them,
  and the entries of node i are ``indices[segments[i]:segments[i + 1]]``.

The values stand in the order of the nodes of the last level. Rows in compressed form, the common
CSR, is the order (0, 1) with the last level compressed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_LARGEST = 2**31  # bytes of a dense tensor, as of a whole file


@dataclass(frozen=True)
class Layout:
    """How to store an array sparsely.

    Attributes:
        order: The axes, outermost level first.
        compressed: For each level, whether it is compressed.
        blocks: For each axis the length of its blocks, 1 for none.
    """

    order: tuple[int, ...]
    compressed: tuple[bool, ...]
    blocks: tuple[int, ...]

    def __str__(self) -> str:
        """Return the levels as text, compressed ones in brackets: ``0 [1]`` is CSR."""
        levels = zip(self.order, self.compressed, strict=True)
        text = " ".join(f"[{axis}]" if packed else str(axis) for axis, packed in levels)
        if max(self.blocks, default=1) == 1:
            return text
        return f"{text} blocks {'x'.join(map(str, self.blocks))}"


ROWS = Layout((0, 1), (False, True), (1, 1))
"""Compressed rows of a matrix."""


@dataclass(frozen=True)
class Level:
    """One level: `size` entries each, or those that `segments` and `indices` list."""

    size: int
    segments: np.ndarray | None = None
    indices: np.ndarray | None = None


@dataclass(frozen=True)
class Sparse:
    """An array, stored sparsely.

    Attributes:
        shape: The array's shape.
        layout: How it is stored.
        levels: The levels of the axes, then those of the blocks.
        values: The stored values.
    """

    shape: tuple[int, ...]
    layout: Layout
    levels: tuple[Level, ...]
    values: np.ndarray


def index_type(largest: int) -> np.dtype:
    """Return the smallest type the format knows that holds a number.

    >>> [str(index_type(n)) for n in (255, 256, 65535, 65536)]
    ['uint8', 'uint16', 'uint16', 'int32']
    """
    return np.dtype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32)


def kept(array: np.ndarray) -> np.ndarray:
    """Return what is stored: all that is not zero, and the first entry if there is nothing.

    The runtime takes a constant without bytes for one that is not constant.

    Args:
        array: The array.

    Returns:
        A boolean array of its shape.
    """
    mask = array != 0
    if not mask.any() and mask.size:
        mask.flat[0] = True
    return mask


def blocked(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Give an array one axis a level: the outer ones in order, then those inside blocks.

    Args:
        array: The array.
        layout: The levels.

    Returns:
        A view or copy of the array.
    """
    shape: list[int] = []
    place, inner = [], []
    for size, block in zip(array.shape, layout.blocks, strict=True):
        place.append(len(shape))
        shape.append(size // block)
        if block > 1:
            inner.append(len(shape))
            shape.append(block)
    return array.reshape(shape).transpose([*(place[axis] for axis in layout.order), *inner])


def encode(array: np.ndarray, layout: Layout) -> Sparse:
    """Store an array sparsely.

    Args:
        array: The array.
        layout: How; block lengths must divide the sizes of their axes.

    Returns:
        Its sparse form.
    """
    values, mask = blocked(array, layout), blocked(kept(array), layout)
    packed = (*layout.compressed, *[False] * (values.ndim - array.ndim))
    nodes = np.zeros(1, np.int64)  # numbers of the nodes, counted as if all levels were dense
    levels = []
    for depth, size in enumerate(values.shape):
        if not packed[depth]:
            nodes = (nodes[:, None] * size + np.arange(size)).ravel()
            levels.append(Level(size))
            continue
        below = mask.any(axis=tuple(range(depth + 1, mask.ndim)))
        children = np.flatnonzero(below)
        counts = np.bincount(np.searchsorted(nodes, children // size), minlength=len(nodes))
        segments, indices = np.concatenate([[0], np.cumsum(counts)]), children % size
        levels.append(Level(size, _narrow(segments), _narrow(indices)))
        nodes = children
    return Sparse(array.shape, layout, tuple(levels), values.ravel()[nodes])


def _narrow(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(index_type(int(numbers.max(initial=0))))


def decode(sparse: Sparse) -> np.ndarray:
    """Return the array that a sparse form stands for: the oracle of `encode`.

    It walks down the levels as the runtime does.

    Args:
        sparse: The sparse form.

    Returns:
        The dense array.

    Raises:
        ValueError: If the parts do not fit together.
    """
    _check(sparse)
    coordinates: list[np.ndarray] = []  # of each node, one array a level
    count = 1
    for level in sparse.levels:
        if level.segments is None or level.indices is None:
            parents = np.repeat(np.arange(count), level.size)
            own = np.tile(np.arange(level.size), count)
        else:
            bounds = level.segments.astype(np.int64)
            parents = np.repeat(np.arange(count), bounds[1:] - bounds[:-1])
            own = level.indices.astype(np.int64)
        coordinates = [c[parents] for c in coordinates] + [own]
        count = len(own)
    result = np.zeros(sparse.shape, sparse.values.dtype)
    rank, blocks = len(sparse.shape), sparse.layout.blocks
    inner = iter(coordinates[rank:])
    place = {axis: coordinates[i] for i, axis in enumerate(sparse.layout.order)}
    for axis, block in enumerate(blocks):
        if block > 1:
            place[axis] = place[axis] * block + next(inner)
    result[tuple(place[axis] for axis in range(rank))] = sparse.values
    return result


def _check(sparse: Sparse) -> None:
    """Raise a ValueError for what would make the runtime read outside its arrays."""
    rank, layout = len(sparse.shape), sparse.layout
    if sorted(layout.order) != list(range(rank)) or len(layout.blocks) != rank:
        raise ValueError(f"the traversal order {layout.order} is not one of {rank} axes")
    if any(b < 1 or size % b for b, size in zip(layout.blocks, sparse.shape, strict=True)):
        raise ValueError(f"blocks {layout.blocks} do not divide the shape {sparse.shape}")
    sizes = [sparse.shape[axis] // layout.blocks[axis] for axis in layout.order]
    sizes += [block for block in layout.blocks if block > 1]
    if len(sparse.levels) != len(sizes):
        raise ValueError(f"there are {len(sparse.levels)} levels instead of {len(sizes)}")
    if math.prod(sparse.shape) * sparse.values.itemsize > _LARGEST:
        raise ValueError(f"the shape {sparse.shape} is larger than a file can hold densely")
    nodes = 1  # counted before anything of that size is made
    for depth, (level, size) in enumerate(zip(sparse.levels, sizes, strict=True)):
        if level.size != size:
            raise ValueError(f"a level has size {level.size} instead of {size}")
        if level.segments is None or level.indices is None:
            nodes *= size
        else:
            if depth >= rank:
                raise ValueError("the levels of blocks must be dense")
            segments, indices = level.segments.astype(np.int64), level.indices
            if len(segments) != nodes + 1:
                raise ValueError(f"a level has {len(segments)} segments for {nodes} nodes")
            ordered = len(segments) > 0 and segments[0] == 0 and (np.diff(segments) >= 0).all()
            if not ordered or segments[-1] != len(indices):
                raise ValueError("the segments of a level do not divide its indices")
            if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
                raise ValueError(f"an index of a level of size {size} is outside it")
            nodes = len(indices)
    if nodes != len(sparse.values):
        raise ValueError(f"there are {len(sparse.values)} values for {nodes} places")
