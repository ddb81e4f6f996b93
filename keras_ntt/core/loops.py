"""Recurrent layers that run in a loop of the graph, and how to run them step by step instead."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host


def loops_of(operation: Any, apart_from: Sequence[Any] = ()) -> list[keras.Layer]:
    """Return the recurrent layers of an operation that run in a loop of the graph.

    Args:
        operation: A layer, a model or anything else.
        apart_from: Inner layers to leave out, with all their inner layers.
    """
    layers = host.layers_of(operation) if isinstance(operation, keras.Layer) else []
    out = {id(inner) for layer in apart_from for inner in host.layers_of(layer)}
    return [
        layer
        for layer in layers
        if isinstance(layer, keras.layers.RNN) and not layer.unroll and id(layer) not in out
    ]


def has_unknown_length(tensors: Sequence[Any]) -> bool:
    """Tell whether the number of steps of sequences ``[n, steps, ...]`` is unknown."""
    return any(t.shape.rank is None or None in t.shape[1:2] for t in tensors)


@contextlib.contextmanager
def unrolled(
    operation: Any, tensors: Sequence[tf.Tensor], apart_from: Sequence[Any] = ()
) -> Iterator[None]:
    """Run recurrent layers step by step instead of in a loop of the graph.

    The derivative of a derivative through ``tf.while_loop`` fails in TensorFlow ("`dtype`
    variant is not compatible"). Sequences of unknown length still run in the loop, and so do inner
    layers that are left out.
    """
    recurrent = [] if has_unknown_length(tensors) else loops_of(operation, apart_from)
    with contextlib.ExitStack() as stack:
        for layer in recurrent:
            stack.enter_context(_step_by_step(layer))
        yield


@contextlib.contextmanager
def _step_by_step(layer: keras.Layer) -> Iterator[None]:
    """Unroll a recurrent layer.

    A layer that runs backwards gets reversed sequences instead: Keras, at least up to 3.15, blanks
    the wrong outputs of such an unrolled layer if its sequences are masked.
    """

    def forwards(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        reverse = functools.partial(keras.tree.map_structure, lambda t: tf.reverse(t, [1]))
        mask = None if mask is None else reverse(mask)
        return loop(reverse(sequences), initial_state, mask, training)

    loop, backwards = layer.inner_loop, layer.go_backwards
    layer.unroll = True
    if backwards:
        layer.go_backwards = False
        vars(layer)["inner_loop"] = forwards
    try:
        yield
    finally:
        layer.unroll, layer.go_backwards = False, backwards
        vars(layer).pop("inner_loop", None)
