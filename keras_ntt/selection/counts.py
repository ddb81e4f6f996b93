"""How many entries each weight keeps: rounding, exact totals, and one threshold for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.selection.ties import largest_of


def _nearest(size: int, sparsity: float) -> int:
    return max(round(size * (1 - sparsity)), 1)


def _original(size: int, sparsity: float) -> int:
    return max(size - 1 - int(sparsity * size), 0)


_COUNT_RULES: dict[str, Callable[[int, float], int]] = {
    "nearest": _nearest,
    "original": _original,
}

COUNT_RULES: tuple[str, ...] = tuple(_COUNT_RULES)


def keep_count(size: int, sparsity: float, rule: str = "nearest") -> int:
    """Return how many of `size` entries to keep.

    Args:
        size: Number of entries.
        sparsity: Fraction of zeros, in [0, 1).
        rule: ``"nearest"`` keeps ``max(round(size * (1 - sparsity)), 1)``, computed in float64;
            `keep_count_float32` computes it in float32, as tensorflow-model-optimization does,
            which can differ by one. ``"original"`` keeps what the published code of Neural Tangent
            Transfer keeps: the entries above the sorted score at index ``int(sparsity * size)``,
            one fewer.

    Returns:
        The number of entries to keep.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> keep_count(192, 0.7), keep_count(192, 0.7, "original"), keep_count(10, 0.99)
        (58, 57, 1)
    """
    checks.check_choice("rule", rule, COUNT_RULES)
    sparsity = checks.check_fraction("sparsity", sparsity)
    return _COUNT_RULES[rule](checks.check_count("size", size), sparsity)


def round_to_total(
    wanted: Sequence[float], sizes: Sequence[int], total: int, minimum: int = 1
) -> list[int]:
    """Round numbers of entries so that they have an exact sum, by largest remainders.

    Args:
        wanted: Numbers of entries whose sum is `total` up to rounding.
        sizes: The maximum of each.
        total: The sum.
        minimum: The minimum of each, as far as the total allows.

    Returns:
        Integers whose sum is `total`.

    >>> round_to_total([1.5, 2.25, 0.25], [9, 9, 9], 4)
    [1, 2, 1]
    """
    least = [min(minimum, size) for size in sizes]
    if sum(least) > total:
        least = [0] * len(sizes)
    counts = [
        min(max(math.floor(w + 1e-9), low), size)
        for w, low, size in zip(wanted, least, sizes, strict=True)
    ]
    step = 1 if sum(counts) < total else -1
    while sum(counts) != total:
        room = [
            i
            for i, count in enumerate(counts)
            if (count < sizes[i] if step > 0 else count > least[i])
        ]
        counts[max(room, key=lambda i: step * (wanted[i] - counts[i]))] += step
    return counts


def counts_by_threshold(
    scores: Sequence[np.ndarray], total: int, minimum: Sequence[int]
) -> list[int]:
    """Return how many entries of each weight are among the largest scores of all.

    Args:
        scores: Scores of the weights, of any shape.
        total: Number of entries that all weights together keep.
        minimum: The minimum of each weight; the other weights then keep less.

    Returns:
        Numbers whose sum is `total`; ties are broken evenly across weights.

    >>> counts_by_threshold([np.array([9.0, 8.0, 7.0]), np.array([1.0, 2.0])], 3, [0, 0])
    [3, 0]
    >>> counts_by_threshold([np.array([9.0, 8.0, 7.0]), np.array([1.0, 2.0])], 3, [1, 1])
    [2, 1]
    """
    keys = []
    for score, least in zip(scores, minimum, strict=True):
        flat = np.array(score, np.float64).ravel()
        flat[largest_of(flat, least)] = np.inf
        keys.append(flat)
    kept = largest_of(np.concatenate(keys), total)
    ends = np.cumsum([key.size for key in keys])
    return [int(np.count_nonzero(part)) for part in np.split(kept, ends[:-1])]


def keep_count_float32(size: int, sparsity: Any) -> tf.Tensor:
    """Return how many of `size` entries tfmot keeps, ``max(round(size * (1 - sparsity)), 1)``.

    It is computed in float32 and halves are rounded to even, as in tfmot. Where
    ``size * (1 - sparsity)`` is a half up to rounding, the count in another precision can differ by
    one. Beyond 2**24 entries float32 cannot count, so it is computed in float64.

    Args:
        size: Number of entries.
        sparsity: Fraction of zeros, a number or a scalar tensor.

    Returns:
        An int32 scalar of at least 1 and at most `size`.

    >>> [int(keep_count_float32(n, s)) for n, s in ((192, 0.7), (10, 0.99), (10, 0.0))]
    [58, 1, 10]
    """
    dtype = tf.float32 if size <= 2**24 else tf.float64
    kept = tf.round(tf.cast(size, dtype) * tf.cast(1 - tf.cast(sparsity, tf.float32), dtype))
    return tf.minimum(tf.cast(tf.maximum(kept, 1), tf.int32), size)
