"""SNIPER (Lam et al., 2022): the sparsity decreases and entries come back with initial values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.masks.apply import check_no_masks, hold_masks
from keras_ntt.masks.filters import Filters, check_filters
from keras_ntt.masks.policies import check_policy, choose_weights
from keras_ntt.saliency import NetworkSaliency
from keras_ntt.saliency.base import Function
from keras_ntt.saliency.data import BATCH_SIZE
from keras_ntt.saliency.names import as_saliency
from keras_ntt.selection.counts import counts_by_threshold, keep_count
from keras_ntt.selection.find_masks import paths_of, score, select, subject_of
from keras_ntt.selection.schedules import StepwiseSparsity


class SNIPER(keras.callbacks.Callback):
    """Trains at a sparsity that decreases by epoch.

    The weights are scored once, when training begins. The masks of all sparsities are the
    largest of the same scores, so each contains the one before it, and entries that come back
    take the value that they had when training began (Lam et al., 2022, who score by SNIP). With
    a sparsity of 0 at last, the network ends dense; it still holds masks, which keep everything.

    The same callback in another ``fit`` of the same model goes on: entries that came back stay. For
    a run that is to be resumed, list it before `keras_ntt.BackupAndRestore` and set the seed of the
    initial weights: they are scored again, and are what entries come back with.

    Args:
        sparsities: ``epoch -> sparsity``, beginning with epoch 0 and never increasing.
        data: Samples for the score, see `keras_ntt.saliency_scores`.
        saliency: The score, see `keras_ntt.saliency_scores`.
        max_sparsity: The highest sparsity that any one weight may have.
        filters: Which layers, see `keras_ntt.NeuralTangentTransfer`.
        pruning_policy: See `keras_ntt.NeuralTangentTransfer`.
        seed: Seed of random scores.

    Raises:
        ValueError: If the sparsities or `max_sparsity` are out of range. Data that do not fit, and
            a run that is resumed from other initial weights, are found when training begins,
            before the callback changes anything.
    """

    def __init__(
        self,
        sparsities: Mapping[int, float],
        data: Any = None,
        *,
        saliency: str | NetworkSaliency | Function = "snip",
        max_sparsity: float = 0.75,
        filters: Filters = None,
        pruning_policy: Any = None,
        seed: int = 0,
    ):
        super().__init__()
        self.sparsities = _check_sparsities(sparsities)
        self._schedule = StepwiseSparsity(self.sparsities)
        if not checks.is_number(max_sparsity) or not 0 <= max_sparsity <= 1:
            raise ValueError(
                f"max_sparsity must be a number in [0, 1]. Received: max_sparsity={max_sparsity!r}"
            )
        self.max_sparsity = float(max_sparsity)
        if max(self.sparsities.values()) > self.max_sparsity:
            raise ValueError(
                "If no weight may be sparser than max_sparsity, the whole may not either. Raise "
                f"it. Received: max_sparsity={max_sparsity!r}, sparsities={dict(sparsities)!r}"
            )
        self._saliency = as_saliency(saliency)
        self._saliency.check(data)
        self._data = data
        check_filters(filters)
        check_policy(pruning_policy)
        self._choice = {"filters": filters, "pruning_policy": pruning_policy}
        self._seed = checks.check_seed(seed)
        self._masks: dict[float, list[np.ndarray]] = {}
        self._scored: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Score the weights, choose all masks and remember the initial values."""
        self._first_epoch = True
        if self._scored is self.model:
            return  # a run that goes on
        checks.check_model(self.model)
        if host.initial_epoch(self.model):
            raise ValueError(
                "SNIPER scores the initial weights, and those of an earlier run were loaded "
                "already. List it before BackupAndRestore in callbacks. "
                f"Received: a run that goes on at epoch {host.initial_epoch(self.model)}"
            )
        check_no_masks(self.model)
        variables = choose_weights(self.model, **self._choice).weights
        subject = subject_of(
            self.model, variables, self._data, seed=self._seed, batch_size=BATCH_SIZE
        )
        scores = score(self._saliency, subject)
        least = [math.ceil(s.size * (1 - self.max_sparsity) - 1e-9) for s in scores]
        size = sum(s.size for s in scores)
        totals = {s: max(keep_count(size, s), sum(least)) for s in self.sparsities.values()}
        self._masks = {
            sparsity: select(scores, counts_by_threshold(scores, total, least))
            for sparsity, total in totals.items()
        }
        self._paths = paths_of(self.model, variables)
        self._variables = variables
        self._initial = [keras.ops.convert_to_numpy(v) for v in variables]
        self._kept = [np.ones(s.shape, bool) for s in scores]
        self._sparsity = 1.0
        self._scored = self.model

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Take the masks of the epoch; what comes back takes its initial value."""
        if self._first_epoch and host.initial_epoch(self.model):
            self._resume(epoch)
        self._first_epoch = False
        self._sparsity = min(self._sparsity, self._schedule(epoch)[1])
        masks = self._masks[self._sparsity]
        if all(np.array_equal(a, b) for a, b in zip(masks, self._kept, strict=True)):
            return
        values = [keras.ops.convert_to_numpy(v) for v in self._variables]
        hold_masks(self.model, dict(zip(self._paths, masks, strict=True)))
        for variable, value, initial, old, new in zip(
            self._variables, values, self._initial, self._kept, masks, strict=True
        ):
            back = np.where(old, value, initial)
            variable.assign(np.where(new, back, np.zeros_like(back)))
        self._kept = masks

    def _resume(self, epoch: int) -> None:
        """Take up the state of a run that ended after some epochs, whose weights are loaded."""
        self._sparsity = self._schedule(epoch - 1)[1]
        self._kept = self._masks[self._sparsity]
        for path, variable, kept in zip(self._paths, self._variables, self._kept, strict=True):
            if np.any(keras.ops.convert_to_numpy(variable)[~kept]):
                raise ValueError(
                    "The run that is resumed began with other initial weights, whose scores and "
                    "values are not known any more. Set the seed before the model is made, in "
                    "both runs: keras.utils.set_random_seed(seed). "
                    f"Received: {path!r} with other zeros than the scores of now"
                )


def _check_sparsities(sparsities: Any) -> dict[int, float]:
    fits = (
        isinstance(sparsities, Mapping)
        and 0 in sparsities
        and all(
            (checks.whole(epoch) or 0) >= 0
            and checks.whole(epoch) is not None
            and checks.is_number(value)
            and 0 <= value < 1
            for epoch, value in sparsities.items()
        )
    )
    values = [float(sparsities[epoch]) for epoch in sorted(sparsities)] if fits else []
    if not fits or values != sorted(values, reverse=True):
        raise ValueError(
            "sparsities must map epochs to sparsities in [0, 1) that do not increase, beginning "
            "with epoch 0, for example {0: 0.4, 5: 0.2, 20: 0}. "
            f"Received: sparsities={sparsities!r}"
        )
    return {int(epoch): float(sparsities[epoch]) for epoch in sorted(sparsities)}
