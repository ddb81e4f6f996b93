"""Layers and models made of layers: what has rules inside is structured, whatever the code.

The call runs on the batch repeated once an output, with a *probe*, a zero, added to the output
of each inner layer that has a rule and of each ``keras.ops.matmul(x, weight)`` outside of these.
One backward pass gives the derivatives by the probes, and from them follow those by the weights.
What lies between may be any code that treats samples one by one.

Weights that are used in other ways, or do not meet one row a sample, are differentiated sample by
sample.
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
from keras_ntt.factors import AffineFactor, Factor
from keras_ntt.layer_rules import stacking
from keras_ntt.layer_rules.affine import positions
from keras_ntt.layer_rules.base import Cotangents, Linearization, find_rule
from keras_ntt.layer_rules.stacking import Stacked
from keras_ntt.layer_rules.unknown import by_sample
from keras_ntt.layer_rules.weightless import copies_of, is_floating, masks_of, repeated
from keras_ntt.network import Call, call_with


@dataclass(frozen=True)
class Division:
    """What of a call is structured.

    Attributes:
        layers: Inner layers whose rules give the derivatives by all their weights.
        factors: Weights that only meet ``keras.ops.matmul(x, weight)``.
        rest: The other trainable weights.
    """

    layers: tuple[Any, ...]
    factors: tuple[keras.Variable, ...]
    rest: tuple[keras.Variable, ...]


@dataclass(frozen=True, eq=False)
class Visit:
    """One call of an inner layer, or one product with a weight.

    Attributes:
        subject: The layer or the weight.
        args: Positional arguments.
        kwargs: Keyword arguments.
        probes: The zeros added to the outputs.
    """

    subject: Any
    args: Any
    kwargs: Any
    probes: list[tf.Tensor]


class Composite(Linearization):
    """A call of a layer that has weights and no rule of its own."""

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        self._call = call
        self._tensors = list(tensors)
        self._masks = masks_of(tensors)
        self.outputs = call.run(*tensors)

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
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(list(sources.values()))
            with probing(division.layers, division.factors, tape) as visits:
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
                by = _by_rule if isinstance(visit.subject, keras.layers.Layer) else _by_product
                factors += by(visit, found, copies)
        return back, factors


def _by_product(visit: Visit, deltas: Sequence[tf.Tensor | None], copies: int) -> list[Factor]:
    """Return the derivative by a weight that was multiplied with."""
    (x,), (delta,) = visit.args, deltas
    inputs = positions(tf.convert_to_tensor(x)[::copies])
    return [AffineFactor(inputs, positions(delta), copies, 1, visit.subject, None)]


def _by_rule(visit: Visit, deltas: Sequence[tf.Tensor | None], copies: int) -> list[Factor]:
    """Return the derivatives by the weights of an inner layer."""

    def one_a_sample(leaf: Any) -> Any:
        return leaf[::copies] if tf.is_tensor(leaf) else leaf  # the rows of a sample are equal

    args, kwargs = keras.tree.map_structure(one_a_sample, (visit.args, visit.kwargs))
    call, tensors = call_with(visit.subject, args, kwargs)
    rule = find_rule(visit.subject)
    assert rule is not None
    step = rule(call, tensors)
    stacked = [None if delta is None else Stacked(delta, copies) for delta in deltas]
    _, factors = step.backward(stacked, [False] * len(tensors))
    return factors


@contextlib.contextmanager
def probing(
    layers: Sequence[Any],
    factors: Sequence[keras.Variable],
    tape: tf.GradientTape,
    within: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Iterator[list[Visit]]:
    """Add probes to the outputs of layers and to products while the context lasts.

    Args:
        layers: The layers.
        factors: The weights whose products get probes, outside of the layers.
        tape: The tape that shall watch the probes.
        within: The context to call the layers and take the products in.

    Yields:
        The list that the visits are added to, in the order of the calls.
    """
    visits: list[Visit] = []
    chosen = {id(v) for v in factors}
    inside = 0

    def probe(outputs: Any, subject: Any, args: Any, kwargs: Any) -> Any:
        flat = keras.tree.flatten(outputs)
        probes = [tf.zeros_like(y) for y in flat]
        tape.watch(probes)
        visits.append(Visit(subject, args, kwargs, probes))
        flat = [y + probe for y, probe in zip(flat, probes, strict=True)]
        return keras.tree.pack_sequence_as(outputs, flat)

    def probed(layer: Any) -> Callable:
        call = layer.call

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside += 1
            try:
                with within():
                    outputs = call(*args, **kwargs)
            finally:  # code around the layer may take what it raises
                inside -= 1
            return probe(outputs, layer, args, kwargs)

        return run

    def multiply(matmul: Callable, x: Any, weight: Any) -> Any:
        if inside or id(weight) not in chosen or not tf.is_tensor(x):
            return matmul(x, weight)
        with within():
            product = matmul(x, weight)
        return probe(product, weight, (x,), {})

    for layer in layers:
        vars(layer)["call"] = probed(layer)
    try:
        with _host.products_through(multiply):
            yield visits
    finally:
        for layer in layers:
            del vars(layer)["call"]


_divisions: weakref.WeakKeyDictionary[Call, dict[tuple[int, ...], Division]] = (
    weakref.WeakKeyDictionary()
)


def divide(call: Call, tensors: Sequence[tf.Tensor]) -> Division:
    """Decide which inner layers of a call are differentiated by their rules.

    These are the outermost that have a rule, that see one row a sample each time they are
    called, and whose weights are used nowhere else.

    Args:
        call: The call.
        tensors: Its inputs, of which shapes and dtypes matter.

    Returns:
        The `Division`, which is found once for each call and each choice of trainable weights.
    """
    weights = call.weights
    known = _divisions.setdefault(call, {})
    key = tuple(map(id, weights))
    if key not in known:
        layers = _outermost_with_rule(call.operation)
        inside = {id(v) for layer in layers for v in layer.variables}
        factors = [v for v in weights if id(v) not in inside and len(v.shape) == 2]
        bad = {id(subject) for subject in (*layers, *factors)}
        # Traced with two sizes of the batch: what has as many rows both times has one a sample.
        # Code that cannot be traced is left to the exact path, which shows its error.
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
    """Leave out what is bad, and layers that share a weight with it."""
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
    for layer in operation._flatten_layers(include_self=False):
        if id(layer) in inside or not layer.trainable_variables or find_rule(layer) is None:
            continue
        found.append(layer)
        inside |= {id(inner) for inner in layer._flatten_layers()}
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
        The ids of the layers and factors that do not meet one row a sample, and of the trainable
        variables that are used outside of them.
    """
    variables = call.operation.variables
    bad: set[int] = set()

    def run(*inputs: tf.Tensor) -> None:
        graph = inputs[0].graph
        values = {id(v): (v, tf.convert_to_tensor(_host.raw(v))) for v in variables}
        held = {key: (v, tf.stop_gradient(value)) for key, (v, value) in values.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            outer = {id(v): values[id(v)][1] for v in call.weights}
            tape.watch(list(outer.values()))
            with (
                _host.values_in_place(values),
                probing(layers, factors, tape, lambda: _host.values_in_place(held)) as visits,
            ):
                outputs = call.run(*inputs)
        for visit in visits:
            seen = keras.tree.flatten((visit.args, visit.kwargs, visit.probes))
            rows = [t for t in seen if tf.is_tensor(t)]
            if any(t.graph is not graph or t.shape[:1] != [size] for t in rows):
                bad.add(id(visit.subject))
        gradients = tape.gradient([y for y in outputs if is_floating(y)], outer)
        bad.update(key for key, gradient in gradients.items() if gradient is not None)

    specs = [tf.TensorSpec([size, *t.shape[1:]], t.dtype) for t in tensors]
    trace = tf.function(run, autograph=False).get_concrete_function
    # In a thread of its own: in this one a graph, tapes or other values may be in force.
    with futures.ThreadPoolExecutor(1) as executor:
        executor.submit(trace, *specs).result()
    return bad
