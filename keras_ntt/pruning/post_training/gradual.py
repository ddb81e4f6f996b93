"""Gradual masks: cubic sparsity (Zhu & Gupta, 2017), LAMP scores (Lee et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.masks.apply import get_masks, hold_masks
from keras_ntt.selection.counts import counts_by_threshold, keep_count
from keras_ntt.selection.find_masks import paths_of, select

FREQUENCY = 20
"""Steps from one choice of masks to the next."""
PART = 0.75
"""The part of all steps in which the sparsity rises; in the rest masks are held."""


def first_sparsity(sparsity: float) -> float:
    """Return where a gradual run begins: the density is the square root of the final one.

    >>> round(first_sparsity(0.91), 2)
    0.7
    """
    return 1 - (1 - sparsity) ** 0.5


def lamp(values: np.ndarray) -> np.ndarray:
    """Return LAMP scores, which can be compared across weights.

    ``score(u) = w(u)^2 / sum(w(v)^2 for all v with |w(v)| >= |w(u)|)`` (Lee, Park, Mo, Ahn & Shin,
    "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, equation 2). Of equal
    magnitudes the later one counts as the larger.

    Args:
        values: A weight, of any shape.

    Returns:
        Scores of the same shape, in [0, 1]; 0 where the weight is 0.

    >>> lamp(np.array([3.0, 0.0, -4.0]))
    array([0.36, 0.  , 1.  ])
    """
    squares = np.square(np.asarray(values, np.float64)).ravel()
    order = np.argsort(squares, kind="stable")
    rising = squares[order]
    at_least = np.cumsum(rising[::-1])[::-1]
    scores = np.zeros_like(squares)
    scores[order] = np.divide(rising, at_least, out=np.zeros_like(rising), where=at_least > 0)
    return scores.reshape(np.shape(values))


class GradualMasks(keras.callbacks.Callback):
    """Raises the sparsity of a model while it is trained, by LAMP scores and one threshold.

    Every `FREQUENCY` steps the model is pruned to ``final + (first - final) * (1 - progress)^3``,
    until progress is 1 after three quarters of the steps. Entries that are pruned stay so.

    Args:
        model: The model that holds the masks, which another one may train.
        variables: Its pruned weights, with masks held.
        sparsity: The final fraction of zeros.
        steps: Steps of the whole run.
    """

    def __init__(
        self, model: keras.Model, variables: Sequence[keras.Variable], sparsity: float, steps: int
    ):
        super().__init__()
        self._held_by, self._variables = model, list(variables)
        self._paths = paths_of(model, self._variables)
        self._size = sum(int(np.prod(v.shape)) for v in self._variables)
        masks = get_masks(model)
        self._kept = sum(int(masks[path].sum()) for path in self._paths)
        self._first, self._final = 1 - self._kept / self._size, sparsity
        self._end = max(int(PART * steps), 1)
        self._step = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Prune, if it is time."""
        self._step += 1
        if self._step <= self._end and (self._step % FREQUENCY == 0 or self._step == self._end):
            self.prune(self.sparsity_at(self._step))

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity after a number of steps."""
        progress = min(step / self._end, 1.0)
        return self._final + (self._first - self._final) * (1 - progress) ** 3

    def prune(self, sparsity: float) -> None:
        """Choose masks of a sparsity among the entries that are kept now."""
        self._kept = min(keep_count(self._size, sparsity), self._kept)
        scores = [lamp(host.array_of(v)) for v in self._variables]
        least = [1 if self._kept >= len(scores) else 0] * len(scores)
        chosen = select(scores, counts_by_threshold(scores, self._kept, least))
        hold_masks(self._held_by, dict(zip(self._paths, chosen, strict=True)))
