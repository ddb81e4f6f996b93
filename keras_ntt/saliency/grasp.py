"""GraSP (Wang et al., ICLR 2020): how much a weight's removal changes the gradient flow."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.core.loops import unrolled
from keras_ntt.saliency.base import (
    NetworkSaliency,
    Subject,
    flat,
    gradient,
    sensitivity,
    summed_gradient,
)
from keras_ntt.saliency.losses import Given, check_logits, check_loss, loss_for


class GraSP(NetworkSaliency):
    """Score weights by ``w * (H g)``, with sign; the lowest are removed, in one round.

    g and H are the gradient and the Hessian, with respect to the scored weights, of the mean loss
    of the outputs divided by a temperature (Wang, Zhang & Grosse, "Picking winning tickets before
    training by preserving gradient flow", ICLR 2020). Recurrent layers are run step by step,
    because the derivative of a derivative through a loop of the graph fails in TensorFlow.

    Args:
        loss: A loss, or one for each output, see `keras_ntt.saliency.SNIP`.
        loss_weights: Weights of the losses of several outputs, nested as they are.
        temperature: The number that divides the outputs.
    """

    needs_data: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    def __init__(self, loss: Given = None, *, loss_weights: Any = None, temperature: float = 200.0):
        check_loss(loss, loss_weights)
        self.loss, self.loss_weights = loss, loss_weights
        self.temperature = checks.check_number("temperature", temperature)
        if not self.temperature:
            raise ValueError(f"temperature must be above 0. Received: temperature={temperature!r}")

    def looks_at_logits(self, model: keras.Model) -> bool:
        """Tell whether the loss takes logits; a loss of the user takes the outputs."""
        return loss_for(model, self.loss, self.loss_weights).takes_logits

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the scores; removing weights with negative scores increases the gradient."""
        chosen = loss_for(subject.model, self.loss, self.loss_weights)

        def loss(outputs: Any, labels: Any) -> tf.Tensor:
            if chosen.takes_logits:
                for end in keras.tree.flatten(outputs):
                    check_logits(tf.stop_gradient(flat(end)), self.name)
            cool = keras.tree.map_structure(lambda end: end / self.temperature, outputs)
            return chosen.function(cool, labels)

        sums, count = summed_gradient(subject, loss, logits=chosen.takes_logits)
        mean = [g / count for g in sums]
        values = subject.values
        total = [tf.zeros_like(v) for v in values]
        for x, y in subject.batches():
            products = _hessian_product(subject, loss, x, y, mean, chosen.takes_logits)
            total = [t + p / count for t, p in zip(total, products, strict=True)]
        return sensitivity(values, total, signed=True)


def _hessian_product(
    subject: Subject, loss: Any, x: Any, y: Any, vector: list[tf.Tensor], logits: bool
) -> list[tf.Tensor]:
    """Return the Hessian of the summed loss of a batch times a vector."""
    values = subject.values
    try:
        with (
            unrolled(subject.model, keras.tree.flatten(x)),
            tf.GradientTape(watch_accessed_variables=False) as outer,
        ):
            outer.watch(values)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(values)
                found = loss(subject.ends(x, values, logits=logits), y)
            first = gradient(inner, found, values)
            product = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(first, vector, strict=True)])
        return gradient(outer, product, values)
    except (LookupError, TypeError, tf.errors.OpError) as error:
        raise ValueError(
            "GraSP needs the derivative of a derivative, which TensorFlow cannot take through "
            "some layer of this model. Choose a score of first derivatives, such as 'snip'. "
            f"Received: model={subject.model.name!r} ({type(error).__name__}: {error})"
        ) from error
