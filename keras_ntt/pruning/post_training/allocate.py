"""How a sparsity is allocated across the layers of a trained network.

Besides the allocations by shape and by magnitude, one threshold over all layers by what the
removal of each entry costs: errors of a layer's outputs (ExactOBS, Frantar et al., 2022), weighted
by how much the outputs of the network depend on them, or relative to the layer's own outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from keras_ntt.core import checks
from keras_ntt.selection.allocation_names import ALLOCATIONS
from keras_ntt.selection.allocations import Allocation, Shares
from keras_ntt.selection.counts import counts_by_threshold, keep_count

BY_COST: tuple[str, ...] = ("sensitivity", "error")
LEAST = 0.2
"""The density that each kernel has at least under one threshold, relative to that of the whole.

Costs are those of single layers of the dense model: they do not say that a layer without weights
cuts the network off. Of a network of three convolutions for digits, 95 % zeros left the last one 5
of its 18,432 entries; it kept 31 % accuracy on images set aside, with 0.1 to 0.5 here 94 to 95 %.
"""

CHOICES: tuple[str, ...] = (*BY_COST, *ALLOCATIONS)


def check_allocation(allocation: Allocation) -> None:
    """Raise a ValueError unless an allocation is a mapping or one of `CHOICES`."""
    if not isinstance(allocation, Mapping):
        checks.check_choice("allocation", allocation, CHOICES)


def importance_of(
    variances: Sequence[np.ndarray],
    sensitivities: Sequence[np.ndarray | None],
) -> list[np.ndarray]:
    """Return what a squared error of each output of each layer counts.

    Where the sensitivity is not known, relative errors count as much as in the mean of the layers
    of which it is; where none is known, relative errors count alike.

    Args:
        variances: Variances of the layers' outputs, ``[groups, outputs]`` each.
        sensitivities: See `output_sensitivity`.

    Returns:
        An array of the shape of the variances for each layer.

    >>> found = importance_of([np.array([[2.0, 2.0]]), np.array([[10.0]])],
    ...                       [np.array([[1.0, 3.0]]), None])
    >>> [part.tolist() for part in found]
    [[[1.0, 3.0]], [[0.8]]]
    """
    known = [
        float((v * s).sum()) for v, s in zip(variances, sensitivities, strict=True) if s is not None
    ]
    whole = float(np.mean(known)) if known else 1.0
    return [
        np.full(v.shape, whole / max(float(v.sum()), 1e-300)) if s is None else s
        for v, s in zip(variances, sensitivities, strict=True)
    ]


def counts_by_cost(
    costs: Sequence[np.ndarray | None], sizes: Sequence[int], sparsity: float
) -> list[int]:
    """Return how many entries each weight keeps under one threshold of costs.

    None is left with less than `LEAST` of the density of the whole.

    Args:
        costs: What the removal of each entry costs; None for weights of which it is not known,
            which get the sparsity of the whole.
        sizes: Numbers of entries.
        sparsity: Fraction of zeros of all together.

    Returns:
        Numbers of entries, of an exact total.

    >>> counts_by_cost([np.array([9.0, 8.0, 7.0]), np.array([1.0, 2.0]), None], [3, 2, 4], 0.5)
    [1, 1, 2]
    """
    counts = [keep_count(size, sparsity) for size in sizes]
    known = [i for i, cost in enumerate(costs) if cost is not None]
    scores = [cost for cost in costs if cost is not None]
    if known:
        total = keep_count(sum(sizes), sparsity)
        total -= sum(count for i, count in enumerate(counts) if i not in known)
        total = min(max(total, len(known)), sum(sizes[i] for i in known))
        least = [max(1, round(LEAST * (1 - sparsity) * sizes[i])) for i in known]
        found = counts_by_threshold(scores, total, least)
        for i, count in zip(known, found, strict=True):
            counts[i] = count
    return counts


def counts_of(shares: Shares, values: Sequence[np.ndarray], sparsity: float) -> list[int]:
    """Return how many entries each weight keeps by an allocation that needs no inputs.

    Args:
        shares: The allocation.
        values: The weights.
        sparsity: Fraction of zeros.

    Returns:
        Numbers of entries.
    """
    shares.check_room(sparsity)
    if not shares.by_score:
        return shares.counts(sparsity)
    scores = [np.abs(value) for value in values]
    return counts_by_threshold(scores, shares.total(sparsity), [1] * len(scores))
