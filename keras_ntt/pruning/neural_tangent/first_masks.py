"""The first masks of a transfer, and the rule for all later ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_ntt.saliency import NetworkSaliency
from keras_ntt.saliency.of_weights import OfWeights
from keras_ntt.selection.allocations import Allocation, Shares
from keras_ntt.selection.compiled_masks import CompiledMasks
from keras_ntt.selection.counts import round_to_total
from keras_ntt.selection.find_masks import Recipe, find_masks, recipe_of, subject_of
from keras_ntt.selection.named_patterns import check_fixed_sparsity
from keras_ntt.selection.schedules import PruningSchedule, asked_for, decide


class FirstMasks(NamedTuple):
    """The start of a transfer.

    Attributes:
        rule: The rule for all masks that the recipe's score does not choose.
        sparsity: The fraction of zeros at the start; None if it begins dense.
        masks: The first masks; None if the rule chooses them.
    """

    rule: CompiledMasks
    sparsity: float | None
    masks: list[np.ndarray] | None


def initial_masks(
    student: keras.Model,
    variables: Sequence[keras.Variable],
    saliency: NetworkSaliency,
    *,
    schedule: PruningSchedule,
    allocation: Allocation,
    count_rule: str,
    pattern: Any,
    data: Any,
    seed: int,
) -> FirstMasks:
    """Return how a transfer chooses its masks, the first sparsity and the first masks.

    A function of the weights chooses the first masks and all updates. A score that uses the network
    chooses only the first masks; updates are by latent magnitude.

    Args:
        student: The dense student.
        variables: Its variables to prune.
        saliency: The score.
        schedule: The schedule.
        allocation: The allocation.
        count_rule: The count rule.
        pattern: The pattern.
        data: Samples for the score, or None.
        seed: Seed of random scores.

    Returns:
        The `FirstMasks`.

    Raises:
        ValueError: If the score lacks data or cannot choose first masks, or the schedule asks for
            an impossible sparsity.
    """
    recipe = recipe_of(
        student, variables, saliency, allocation=allocation, count_rule=count_rule, pattern=pattern
    )
    prune, answer = decide(schedule, 0)
    sparsity = answer if prune else None
    for asked in ([answer] if prune else []) + asked_for(schedule):
        _check_sparsity(recipe, asked)
    shares, own = recipe.shares, isinstance(saliency, OfWeights)
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
    counts = _counts_of(shares, masks, sparsity)

    def checked(wanted: float) -> list[int]:
        _check_sparsity(recipe, wanted)
        return counts(wanted)

    return FirstMasks(CompiledMasks(recipe, checked), sparsity, masks)


def _check_sparsity(recipe: Recipe, sparsity: float) -> None:
    """Raise a ValueError if weights cannot have a sparsity of the schedule."""
    check_fixed_sparsity(recipe.pattern, sparsity, recipe.shares.allocation)
    recipe.shares.check_room(sparsity)


def _counts_of(
    shares: Shares, masks: Sequence[np.ndarray] | None, sparsity: float | None
) -> Callable[[float], list[int]]:
    """Return how many entries a sparsity keeps, as in `CompiledMasks.counts`."""
    if shares.allocation == "global":
        return lambda wanted: [shares.total(wanted)]
    if shares.allocation == "plsr":
        assert masks is not None
        return _in_proportion(shares, [int(m.sum()) for m in masks], sparsity or 0.0)
    return shares.counts


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
