"""A model that is being pruned layer after layer, and the two walks through it.

The first walk measures what the removal of entries costs in the dense model, which says how many
each layer keeps. The second prunes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.masks.policies import prunable_weights
from keras_ntt.pruning.post_training import layerwise
from keras_ntt.pruning.post_training.allocate import importance_of
from keras_ntt.pruning.post_training.batch_norm import batch_norms, estimate
from keras_ntt.pruning.post_training.calibration import first_samples
from keras_ntt.pruning.post_training.costs import Costs
from keras_ntt.pruning.post_training.problems import Layout, Problem, problems_of
from keras_ntt.pruning.post_training.sensitivity import output_sensitivity
from keras_ntt.pruning.post_training.structure import Structure
from keras_ntt.pruning.post_training.walk import HiddenInputsError, Walk
from keras_ntt.selection.patterns import Pattern

_FOR_SENSITIVITY = 256  # samples
_FOR_COSTS = 512


class Task:
    """What is pruned of a model, from which inputs, and how.

    Args:
        model: The model, which is changed in place.
        variables: Its kernels that are pruned.
        batches: Batches of inputs, nested as the model takes them.
        method: One of `layerwise.METHODS`.
        pattern: The pattern of the entries of a kernel; None for single ones.
        pruning_policy: The policy that chose the kernels.
        memory_limit: See `Walk`.
        progress: Called after each kernel of a walk.
    """

    def __init__(
        self,
        model: keras.Model,
        variables: Sequence[keras.Variable],
        batches: Sequence[Any],
        method: str,
        pattern: Pattern | None,
        *,
        pruning_policy: Any = None,
        memory_limit: int | None = None,
        progress: Any = lambda: None,
    ):
        self._model, self._variables, self._batches = model, list(variables), list(batches)
        self._method, self._pattern, self._progress = method, pattern, progress
        self._limit = memory_limit
        wanted = {id(v) for v in variables}
        self._problems: dict[int, list[Problem]] = {}
        self._layers: list[Any] = []
        for layer in host.layers_of(model):
            own = [v for v in prunable_weights(layer, pruning_policy) if id(v) in wanted]
            wanted -= {id(v) for v in own}
            if own and id(layer) not in self._problems:
                self._layers.append(layer)
                self._problems[id(layer)] = problems_of(layer, own)
        self._all = [p for layer in self._layers for p in self._problems[id(layer)]]

    def costs(self, *, by_sensitivity: bool, seed: int) -> Costs:
        """Measure what the removal of entries costs.

        Args:
            by_sensitivity: Whether costs are weighted by the sensitivity of the model's outputs,
                or by one over the variance of the layer's.
            seed: Seed of the combinations of outputs that the sensitivity is taken of.

        Returns:
            The `Costs` of the kernels.
        """
        sensitivities: list[np.ndarray | None] = [None] * len(self._all)
        if by_sensitivity:
            few = first_samples(self._batches, _FOR_SENSITIVITY)
            sensitivities = output_sensitivity(self._model, few, self._all, seed=seed)
        of = {id(p): s for p, s in zip(self._all, sensitivities, strict=True)}
        walk = Walk(self._model, first_samples(self._batches, _FOR_COSTS), self._limit)
        found: list[tuple[Problem, np.ndarray, np.ndarray]] = []
        for problem, measured in self._measured(walk, prunes=False):
            if measured is not None:
                variance = layerwise.variances(measured)
                costs = layerwise.costs(
                    self._method, measured, np.ones_like(variance), self._structure(problem, 1)
                )
                found.append((problem, variance, costs))
            self._progress()
        weights = importance_of([v for _, v, _ in found], [of[id(p)] for p, _, _ in found])
        importance = {id(p.variable): w for (p, _, _), w in zip(found, weights, strict=True)}
        cost_of = {id(p.variable): c * importance[id(p.variable)][:, None] for p, _, c in found}
        order = [id(v) for v in self._variables]
        return Costs([cost_of.get(key) for key in order], [importance.get(key) for key in order])

    def prune(
        self,
        counts: Sequence[int],
        importance: Sequence[np.ndarray | None],
        *,
        refit: bool,
        steps: int,
    ) -> list[np.ndarray]:
        """Prune the model in place.

        Args:
            counts: How many entries each kernel keeps.
            importance: What a squared error of each output of each kernel counts; None for alike.
            refit: Whether what is kept is fitted to the dense model's outputs of the layer.
            steps: Gradual steps inside each layer.

        Returns:
            The masks of the kernels, in their order.
        """
        weighted = {id(v): w for v, w in zip(self._variables, importance, strict=True)}
        count_of = {id(v): count for v, count in zip(self._variables, counts, strict=True)}
        masks: dict[int, np.ndarray] = {}
        walk = Walk(self._model, self._batches, self._limit)
        for problem, measured in self._measured(walk, prunes=True, centred=refit):
            variable, layout = problem.variable, problem.layout
            structure = self._structure(problem, count_of[id(variable)])
            if measured is None or layout is None:
                value = walk.dense_value(variable)
                mask = structure.layout.kernel(
                    structure.select(structure.layout.matrix(np.abs(value)))
                )
                walk.assign(variable, np.where(mask, value, 0.0))
            else:
                chosen, weights = layerwise.choose(
                    self._method,
                    measured,
                    structure,
                    importance=weighted[id(variable)],
                    refitted=refit,
                    steps=steps,
                )
                mask = layout.kernel(chosen)
                layerwise.replace_kernel(walk, problem, measured, weights, refitted=refit)
            masks[id(variable)] = mask
            self._progress()
        return [masks[id(v)] for v in self._variables]

    def _measured(
        self, walk: Walk, *, prunes: bool, centred: bool = True
    ) -> Iterator[tuple[Problem, layerwise.Measured | None]]:
        """Yield the kernels in the order in which a walk reaches them, with their statistics.

        Statistics of BatchNormalization behind changed layers are taken again on the way.
        """
        norms = batch_norms(self._model) if prunes else []
        done: set[int] = set()
        unseen: list[Problem] = []
        while walk.index < len(walk.calls):
            left = [layer for layer in (*self._layers, *norms) if id(layer) not in done]
            for layer in walk.reached(left):
                done.add(id(layer))
                if id(layer) not in self._problems:
                    if walk.has_changed:
                        self._estimate(walk, layer)
                    continue
                for problem in self._problems[id(layer)]:
                    try:
                        found = None
                        if problem.rows is not None or problem.counts is not None:
                            middle = centred and layerwise.is_centred(walk, problem)
                            found = layerwise.measure(walk, problem, centred=middle)
                    except HiddenInputsError:
                        found = None
                    if found is None:
                        unseen.append(problem)
                    yield problem, found
            walk.advance()
        for layer in self._layers:
            if id(layer) not in done:
                for problem in self._problems[id(layer)]:
                    unseen.append(problem)
                    yield problem, None
        if unseen and prunes and self._method != "magnitude":
            names = [problem.variable.path for problem in unseen]
            warnings.warn(
                f"The kernels {names} are pruned by magnitude and not fitted: what they multiply "
                "cannot be told, because the layer has a custom call(), is not called, or runs "
                "inside a tf.function. Leave them out by filters=, if that is not wanted.",
                stacklevel=5,
            )

    @staticmethod
    def _estimate(walk: Walk, layer: Any) -> None:
        try:
            estimate(walk, layer)
        except HiddenInputsError:
            warnings.warn(
                "The statistics of a BatchNormalization inside a tf.function cannot be taken "
                f"again, and stay those of the dense model. Received: layer {layer.name!r}",
                stacklevel=6,
            )

    def _structure(self, problem: Problem, count: int) -> Structure:
        shape = tuple(problem.variable.shape)
        layout = problem.layout
        if layout is None:  # one matrix of one column, which only scores are read from
            size = int(np.prod(shape))
            layout = Layout(shape, shape, tuple(range(len(shape))), 1, size, 1)
        return Structure(layout, problem.axes, count, self._pattern)
