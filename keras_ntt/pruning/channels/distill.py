"""Train a smaller model to return what a dense one does, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host


def distill(
    teacher: keras.Model,
    student: keras.Model,
    batches: Sequence[Any],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    verbose: Any,
) -> None:
    """Train a student by Adam on the outputs of its teacher; the rate falls to 0 as a cosine.

    Outputs that are probabilities are compared by their cross-entropy, others by squared
    differences relative to the teacher's variance.

    Args:
        teacher: The dense model.
        student: The smaller one. It is changed in place.
        batches: Inputs, nested as the models take them.
        epochs: Passes over them.
        learning_rate: The rate at the beginning.
        seed: Seed of the order of the batches.
        verbose: 0 for silence, otherwise a bar of progress.
    """
    targets = [
        [tf.convert_to_tensor(y) for y in keras.tree.flatten(teacher(x, training=False))]
        for x in batches
    ]
    scales = [
        float(np.var(np.concatenate([np.ravel(y) for y in ys]))) + 1e-12
        for ys in zip(*targets, strict=True)
    ]
    kinds = [_makes_probabilities(t) for t in _functional(teacher).outputs]
    steps = epochs * len(batches)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps))
    optimizer.build(student.trainable_variables)

    @tf.function(reduce_retracing=True)
    def step(x: Any, wanted: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            found = keras.tree.flatten(student(x, training=True))
            loss = tf.add_n(
                [
                    _difference(y, t, scale, kind)
                    for y, t, scale, kind in zip(found, wanted, scales, kinds, strict=True)
                ]
            )
        variables = student.trainable_variables
        gradients = tape.gradient(loss, [host.raw(v) for v in variables])
        optimizer.apply(gradients, variables)
        return loss

    rng = np.random.default_rng(seed)
    bar = keras.utils.Progbar(steps, verbose=2 if verbose == 2 else 1) if verbose else None
    for epoch in range(epochs):
        for number, index in enumerate(rng.permutation(len(batches)).tolist()):
            loss = step(batches[index], targets[index])
            if bar is not None:
                bar.update(epoch * len(batches) + number + 1, [("loss", float(loss))])


def _functional(model: keras.Model) -> Any:
    return host.functional_of(model)


def _makes_probabilities(tensor: Any) -> str | None:
    layer = host.operation_of(tensor)
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    is_softmax = name == "softmax" or isinstance(layer, keras.layers.Softmax)
    return "softmax" if is_softmax else "sigmoid" if name == "sigmoid" else None


def _difference(y: tf.Tensor, target: tf.Tensor, scale: float, kind: str | None) -> tf.Tensor:
    if kind == "softmax":
        return tf.reduce_mean(keras.losses.categorical_crossentropy(target, y))
    if kind == "sigmoid":
        return tf.reduce_mean(keras.losses.binary_crossentropy(target, y))
    return tf.reduce_mean(tf.square(y - target)) / scale
