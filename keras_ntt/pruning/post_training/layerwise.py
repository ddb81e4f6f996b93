"""One layer of a walk: its statistics, the choice of entries, and what is kept put right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from keras import layers

from keras_ntt.core import host
from keras_ntt.pruning.post_training import alps, magnitude, obc, refit, sparsegpt, wanda
from keras_ntt.pruning.post_training.moments import Moments, Statistics
from keras_ntt.pruning.post_training.problems import Problem
from keras_ntt.pruning.post_training.refit import LeastSquares
from keras_ntt.pruning.post_training.structure import SINGLE, Structure
from keras_ntt.pruning.post_training.walk import Arguments, Walk

Solver = Callable[..., tuple[np.ndarray, np.ndarray]]
"""Problems of the groups, weights, a `Structure` and the outputs' importance -> mask, weights."""

METHODS: dict[str, Solver] = {
    "magnitude": magnitude.prune,
    "wanda": wanda.prune,
    "sparsegpt": sparsegpt.prune,
    "obc": obc.prune,
    "alps": alps.prune,
}

_ENTRIES = 2**24  # of rows at once
_ROWS = 2**17  # of a kernel, or 32 an input; of more, positions of images are drawn at random


class Measured(NamedTuple):
    """What the choice of a layer's entries starts from.

    Attributes:
        weights: The dense weights, ``[groups, features, outputs]``.
        statistics: Moments of inputs and targets; None for what cannot be measured.
        counts: How often each row of a table was looked up; None for other weights.
    """

    weights: np.ndarray
    statistics: Statistics | None = None
    counts: np.ndarray | None = None


def measure(walk: Walk, problem: Problem, *, centred: bool) -> Measured:
    """Take the statistics of a kernel whose layer a walk has reached.

    Inputs are those of the model as it is, targets the dense model's outputs of the kernel.

    Args:
        walk: The walk.
        problem: The kernel.
        centred: Whether moments are taken about the means.

    Returns:
        What was `Measured`.

    Raises:
        ValueError: If what the layer is called with is NaN or infinite.
        HiddenInputsError: If it cannot be seen.
    """
    assert problem.layout is not None
    weights = problem.layout.matrix(walk.dense_value(problem.variable))
    if problem.counts is not None:
        calls = (call for batch in walk.inputs_of(problem.layer) for call in batch.own)
        return Measured(weights, counts=sum((problem.counts(call) for call in calls), np.zeros(1)))
    assert problem.rows is not None
    moments, rng = Moments(), np.random.default_rng(0)
    most = max(_ROWS, 32 * weights.shape[1]) / walk.batches
    for batch in walk.inputs_of(problem.layer):
        for own, dense in zip(batch.own, batch.dense, strict=True):
            positions = int(np.prod(own.first.shape[1:-1]))
            share = min(1.0, most / max(positions * own.first.shape[0], 1))
            for mine, theirs in zip(_parts(problem, own), _parts(problem, dense), strict=True):
                x = problem.rows(mine)
                some = _some(x.shape[1], share, rng)
                x = x[:, some].astype(np.float64)
                x_dense = x
                if batch.own is not batch.dense:
                    with walk.as_dense():
                        x_dense = problem.rows(theirs)[:, some].astype(np.float64)
                moments.add(x, x_dense @ weights)
    statistics = moments.statistics(centred=centred)
    if not np.isfinite(statistics.hessian).all() or not np.isfinite(statistics.cross).all():
        raise ValueError(
            "What a layer is called with is NaN or infinite, so it has no statistics. Check the "
            f"weights of the layers before it. Received: layer {problem.layer.name!r}"
        )
    return Measured(weights, statistics)


def _some(rows: int, share: float, rng: np.random.Generator) -> Any:
    """Return which rows are used: a random share of them, in order."""
    if share >= 1:
        return slice(None)
    return np.flatnonzero(rng.random(rows) < share)


def _parts(problem: Problem, given: Arguments) -> Iterator[Arguments]:
    """Cut the inputs of a convolution along the samples, so that its patches fit into memory."""
    x = given.first
    shape = problem.variable.shape
    positions = int(np.prod([shape[axis] for axis in problem.axes.positions]))
    size = int(np.prod(x.shape)) * positions
    if not problem.axes.positions or size <= _ENTRIES or isinstance(problem.layer, layers.RNN):
        yield given
        return
    samples = max(1, int(_ENTRIES * x.shape[0] / size))
    for start in range(0, x.shape[0], samples):
        yield Arguments((x[start : start + samples],), {})


def is_centred(walk: Walk, problem: Problem) -> bool:
    """Tell whether a shift of the outputs can be put right: by a bias, or BatchNormalization."""
    if problem.bias is not None:
        return problem.bias.trainable
    readers = walk.readers_of_next() if walk.calls[walk.index].operation is problem.layer else []
    return bool(readers) and all(isinstance(r, layers.BatchNormalization) for r in readers)


def costs(
    method: str, measured: Measured, importance: np.ndarray, structure: Structure
) -> np.ndarray:
    """Return what the removal of each entry costs at the outputs of the model.

    ExactOBS says what it costs in the order in which it would be removed, SparseGPT and ALPS take
    the cost of removing it alone, and methods without a Hessian that of removing it uncorrected.

    Args:
        method: The method.
        measured: The statistics of the dense model.
        importance: What a squared error of each output counts.
        structure: What is removed as one.

    Returns:
        Costs of the weights' shape.
    """
    weights = measured.weights
    if measured.counts is not None:
        return _table_costs(measured) * importance[:, None, :]
    assert measured.statistics is not None
    problems = refit.damped(measured.statistics, weights)
    if method == "obc":
        found = obc.increments(problems, weights, structure.unit or SINGLE)
        found = np.where(np.isfinite(found), found, found[np.isfinite(found)].max())
    elif method in ("sparsegpt", "alps"):
        found = obc.single_costs(problems, weights)
    else:
        found = wanda.scores(problems, weights) ** 2
    return found * importance[:, None, :]


def variances(measured: Measured) -> np.ndarray:
    """Return the variance of each output of a kernel, ``[groups, outputs]``."""
    w = measured.weights
    if measured.counts is not None:
        share = measured.counts / max(measured.counts.sum(), 1)
        return np.einsum("f,gfo->go", share, w**2)
    assert measured.statistics is not None
    return np.einsum("gfo,gfh,gho->go", w, measured.statistics.hessian, w, optimize=True)


def choose(
    method: str,
    measured: Measured,
    structure: Structure,
    *,
    importance: np.ndarray | None = None,
    refitted: bool = True,
    steps: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the entries of one kernel and put right what is kept.

    Args:
        method: The method.
        measured: The statistics.
        structure: How many entries are kept, in what pattern.
        importance: What a squared error of each output counts.
        refitted: Whether entries are fitted to the dense model's outputs of the layer.
        steps: In step k of n, ``density ** (k / n)`` is kept, by what was fitted before.

    Returns:
        The mask and the weights, ``[groups, features, outputs]``.
    """
    weights = measured.weights
    if measured.counts is not None:
        scores = _table_costs(measured)
        mask = structure.select(scores if importance is None else scores * importance[:, None])
        return mask, np.where(mask, weights, 0.0)
    assert measured.statistics is not None
    problems = refit.damped(measured.statistics, weights)
    if refitted:
        weights = np.stack([refit.solve(problem) for problem in problems])
    else:
        problems = [
            LeastSquares(p.hessian, p.hessian @ w) for p, w in zip(problems, weights, strict=True)
        ]
    mask = np.ones(weights.shape, bool)
    for number in range(1, steps + 1):
        now = structure if number == steps else structure.on_the_way(number / steps)
        chosen, weights = METHODS[method](problems, weights, now, importance)
        mask = mask & chosen
        weights = np.where(mask, weights, 0.0)
        if refitted:
            pairs = zip(problems, mask, strict=True)
            weights = np.stack([refit.solve(problem, part) for problem, part in pairs])
    return mask, weights


def _table_costs(measured: Measured) -> np.ndarray:
    """Return the squared entries of a table, weighted by how often their rows were looked up.

    The Hessian of one-hot inputs is diagonal. The mean count is added, so that rows of which the
    inputs happened to have none count as rare ones, not as dead.
    """
    assert measured.counts is not None
    counts = measured.counts + max(measured.counts.mean(), 1e-300)
    return (counts / counts.sum())[None, :, None] * measured.weights**2


def replace_kernel(
    walk: Walk, problem: Problem, measured: Measured, weights: np.ndarray, *, refitted: bool
) -> None:
    """Give a layer its new kernel, and shift its bias to the dense model's means.

    Args:
        walk: The walk.
        problem: The kernel.
        measured: The statistics that the weights are fitted to.
        weights: The new weights, ``[groups, features, outputs]``.
        refitted: Whether the bias is shifted, too.
    """
    assert problem.layout is not None
    walk.assign(problem.variable, problem.layout.kernel(weights))
    bias = problem.bias
    if refitted and bias is not None and bias.trainable and measured.statistics is not None:
        shift = refit.bias_shift(measured.statistics, weights)
        walk.assign(bias, problem.shifted_bias(host.array_of(bias), shift))
