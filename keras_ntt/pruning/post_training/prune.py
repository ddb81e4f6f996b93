"""Pruning of trained models from unlabelled inputs: the public function."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.core.checks import check_sparsity
from keras_ntt.core.copies import copy_of
from keras_ntt.masks.apply import apply_masks, check_no_masks
from keras_ntt.masks.filters import Filters
from keras_ntt.masks.policies import all_kernels, choose_weights
from keras_ntt.pruning.post_training.activations import MEMORY_LIMIT
from keras_ntt.pruning.post_training.allocate import (
    BY_COST,
    check_allocation,
    counts_by_cost,
    counts_of,
)
from keras_ntt.pruning.post_training.batch_norm import batch_norms, reestimate
from keras_ntt.pruning.post_training.calibration import BATCH_SIZE, calibration_batches
from keras_ntt.pruning.post_training.costs import costs_of
from keras_ntt.pruning.post_training.gradual import GradualMasks, first_sparsity
from keras_ntt.pruning.post_training.layerwise import METHODS
from keras_ntt.pruning.post_training.recovery import LEARNING_RATE, TEMPERATURE, distil
from keras_ntt.pruning.post_training.task import Task
from keras_ntt.selection.allocations import Allocation
from keras_ntt.selection.find_masks import paths_of, shares_of
from keras_ntt.selection.named_patterns import (
    as_pattern,
    check_fixed_sparsity,
    warn_if_sparsity_missed,
)

RECOVERIES = ("held", "gradual")
SAMPLES = 1024
"""Inputs that statistics are taken on, if there are more."""


def prune_post_training(
    model: keras.Model,
    inputs: Any,
    *,
    sparsity: float,
    method: str = "obc",
    allocation: Allocation = "sensitivity",
    pattern: Any = None,
    filters: Filters = None,
    pruning_policy: Any = None,
    refit: bool = True,
    steps: int | None = None,
    samples: int | None = SAMPLES,
    batch_size: int = BATCH_SIZE,
    memory_limit: int | None = MEMORY_LIMIT,
    epochs: int = 0,
    recovery: str = "held",
    learning_rate: float = LEARNING_RATE,
    temperature: float = TEMPERATURE,
    augment: Callable[[Any], Any] | None = None,
    seed: int = 0,
    verbose: Any = "auto",
) -> keras.Model:
    """Prune a trained model from unlabelled inputs.

    Layer after layer, from the inputs on: entries are chosen by a method, then what is kept is
    fitted, by least squares, to what the *dense* model's layer returns, given what the *pruned*
    layers before it return; then the statistics of a BatchNormalization behind it are taken again.
    So errors of earlier layers are corrected where that can be done. No label is needed, and no
    training, but for `epochs`.

    Args:
        model: A built, trained model. It stays as it is.
        inputs: Unlabelled inputs, preprocessed as for training: arrays, a ``tf.data.Dataset`` of
            batches or a ``keras.utils.PyDataset``. Labels in it are not used. They should look
            like the inputs of later use; 256 are a beginning, 2,048 are better.
        sparsity: Fraction of zeros in the pruned kernels, in [0, 1).
        method: How entries are chosen. ``"obc"``: one by one, by what the removal costs when the
            others are corrected (Frantar, Singh & Alistarh, 2022); the best, and slow for layers
            of more than some 1,000 inputs. ``"sparsegpt"``: its approximation in one sweep over
            the inputs (Frantar & Alistarh, 2023). ``"alps"``: by ADMM (Meng et al., 2024).
            ``"wanda"``: magnitudes times norms of the inputs, compared within each output (Sun et
            al., 2023). ``"magnitude"``.
        allocation: How the sparsity is allocated across layers. ``"sensitivity"``: one threshold
            over all layers by what the removal of an entry costs, weighted by how much the
            model's outputs depend on the layer's. ``"error"``: the same, weighted by one over the
            variance of the layer's outputs. Each kernel keeps a fifth of the whole density at
            least. Else as in `keras_ntt.prune_at_init`, where
            ``"global"`` and ``"plsr"`` both count the largest magnitudes.
        pattern: None, ``"2:4"``, ``(4, 1)``, ``"filters"`` or a function, see
            `keras_ntt.prune_at_init`. Patterns n:m fix the sparsity of each layer.
        filters: Which layers, see `NeuralTangentTransfer`.
        pruning_policy: See `NeuralTangentTransfer`.
        refit: Whether kept entries and biases are fitted to the dense model's outputs. False
            leaves them as the method does: as they were, or corrected for the layer's own inputs.
        steps: Gradual steps inside each layer, each ranked by the entries fitted before. None
            takes 4 for ``"magnitude"`` and ``"wanda"`` with `refit`, else 1.
        samples: The most inputs that are used: of arrays a random part, of data sets the first.
            None takes all. Of more than 131,072 rows of a kernel (positions of images, times
            samples), a random part of about that number is used.
        batch_size: Samples a batch, for arrays; the result depends on it by rounding, and by which
            rows are drawn where not all are used.
        memory_limit: Bytes of activations that are kept in memory while layers are pruned; what
            is more goes to a temporary folder. None for no limit. A layer of n inputs and m
            outputs needs some ``8 * n * (2 * n + m)`` bytes beside.
        epochs: Passes over all inputs in which the sparse model is trained towards the dense one's
            outputs, with its masks held; 0 leaves that out. Logits are compared, also behind a
            final softmax or sigmoid. BatchNormalization is in training mode, and its statistics
            are taken again at the end. It pays from 80 % sparsity on.
        recovery: What these epochs do with the masks. ``"held"`` keeps them. ``"gradual"`` begins
            at a lower sparsity and raises it along a cubic curve during the first three quarters of
            the steps, by LAMP scores (Lee et al., 2021) and one threshold over all layers. It is
            the better one with some thousand steps and tens of thousands of inputs.
        learning_rate: The first step size of Adam in these epochs; it falls along a cosine.
        temperature: What the logits of classifiers are divided by in these epochs.
        augment: A function of a batch of inputs, in TensorFlow, for these epochs; the dense model
            sees what it returns, too.
        seed: Seed of every random choice.
        verbose: Whether to show a progress bar, a step a kernel.

    Returns:
        A sparse copy of the model, which keeps its zeros in the training that follows.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If something does not fit, or inputs or activations are not finite.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import prune_post_training, sparsity_report
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(10, "relu"), keras.layers.Dense(2)]
        ... )
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> sparse = prune_post_training(model, x, sparsity=0.5, verbose=0)
        >>> sparsity_report(sparse).sparsity
        0.5
    """
    checks.check_model(model)
    check_no_masks(model)
    sparsity = check_sparsity(sparsity)
    checks.check_choice("method", method, tuple(METHODS))
    if not isinstance(refit, bool | np.bool_):
        raise TypeError(f"refit must be True or False. Received: refit={refit!r}")
    check_allocation(allocation)
    chosen_pattern = as_pattern(pattern)
    check_fixed_sparsity(chosen_pattern, sparsity, allocation)
    gradual = refit and method in ("magnitude", "wanda") and not hasattr(chosen_pattern, "sparsity")
    number = (4 if gradual else 1) if steps is None else checks.check_count("steps", steps)
    if checks.whole(epochs) is None or epochs < 0:
        raise ValueError(f"epochs must be a whole number of at least 0. Received: {epochs=}")
    checks.check_choice("recovery", recovery, RECOVERIES)
    if recovery == "gradual":
        _check_gradual(epochs, chosen_pattern, allocation)
    if memory_limit is not None:
        memory_limit = checks.check_count("memory_limit", memory_limit)
    checks.check_number("learning_rate", learning_rate)
    found = choose_weights(model, filters=filters, pruning_policy=pruning_policy).weights
    if filters is None:
        _warn_of_frozen(model, found)
    batches = calibration_batches(
        model, inputs, samples=samples, batch_size=batch_size, seed=checks.check_seed(seed)
    )
    copy = copy_of(model, batches[0])
    chosen = choose_weights(copy, filters=filters, pruning_policy=pruning_policy).weights
    fixed = hasattr(chosen_pattern, "sparsity")
    by_cost = isinstance(allocation, str) and allocation in BY_COST
    shares = shares_of(
        copy, chosen, ("layerwise" if fixed else "global") if by_cost else allocation
    )
    measured = by_cost and not fixed
    task = Task(
        copy,
        chosen,
        batches,
        method,
        chosen_pattern,
        pruning_policy=pruning_policy,
        memory_limit=memory_limit,
        progress=_progress(len(chosen) * (2 if measured else 1), verbose),
    )
    importance: list[np.ndarray | None] = [None] * len(chosen)
    first = first_sparsity(sparsity) if recovery == "gradual" else sparsity
    if measured:
        shares.check_room(sparsity)
        costs = costs_of(
            model,
            inputs,
            (method, pattern, allocation, filters, pruning_policy, samples, batch_size, seed),
            lambda: task.costs(by_sensitivity=allocation == "sensitivity", seed=seed),
        )
        sizes = [int(np.prod(v.shape)) for v in chosen]
        counts, importance = counts_by_cost(costs.entries, sizes, first), costs.importance
    else:
        counts = counts_of(shares, [host.array_of(v) for v in chosen], first)
    masks = task.prune(counts, importance, refit=refit, steps=number)
    paths = paths_of(copy, chosen)
    warn_if_sparsity_missed(chosen_pattern, paths, masks, counts)
    apply_masks(copy, dict(zip(paths, masks, strict=True)))
    if epochs:
        distil(
            copy,
            model,
            inputs,
            epochs=epochs,
            learning_rate=learning_rate,
            temperature=temperature,
            augment=augment,
            seed=seed,
            verbose=verbose,
            masks=functools.partial(GradualMasks, copy, chosen, sparsity)
            if recovery == "gradual"
            else None,
        )
        if batch_norms(copy):
            reestimate(copy, batches)
    return copy


def _warn_of_frozen(model: keras.Model, chosen: Sequence[keras.Variable]) -> None:
    """Warn if most of a model is frozen, as backbones are."""
    frozen = sum(int(np.prod(v.shape)) for v in all_kernels(model) if not v.trainable)
    rest = sum(int(np.prod(v.shape)) for v in chosen)
    if frozen > rest:
        warnings.warn(
            f"{frozen:,} weights are frozen (trainable=False) and stay dense, {rest:,} are pruned. "
            "To prune all, set trainable = True on these layers first, and False again afterwards. "
            f"Received: model={model.name!r}",
            stacklevel=3,
        )


def _check_gradual(epochs: int, pattern: Any, allocation: Any) -> None:
    """Raise a ValueError if masks cannot be chosen again during recovery."""
    if not epochs:
        raise ValueError(
            'recovery="gradual" prunes while it trains, so pass epochs=. Received: epochs=0'
        )
    if pattern is not None or allocation not in (*BY_COST, "global"):
        raise ValueError(
            'recovery="gradual" chooses single entries by one threshold over all layers. Leave '
            'pattern out and allocation as it is, or pass recovery="held". '
            f"Received: pattern={pattern!r}, allocation={allocation!r}"
        )


def _progress(steps: int, verbose: Any) -> Callable[[], None]:
    if not verbose:
        return lambda: None
    bar = keras.utils.Progbar(steps, unit_name="kernel", verbose=2 if verbose == 2 else 1)
    return lambda: bar.add(1)
