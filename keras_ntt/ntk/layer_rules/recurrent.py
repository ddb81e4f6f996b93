"""Rules for recurrent layers and Bidirectional."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.kinds import kind_of
from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import Factor
from keras_ntt.ntk.layer_rules.base import (
    Cotangents,
    Linearization,
    find_rule,
    register_layer_rule,
)
from keras_ntt.ntk.layer_rules.composite import Composite
from keras_ntt.ntk.layer_rules.recurrent_loops import FORMS, Recurrent
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.layer_rules.weightless import ELEMENTWISE


class BothWays(Linearization):
    """A call of Bidirectional: its two layers, whose outputs are merged.

    Args:
        layer: The layer.
        sequences: ``[n, t, k]``.
        mask: Which steps count, ``[n, t]``; None for all.
    """

    def __init__(self, layer: Any, sequences: tf.Tensor, mask: tf.Tensor | None):
        self._layer = layer
        ways = layer.forward_layer, layer.backward_layer
        self._ways = [Recurrent(way, sequences, mask) for way in ways]
        self._dtype = tf.as_dtype(layer.compute_dtype)
        y, z = (tf.cast(way.outputs[0], self._dtype) for way in self._ways)
        z = tf.reverse(z, [1]) if layer.return_sequences else z
        if layer.merge_mode == "concat":
            output = tf.concat([y, z], axis=-1)
        else:
            output = (y + z) / 2 if layer.merge_mode == "ave" else y + z
        if mask is not None and layer.return_sequences:
            host.set_mask(output, mask)
        self.outputs = [output]

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        (stacked,) = cotangents
        assert stacked is not None
        y = z = tf.cast(stacked.tensor, self._dtype)
        if self._layer.merge_mode == "concat":
            y, z = tf.split(y, [way.outputs[0].shape[-1] for way in self._ways], axis=-1)
        elif self._layer.merge_mode == "ave":
            y = z = y / 2
        z = tf.reverse(z, [1]) if self._layer.return_sequences else z
        (back, *_), factors = self._ways[0].backward([stacked.with_rows(y)], wanted)
        (other, *_), more = self._ways[1].backward([stacked.with_rows(z)], wanted)
        rest: list[Stacked | None] = [None] * (len(wanted) - 1)
        both = None if back is None or other is None else back + other
        return [both, *rest], factors + more


def _is_plain(layer: Any) -> bool:
    """Tell whether a layer is one that `Recurrent` computes.

    It must not be stateful, have a custom cell, or be a GRU with `reset_after=False`, and its
    activations must be elementwise.
    """
    if find_rule(layer) is not recurrent or layer.stateful:
        return False
    cell = layer.cell
    if kind_of(cell) not in FORMS or not getattr(cell, "reset_after", True):
        return False
    applied = {cell.activation, getattr(cell, "recurrent_activation", cell.activation)}
    return applied <= ELEMENTWISE


def _arguments(call: Call, tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor | None, list] | None:
    """Return the mask and the initial states of a call; None if they have another form."""
    args, kwargs = call.with_tensors(tensors)
    given = inspect.signature(type(call.operation).call).bind(None, *args, **kwargs).arguments
    mask, initial = given.get("mask"), keras.tree.flatten(given.get("initial_state"))
    initial = [] if initial == [None] else initial
    # `backward` relies on the states being all the other tensors, in their order.
    others = [given["sequences"], *initial, *([] if mask is None else [mask])]
    if [id(t) for t in others] != [id(t) for t in tensors]:
        return None
    return host.get_mask(tensors[0]) if mask is None else mask, initial


@register_layer_rule(layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN)
def recurrent(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: loops forwards and backwards through time, with a position for each step."""
    found = _arguments(call, tensors)
    if not _is_plain(call.operation) or found is None or (found[0] is not None and found[1]):
        return Composite(call, tensors)
    return Recurrent(call.operation, tensors[0], found[0], found[1] or None)


@register_layer_rule(layers.Bidirectional)
def bidirectional(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured, if both layers are and their outputs are concatenated, added or averaged."""
    layer, found = call.operation, _arguments(call, tensors)
    merged = layer.merge_mode in ("concat", "sum", "ave") and not layer.return_state
    if not merged or found is None or found[1]:
        return Composite(call, tensors)
    if not all(map(_is_plain, (layer.forward_layer, layer.backward_layer))):
        return Composite(call, tensors)
    return BothWays(layer, tensors[0], found[0])
