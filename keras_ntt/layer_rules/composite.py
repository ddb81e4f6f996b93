"""Layers and models made of layers: what has rules inside is structured, whatever the code.

The call runs on the batch repeated once an output, with a *probe*, a zero, added to the output
of each inner layer that has a rule. One backward pass gives the derivatives by the probes, and
from them the rule of each inner layer gives the derivatives by its weights. What lies between
the inner layers may be any code that treats samples one by one.

Weights that the code uses itself, or through layers that do not see one row a sample, are
differentiated sample by sample.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_ntt import _host
from keras_ntt.factors import Factor
from keras_ntt.layer_rules import stacking
from keras_ntt.layer_rules.base import Cotangents, Linearization, find_rule
from keras_ntt.layer_rules.stacking import Stacked
from keras_ntt.layer_rules.unknown import by_sample
from keras_ntt.layer_rules.weightless import copies_of, is_floating
from keras_ntt.network import Call, call_with


@dataclass(frozen=True)
class Division:
    """What of a call is structured.

    Attributes:
        layers: Inner layers whose rules give the derivatives by all their weights.
        rest: The other trainable weights.
    """

    layers: tuple[Any, ...]
    rest: tuple[keras.Variable, ...]


@dataclass(frozen=True, eq=False)
class Visit:
    """One call of an inner layer.

    Attributes:
        layer: The layer.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        probes: The zeros added to its outputs.
    """

    layer: Any
    args: Any
    kwargs: Any
    probes: list[tf.Tensor]


class Composite(Linearization):
    """A call of a layer that has weights and no rule of its own."""

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        self._call = call
        self._tensors = list(tensors)
        self.outputs = call.run(*tensors)

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        division = divide(self._call, self._tensors)
        factors: list[Factor] = []
        if division.rest:
            factors.append(by_sample(self._call, self._tensors, cotangents, division.rest))
        copies = copies_of(cotangents)
        rows = []
        for tensor in self._tensors:
            row = stacking.repeat(tensor, copies)
            mask = _host.get_mask(tensor)
            if mask is not None:
                _host.set_mask(row, stacking.repeat(mask, copies))
            rows.append(row)
        sources = {
            i: row for i, row in enumerate(rows) if wanted[i] and is_floating(self._tensors[i])
        }
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(sources.values()))
            with probing(division.layers, tape) as visits:
                outputs = self._call.run(*rows)
        used = [(y, ct) for y, ct in zip(outputs, cotangents, strict=True) if ct is not None]
        probes = [visit.probes for visit in visits]
        by_input, deltas = tape.gradient(
            [y for y, _ in used],
            [sources, probes],
            [tf.cast(ct.tensor, y.dtype) for y, ct in used],
        )
        back: list[Stacked | None] = [None] * len(rows)
        for i, gradient in by_input.items():
            if gradient is not None:
                back[i] = Stacked(stacking.restack(gradient, self._tensors[i], copies), copies)
        for visit, found in zip(visits, deltas, strict=True):
            if any(delta is not None for delta in found):
                factors += _by_rule(visit, found, copies)
        return back, factors


def _by_rule(visit: Visit, deltas: Sequence[tf.Tensor | None], copies: int) -> list[Factor]:
    """Return the derivatives by the weights of an inner layer."""

    def one_a_sample(leaf: Any) -> Any:
        return leaf[::copies] if tf.is_tensor(leaf) else leaf  # the rows of a sample are equal

    args, kwargs = keras.tree.map_structure(one_a_sample, (visit.args, visit.kwargs))
    call, tensors = call_with(visit.layer, args, kwargs)
    rule = find_rule(visit.layer)
    assert rule is not None
    step = rule(call, tensors)
    stacked = [None if delta is None else Stacked(delta, copies) for delta in deltas]
    _, factors = step.backward(stacked, [False] * len(tensors))
    return factors


@contextlib.contextmanager
def probing(
    layers: Sequence[Any],
    tape: tf.GradientTape,
    around: Callable[[Any], contextlib.AbstractContextManager] | None = None,
) -> Iterator[list[Visit]]:
    """Add probes to the outputs of layers while the context lasts.

    Args:
        layers: The layers.
        tape: The tape that shall watch the probes.
        around: Given a layer, the context to call it in.

    Yields:
        The list that the visits are added to, in the order of the calls.
    """
    visits: list[Visit] = []

    def probed(layer: Any) -> Callable:
        call = layer.call

        def run(*args: Any, **kwargs: Any) -> Any:
            with around(layer) if around else contextlib.nullcontext():
                outputs = call(*args, **kwargs)
            flat = keras.tree.flatten(outputs)
            probes = [tf.zeros_like(y) for y in flat]
            tape.watch(probes)
            visits.append(Visit(layer, args, kwargs, probes))
            flat = [y + probe for y, probe in zip(flat, probes, strict=True)]
            return keras.tree.pack_sequence_as(outputs, flat)

        return run

    for layer in layers:
        vars(layer)["call"] = probed(layer)
    try:
        yield visits
    finally:
        for layer in layers:
            del vars(layer)["call"]


_divisions: weakref.WeakKeyDictionary[Call, Division] = weakref.WeakKeyDictionary()


def divide(call: Call, tensors: Sequence[tf.Tensor]) -> Division:
    """Decide which inner layers of a call are differentiated by their rules.

    These are the outermost that have a rule, that see one row a sample each time they are
    called, and whose weights are used nowhere else.

    Args:
        call: The call.
        tensors: Its inputs, of which shapes and dtypes matter.

    Returns:
        The `Division`, which is found once for each call.
    """
    if call not in _divisions:
        weights = call.weights
        layers = _outermost_with_rule(call.operation)
        bad: set[int] = {id(layer) for layer in layers} if layers else set()
        loose: set[int] = {id(v) for v in weights}
        if layers:
            # Traced with two sizes of the batch: what has as many rows both times has one a sample.
            with contextlib.suppress(Exception):
                found = [_trace(call, tensors, layers, size) for size in (7, 11)]
                bad = set().union(*(b for b, _ in found))
                loose = set().union(*(v for _, v in found))
        _divisions[call] = _without_ties(weights, layers, bad, loose)
    return _divisions[call]


def _without_ties(
    weights: Sequence[keras.Variable], layers: Sequence[Any], bad: set[int], loose: set[int]
) -> Division:
    """Leave out layers that share a weight with what is not structured."""
    while True:
        rest = set(loose)
        good = [layer for layer in layers if id(layer) not in bad]
        covered = {id(v) for layer in good for v in layer.trainable_variables}
        rest |= {id(v) for v in weights if id(v) not in covered}
        tied = {
            id(layer) for layer in good if any(id(v) in rest for v in layer.trainable_variables)
        }
        if not tied:
            return Division(tuple(good), tuple(v for v in weights if id(v) in rest))
        bad = bad | tied


def _outermost_with_rule(operation: Any) -> list[Any]:
    found: list[Any] = []
    inside: set[int] = set()
    for layer in operation._flatten_layers(include_self=False):
        if id(layer) in inside or not layer.trainable_variables or find_rule(layer) is None:
            continue
        found.append(layer)
        inside |= {id(inner) for inner in layer._flatten_layers()}
    return found


def _trace(
    call: Call, tensors: Sequence[tf.Tensor], layers: Sequence[Any], size: int
) -> tuple[set[int], set[int]]:
    """Trace a call on a batch of some size, without computing anything.

    Returns:
        The ids of the layers that do not see one row a sample, and of the trainable variables
        that are used outside of the layers.
    """
    variables = call.operation.variables
    bad: set[int] = set()
    loose: set[int] = set()

    def run(*inputs: tf.Tensor) -> None:
        graph = inputs[0].graph
        values = {id(v): (v, tf.convert_to_tensor(_host.raw(v))) for v in variables}
        held = {key: (v, tf.stop_gradient(value)) for key, (v, value) in values.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            outer = {id(v): values[id(v)][1] for v in call.weights}
            tape.watch(list(outer.values()))
            with (
                _host.values_in_place(values),
                probing(layers, tape, lambda layer: _host.values_in_place(held)) as visits,
            ):
                outputs = call.run(*inputs)
        for visit in visits:
            seen = keras.tree.flatten((visit.args, visit.kwargs, visit.probes))
            rows = [t for t in seen if tf.is_tensor(t)]
            if any(t.graph is not graph or t.shape[:1] != [size] for t in rows):
                bad.add(id(visit.layer))
        gradients = tape.gradient([y for y in outputs if is_floating(y)], outer)
        loose.update(key for key, gradient in gradients.items() if gradient is not None)

    specs = [tf.TensorSpec([size, *t.shape[1:]], t.dtype) for t in tensors]
    trace = tf.function(run, autograph=False).get_concrete_function
    # In a thread of its own: in this one a graph, tapes or other values may be in force.
    with futures.ThreadPoolExecutor(1) as executor:
        executor.submit(trace, *specs).result()
    return bad, loose
