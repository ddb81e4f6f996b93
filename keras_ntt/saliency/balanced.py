"""Balanced random masks: every unit keeps inputs and outputs (Prabhu et al., ECCV 2018)."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_ntt.core import checks
from keras_ntt.core.axes import Axes, axes_of_weights
from keras_ntt.core.channels.chains import chains_of
from keras_ntt.core.network import unroll
from keras_ntt.saliency.base import NetworkSaliency, Subject


class Balanced(NetworkSaliency):
    """Draw random masks that spread a weight's entries evenly over its inputs and outputs.

    At low densities many units of a random mask have connections on only one side, which are
    wasted. Here, as far as the numbers of entries allow,

    - all outputs of a weight keep the same number of entries, give or take one, and so do all
      inputs, give or take a few;
    - only so many of the units between two layers are connected that each is read by at least
      `min_fan_out` entries; the others lose all their weights, so that
      `keras_ntt.remove_dead_units` can remove them;
    - with data, the inputs of the model get connections in proportion to their standard deviation:
      few or none where nothing varies. The data need no labels. Bring the inputs to similar scales
      first. This does not apply to a weight that reads the inputs through another layer with
      weights, or in a subclassed model.

    The masks do not depend on the values of the weights. Use an allocation that depends on shapes
    (``"erk"``, ``"layerwise"``, a mapping). If the scores decide how many entries a weight keeps
    (``"global"``), only its outputs are balanced.

    The even spread follows the deterministic layers of Prabhu, Varma & Namboodiri, "Deep expander
    networks" (ECCV 2018), and the allocation follows Evci et al. (ICML 2020). Vysogorets & Kempe,
    "Connectivity matters" (JMLR 2023), describe wasted connections. Leaving out units, and
    weighting inputs by their deviation, are additions of this package.

    Args:
        min_fan_out: The minimum number of entries that read a connected unit, on average; 0
            connects all units. Units are left out only if a Dense, Conv1D or Conv2D layer is read
            by exactly one other such layer of the same Sequential or functional model.
    """

    takes_data = True

    def __init__(self, *, min_fan_out: int = 6):
        if checks.whole(min_fan_out) is None or min_fan_out < 0:
            raise ValueError(
                "min_fan_out must be a whole number, 0 or more. "
                f"Received: min_fan_out={min_fan_out!r}"
            )
        self.min_fan_out = int(min_fan_out)

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return random numbers that are positive for the drawn entries."""
        axes = axes_of_weights(subject.model, subject.variables)
        plan = {id(v): _Weight(v, a) for v, a in zip(subject.variables, axes, strict=True)}
        if subject.data is not None:
            _share_by_deviation(subject, plan)
        scores = []
        if subject.counts is not None:
            for weight, count in zip(plan.values(), subject.counts, strict=True):
                weight.count = count
            self._leave_units_out(subject, plan)
        for i, weight in enumerate(plan.values()):
            rng = np.random.default_rng([subject.seed, 5, i])
            drawn = weight.ranked(rng) if subject.counts is None else weight.drawn(rng)
            scores.append(tf.constant(weight.folded(drawn)))
        return scores

    def _leave_units_out(self, subject: Subject, plan: dict[int, _Weight]) -> None:
        """Choose the units between two layers that are connected."""
        if not self.min_fan_out:
            return
        for number, chain in enumerate(chains_of(subject.model)):
            writes, reads = (plan.get(id(layer.kernel)) for layer in (chain.first, chain.last))
            if writes is None or reads is None:
                continue
            units = writes.columns
            kept = max(1, reads.count // self.min_fan_out)
            # The weights must have enough entries to keep.
            kept = max(kept, -(-writes.count // max(int(writes.rows_in.sum()), 1)))
            turns = reads.rows // units
            reads.group = np.arange(reads.rows) % units
            kept = max(kept, -(-reads.count // (turns * reads.columns)))
            between = (plan.get(id(v)) for layer in chain.between for v in layer.weights)
            depthwise = [weight for weight in between if weight and weight.columns == units]
            for weight in depthwise:
                kept = max(kept, -(-weight.count // weight.rows))
            if kept < units:
                rng = np.random.default_rng([subject.seed, 6, number])
                connected = np.zeros(units, bool)
                connected[rng.permutation(units)[:kept]] = True
                for weight in (writes, *depthwise):
                    weight.columns_in &= connected
                reads.rows_in &= np.tile(connected, turns)


class _Weight:
    """A weight as a matrix of possible connections from inputs to outputs.

    Attributes:
        shape: Shape of the weight.
        axes: The meaning of its axes.
        rows: Number of inputs.
        columns: Number of outputs.
        group: Index of the input channel of each row.
        share: The relative number of entries of each row.
        rows_in: Which rows can be connected.
        columns_in: Which columns can be connected.
        count: The number of kept entries.
    """

    def __init__(self, variable: keras.Variable, axes: Axes):
        self.shape = tuple(variable.shape)
        self.axes = axes
        self.columns = math.prod(self.shape[axis] for axis in axes.outputs)
        self.rows = math.prod(self.shape) // max(self.columns, 1)
        self.group = np.arange(self.rows) % math.prod(self.shape[axis] for axis in axes.inputs)
        self.share = np.ones(self.rows)
        self.rows_in = np.ones(self.rows, bool)
        self.columns_in = np.ones(self.columns, bool)
        self.count = 0

    def folded(self, matrix: np.ndarray) -> np.ndarray:
        """Return the entries of a matrix of inputs and outputs in the shape of the weight."""
        order = self.axes.order
        return matrix.reshape([self.shape[axis] for axis in order]).transpose(np.argsort(order))

    def ranked(self, rng: np.random.Generator) -> np.ndarray:
        """Return scores whose largest entries, however many, are spread evenly over the outputs."""
        keys = np.log(np.maximum(self.share, 1e-12))[:, None]
        keys = keys + rng.gumbel(size=(self.rows, self.columns))
        rank = np.argsort(np.argsort(-keys, axis=0), axis=0)
        return 1 - (rank + rng.random((1, self.columns))) / self.rows

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Return random numbers in (-1, 1] that are positive for the drawn entries."""
        numbers = -rng.random((self.rows, self.columns))
        rows, columns = np.flatnonzero(self.rows_in), np.flatnonzero(self.columns_in)
        by_column = degrees(np.ones(len(columns)), self.count, len(rows), rng)
        left = degrees(self.share[rows], self.count, len(columns), rng, self.group[rows])
        for turn, place in enumerate(rng.permutation(len(columns))):
            # Rows are drawn in proportion to their remaining entries; rows that cannot wait come
            # first.
            keys = np.log(np.maximum(left, 1e-9)) + rng.gumbel(size=len(rows))
            keys[left >= len(columns) - turn] = np.inf
            picked = np.argsort(-keys)[: by_column[place]]
            numbers[rows[picked], columns[place]] += 1
            left[picked] -= 1
        return numbers


def degrees(
    share: np.ndarray,
    total: int,
    most: int,
    rng: np.random.Generator,
    group: np.ndarray | None = None,
) -> np.ndarray:
    """Round shares of a total to integers, at random and as evenly as possible.

    Args:
        share: Non-negative numbers; the results are in proportion to them.
        total: Sum of the results.
        most: The maximum of each result.
        rng: The source of randomness.
        group: The group of each result; sums over groups are rounded as evenly.

    Returns:
        Integers of sum `total`, if `most` allows it.

    >>> rng = np.random.default_rng(0)
    >>> degrees(np.array([1.0, 1.0, 2.0]), 8, 3, rng).tolist()  # the third would be 4
    [3, 2, 3]
    """
    share = share.astype(np.float64) + 1e-9 * max(float(share.max(initial=0.0)), 1e-9)
    free = np.ones(len(share), bool)
    while free.any():
        left = total - most * int((~free).sum())
        wanted = share * (left / share[free].sum())
        over = free & (wanted >= most)
        if not over.any():
            break
        free &= ~over
    result = np.full(len(share), most)
    if free.any():
        channel = np.zeros(len(share), int) if group is None else group
        channel = rng.permutation(int(channel.max()) + 1)[channel]
        order = np.lexsort((rng.random(len(share)), channel))
        order = order[free[order]]
        ends = np.floor(np.cumsum(wanted[order]) + rng.random()).astype(int)
        ends[-1] = left
        result[order] = np.diff(ends, prepend=0)
    return result


def _share_by_deviation(subject: Subject, plan: dict[int, _Weight]) -> None:
    """Set the shares of weights that read the model's inputs, from the inputs' deviations."""
    moments: dict[int, list[np.ndarray]] = {}
    for x, _ in subject.batches():
        for variable, rows in _first_reads(subject.model, x):
            weight = plan.get(id(variable))
            if weight is None or weight.rows % rows.shape[-1]:
                continue
            entries = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
            sums = [np.array(float(len(entries))), entries.sum(0), np.square(entries).sum(0)]
            if id(variable) in moments:
                sums = [a + b for a, b in zip(moments[id(variable)], sums, strict=True)]
            moments[id(variable)] = sums
    for key, (n, first, second) in moments.items():
        deviation = np.sqrt(np.maximum(second / n - np.square(first / n), 0))
        deviation[deviation < 1e-6 * np.sqrt(second / n)] = 0  # constant up to rounding
        if deviation.any() and np.isfinite(deviation).all():
            weight = plan[key]
            weight.share = np.tile(deviation, weight.rows // len(deviation))


def _first_reads(model: keras.Model, x: Any) -> list[tuple[keras.Variable, np.ndarray]]:
    """Return kernels that read the model's inputs, with these inputs, channels last."""
    network = unroll(model)
    if not network.calls:
        return []
    values = dict(zip(network.inputs, network.prepare(x), strict=True))
    found = []
    for call in network.calls:
        if not all(slot in values for slot in call.inputs):
            continue
        tensors = [values[slot] for slot in call.inputs]
        layer = call.operation
        if not call.weights:
            values.update(zip(call.outputs, call.run(*tensors), strict=True))
        elif isinstance(layer, layers.Dense | layers.Conv1D | layers.Conv2D | layers.Conv3D):
            rows = np.asarray(tensors[0])
            if getattr(layer, "data_format", None) == "channels_first":
                rows = np.moveaxis(rows, 1, -1)
            if getattr(layer, "groups", 1) == 1:
                found.append((layer.kernel, rows))
    return found
