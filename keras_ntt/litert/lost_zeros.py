"""Zeros that weights have in the model and not in the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.litert.inspect import StoredWeight
from keras_ntt.masks.apply import leaking_masks, schedules_behind
from keras_ntt.masks.computed import computed_kernels
from keras_ntt.masks.names import names_by_id
from keras_ntt.masks.natural_zeros import kernels_with_layers

_PRUNED = 0.3  # below it a weight does not count as pruned
_LOST = 0.05


def model_notes(model: keras.Model, weights: Sequence[StoredWeight]) -> list[str]:
    """Return which zeros of a model the file lacks, and which the model itself lacks so far.

    Args:
        model: The model.
        weights: The weights of the file.
    """
    behind = schedules_behind(model)
    notes = [f"weights whose pruning schedule did not end: {', '.join(behind)}"] if behind else []
    leaking = leaking_masks(model)
    if leaking:
        said = "that their masks leave out, because training did not know of the masks"
        notes.append(f"weights with other values than zero {said}: {', '.join(leaking)}")
    return [*lost_zeros(model, weights), *notes]


def lost_zeros(model: keras.Model, weights: Sequence[StoredWeight]) -> Iterator[str]:
    """Yield a note for each weight that has clearly more zeros in the model than in the file.

    Names and layouts differ between the two. So weights of the same size are compared in the order
    of their sparsity. Weights that the file has split or joined are left out.

    Args:
        model: The model.
        weights: The weights of the file.
    """
    names, computed = names_by_id(model.weights), computed_kernels(model)
    ours, theirs = defaultdict(list), defaultdict(list)
    for _, variable in kernels_with_layers(model):
        value = host.array_of(variable)
        if value.size:
            ours[value.size].append((float(np.mean(value == 0)), id(variable)))
    for weight in weights:
        theirs[weight.entries].append(weight.sparsity)
    for size, kernels in ours.items():
        found = sorted(theirs[size], reverse=True)
        for (sparsity, key), stored in zip(sorted(kernels, reverse=True), found, strict=False):
            if sparsity >= _PRUNED and sparsity - stored > _LOST:
                _, reason = computed.get(key, (None, "its layer computes with something else"))
                yield (
                    f"{names[key]} has {sparsity:.0%} zeros in the model and {stored:.0%} in the "
                    f"file: {reason}. Prune what it computes with, or leave it out"
                )


def weights_computed_with(model: keras.Model) -> list[np.ndarray]:
    """Return the weights with which a model computes: with LoRA, the sums."""
    computed = computed_kernels(model)
    layers = [x for x in host.layers_of(model) if getattr(x, "lora_enabled", False)]
    parts = {id(v) for x in layers for v in x.weights if v.name.startswith("lora_")}
    return [
        computed[id(v)][0] if id(v) in computed else host.array_of(v)
        for v in model.weights
        if id(v) not in parts
    ]
