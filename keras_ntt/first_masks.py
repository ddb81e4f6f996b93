"""The first masks of a transfer, and the rule by which it chooses all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.allocations import Allocation, Shares, round_to_total
from keras_ntt.masks import MaskRule
from keras_ntt.saliency import NetworkSaliency, magnitude
from keras_ntt.saliency.base import OfWeights
from keras_ntt.selection import find_masks, recipe_of, subject_of
from keras_ntt.structures import check_fixed_sparsity


def start_of_transfer(
    student: keras.Model,
    variables: Sequence[keras.Variable],
    saliency: NetworkSaliency,
    *,
    sparsity: float | None,
    allocation: Allocation,
    count_rule: str,
    pattern: Any,
    data: Any,
    seed: int,
) -> tuple[MaskRule, list[np.ndarray] | None]:
    """Return how a transfer chooses its masks, and the first of them.

    A function of the weights chooses the first masks and every refresh. A score that looks at
    the network chooses the first masks, those of later refreshes are by latent magnitude.

    Args:
        student: The dense student.
        variables: Its variables that are pruned.
        saliency: The score.
        sparsity: Fraction of zeros at the start; None begins dense.
        allocation: The allocation.
        count_rule: The count rule.
        pattern: The pattern.
        data: Samples for the score, or None.
        seed: Seed of random scores.

    Returns:
        The rule, and the first masks; None leaves them to the rule.

    Raises:
        ValueError: If the score lacks data or cannot choose first masks, or the pattern fixes
            another sparsity.
    """
    recipe = recipe_of(
        student, variables, saliency, allocation=allocation, count_rule=count_rule, pattern=pattern
    )
    check_fixed_sparsity(recipe.pattern, sparsity or 0.0)
    shares, own = recipe.shares, isinstance(saliency, OfWeights)
    function = saliency.function if isinstance(saliency, OfWeights) else magnitude
    counts: Callable[[float], list[int]] | None = None
    masks = None
    if not own or allocation == "plsr":
        saliency.check(data, "saliency_data")
        if sparsity is None:
            raise ValueError(
                f"{saliency.name} chooses the first masks of a transfer, and this schedule begins "
                "dense. Take a schedule that prunes at step 0, or a saliency of the weights such "
                "as 'magnitude' with another allocation than 'plsr'. "
                f"Received: allocation={allocation!r}"
            )
        batches = None if own else data
        subject = subject_of(student, variables, batches, seed=seed)
        masks = find_masks(subject, recipe, sparsity)
    if not shares.by_score:
        counts = shares.counts
    elif allocation == "plsr":
        assert masks is not None
        counts = _in_proportion(shares, [int(m.sum()) for m in masks], sparsity or 0.0)
    kind, sizes = _kind_of(shares), tuple(shares.sizes)
    return MaskRule(sizes, function, kind, count_rule, counts, recipe.pattern, recipe.axes), masks


def _kind_of(shares: Shares) -> str:
    return "global" if shares.allocation == "global" else "layerwise"


def _in_proportion(
    shares: Shares, kept: Sequence[int], sparsity: float
) -> Callable[[float], list[int]]:
    """Return counts for any sparsity that are `kept` at one: the same power of each density."""

    def counts(wanted: float) -> list[int]:
        if wanted == sparsity:
            return list(kept)
        power = math.log1p(-wanted) / math.log1p(-sparsity) if sparsity else 1.0
        sizes = shares.sizes
        ideal = [size * (count / size) ** power for size, count in zip(sizes, kept, strict=True)]
        scale = shares.total(wanted) / sum(ideal)
        ideal = [min(i * scale, size) for i, size in zip(ideal, sizes, strict=True)]
        return round_to_total(ideal, sizes, shares.total(wanted))

    return counts
