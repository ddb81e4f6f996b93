"""The exact path for layers with weights that have no rule.

The derivative with respect to the weights is formed sample by sample and output by output. The only
assumption is that samples do not affect each other in inference mode. This is slow: a rule is worth
writing for a layer that is used often.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import Factor, JacobianFactor
from keras_ntt.ntk.layer_rules import stacking
from keras_ntt.ntk.layer_rules.base import Cotangents, Linearization
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.layer_rules.weightless import General, copies_of, masks_of


class Unknown(Linearization):
    """Any layer with weights, by one small tape per sample and output.

    Args:
        call: The call.
        tensors: Its inputs.
    """

    def __init__(self, call: Call, tensors: Sequence[tf.Tensor]):
        self._call = call
        self._tensors = list(tensors)
        self._masks = masks_of(tensors)
        self._general = General(call, tensors)
        self.outputs = self._general.outputs

    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        back: list[Stacked | None] = [None] * len(self._tensors)
        if any(wanted):
            back, _ = self._general.backward(cotangents, wanted)
        return back, [
            by_sample(self._call, self._tensors, self._masks, cotangents, self._call.weights)
        ]


def by_sample(
    call: Call,
    tensors: Sequence[tf.Tensor],
    masks: Sequence[tf.Tensor | None],
    cotangents: Cotangents,
    variables: Sequence[keras.Variable],
) -> Factor:
    """Return the derivative with respect to some weights of a call, one tape per sample and output.

    Args:
        call: The call.
        tensors: Its inputs.
        masks: Their timestep masks.
        cotangents: As for `Linearization.backward`.
        variables: The weights to differentiate with respect to.

    Returns:
        The derivative as a matrix.
    """
    copies = copies_of(cotangents)
    used = [(i, ct.tensor) for i, ct in enumerate(cotangents) if ct is not None]
    rows = [stacking.repeat(t, copies) for t in tensors]
    mask_rows = [stacking.repeat(m, copies) for m in masks if m is not None]
    fixed = {id(v): (v, host.value_of(v)) for v in call.operation.variables}
    values = [fixed[id(v)][1] for v in variables]
    dtype = max((v.dtype for v in values), key=lambda dtype: dtype.size)

    def row(arguments: tuple) -> tf.Tensor:
        row_tensors, row_masks, row_cotangents = arguments
        rest = iter(row_masks)
        samples = []
        for tensor, mask in zip(row_tensors, masks, strict=True):
            sample = tensor[None]
            if mask is not None:
                host.set_mask(sample, next(rest)[None])
            samples.append(sample)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            watched = {id(v): (v, value) for v, value in zip(variables, values, strict=True)}
            with host.values_in_place(fixed | watched):
                outputs = call.run(*samples)
        gradients = tape.gradient(
            [outputs[i] for i, _ in used],
            values,
            [
                tf.cast(ct[None], outputs[i].dtype)
                for (i, _), ct in zip(used, row_cotangents, strict=True)
            ],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return tf.concat([tf.cast(tf.reshape(g, [-1]), dtype) for g in gradients], axis=0)

    arguments = (rows, mask_rows, [ct for _, ct in used])
    arguments = keras.tree.map_structure(tf.convert_to_tensor, arguments)
    return JacobianFactor(tf.vectorized_map(row, arguments), copies, tuple(variables))
