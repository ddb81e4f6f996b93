"""Prune at initialization by any score: `prune_at_init` and `saliency_scores`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks
from keras_ntt.core.checks import check_sparsity
from keras_ntt.core.copies import copy_of
from keras_ntt.core.initial import signs_of_training
from keras_ntt.masks.apply import check_no_masks, hold_masks
from keras_ntt.masks.dead_filters import drop_shifts_of_dead_filters
from keras_ntt.masks.filters import Filters
from keras_ntt.masks.names import weights_by_name
from keras_ntt.masks.policies import choose_weights
from keras_ntt.saliency import NetworkSaliency
from keras_ntt.saliency.balanced import Balanced
from keras_ntt.saliency.base import Function
from keras_ntt.saliency.data import BATCH_SIZE
from keras_ntt.saliency.names import as_saliency
from keras_ntt.saliency.random import Random
from keras_ntt.selection.allocations import Allocation
from keras_ntt.selection.find_masks import find_masks, paths_of, recipe_of, score, subject_of
from keras_ntt.selection.named_patterns import check_fixed_sparsity
from keras_ntt.selection.patterns import whole_filters

_BLIND = (Random, Balanced)  # masks that depend only on shapes and inputs
_INSTEAD = (
    "Or prune it in place: keras_ntt.prune_low_magnitude(model, sparsity), or "
    "keras_ntt.apply_masks(model, masks) with your own masks. "
)


def saliency_scores(
    model: keras.Model,
    saliency: str | NetworkSaliency | Function,
    *,
    data: Any = None,
    filters: Filters = None,
    pruning_policy: Any = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Score the prunable weights of a model, without changing it.

    Args:
        model: A built model.
        saliency: A name, one of `keras_ntt.saliency.SALIENCIES`; an object such as
            ``keras_ntt.saliency.SNIP(loss="mse")``; or a function from weights to scores.
        data: Samples, if the score needs them: ``x`` or ``(x, y)`` as arrays, a
            ``tf.data.Dataset`` or a ``keras.utils.PyDataset``. All of them are used.
        filters: Which layers to prune, see `NeuralTangentTransfer`.
        pruning_policy: See `NeuralTangentTransfer`.
        batch_size: Samples per batch, for arrays. The scores depend on it only by rounding.
        seed: Seed of random scores.

    Returns:
        ``variable path -> scores`` in float64. Entries with higher scores are kept first.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If data or labels that the score needs are missing, or something does not fit.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import saliency_scores
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[3.0], [-1.0]])])
        >>> (scores,) = saliency_scores(model, "synflow").values()
        >>> scores.tolist()  # the flow of ones through each weight
        [[3.0], [1.0]]
    """
    checks.check_model(model)
    function = as_saliency(saliency)
    function.check(data)
    variables = choose_weights(model, filters=filters, pruning_policy=pruning_policy).weights
    subject = subject_of(model, variables, data, seed=seed, batch_size=batch_size)
    return dict(zip(paths_of(model, variables), score(function, subject), strict=True))


def prune_at_init(
    model: keras.Model,
    *,
    sparsity: float,
    saliency: str | NetworkSaliency | Function,
    data: Any = None,
    allocation: Allocation = "global",
    pattern: Any = None,
    rounds: int | None = None,
    randomize: bool = False,
    allow_empty_layers: bool = False,
    filters: Filters = None,
    pruning_policy: Any = None,
    count_rule: str = "nearest",
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    verbose: Any = "auto",
) -> keras.Model:
    """Prune a model before training by a score of its weights.

    Args:
        model: A built model, usually with its initial weights. It is not changed.
        sparsity: Fraction of zeros in the pruned kernels, in [0, 1).
        saliency: The score, see `saliency_scores`.
        data: Samples, if the score needs them, see `saliency_scores`.
        allocation: How the sparsity is allocated across weights. ``"global"``: the largest scores
            of all weights. ``"layerwise"``: the same sparsity in every weight. ``"er"``, ``"erk"``:
            see `keras_ntt.erdos_renyi`. ``"plsr"``: each weight keeps as many entries as with
            ``"global"``, but those with the largest magnitudes (Zhao et al., 2023). Or a mapping
            from layer names or regular expressions to sparsities; `sparsity` is then that of the
            other weights. A key that equals the name of a layer, or the path of a weight, applies
            only to that one. Regular expressions are searched in both, and the first match counts.
        pattern: How the entries of a weight are chosen. None keeps the largest scores, ``"2:4"``
            two of every four consecutive entries along the inputs, ``(4, 1)`` blocks of four inputs
            and one output. ``"filters"`` keeps whole output channels; biases and normalization
            shifts of pruned channels become zero too. For ``"butterfly"`` see
            `keras_ntt.as_pattern`. Or pass a function that returns a mask from the scores of a
            weight and its sparsity. A warning says where a pattern is far from the sparsity.
        rounds: Number of rounds. Round k of n keeps a fraction ``(1 - sparsity) ** (k / n)``; the
            next round scores these entries again. None takes the default of the score: 100 for
            ``"synflow"``, ``"synflow_l2"`` and ``"iterative_snip"``, 20 for ``"ntk_sap"``, else 1.
            The maximum is the number of entries to prune, or 1,000.
        randomize: Whether to draw entries with probabilities proportional to their scores instead
            of taking those with the highest scores.
        allow_empty_layers: Whether scores, or ``"er"`` and ``"erk"`` at very high sparsities, may
            remove a whole weight. A warning reports it, and also reports where scores would have
            removed one but were not allowed to.
        filters: Which layers to prune, see `NeuralTangentTransfer`.
        pruning_policy: See `NeuralTangentTransfer`.
        count_rule: ``"nearest"`` or ``"original"``, see `keras_ntt.keep_count`.
        batch_size: Samples per batch, for arrays. The scores depend on it only by rounding.
        seed: Seed of every random choice.
        verbose: Whether to show a progress bar, if there is more than one round.

    Returns:
        A sparse copy of the model, which keeps its zeros when it is trained.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If data or labels that the score needs are missing, or something does not fit.

    Warns:
        UserWarning: If the model looks trained and the masks do not depend on its weights, such as
            random and balanced masks.

    Examples:
        >>> import keras
        >>> from keras_ntt import get_masks, prune_at_init
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(10), keras.layers.Dense(2)]
        ... )
        >>> sparse = prune_at_init(model, sparsity=0.6, saliency="random", allocation="erk")
        >>> [(mask.shape, int(mask.sum())) for mask in get_masks(sparse).values()]
        [((8, 10), 24), ((10, 2), 16)]
    """
    checks.check_model(model)
    check_no_masks(model)
    sparsity = check_sparsity(sparsity)
    function = as_saliency(saliency)
    function.check(data)
    _warn_if_trained(model, function)
    variables = choose_weights(model, filters=filters, pruning_policy=pruning_policy).weights
    recipe = recipe_of(
        model,
        variables,
        function,
        allocation=allocation,
        count_rule=count_rule,
        pattern=pattern,
        rounds=rounds,
        randomize=randomize,
        allow_empty_layers=allow_empty_layers,
    )
    check_fixed_sparsity(recipe.pattern, sparsity, allocation)
    subject = subject_of(model, variables, data, seed=seed, batch_size=batch_size)
    after_round = _progress(recipe.rounds, verbose)
    # Before the search for masks, which may take long: models that cannot be copied are refused at
    # once.
    copy = copy_of(
        model, next(subject.batches())[0] if subject.data is not None else None, instead=_INSTEAD
    )
    masks = find_masks(subject, recipe, sparsity, after_round=after_round)
    paths = paths_of(model, variables)
    hold_masks(copy, dict(zip(paths, masks, strict=True)))
    if recipe.pattern is whole_filters:
        named = weights_by_name(copy)
        drop_shifts_of_dead_filters(copy, [named[path] for path in paths])
    return copy


def _warn_if_trained(model: keras.Model, function: NetworkSaliency) -> None:
    """Warn if masks that ignore the weights would destroy what training has learnt."""
    if not isinstance(function, _BLIND):
        return
    signs = signs_of_training(model)
    if signs:
        moved = f"{signs.moved[0]!r} and {len(signs.moved) - 1} more" if signs.moved else "none"
        warnings.warn(
            f"The model looks trained, and {function.name.lower()} masks are chosen without a look "
            "at its weights, so most of what it has learnt is lost. They are for models that are "
            "trained afterwards. For a trained model call keras_ntt.prune_post_training(model, "
            "inputs, sparsity=sparsity), which keeps its outputs. Received: weights that have "
            f"changed from their initial constant: {moved}; {signs.steps} steps of the optimizer",
            stacklevel=3,
        )


def _progress(rounds: int, verbose: Any) -> Callable[[int], None]:
    if rounds == 1 or not verbose:
        return lambda number: None
    bar = keras.utils.Progbar(rounds, unit_name="round", verbose=2 if verbose == 2 else 1)
    return bar.update
