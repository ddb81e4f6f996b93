"""Few levels of weights, by one-dimensional k-means (Wang & Song 2011, Ckmeans.1d.dp).

An int8 weight has up to 255 values. Rounded to a few of them, it takes fewer bits in a Huffman
code. All channels of a tensor share the levels as integers, so that one code serves them. Each
channel has its own scale, which is fitted by least squares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import WEIGHT_AXIS
from keras_ntt.litert.micro.choose import refusal, smallest
from keras_ntt.litert.micro.graph import Key, channels_of


class Rounded(NamedTuple):
    """A model with weights of few levels.

    Attributes:
        model: The ``ModelT``.
        keys: The weights that were rounded, by graph and tensor.
        candidates: Number of weights that are large enough to be encoded.
    """

    model: Any
    keys: tuple[Key, ...]
    candidates: int


def levels_of(values: np.ndarray, count: int) -> np.ndarray:
    """Return the integers that represent given integers with the least sum of squared errors.

    The clusters of the best choice are intervals, so dynamic programming over the sorted values
    finds it.

    Args:
        values: Integers. Zeros stay zero and do not count.
        count: Number of levels, none of them zero.

    Returns:
        int64 ``[levels]``, sorted; the values themselves if there are at most `count`.

    Examples:
        >>> levels_of(np.array([0, 1, 1, 2, 9, 10, 11, -5]), 3).tolist()
        [-5, 1, 10]
    """
    distinct, counts = np.unique(values[values != 0].astype(np.int64), return_counts=True)
    if len(distinct) <= count:
        return distinct
    # Sums over the values from i to j, both included.
    weight, first, second = (
        np.triu(total[None, 1:] - total[:-1, None])
        for total in (
            np.concatenate([[0], np.cumsum(counts * distinct**power)]) for power in (0, 1, 2)
        )
    )
    centre = np.rint(first / np.maximum(weight, 1)).astype(np.int64)
    centre = np.where(centre == 0, np.where(first < 0, -1, 1), centre)
    cost = (second - 2 * centre * first + centre**2 * weight).astype(float)
    cost[np.tril_indices(len(distinct), -1)] = np.inf
    best, starts = cost[0], []
    for _ in range(count - 1):
        sums = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        starts.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
    found, end = [], len(distinct) - 1
    for start in (*(row for row in reversed(starts)), np.zeros(len(distinct), np.int64)):
        begin = int(start[end])
        found.append(int(centre[begin, end]))
        end = begin - 1
    return np.array(found[::-1])


def rounded_to(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return integers rounded to the nearest level; zeros stay zero.

    Args:
        values: Integers.
        levels: Sorted integers.

    Returns:
        The integers, in the type of the values.
    """
    if not len(levels):
        return values.copy()
    places = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
    return np.where(values == 0, 0, levels[places]).astype(values.dtype)


def few_levels(model: Any, count: int) -> Rounded:
    """Round the int8 weights of a model to few levels where that makes the file smaller.

    Weights of depthwise convolutions are not rounded: they are few, and outputs depend on them
    strongly.

    Args:
        model: A ``ModelT`` that computes in integers, whose first graph alone is used. It is
            not changed.
        count: Number of levels per tensor, without zero.

    Returns:
        A copy with the rounded weights and their scales. Biases are not changed: `refit_biases`
        fits them to the new scales.
    """
    result = fb.copy_of(model)
    keys, candidates = [], 0
    subgraph = result.subgraphs[0]
    uses = fb.uses(subgraph)
    for index, tensor in enumerate(subgraph.tensors):
        array, places = fb.constant(result, tensor), uses.get(index, [])
        if array is None or array.dtype != np.int8 or not places:
            continue
        kinds = {fb.operator_name(result, use.operator) for use in places}
        if "DEPTHWISE_CONV_2D" in kinds or refusal(result, places, tensor, array):
            continue
        if any(channels_of(tensor).zero_points):
            continue
        candidates += 1
        changed = rounded_to(array, levels_of(array, count))
        before, after = (smallest(tensor, a, huffman=True)[0] for a in (array, changed))
        if after is None or after.size >= (array.nbytes if before is None else before.size):
            continue
        _store(result, tensor, array, changed, WEIGHT_AXIS[kinds.pop()])
        keys.append((0, index))
    fb.drop_unused(result)
    return Rounded(result, tuple(keys), candidates)


def _store(model: Any, tensor: Any, before: np.ndarray, after: np.ndarray, axis: int) -> None:
    """Set a tensor to rounded integers, with the scales that fit the old values best."""
    tensor.buffer = fb.add_buffer(model, after)
    scales = np.asarray(tensor.quantization.scale, np.float64)
    others = tuple(i for i in range(before.ndim) if i != axis) if len(scales) > 1 else None
    old, new = before.astype(np.float64), after.astype(np.float64)
    products, squares = (old * new).sum(axis=others), (new * new).sum(axis=others)
    ratio = np.where(squares > 0, products / np.maximum(squares, 1), 1)
    tensor.quantization.scale = (scales * ratio).astype(np.float32).reshape(-1)
