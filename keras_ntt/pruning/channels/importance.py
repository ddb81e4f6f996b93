"""How much a channel matters: one score a channel of each group, higher is kept.

Magnitude and its normalization are those of DepGraph (Fang 2023, arXiv 2301.12900), the scale of
the normalization that of network slimming (Liu 2017, arXiv 1708.06519), the first-order score that
of Molchanov (2019, arXiv 1906.10771). The reconstruction error is that of the optimal brain
surgeon for a block of weights: what is left after the other inputs have made up for the channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.channels.graph import ChannelGraph
from keras_ntt.core.channels.groups import ChannelGroup
from keras_ntt.core.channels.records import WeightAxis
from keras_ntt.pruning.channels import linear
from keras_ntt.pruning.post_training.moments import Statistics

Scores = list[np.ndarray]

DAMPING = 0.01
"""What is added to the diagonal of covariances, relative to its mean."""


def sums_by_channel(group: ChannelGroup, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the sums of an axis' values over the indices of each channel of a group."""
    own = np.array(group.labels)
    order = np.argsort(own)
    places = order[np.minimum(np.searchsorted(own, labels, sorter=order), len(own) - 1)]
    mine = own[places] == labels
    return np.bincount(places[mine], values[mine], minlength=group.channels)


def _is_weighed(axis: WeightAxis) -> bool:
    name = axis.variable.name
    return len(axis.variable.shape) > 1 or name in ("gamma", "scale")


def _members(graph: ChannelGraph, group: ChannelGroup) -> list[tuple[WeightAxis, np.ndarray]]:
    wanted = {(member.weight, member.axis, member.layer) for member in group.members}
    return [
        (axis, axis.labels)
        for axis in graph.weights
        if axis.labels is not None
        and (axis.variable.path, axis.axis, axis.layer.name) in wanted
        and np.isin(axis.labels, group.labels).any()
    ]


def normalized(score: np.ndarray) -> np.ndarray:
    """Return scores divided by their mean, so that groups compare.

    >>> normalized(np.array([1.0, 3.0]))
    array([0.5, 1.5])
    """
    mean = score.mean()
    return score / mean if mean > 0 else score


def magnitude(graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> Scores:
    """Return the mean over a group's weights of the sum of squares of a channel, normalized.

    Biases do not count. Kernels count where they make channels and where they read them.
    """
    found = []
    for group in groups:
        sums = []
        for axis, labels in _members(graph, group):
            if _is_weighed(axis):
                value = np.moveaxis(host.array_of(axis.variable).astype(np.float64), axis.axis, -1)
                squares = np.square(value).reshape(-1, value.shape[-1]).sum(axis=0)
                sums.append(sums_by_channel(group, labels, squares))
        found.append(normalized(np.mean(sums, axis=0)) if sums else np.ones(group.channels))
    return found


def batch_norm(graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> Scores:
    """Return the mean absolute scale of a group's normalizations; magnitude where it has none."""
    found = []
    for group, other in zip(groups, magnitude(graph, groups), strict=True):
        sums = [
            sums_by_channel(group, labels, np.abs(host.array_of(axis.variable)).astype(np.float64))
            for axis, labels in _members(graph, group)
            if isinstance(axis.layer, layers.BatchNormalization) and axis.variable.name == "gamma"
        ]
        found.append(normalized(np.mean(sums, axis=0)) if sums else other)
    return found


def random(groups: Sequence[ChannelGroup], seed: int) -> Scores:
    """Return random scores."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(size=group.channels) for group in groups]


def taylor(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], gradients: dict[int, np.ndarray]
) -> Scores:
    """Return the square of the sum of weight times gradient over all of a channel's weights.

    Args:
        graph: The graph.
        groups: The groups.
        gradients: Gradients of the mean loss, by ``id(variable)``.
    """
    found = []
    for group in groups:
        score = np.zeros(group.channels)
        for axis, labels in _members(graph, group):
            gradient = gradients.get(id(axis.variable))
            if gradient is not None and axis.role != "in":
                product = np.moveaxis(host.array_of(axis.variable) * gradient, axis.axis, -1)
                sums = product.reshape(-1, product.shape[-1]).astype(np.float64).sum(axis=0)
                score += sums_by_channel(group, labels, sums)
        found.append(np.square(score))
    return found


class _Problem:
    """What one layer makes of its inputs: outputs ``X W``, up to a bias."""

    def __init__(self, layer: Any, labels: np.ndarray, moments: Statistics):
        self.weights = linear.matrix(layer)
        self.labels = np.tile(labels, len(self.weights) // len(labels))
        covariance = moments.hessian[0]
        scale = float(np.mean(np.diag(covariance)))
        self.covariance = covariance + (DAMPING * scale + 1e-30) * np.eye(len(covariance))
        self.energy = float(np.sum(self.weights * (covariance @ self.weights))) + 1e-30


def _problems(graph: ChannelGraph, moments: dict[int, Statistics]) -> list[_Problem]:
    return [
        _Problem(reader.layer, reader.labels, moments[id(reader.layer)])
        for reader in graph.readers
        if id(reader.layer) in moments and reader.kernel is host.kernel_of(reader.layer)
    ]


def activation(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], moments: dict[int, Statistics]
) -> Scores:
    """Return which share of the variance of the next layers' outputs a channel makes alone.

    Its mean does not count, because a bias can hold it. Groups that no Dense, Conv1D or Conv2D
    layer reads have their magnitude.
    """
    problems, found = _problems(graph, moments), []
    for group, other in zip(groups, magnitude(graph, groups), strict=True):
        score, any_reader = np.zeros(group.channels), False
        for problem in problems:
            if np.isin(problem.labels, group.labels).any():
                any_reader = True
                squares = np.square(problem.weights).sum(axis=1)
                variances = np.diag(problem.covariance) * squares / problem.energy
                score += sums_by_channel(group, problem.labels, variances)
        found.append(score if any_reader else other)
    return found


def reconstruction(
    graph: ChannelGraph, groups: Sequence[ChannelGroup], moments: dict[int, Statistics]
) -> Scores:
    """Return the error of the next layers' outputs that removing a channel leaves after repair.

    Channels are removed one after the other, the one of least error first; the weights of those
    that stay are refitted each time. The score of a channel is the error when it goes, relative to
    the variance of the outputs, summed over the layers that read the group. Groups that no Dense,
    Conv1D or Conv2D layer reads have their magnitude.
    """
    problems, found = _problems(graph, moments), []
    for group, other in zip(groups, magnitude(graph, groups), strict=True):
        mine = [p for p in problems if np.isin(p.labels, group.labels).any()]
        found.append(_eliminate(group, mine) if mine else other)
    return found


def _eliminate(group: ChannelGroup, problems: Sequence[_Problem]) -> np.ndarray:
    """Remove the channels of a group one by one, and return the error of each removal.

    With H the covariance, the block c of the weights W is set to zero at the error
    ``tr(W_c' ((H^-1)_cc)^-1 W_c)``, after which W loses ``(H^-1)_:c ((H^-1)_cc)^-1 W_c``, and H^-1
    the like.
    """
    inverses = [np.linalg.inv(problem.covariance) for problem in problems]
    weights = [problem.weights.copy() for problem in problems]
    rows = [
        {label: np.flatnonzero(problem.labels == label) for label in group.labels}
        for problem in problems
    ]
    left, score, last = list(group.labels), np.zeros(group.channels), 0.0
    place = {label: number for number, label in enumerate(group.labels)}
    while left:
        errors = np.zeros(len(left))
        for problem, inverse, weight, at in zip(problems, inverses, weights, rows, strict=True):
            for number, label in enumerate(left):
                c = at[label]
                if len(c):
                    solved = np.linalg.solve(inverse[np.ix_(c, c)], weight[c])
                    errors[number] += float(np.sum(weight[c] * solved)) / problem.energy
        best = int(np.argmin(errors))
        label = left.pop(best)
        last = max(last, float(errors[best]))
        score[place[label]] = last
        for inverse, weight, at in zip(inverses, weights, rows, strict=True):
            c = at[label]
            if len(c):
                columns = inverse[:, c]
                block = inverse[np.ix_(c, c)]
                weight -= columns @ np.linalg.solve(block, weight[c])
                weight[c] = 0.0
                inverse -= columns @ np.linalg.solve(block, columns.T)
                inverse[c] = 0.0
                inverse[:, c] = 0.0
                inverse[c, c] = 1.0
    return score
