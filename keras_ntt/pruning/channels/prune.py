"""Prune channels: a smaller model, faster on every runtime (DepGraph, Fang 2023, 2301.12900)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.core.channels.constants import constants_read, folded
from keras_ntt.core.channels.graph import ChannelGraph, channel_graph
from keras_ntt.core.channels.groups import ChannelGroup, groups_of
from keras_ntt.core.channels.resize import Removal, resized
from keras_ntt.masks.filters import Filters, as_predicate, check_filters
from keras_ntt.pruning.channels.arguments import check_arguments, check_target
from keras_ntt.pruning.channels.plan import Plan, across_groups, cost_of, level_for, uniform
from keras_ntt.pruning.channels.repair import repair
from keras_ntt.pruning.channels.scores import Importance, scores_of
from keras_ntt.pruning.post_training.batch_norm import batch_norms, reestimate
from keras_ntt.pruning.post_training.calibration import BATCH_SIZE, calibration_batches
from keras_ntt.pruning.post_training.recovery import LEARNING_RATE, TEMPERATURE, distil

SAMPLES = 1024
"""Inputs that statistics are taken on, if there are more."""


def prune_channels(
    model: keras.Model,
    inputs: Any = None,
    *,
    channels: float | None = None,
    ratio: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    measure: Callable[[keras.Model], float] | None = None,
    importance: Importance | None = None,
    allocation: str = "uniform",
    round_to: int = 8,
    min_channels: int = 1,
    filters: Filters = None,
    refit: bool = True,
    epochs: int = 0,
    learning_rate: float = LEARNING_RATE,
    temperature: float = TEMPERATURE,
    augment: Callable[[Any], Any] | None = None,
    data: Any = None,
    loss: Any = None,
    samples: int | None = SAMPLES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    verbose: Any = "auto",
) -> keras.Model:
    """Return a smaller model without the channels that matter least.

    A channel goes with all that it is coupled to (see `channel_groups`), its bias and its
    normalization included. The result is an ordinary Keras model with the layers' names, which
    trains, is saved and exported like any other.

    Exactly one of `channels`, `ratio`, `flops` and `latency` says how much goes.

    Args:
        model: A built Sequential or functional model. It is left as it is.
        inputs: Unlabelled inputs, preprocessed as for training: arrays, a ``tf.data.Dataset`` of
            batches or a ``keras.utils.PyDataset``. Some hundred samples are enough for
            `importance` and `refit`.
        channels: The fraction of each group's channels to remove, in [0, 1).
        ratio: The fraction of the parameters to remove, in [0, 1).
        flops: The fraction of the multiply-adds of kernels to remove, in [0, 1).
        latency: The fraction of what `measure` returns to remove, in [0, 1).
        measure: The time that a model takes, in any unit: called with smaller models, some ten
            times.
        importance: ``"magnitude"``, ``"batch_norm"`` (scales of normalizations), ``"activation"``
            (the variance that a channel alone makes in what reads it), ``"reconstruction"`` (the
            error there after the other channels have made up for it), ``"taylor"`` (needs labels,
            in `data`), ``"random"``; or a function of the model and a `ChannelGroup` that returns
            a score a channel, higher is kept. By default ``"reconstruction"`` with `inputs`,
            otherwise ``"magnitude"``.
        allocation: ``"uniform"`` removes the same share of each group, ``"global"`` the channels
            of the lowest scores of all groups, relative to what their removal brings.
        round_to: The number of channels that stay of a group is a multiple of this where there are
            more, as fast kernels of most runtimes like it. 1 for any number.
        min_channels: How many channels stay of each group at least.
        filters: Which layers may lose channels that they make: a regular expression, several, or a
            function of the layer. A group is pruned if all layers that make its channels may.
        refit: Whether to fit what stays to the dense model on `inputs`, layer after layer, by least
            squares, and to estimate the statistics of BatchNormalization again. Without inputs,
            only constants are added to the biases of the layers that read them.
        epochs: Passes over all `inputs` in which the smaller model learns the outputs of the dense
            one, as in `prune_post_training`: logits are compared, BatchNormalization is in training
            mode, and its statistics are taken again at the end.
        learning_rate: The first step size of Adam in these epochs; it falls along a cosine.
        temperature: What the logits of classifiers are divided by in these epochs.
        augment: A function of a batch of inputs, in TensorFlow, for these epochs; the dense model
            sees what it returns, too.
        data: ``(x, y)`` for ``"taylor"``, arrays or a data set of such batches.
        loss: The loss for ``"taylor"``, as for ``model.compile``. By default the model's own.
        samples: The most inputs that `importance` and `refit` look at: of arrays a random part, of
            data sets the first. None takes all. They are held in memory, with what the layers make
            of them.
        batch_size: Samples a batch, for arrays.
        seed: Seed of random scores, of the inputs that are used and of their order.
        verbose: 0 for silence; the epochs show progress otherwise.

    Returns:
        The smaller model.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If an argument does not fit, no channels may be removed, or a layer cannot be
            made again in its new size.
    """
    checks.check_model(model)
    if checks.whole(epochs) != 0:
        epochs = checks.check_count("epochs", epochs)
    learning_rate = checks.check_number("learning_rate", learning_rate)
    if not isinstance(refit, bool):
        raise ValueError(f"refit must be True or False. Received: refit={refit!r}")
    target = check_target(channels=channels, ratio=ratio, flops=flops, latency=latency)
    check_arguments(
        model,
        allocation=allocation,
        importance=importance,
        inputs=inputs,
        data=data,
        measure=measure,
        latency=latency,
        epochs=epochs,
    )
    round_to = checks.check_count("round_to", round_to)
    min_channels = checks.check_count("min_channels", min_channels)
    check_filters(filters)
    seed = checks.check_seed(seed)
    graph = channel_graph(model)
    groups = _groups(graph, filters)
    resized(Removal(graph, ()))  # a layer that cannot be made again is refused before the work
    batches = None
    if inputs is not None:
        batches = calibration_batches(
            model, inputs, samples=samples, batch_size=batch_size, seed=seed
        )
    if importance is None:
        importance = "magnitude" if batches is None else "reconstruction"
    scores = scores_of(
        graph,
        groups,
        importance,
        batches=batches,
        data=data,
        loss=loss,
        batch_size=batch_size,
        seed=seed,
    )
    if allocation == "uniform":
        levels = uniform(scores)
    else:
        levels = across_groups(scores, _prices(graph, groups, target[0]))
    plan = Plan(groups, levels, round_to, min_channels)
    removed = _choose(graph, plan, target, measure)
    removal = Removal(graph, removed)
    smaller = resized(removal, _folds(removal))
    if not removed:
        return smaller
    if refit and batches is not None:
        repair(removal, smaller, batches)
    if epochs:
        assert batches is not None
        distil(
            smaller,
            model,
            inputs,
            epochs=epochs,
            learning_rate=learning_rate,
            temperature=temperature,
            augment=augment,
            seed=seed,
            verbose=verbose,
        )
        if batch_norms(smaller):
            reestimate(smaller, batches)
    return smaller


def _groups(graph: ChannelGraph, filters: Filters) -> list[ChannelGroup]:
    """Return the groups that may lose channels."""
    accepts = as_predicate(filters, graph.model)
    made = [(a.layer, a.labels) for a in graph.weights if a.role == "out" and a.labels is not None]
    every = groups_of(graph)
    found = [
        group
        for group in every
        if group.kept is None
        and group.channels > 1
        and all(accepts(layer) for layer, mine in made if np.isin(mine, group.labels).any())
    ]
    if not found:
        reasons = sorted({group.kept for group in every if group.kept})
        raise ValueError(
            "There are no channels that may be removed; channel_groups(model) says why. Received: "
            f"filters={filters!r}, and channels that stay because "
            f"{'; '.join(reasons[:3]) or 'there are none'}"
        )
    return found


def _prices(graph: ChannelGraph, groups: Sequence[ChannelGroup], target: str) -> list[float]:
    """Return what the first channel of each group to go brings; 1 where channels are counted."""
    if target == "channels":
        return [1.0] * len(groups)
    number = 0 if target == "ratio" else 1
    whole = cost_of(graph, set())[number]
    return [float(whole - cost_of(graph, {group.labels[0]})[number]) for group in groups]


def _choose(
    graph: ChannelGraph,
    plan: Plan,
    target: tuple[str, float],
    measure: Callable[[keras.Model], float] | None,
) -> set[int]:
    """Return the labels that go; warn if that is less than was asked for."""
    name, fraction = target
    if name == "channels":
        return plan.removed(fraction)

    def cost(removed: set[int]) -> float:
        if name == "latency":
            assert measure is not None
            return float(measure(resized(Removal(graph, removed))))
        found = cost_of(graph, removed)
        return float(found.parameters if name == "ratio" else found.multiply_adds)

    whole = cost(set())
    removed, left = level_for(plan, cost, whole * (1 - fraction))
    if left > whole * (1 - fraction):
        warnings.warn(
            f"{name}={fraction:.3g} cannot be reached: no more than {1 - left / whole:.3g} can be "
            "removed of the channels that may go. Lower round_to or min_channels, or see "
            "channel_groups(model) for what stays and why.",
            UserWarning,
            stacklevel=3,
        )
    elif name != "latency":  # which is measured each time
        removed = plan.refilled(removed, cost, whole * (1 - fraction))
    return removed


def _folds(removal: Removal) -> dict[int, np.ndarray]:
    """Return the biases that take in what removed channels are constantly."""
    found: dict[int, np.ndarray] = {}
    gone = np.array(sorted(removal.removed), np.int64)
    for reader, constants in zip(removal.graph.readers, constants_read(removal.graph), strict=True):
        dropped = np.isin(reader.labels, gone) & constants.known & (constants.values != 0)
        if dropped.any() and reader.bias is not None and reader.exact:
            kernel, bias = host.array_of(reader.kernel), host.array_of(reader.bias)
            found[id(reader.bias)] = folded(reader, constants, kernel, bias, dropped)
    return found
