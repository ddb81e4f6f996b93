"""Recovery without labels: a sparse model is trained towards the dense one's outputs.

Distillation (Hinton, Vinyals & Dean, 2015, arXiv 1503.02531): for classifiers the Kullback-Leibler
divergence of the outputs at a temperature T, times ``T**2``; else squared errors, relative to the
variance of the dense model's outputs. Adam, with a step size that falls along a cosine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, host, input_checks
from keras_ntt.core import inputs as inputs_
from keras_ntt.pruning.post_training.logits import Heads, heads_of

BATCH_SIZE = 32
LEARNING_RATE = 3e-3
TEMPERATURE = 3.0


def distil(
    student: keras.Model,
    teacher: keras.Model,
    inputs: Any,
    *,
    epochs: int,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    temperature: float = TEMPERATURE,
    augment: Callable[[Any], Any] | None = None,
    seed: int = 0,
    verbose: Any = "auto",
    masks: Callable[[int], keras.callbacks.Callback] | None = None,
) -> list[float]:
    """Train a model towards another one's outputs, in place; masks are held.

    BatchNormalization is in training mode, so its statistics must be taken again afterwards.

    Args:
        student: The model that is trained.
        teacher: The model whose outputs are the targets. On arrays they are computed once.
        inputs: Unlabelled inputs: arrays, a ``tf.data.Dataset`` of batches or a
            ``keras.utils.PyDataset``.
        epochs: Passes over the inputs.
        batch_size: Samples a batch, for arrays.
        learning_rate: The first step size of Adam.
        temperature: What logits are divided by.
        augment: A function of a batch of inputs, in TensorFlow; both models see what it returns.
        seed: Seed of the order of arrays.
        verbose: As of ``fit``.
        masks: A function of the number of all steps to a callback that changes the masks.

    Returns:
        The loss of each epoch. If it stops being finite, the weights go back to where they were,
        with a warning.
    """
    x = inputs_.without_labels(inputs)
    sample = next(iter(_batches(inputs, x, batch_size)))
    heads, mine = heads_of(teacher, sample), heads_of(student, sample)
    before = [host.array_of(v) for v in student.variables]
    scales = _scales(heads.logits(sample, training=False), heads.kinds)
    loss = Loss(heads.kinds, scales, temperature)
    known = None
    if input_checks.is_array(x) and augment is None:
        data, known = _with_targets(heads, x, batch_size, seed)
    elif input_checks.is_array(x):
        data = _shuffled((_nest(x),), batch_size, seed)
    else:
        data = inputs
    trainer = _Trainer(student, mine, loss, None if known else _Teacher(heads, augment))
    steps = epochs * _length(data, x, batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, max(steps, 1))
    trainer.compile(optimizer=keras.optimizers.Adam(schedule), jit_compile=False)
    callbacks = [] if masks is None else [masks(steps)]
    history = trainer.fit(data, epochs=epochs, verbose=verbose, shuffle=False, callbacks=callbacks)
    losses = [float(value) for value in history.history["loss"]]
    values = [host.array_of(v) for v in student.variables]
    floats = [v for v in values if np.issubdtype(v.dtype, np.floating)]
    if not np.isfinite(losses).all() or not all(np.isfinite(v).all() for v in floats):
        for variable, value in zip(student.variables, before, strict=True):
            variable.assign(value)
        warnings.warn(
            "Recovery did not converge, and was taken back: its loss became NaN or infinite. Lower "
            f"learning_rate. Received: learning_rate={learning_rate!r}",
            stacklevel=3,
        )
    return losses


class Loss:
    """The distance of two models' logits.

    Args:
        kinds: What the outputs are, see `Heads`.
        scales: Variances that squared errors are divided by, one an output.
        temperature: What logits are divided by.
    """

    def __init__(self, kinds: Sequence[str], scales: Sequence[float], temperature: float):
        self._kinds, self._scales = list(kinds), list(scales)
        self._temperature = checks.check_number("temperature", temperature) or 1.0

    def __call__(self, targets: Sequence[tf.Tensor], found: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the mean over samples and positions, summed over outputs."""
        heat = self._temperature
        parts = []
        for kind, scale, t, y in zip(self._kinds, self._scales, targets, found, strict=True):
            if kind == "softmax":
                p, q = tf.nn.log_softmax(t / heat), tf.nn.log_softmax(y / heat)
                parts.append(heat**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(p) * (p - q), axis=-1)))
            elif kind == "sigmoid":
                p, left = tf.math.log_sigmoid(t / heat), tf.math.log_sigmoid(-t / heat)
                q, right = tf.math.log_sigmoid(y / heat), tf.math.log_sigmoid(-y / heat)
                two = tf.exp(p) * (p - q) + tf.exp(left) * (left - right)
                parts.append(heat**2 * tf.reduce_mean(two))
            else:
                parts.append(tf.reduce_mean(tf.square(t - y)) / scale)
        return tf.add_n(parts)


class _Teacher:
    """Inputs to what both models see, and the targets.

    Keras does not look for weights in it, so that the teacher's are not trained.
    """

    def __init__(self, heads: Heads, augment: Any):
        self._heads, self._augment = heads, augment

    def __call__(self, x: Any) -> tuple[Any, list[tf.Tensor]]:
        x = x if self._augment is None else self._augment(x)
        return x, [tf.stop_gradient(t) for t in self._heads.logits(x, training=False)]


class _Trainer(keras.Model):
    """A model that ``fit`` trains towards targets."""

    def __init__(self, student: keras.Model, heads: Heads, loss: Loss, teach: _Teacher | None):
        super().__init__()
        self.student = student
        self._rest = _Hidden(heads, loss, teach)
        self.mean_loss = keras.metrics.Mean(name="loss")
        self.built = True

    @property
    def metrics(self) -> list[Any]:
        return [self.mean_loss]

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take a step."""
        rest = self._rest
        x = inputs_.without_labels(data)
        x, targets = rest.teach(x) if rest.teach else (x, list(data[1]))
        with tf.GradientTape() as tape:
            found = rest.heads.logits(x, training=True)
            loss = rest.loss(targets, found)
            if rest.heads.model.losses:
                loss += tf.add_n([tf.cast(part, loss.dtype) for part in rest.heads.model.losses])
        variables = self.student.trainable_variables
        gradients = tape.gradient(loss, [host.raw(v) for v in variables])
        used = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        self.optimizer.apply_gradients(used)
        self.mean_loss.update_state(loss)
        return {"loss": self.mean_loss.result()}


class _Hidden:
    """What a trainer holds and Keras is not to track."""

    def __init__(self, heads: Heads, loss: Loss, teach: _Teacher | None):
        self.heads, self.loss, self.teach = heads, loss, teach


def _scales(targets: Sequence[tf.Tensor], kinds: Sequence[str]) -> list[float]:
    return [
        max(float(tf.math.reduce_variance(t)), 1e-12) if kind == "linear" else 1.0
        for t, kind in zip(targets, kinds, strict=True)
    ]


def _nest(x: Any) -> Any:
    """Return inputs so that tf.data takes a list of them for several inputs."""
    return tuple(x) if isinstance(x, list) else x


def _shuffled(data: Any, batch_size: int, seed: int) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_tensor_slices(data)
    count = int(dataset.cardinality())
    return dataset.shuffle(count, seed=seed).batch(batch_size).prefetch(2)


def _with_targets(heads: Heads, x: Any, batch_size: int, seed: int) -> tuple[tf.data.Dataset, bool]:
    count = len(keras.tree.flatten(x)[0])
    parts = []
    for start in range(0, count, 256):
        part = keras.tree.map_structure(lambda a, s=start: tf.convert_to_tensor(a[s : s + 256]), x)
        parts.append(heads.logits(part, training=False))
    targets = tuple(tf.concat(outputs, axis=0) for outputs in zip(*parts, strict=True))
    return _shuffled((_nest(x), targets), batch_size, seed), True


def _batches(inputs: Any, x: Any, batch_size: int) -> Any:
    """Yield inputs without labels; only the first batch of arrays."""
    if input_checks.is_array(x):
        yield keras.tree.map_structure(lambda a: tf.convert_to_tensor(a[: 4 * batch_size]), x)
    elif isinstance(inputs, keras.utils.PyDataset):
        yield inputs_.without_labels(inputs[0])
    else:
        for batch in inputs:
            yield inputs_.without_labels(batch)


def _length(data: Any, x: Any, batch_size: int) -> int:
    """Return the number of batches of an epoch."""
    if isinstance(data, keras.utils.PyDataset):
        return int(data.num_batches)
    known = int(data.cardinality())
    return known if known > 0 else sum(1 for _ in data)
