"""From a network to its masks: score, allocate and choose, in one or many rounds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, host
from keras_ntt.core.axes import Axes, axes_of_weights
from keras_ntt.core.logits import logits_of, warn_of_logits, warn_of_probabilities
from keras_ntt.masks.filters import without_root
from keras_ntt.masks.names import names_by_id
from keras_ntt.saliency import Batches, NetworkSaliency, Subject
from keras_ntt.saliency.base import check_scores
from keras_ntt.saliency.data import BATCH_SIZE
from keras_ntt.saliency.of_weights import magnitude
from keras_ntt.selection.allocations import Allocation, Shares
from keras_ntt.selection.counts import counts_by_threshold
from keras_ntt.selection.named_patterns import as_pattern, choose, warn_if_sparsity_missed
from keras_ntt.selection.patterns import Pattern
from keras_ntt.selection.ties import largest_of


@dataclass(frozen=True)
class Recipe:
    """How masks are chosen.

    Attributes:
        saliency: The score.
        shares: The allocation for the weights.
        pattern: How the entries of one weight are chosen; None takes the largest scores.
        axes: The meaning of the axes of each weight.
        rounds: Number of rounds, each of which keeps the same fraction of the remaining entries.
        randomize: Whether entries are drawn with probabilities proportional to their scores.
        allow_empty_layers: Whether scores may prune a whole weight.
    """

    saliency: NetworkSaliency
    shares: Shares
    pattern: Pattern | None = None
    axes: tuple[Axes, ...] | None = None
    rounds: int = 1
    randomize: bool = False
    allow_empty_layers: bool = False


def subject_of(
    model: keras.Model,
    variables: Sequence[keras.Variable],
    data: Any,
    *,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Subject:
    """Return the `Subject` of a dense network, for scores.

    Args:
        model: The model.
        variables: Its variables to score.
        data: Samples, see `Batches`, or None.
        seed: Seed of every random choice.
        batch_size: Samples per batch, for arrays.

    Returns:
        The `Subject`.
    """
    batches = None if data is None else Batches(data, model, batch_size)
    weights = tuple(host.value_of(v) for v in variables)
    masks = tuple(tf.ones_like(w) for w in weights)
    found = logits_of(model)
    return Subject(
        model,
        tuple(variables),
        weights,
        masks,
        batches,
        checks.check_seed(seed),
        logits_model=found.model if found.names else None,
    )


def score(saliency: NetworkSaliency, subject: Subject) -> list[np.ndarray]:
    """Return the scores of a network's weights in float64, checked.

    Args:
        saliency: The score.
        subject: The network.

    Returns:
        One array per weight.

    Raises:
        ValueError: If the scores are not finite, do not fit, or are all zero.
    """
    if subject.round == 0 and saliency.looks_at_logits(subject.model):
        found = logits_of(subject.model)
        warn_of_logits(found, saliency.name, stacklevel=4)
        scores = saliency(subject)  # some scores refuse probabilities
        if not found.certain and subject.data is not None:
            warn_of_probabilities([found], next(subject.batches())[0], saliency.name, stacklevel=4)
    else:
        scores = saliency(subject)
    check_scores(scores, subject.weights)
    arrays = [np.asarray(tf.cast(s, tf.float64)) for s in scores]
    # In later rounds all scores are zero if no signal passes the pruned network.
    if subject.round == 0 and not any(a.any() for a in arrays):
        raise ValueError(
            "All scores are zero, so there is no order among the weights: the outputs do not "
            f"depend on them. Received: saliency {saliency.name} of "
            f"{len(arrays)} weights"
        )
    return arrays


def find_masks(
    subject: Subject,
    recipe: Recipe,
    sparsity: float,
    *,
    after_round: Callable[[int], None] = lambda number: None,
) -> list[np.ndarray]:
    """Choose the masks of a network.

    In round k of n the network keeps a fraction ``density ** (k / n)`` of its entries. Before the
    last round it is rounded up, as in the published code of SynFlow. The scores are those of the
    network as pruned so far, and pruned entries do not return.

    Args:
        subject: The dense network.
        recipe: How to choose them.
        sparsity: Fraction of zeros, in [0, 1).
        after_round: Called with the number of each finished round.

    Returns:
        Boolean arrays of the weights' shapes.

    Raises:
        ValueError: If there are too few entries for every weight to keep one, and no weight may be
            pruned as a whole.
    """
    shares = recipe.shares
    kept = [np.ones(shape, bool) for shape in shares.shapes]
    least = [0 if recipe.allow_empty_layers else 1] * len(kept)
    if not recipe.allow_empty_layers:
        shares.check_room(sparsity)
    final = None if shares.by_score else shares.counts(sparsity)
    if final is not None:
        subject = replace(subject, counts=tuple(final))
        if shares.allocation in ("er", "erk"):
            _warn_of_empty(final, recipe)
    for number in range(1, recipe.rounds + 1):
        now = replace(subject, masks=_as_tensors(kept, subject), round=number - 1)
        keys = score(recipe.saliency, now)
        if recipe.randomize:
            keys = sampling_keys(keys, now)
        keys = [np.where(k, s, -np.inf) for k, s in zip(kept, keys, strict=True)]
        share = number / recipe.rounds
        if final is not None:
            counts = [_between(s.size, c, share) for s, c in zip(keys, final, strict=True)]
        else:
            total = _between(sum(shares.sizes), shares.total(sparsity), share)
            counts = counts_by_threshold(keys, total, least)
            if number == recipe.rounds:
                _warn_of_empty(counts_by_threshold(keys, total, [0] * len(keys)), recipe)
        if shares.allocation == "plsr" and number == recipe.rounds:
            keys = [np.asarray(tf.cast(s, tf.float64)) for s in magnitude(subject.weights)]
            kept = select(keys, counts, recipe.pattern, recipe.axes)
        else:
            chosen = select(keys, counts, recipe.pattern, recipe.axes)
            kept = [a & b for a, b in zip(kept, chosen, strict=True)]
        after_round(number)
    warn_if_sparsity_missed(recipe.pattern, shares.names, kept, counts)
    return kept


def select(
    scores: Sequence[np.ndarray],
    counts: Sequence[int],
    pattern: Pattern | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[np.ndarray]:
    """Return masks that keep the largest scores of each weight; ties are broken evenly.

    Args:
        scores: Scores of the weights.
        counts: How many entries each keeps.
        pattern: The pattern, if there is one.
        axes: The meaning of the axes of each weight.

    Returns:
        Boolean arrays.
    """
    masks = []
    for i, (values, count) in enumerate(zip(scores, counts, strict=True)):
        if pattern is None or count == 0:
            masks.append(largest_of(values, count))
        else:
            sparsity, own_axes = 1 - count / values.size, None if axes is None else axes[i]
            masks.append(choose(pattern, tf.constant(values), sparsity, own_axes).numpy())
    return masks


def sampling_keys(scores: Sequence[np.ndarray], subject: Subject) -> list[np.ndarray]:
    """Return random numbers whose order is a draw without replacement by score.

    Each remaining entry is drawn next with a probability proportional to its score (Bar & Giryes,
    "Pruning at initialization: a sketching perspective", 2023). This is done by log scores plus
    Gumbel noise. Entries with scores of 0 or less come after all others, in random order.

    Args:
        scores: Scores.
        subject: The source of the seed.

    Returns:
        Numbers of the same shapes.
    """
    keys = []
    for i, values in enumerate(scores):
        shape, seed = values.shape, subject.seed_of(4, i)
        uniform = tf.random.stateless_uniform(shape, seed, 1e-300, 1.0, dtype=tf.float64)
        gumbel = -np.log(-np.log(np.asarray(uniform)))
        positive = values > 0
        logs = np.log(values, where=positive, out=np.full(shape, -1e6))
        keys.append(logs + gumbel)
    return keys


def _between(size: int, count: int, share: float) -> int:
    """Return how many entries remain on the way from all to `count`, rounded up.

    >>> [_between(9, 3, k / 3) for k in (1, 2, 3)]
    [7, 5, 3]
    """
    return math.ceil(size * (count / size) ** share - 1e-6) if share < 1 else count


def _as_tensors(masks: Sequence[np.ndarray], subject: Subject) -> tuple[tf.Tensor, ...]:
    return tuple(tf.cast(m, w.dtype) for m, w in zip(masks, subject.weights, strict=True))


def _warn_of_empty(counts: Sequence[int], recipe: Recipe) -> None:
    empty = [n for n, count in zip(recipe.shares.names, counts, strict=True) if not count]
    if not empty:
        return
    done = "The best entry of each is kept nevertheless"
    if recipe.allow_empty_layers:
        done = "They are pruned completely, because allow_empty_layers=True allows it, and no "
        done += "signal passes them"
    who, instead = f"The allocation {recipe.shares.allocation!r}", "Lower the sparsity"
    if recipe.shares.by_score:
        who, instead = f"The scores of {recipe.saliency.name}", "Prune in more rounds"
        instead += ", or allocate the sparsity by allocation='erk'"
    warnings.warn(f"{who} would remove all of {empty}. {done}. {instead}.", stacklevel=4)


def shares_of(
    model: keras.Model,
    variables: Sequence[keras.Variable],
    allocation: Allocation,
    count_rule: str = "nearest",
) -> Shares:
    """Return an allocation for the weights of a model, checked.

    Args:
        model: The model.
        variables: Its variables to prune.
        allocation: The allocation.
        count_rule: The count rule.

    Returns:
        The `Shares`.

    Raises:
        ValueError: If something does not fit.
    """
    checks.check_choice("count_rule", count_rule, ("nearest", "original"))
    shapes = tuple(tuple(v.shape) for v in variables)
    # Paths in a copy lack the name of the model, which may equal names of layers.
    root = f"{model.name}/"
    names = tuple(path.removeprefix(root) for path in paths_of(model, variables))
    if isinstance(allocation, Mapping):
        allocation = {
            without_root(key, root) if isinstance(key, str) else key: value
            for key, value in allocation.items()
        }
    layers = frozenset(layer.name for layer in host.layers_of(model) if layer is not model)
    return Shares(names, shapes, allocation, count_rule, layers)


def recipe_of(
    model: keras.Model,
    variables: Sequence[keras.Variable],
    saliency: NetworkSaliency,
    *,
    allocation: Allocation = "global",
    count_rule: str = "nearest",
    pattern: Any = None,
    rounds: int | None = None,
    **options: Any,
) -> Recipe:
    """Return a recipe for the weights of a model, checked.

    Args:
        model: The model.
        variables: Its variables to prune.
        saliency: The score.
        allocation: The allocation.
        count_rule: The count rule.
        pattern: The pattern, see `as_pattern`.
        rounds: Number of rounds; None takes the default of the score.
        **options: Further attributes of `Recipe`.

    Returns:
        The `Recipe`.

    Raises:
        ValueError: If something does not fit.
    """
    shares = shares_of(model, variables, allocation, count_rule)
    number = saliency.rounds if rounds is None else checks.check_count("rounds", rounds)
    most = max(1000, sum(shares.sizes))
    if number > most:
        raise ValueError(
            f"rounds must be at most {most:,}: more than there are entries to prune would change "
            f"nothing. Received: rounds={number}"
        )
    axes = axes_of_weights(model, variables)
    return Recipe(saliency, shares, as_pattern(pattern), axes, number, **options)


def paths_of(model: keras.Model, variables: Sequence[keras.Variable]) -> list[str]:
    """Return the names of variables of a model, as in its masks."""
    names = names_by_id(model.weights)
    return [names[id(v)] for v in variables]
