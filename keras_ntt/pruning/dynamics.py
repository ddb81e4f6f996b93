"""Monitor effective gradient flow (Tessera et al., 2021) and the tangent kernel in training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, input_checks
from keras_ntt.core.logits import logits_of
from keras_ntt.masks.apply import kept_entries
from keras_ntt.masks.policies import choose_weights
from keras_ntt.ntk.empirical import empirical_ntk
from keras_ntt.pruning.neural_tangent.checks import check_shapes
from keras_ntt.pruning.neural_tangent.transfer import NeuralTangentTransfer
from keras_ntt.saliency.base import flat
from keras_ntt.saliency.loss_gradient import loss_gradient
from keras_ntt.saliency.losses import check_loss


def effective_gradient_flow(
    model: keras.Model, x: Any, y: Any, *, loss: Any = None, order: float = 2
) -> float:
    """Return the mean norm of the gradient of the kept entries, over the pruned weights.

    That is the mean of ``||m * g||_p`` (Tessera, Hooker & Rosman, "Keep the gradients flowing",
    2021), with m the masks the model holds, or its exact zeros if it holds none, and g the
    gradient of the mean loss in inference mode. The loss of a compiled model includes losses that
    its layers add, such as regularization. The batch is not counted in its metrics.

    Args:
        model: A built model.
        x: Inputs, one batch.
        y: Labels, as ``fit`` takes them.
        loss: A Keras loss, its name, or a function of labels and outputs, or one for each output,
            see `keras_ntt.saliency.SNIP`; None is the loss that the model is compiled with. If
            there is none, as in a model with a custom training step, it is the cross-entropy of the
            logits: of sigmoid if the model ends in sigmoid, else of softmax.
        order: The order p of the norm, at least 1.

    Returns:
        The flow.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If something does not fit.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import effective_gradient_flow
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[1.0], [0.0]])])  # the zero is pruned
        >>> x, y = np.array([[3.0, 5.0]], "float32"), np.array([[1.0]], "float32")
        >>> effective_gradient_flow(model, x, y, loss="mse")  # |2 * (3 - 1) * 3|
        12.0
    """
    checks.check_model(model)
    input_checks.check_arrays(x, model, "x")
    order = _check_order(order)
    variables = choose_weights(model).weights
    gradients = loss_gradient(model, variables, x, y, loss)
    kept = kept_entries(model)
    norms = []
    for variable, found in zip(variables, gradients, strict=True):
        entries = np.abs(np.asarray(tf.cast(found, tf.float64)))
        norms.append(np.linalg.norm(entries[kept.get(id(variable), np.s_[:])].ravel(), order))
    return float(np.mean(norms))


def ntk_distance(first: Any, second: Any) -> float:
    """Return the mean squared difference of two kernels of the same shape.

    >>> ntk_distance([[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [0.0, 1.0]])
    1.0
    """
    a, b = _same_shape(first, second)
    return float(np.mean((a - b) ** 2))


def ntk_alignment(first: Any, second: Any) -> float:
    """Return the cosine between two kernels as vectors: 1 if one is a multiple of the other.

    Args:
        first: A kernel.
        second: Another kernel of the same shape.

    Returns:
        ``<a, b> / (|a| |b|)``; NaN if one is all zero.

    Raises:
        ValueError: If their shapes differ.

    >>> round(ntk_alignment([[1.0, 0.0], [0.0, 1.0]], [[3.0, 4.0], [0.0, 3.0]]), 6)
    0.727607
    """
    a, b = _same_shape(first, second)
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / size) if size else float("nan")


class TrainingDynamics(keras.callbacks.Callback):
    """Compares a network in ordinary training with a dense one, epoch by epoch.

    Adds to the logs of each epoch, and so to Keras's history:

    - ``ntk_distance`` and ``ntk_alignment``: the mean squared difference and the cosine of the
      present tangent kernels of both networks;
    - ``gradient_flow``, if there are labels: see `effective_gradient_flow`.

    In epochs without a measurement they are NaN, so that all epochs have the same entries. The
    first epoch is always measured: a callback that monitors one of them, such as ``EarlyStopping``,
    then begins with a number, and treats NaN as an epoch without progress.

    Args:
        dense: The dense network, with outputs of the same shape. It may be trained meanwhile.
        x: Some inputs, one batch. The kernel has ``(samples * outputs)^2`` entries.
        y: Their labels, or None.
        wrt: ``"kept"`` or ``"all"``, see `keras_ntt.empirical_ntk`: the weights with respect to
            which the network in training is differentiated.
        outputs: ``"full"`` or ``"trace"``, see `keras_ntt.empirical_ntk`.
        order: Order of the norm of the gradient flow.
        every: Epochs from one measurement to the next; the first epoch is measured as well.
        loss: The loss of the gradient flow, see `effective_gradient_flow`.

    Raises:
        ValueError: If an argument does not fit. When training begins: if the trained network is a
            `NeuralTangentTransfer`, or has other outputs than the dense one.

    Attributes:
        start: The same values before training; set when training begins.
    """

    def __init__(
        self,
        dense: keras.Model,
        x: Any,
        y: Any = None,
        *,
        wrt: str = "kept",
        outputs: str = "full",
        order: float = 2,
        every: int = 1,
        loss: Any = None,
    ):
        super().__init__()
        checks.check_differentiable(dense, "dense")
        input_checks.check_arrays(x, dense, "x")
        checks.check_choice("wrt", wrt, ("all", "kept"))
        checks.check_choice("outputs", outputs, ("full", "trace"))
        self._dense, self._x, self._y = dense, x, y
        self._wrt, self._outputs = wrt, outputs
        self._order = _check_order(order)
        self._every = checks.check_count("every", every)
        self._loss = loss
        check_loss(loss)
        self.start: dict[str, float] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Compare the networks before training."""
        if isinstance(self.model, NeuralTangentTransfer):
            raise ValueError(
                "TrainingDynamics watches ordinary training. A transfer has the distance of its "
                "kernels in the logs, as ntk_distance: leave the callback out, or call "
                "ntk_distance and ntk_alignment of keras_ntt on kernels of the student. "
                f"Received: callbacks with TrainingDynamics for model={self.model.name!r}"
            )
        check_shapes(self.model, self._dense)
        ours, theirs = (flat(m(self._x, training=False)).shape for m in (self.model, self._dense))
        if ours != theirs:  # models with a custom call()
            raise ValueError(
                "The network and the dense one must have as many outputs, because their kernels "
                f"are compared. Received: outputs of shape {tuple(ours)} and, of dense, "
                f"{tuple(theirs)}"
            )
        self.start = self._measure()
        self._is_first = True

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Compare the networks, if it is time."""
        if logs is None:
            return
        due = self._is_first or (epoch + 1) % self._every == 0
        self._is_first = False
        logs.update(self._measure() if due else dict.fromkeys(self.start, float("nan")))

    def _measure(self) -> dict[str, float]:
        dense, own = logits_of(self._dense).model, logits_of(self.model).model
        target = empirical_ntk(dense, self._x, outputs=self._outputs)
        found = empirical_ntk(own, self._x, wrt=self._wrt, outputs=self._outputs)
        values = {
            "ntk_distance": ntk_distance(found, target),
            "ntk_alignment": ntk_alignment(found, target),
        }
        if self._y is not None:
            values["gradient_flow"] = effective_gradient_flow(
                self.model, self._x, self._y, loss=self._loss, order=self._order
            )
        return values


def _same_shape(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two kernels as arrays, or raise a ValueError."""
    a, b = checks.as_floats("first", first), checks.as_floats("second", second)
    if a.shape != b.shape:
        raise ValueError(
            "Two kernels are compared entry by entry, so they must have the same shape. Take them "
            "of the same samples, and of networks with as many outputs. "
            f"Received: first of shape {a.shape} and second of shape {b.shape}"
        )
    return a, b


def _check_order(order: Any) -> float:
    if not checks.is_number(order) or not order >= 1:
        raise ValueError(f"order must be a number of at least 1. Received: order={order!r}")
    return float("inf") if order > 1e308 else float(order)
