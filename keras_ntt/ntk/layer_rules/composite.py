"""Layers and models that contain layers: inner layers with rules are structured, whatever the code.

The call runs on the batch repeated once per output, with a *probe*, a zero, added to the output
of each inner layer that has a rule and of each ``keras.ops.matmul(x, weight)`` outside of these.
One backward pass gives the derivatives with respect to the probes. From these follow the
derivatives with respect to the weights. The code between may be any code that treats samples one by
one. Layers with loops through time run by their rules, one row per sample, also in the backward
pass.

Weights that are used in other ways, or with another number of rows than one per sample, are
differentiated sample by sample.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.loops import loops_of
from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import AffineFactor, Factor
from keras_ntt.ntk.layer_rules import stacking
from keras_ntt.ntk.layer_rules.affine import positions
from keras_ntt.ntk.layer_rules.base import Cotangents, Linearization, find_rule
from keras_ntt.ntk.layer_rules.probes import (
    Visit,
    calls_through,
    has_loops,
    linearized,
    packed,
    probing,
)
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.layer_rules.unknown import by_sample
from keras_ntt.ntk.layer_rules.weightless import copies_of, is_floating, masks_of, repeated


@dataclass(frozen=True)
class Division:
    """The structured part of a call.

    Attributes:
        layers: Inner layers whose rules give the derivatives with respect to all their weights.
        factors: Weights that only meet ``keras.ops.matmul(x, weight)``.
        rest: The other trainable weights.
    """

    layers: tuple[Any, ...]
    factors: tuple[keras.Variable, ...]
    rest: tuple[keras.Variable, ...]

    @property
    def loops(self) -> tuple[Any, ...]:
        """The layers that are run by their rules, because they loop through time."""
        return tuple(filter(has_loops, self.layers))


class Composite(Linearization):
    """A call of a layer that has weights and no rule."""

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        self._call = call
        self._tensors = list(tensors)
        self._masks = masks_of(tensors)
        loops = divide(call, tensors).loops if loops_of(call.operation) else ()

        def by_rule(layer: Any, _: Callable, args: Any, kwargs: Any) -> Any:
            return packed(linearized(layer, args, kwargs, 1).outputs)

        with calls_through(loops, by_rule):
            self.outputs = call.run(*tensors, looped=loops)

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        division = divide(self._call, self._tensors)
        factors: list[Factor] = []
        if division.rest:
            factors.append(
                by_sample(self._call, self._tensors, self._masks, cotangents, division.rest)
            )
        copies = copies_of(cotangents)
        rows = repeated(self._tensors, self._masks, copies)
        sources = {
            i: row for i, row in enumerate(rows) if wanted[i] and is_floating(self._tensors[i])
        }
        loops = division.loops
        with tf.GradientTape(persistent=bool(loops), watch_accessed_variables=False) as tape:
            tape.watch(list(sources.values()))
            with probing(division.layers, division.factors, tape, copies=copies) as visits:
                outputs = self._call.run(*rows, looped=loops)
        ends = _Ends(tape)
        for y, ct in zip(outputs, cotangents, strict=True):
            if ct is not None:
                ends.add(y, ct.tensor)
        # The inputs of a layer depend only on the probes of earlier layers.
        for visit in reversed(visits):
            if visit.step is not None:
                deltas = ends.gradient(visit.probes)
                if any(delta is not None for delta in deltas):
                    tensors = visit.tensors
                    back, found = visit.step.backward(
                        _stacked(deltas, copies), [is_floating(t) for t in tensors]
                    )
                    factors += found
                    for tensor, ct in zip(tensors, back, strict=True):
                        if ct is not None:
                            ends.add(tensor, ct.tensor)
        visits = [visit for visit in visits if visit.step is None]
        by_input, by_probe = ends.gradient([sources, [visit.probes for visit in visits]])
        inputs: list[Stacked | None] = [None] * len(rows)
        for i, gradient in by_input.items():
            if gradient is not None:
                inputs[i] = Stacked(stacking.restack(gradient, self._tensors[i], copies), copies)
        for visit, deltas in zip(visits, by_probe, strict=True):
            if any(delta is not None for delta in deltas):
                by = _by_rule if isinstance(visit.subject, keras.layers.Layer) else _by_product
                factors += by(visit, deltas, copies)
        return inputs, factors


class _Ends:
    """The start of a backward pass: tensors with their cotangents.

    Args:
        tape: The tape that recorded the tensors.
    """

    def __init__(self, tape: tf.GradientTape):
        self._tape = tape
        self._tensors: list[tf.Tensor] = []
        self._cotangents: list[tf.Tensor] = []

    def add(self, tensor: tf.Tensor, cotangent: tf.Tensor) -> None:
        """Add a tensor."""
        self._tensors.append(tensor)
        self._cotangents.append(tf.cast(cotangent, tensor.dtype))

    def gradient(self, sources: Any) -> Any:
        """Return the cotangents of sources; None where no tensor depends on one."""
        return self._tape.gradient(self._tensors, sources, self._cotangents)


def _stacked(deltas: Sequence[tf.Tensor | None], copies: int) -> list[Stacked | None]:
    return [None if delta is None else Stacked(delta, copies) for delta in deltas]


def _by_product(visit: Visit, deltas: Sequence[tf.Tensor | None], copies: int) -> list[Factor]:
    """Return the derivative with respect to a weight that was multiplied with."""
    (x,), (delta,) = visit.args, deltas
    inputs = positions(tf.convert_to_tensor(x)[::copies])
    return [AffineFactor(inputs, positions(delta), copies, 1, visit.subject, None)]


def _by_rule(visit: Visit, deltas: Sequence[tf.Tensor | None], copies: int) -> list[Factor]:
    """Return the derivatives with respect to the weights of an inner layer."""
    step = linearized(visit.subject, visit.args, visit.kwargs, copies)
    _, factors = step.backward(_stacked(deltas, copies), [False] * len(visit.tensors))
    return factors


_divisions: weakref.WeakKeyDictionary[Call, dict[tuple[int, ...], Division]] = (
    weakref.WeakKeyDictionary()
)


def divide(call: Call, tensors: Sequence[tf.Tensor]) -> Division:
    """Decide which inner layers of a call use their rules.

    These are the outermost layers that have a rule, get one row per sample in each call, and whose
    weights are not used elsewhere.

    Args:
        call: The call.
        tensors: Its inputs. Only their shapes and dtypes matter.

    Returns:
        The `Division`. It is computed once for each call and each choice of trainable weights.
    """
    weights = call.weights
    known = _divisions.setdefault(call, {})
    key = tuple(map(id, weights))
    if key not in known:
        layers = _outermost_with_rule(call.operation)
        inside = {id(v) for layer in layers for v in layer.variables}
        factors = [v for v in weights if id(v) not in inside and len(v.shape) == 2]
        bad = {id(subject) for subject in (*layers, *factors)}
        # Traced with two batch sizes: what has as many rows as samples both times has one per
        # sample. Code that cannot be traced takes the exact path, which shows its error.
        with contextlib.suppress(Exception):
            found = [_trace(call, tensors, layers, factors, size) for size in (7, 11)]
            bad = set().union(*found)
        known[key] = _without_ties(weights, layers, factors, bad)
    return known[key]


def _without_ties(
    weights: Sequence[keras.Variable],
    layers: Sequence[Any],
    factors: Sequence[keras.Variable],
    bad: set[int],
) -> Division:
    """Leave out bad layers and factors, and layers that share a weight with them."""
    good = [v for v in factors if id(v) not in bad]
    while True:
        kept = [layer for layer in layers if id(layer) not in bad]
        covered = {id(v) for layer in kept for v in layer.trainable_variables}
        covered = (covered | {id(v) for v in good}) - bad
        rest = [v for v in weights if id(v) not in covered]
        loose = {id(v) for v in rest}
        tied = {
            id(layer) for layer in kept if any(id(v) in loose for v in layer.trainable_variables)
        }
        if not tied:
            return Division(tuple(kept), tuple(good), tuple(rest))
        bad = bad | tied


def _outermost_with_rule(operation: Any) -> list[Any]:
    found: list[Any] = []
    inside: set[int] = set()
    for layer in host.layers_of(operation, include_itself=False):
        if id(layer) in inside or find_rule(layer) is None:
            continue
        if not layer.trainable_variables and not has_loops(layer):
            continue  # frozen loops are only differentiated through
        found.append(layer)
        inside |= {id(inner) for inner in host.layers_of(layer)}
    return found


def _trace(
    call: Call,
    tensors: Sequence[tf.Tensor],
    layers: Sequence[Any],
    factors: Sequence[keras.Variable],
    size: int,
) -> set[int]:
    """Trace a call on a batch of some size, without computing anything.

    Returns:
        The ids of the layers and factors that do not get one row per sample, and of the trainable
        variables that are used outside of them.
    """
    variables = call.operation.variables
    bad: set[int] = set()

    def run(*inputs: tf.Tensor) -> None:
        graph = inputs[0].graph
        values = {id(v): (v, tf.convert_to_tensor(host.raw(v))) for v in variables}
        held = {key: (v, tf.stop_gradient(value)) for key, (v, value) in values.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            outer = {id(v): values[id(v)][1] for v in call.weights}
            tape.watch(list(outer.values()))
            with (
                host.values_in_place(values),
                probing(layers, factors, tape, lambda: host.values_in_place(held)) as visits,
            ):
                outputs = call.run(*inputs, looped=layers)
        for visit in visits:
            seen = keras.tree.flatten((visit.args, visit.kwargs, visit.probes))
            rows = [t for t in seen if tf.is_tensor(t)]
            if any(t.graph is not graph or t.shape[:1] != [size] for t in rows):
                bad.add(id(visit.subject))
        gradients = tape.gradient([y for y in outputs if is_floating(y)], outer)
        bad.update(key for key, gradient in gradients.items() if gradient is not None)

    specs = [tf.TensorSpec([size, *t.shape[1:]], t.dtype) for t in tensors]
    trace = tf.function(run, autograph=False).get_concrete_function
    # In a separate thread, because a graph, tapes or other values may be active in this one.
    with futures.ThreadPoolExecutor(1) as executor:
        executor.submit(trace, *specs).result()
    return bad
