"""Probes: zeros that are added to the outputs of inner layers while the code around them runs.

The derivatives with respect to the probes are those with respect to the layers' outputs, whatever
the code does with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.kinds import kind_of
from keras_ntt.core.loops import loops_of
from keras_ntt.core.network import call_with
from keras_ntt.ntk.layer_rules import stacking
from keras_ntt.ntk.layer_rules.base import Linearization, find_rule
from keras_ntt.ntk.layer_rules.recurrent_loops import FORMS


@dataclass(frozen=True, eq=False)
class Visit:
    """One call of an inner layer, or one product with a weight.

    Attributes:
        subject: The layer or the weight.
        args: Positional arguments.
        kwargs: Keyword arguments.
        probes: The zeros added to the outputs.
        step: How the layer ran, if it ran by its rule.
    """

    subject: Any
    args: Any
    kwargs: Any
    probes: list[tf.Tensor]
    step: Linearization | None = None

    @property
    def tensors(self) -> list[tf.Tensor]:
        """The tensors among the arguments."""
        return call_with(self.subject, self.args, self.kwargs)[1]


def linearized(layer: Any, args: Any, kwargs: Any, copies: int) -> Linearization:
    """Run a layer by its rule, on one row per sample."""

    def one_a_sample(leaf: Any) -> Any:
        return leaf[::copies] if tf.is_tensor(leaf) else leaf  # the rows of a sample are equal

    if copies > 1:
        args, kwargs = keras.tree.map_structure(one_a_sample, (args, kwargs))
    rule = find_rule(layer)
    assert rule is not None
    return rule(*call_with(layer, args, kwargs))


def has_loops(layer: Any) -> bool:
    """Tell whether a layer is recurrent, and returns a tensor or a tuple of tensors."""
    if not isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
        return False
    loops = loops_of(layer)
    # Other cells may have states in lists of lists.
    plain = all(kind_of(loop.cell) in FORMS for loop in loops)
    return bool(loops) and (plain or not layer.return_state)


def packed(outputs: Sequence[tf.Tensor]) -> Any:
    """Return the flat outputs of a recurrent layer as its call does."""
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


@contextlib.contextmanager
def calls_through(
    layers: Sequence[Any], take: Callable[[Any, Callable, Any, Any], Any]
) -> Iterator[None]:
    """Pass the calls of layers to a function inside this context.

    Args:
        layers: The layers.
        take: A function of a layer, its original ``call``, and the positional and keyword
            arguments, that returns the outputs. While it runs, the layer is unchanged.
    """

    def through(layer: Any) -> Callable:
        call = layer.call

        def run(*args: Any, **kwargs: Any) -> Any:
            del vars(layer)["call"]
            try:
                return take(layer, call, args, kwargs)
            finally:
                vars(layer)["call"] = run

        return run

    for layer in layers:
        vars(layer)["call"] = through(layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]


@contextlib.contextmanager
def probing(
    layers: Sequence[Any],
    factors: Sequence[keras.Variable],
    tape: tf.GradientTape,
    within: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    copies: int | None = None,
) -> Iterator[list[Visit]]:
    """Add probes to the outputs of layers and to products inside this context.

    Args:
        layers: The layers.
        factors: The weights whose products get probes, outside of the layers.
        tape: The tape that watches the probes.
        within: The context in which to call the layers and compute the products.
        copies: The number of equal rows of a sample. Layers with loops through time are run by
            their rules on one of the rows, without the tape. None runs them unchanged.

    Yields:
        The list that the visits are added to, in the order of the calls.
    """
    visits: list[Visit] = []
    chosen = {id(v) for v in factors}
    inside = 0

    def probe(outputs: Any, *visited: Any) -> Any:
        subject, args, kwargs, step = visited
        flat = keras.tree.flatten(outputs)
        probes = [tf.zeros_like(y) for y in flat]
        tape.watch(probes)
        visits.append(Visit(subject, args, kwargs, probes, step))
        flat = [y + probe for y, probe in zip(flat, probes, strict=True)]
        return keras.tree.pack_sequence_as(outputs, flat)

    def take(layer: Any, call: Callable, args: Any, kwargs: Any) -> Any:
        nonlocal inside
        inside += 1
        step = None
        try:
            if copies is not None and has_loops(layer):
                with tape.stop_recording():
                    step = linearized(layer, args, kwargs, copies)
                    outputs = packed([stacking.repeat(y, copies) for y in step.outputs])
            else:
                with within():
                    outputs = call(*args, **kwargs)
        finally:  # code around the layer may catch what it raises
            inside -= 1
        return probe(outputs, layer, args, kwargs, step)

    def multiply(matmul: Callable, x: Any, weight: Any) -> Any:
        if inside or id(weight) not in chosen or not tf.is_tensor(x):
            return matmul(x, weight)
        with within():
            product = matmul(x, weight)
        return probe(product, weight, (x,), {}, None)

    with calls_through(layers, take), host.products_through(multiply):
        yield visits
