"""SynFlow (Tanaka et al., NeurIPS 2020): the flow through all paths of a network, without data."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, host, input_kinds
from keras_ntt.saliency.base import NetworkSaliency, Subject, flat, gradient, sensitivity
from keras_ntt.saliency.losses import check_logits


class SynFlow(NetworkSaliency):
    """Score weights by ``|w| * dR/d|w|``: the flow through each weight, without data.

    R is the sum of the outputs for inputs of ones when every weight is replaced by its absolute
    value (Tanaka, Kunin, Yamins & Ganguli, "Pruning neural networks without any data by
    iteratively conserving synaptic flow", NeurIPS 2020). It is computed in float64, because R
    grows with the product of the layers' widths. Of data, if given, only the shape is used.
    Rescaling and Normalization at the inputs do not change the ones.

    Args:
        rounds: The default number of rounds in which to prune. A single round removes whole
            layers.
    """

    power = 1

    takes_logits = True

    def __init__(self, *, rounds: int = 100):
        self.rounds = checks.check_count("rounds", rounds)

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the scores, in float64."""
        quantized = [
            layer.name
            for layer in host.layers_of(subject.model)
            if getattr(layer, "quantization_mode", None) is not None
        ]
        if quantized:
            raise ValueError(
                f"{self.name} computes in float64, which quantized layers do not. Score the model "
                "before it is quantized. "
                f"Received: model={subject.model.name!r} with {', '.join(quantized)}"
            )
        x = keras.tree.map_structure(tf.ones_like, example(subject, 1, self.name))
        values = [self._absolute(v) for v in subject.values]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            outputs = self._outputs(subject, x, values)
            flow = tf.reduce_sum(outputs)
        check_logits(outputs, self.name)
        if not np.isfinite(float(flow)):
            raise ValueError(
                f"The flow of {self.name} is {float(flow)} in float64. Scale the "
                f"weights down. Received: model={subject.model.name!r}"
            )
        return self._scores(subject, values, gradient(tape, flow, values))

    def _outputs(self, subject: Subject, x: Any, values: list[tf.Tensor]) -> tf.Tensor:
        own = {id(v) for v in subject.variables}
        replaced = {
            id(v): (v, self._absolute(host.value_of(v)))
            for v in subject.model.variables
            if id(v) not in own and "float" in keras.backend.standardize_dtype(v.dtype)
        }
        for variable, value in zip(subject.variables, values, strict=True):
            replaced[id(variable)] = (variable, value)
        with host.in_float64(subject.network, replaced), input_kinds.taken_as_scaled(subject.model):
            return flat(subject.network(x, training=False))

    def _absolute(self, value: tf.Tensor) -> tf.Tensor:
        return tf.abs(tf.cast(value, tf.float64)) ** self.power

    def _scores(
        self, subject: Subject, values: list[tf.Tensor], gradients: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        return sensitivity(values, gradients)


class SynFlowL2(SynFlow):
    """Score weights by ``w^2 * dR/d(w^2)``: the share of each weight in the path kernel.

    R is the sum of the outputs for inputs of ones when every weight is replaced by its square
    (Gebhart, Saxena & Schrater, "A unified paths perspective for pruning at initialization",
    2021). This is the squared form, in which the scores of each layer sum to R. Some published
    codes use ``w * dR/d(w^2)``, which ranks weights differently.

    Args:
        rounds: The default number of rounds in which to prune.
    """

    power = 2


def example(subject: Subject, n: int, name: str) -> Any:
    """Return inputs of the shape that a model takes: zeros, or the first samples of the data.

    Args:
        subject: The network and its data, if there are any.
        n: Number of samples, where there are no data.
        name: The name of the score, for the message.

    Returns:
        Inputs, nested as the model takes them.

    Raises:
        ValueError: If the shape is not known.
    """
    if subject.data is not None:
        x, _ = next(subject.batches())
        return keras.tree.map_structure(lambda a: a[:n], x)
    functional = host.functional_of(subject.model)
    symbols = [] if functional is None else functional.inputs
    shapes = [tuple(t.shape[1:]) for t in symbols]
    if not shapes or any(None in shape for shape in shapes):
        raise ValueError(
            f"{name} takes no samples but needs the shape of an input, which this model does not "
            "tell. Pass data=x, of which only the shape is used. "
            f"Received: model={subject.model.name!r} with inputs {shapes or 'unknown'}, data=None"
        )
    tensors = [
        tf.zeros([n, *shape], keras.backend.standardize_dtype(t.dtype))
        for t, shape in zip(symbols, shapes, strict=True)
    ]
    return keras.tree.pack_sequence_as(host.input_structure(functional), tensors)
