"""The structured derivative of Embedding: each position reads one row of a table."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from keras import layers

from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import Factor, LookupFactor
from keras_ntt.ntk.layer_rules.affine import is_plain, positions
from keras_ntt.ntk.layer_rules.base import Cotangents, Linearization, register_layer_rule
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.layer_rules.unknown import Unknown


class Lookup(Linearization):
    """`keras.layers.Embedding` on ``[n, ...]``."""

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        self._table = call.operation.embeddings
        self._indices = tf.cast(tensors[0], tf.int32)
        self.outputs = call.run(*tensors)

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        (stacked,) = cotangents
        assert stacked is not None
        if not self._table.trainable:
            return [None], []
        deltas = positions(stacked.tensor[:, None])
        count = tf.shape(deltas)[1] if deltas.shape[1] is None else deltas.shape[1]
        indices = tf.reshape(self._indices, [-1, count])
        return [None], [LookupFactor(indices, deltas, stacked.copies, self._table)]


@register_layer_rule(layers.Embedding)
def embedding(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Structured: derivatives with respect to the rows that were read, summed row by row."""
    plain = is_plain(call.operation)
    return Lookup(call, tensors) if plain else Unknown(call, tensors)
