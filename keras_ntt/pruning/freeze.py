"""Freezing at initialization (Wimmer et al., "FreezeNet", 2020): `freeze_at_init`."""

from __future__ import annotations

from typing import Any

import keras

from keras_ntt.core import checks
from keras_ntt.core.copies import copy_of
from keras_ntt.masks.apply import check_no_masks
from keras_ntt.masks.difference import limits_of, seeded
from keras_ntt.masks.filters import Filters
from keras_ntt.masks.frozen import hold_frozen
from keras_ntt.masks.policies import choose_weights
from keras_ntt.saliency import NetworkSaliency
from keras_ntt.saliency.base import Function
from keras_ntt.saliency.data import BATCH_SIZE
from keras_ntt.saliency.names import as_saliency
from keras_ntt.saliency.snip import LossGradient
from keras_ntt.selection.allocations import Allocation
from keras_ntt.selection.find_masks import find_masks, paths_of, recipe_of, subject_of


def freeze_at_init(
    model: keras.Model,
    *,
    frozen: float,
    data: Any = None,
    saliency: str | NetworkSaliency | Function | None = None,
    allocation: Allocation = "global",
    allow_empty_layers: bool = False,
    filters: Filters = None,
    pruning_policy: Any = None,
    batch_size: int = BATCH_SIZE,
    seed: int | None = 0,
) -> keras.Model:
    """Return a copy of a model in which only a few entries are trained; the others stay random.

    Its file is a seed and the trained entries: ``save_difference(model, seed, path)``. The model
    runs densely, so no time or memory is saved, only bytes to store and to send; the optimizer's
    state for frozen entries does not count. With ``seed=None`` the frozen entries keep their values
    in `model`, for example a shared pretrained one, and the file is the difference to it:
    ``save_difference(trained, model, path)``.

    Args:
        model: A built model. It is not changed.
        frozen: Fraction of the kernels' entries that are not trained, in [0, 1).
        data: Samples with labels, ``(x, y)``, see `saliency_scores`.
        saliency: The score of the entries to train, see `saliency_scores`. None is FreezeNet's
            ``|dL/dw|``, `keras_ntt.saliency.LossGradient`: SNIP's score without the weight, because
            no weight is removed. It accepts a Keras loss.
        allocation: How many entries are trained in each weight, see `prune_at_init`.
        allow_empty_layers: Whether a whole kernel may be frozen.
        filters: Which layers to freeze, see `NeuralTangentTransfer`. The others are trained.
        pruning_policy: See `NeuralTangentTransfer`.
        batch_size: Samples per batch, for arrays.
        seed: Seed of the kernels' initial values. They are uniform with the variance of their
            initializers, and the same on any machine (Philox, see `keras_ntt.core.philox`). None
            keeps the values of `model`.

    Returns:
        The copy. Training does not change its frozen entries.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If data or labels that the score needs are missing, or something does not fit.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import freeze_at_init, trained_entries
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
        >>> x, y = np.random.default_rng(0).normal(size=(32, 8)), np.arange(32) % 10
        >>> small = freeze_at_init(model, frozen=0.9, data=(x, y), seed=1)
        >>> [int(mask.sum()) for mask in trained_entries(small).values()]
        [8]
    """
    checks.check_model(model)
    check_no_masks(model)
    if not checks.is_number(frozen) or not 0 <= frozen < 1:
        raise ValueError(
            "frozen is the fraction of entries that are not trained and must be a number in "
            f"[0, 1): 0.99 trains 1 % of them. Received: frozen={frozen!r}"
        )
    number = None if seed is None else checks.check_seed(seed)
    function = LossGradient() if saliency is None else as_saliency(saliency)
    function.check(data)
    # Filters, policies and allocations that do not fit are refused before anything is computed.
    chosen = choose_weights(model, filters=filters, pruning_policy=pruning_policy).weights
    recipe_of(model, chosen, function, allocation=allocation)
    sample = None
    if data is not None:
        sample = next(subject_of(model, chosen, data, batch_size=batch_size).batches())[0]
    copy = copy_of(model, sample)
    places = {id(v): i for i, v in enumerate(model.weights)}
    kernels = [copy.weights[places[id(v)]] for v in chosen]
    if number is not None:
        limits = limits_of(copy)
        for old, variable in zip(chosen, kernels, strict=True):
            place = places[id(old)]
            limit = limits[place]
            if limit is not None:
                variable.assign(seeded(variable.numpy(), number, place, limit))
    recipe = recipe_of(
        copy, kernels, function, allocation=allocation, allow_empty_layers=allow_empty_layers
    )
    subject = subject_of(copy, kernels, data, seed=number or 0, batch_size=batch_size)
    masks = find_masks(subject, recipe, float(frozen))
    return hold_frozen(copy, dict(zip(paths_of(copy, kernels), masks, strict=True)))
