"""Checks that two models can be compared, and checks of the callbacks of a transfer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.core.logits import Logits


def check_pair(student: keras.Model, teacher: keras.Model | None) -> None:
    """Raise a ValueError if the outputs or inputs of two models cannot be compared."""
    if teacher is None:
        return
    if teacher is student:
        raise ValueError(
            "teacher and student are the same model, which cannot both stay dense and become "
            "sparse. Leave the teacher out to use the student as it is now. "
            f"Received: {student.name!r} twice"
        )
    shared = {id(v) for v in student.weights} & {id(v) for v in teacher.weights}
    if shared:
        raise ValueError(
            "teacher and student share weights, which cannot both stay dense and become sparse. "
            "Copy the teacher: keras.models.clone_model and set_weights. "
            f"Received: {len(shared)} shared weights of {len(student.weights)}"
        )
    check_shapes(student, teacher)
    _warn_of_lost_statistics(student, teacher)


def _warn_of_lost_statistics(student: keras.Model, teacher: keras.Model) -> None:
    kind = keras.layers.Normalization
    ours, theirs = (
        [layer for layer in host.layers_of(model) if isinstance(layer, kind) and layer.built]
        for model in (student, teacher)
    )
    lost = [
        mine.name
        for mine, other in zip(ours, theirs, strict=False)
        if _normalizes_nothing(mine) and not _normalizes_nothing(other)
    ]
    if lost:
        warnings.warn(
            "The student does not normalize its inputs and the teacher does: clone_model and "
            "set_weights leave out what Normalization has adapted to. Copy the teacher by saving "
            f"and loading it, or adapt the student's layers too. Received: student with {lost}",
            stacklevel=4,
        )


def _normalizes_nothing(layer: Any) -> bool:
    mean, variance = map(np.asarray, (layer.mean, layer.variance))
    return bool((mean == 0).all() and (variance == 1).all())


def check_shapes(student: keras.Model, teacher: keras.Model) -> None:
    """Raise a ValueError if two models have inputs or outputs of different shapes."""
    ours, theirs = host.functional_of(student), host.functional_of(teacher)
    if ours is None or theirs is None:
        return
    for what in ("inputs", "outputs"):
        shapes = [[tuple(t.shape) for t in getattr(f, what)] for f in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"student and teacher must have {what} of the same shape, because their outputs "
                f"on the same inputs are compared. Received: {what} {shapes[0]} of the student "
                f"and {shapes[1]} of the teacher"
            )


def check_callbacks(callbacks: Any) -> None:
    """Raise a ValueError unless all are callbacks; warn of those of tf_keras, which do nothing."""
    for callback in keras.tree.flatten([] if callbacks is None else callbacks):
        if not hasattr(callback, "set_model"):
            raise ValueError(
                "callbacks must be a keras.callbacks.Callback or a list of them. "
                f"Received: {callback!r} of type {type(callback).__name__}"
            )
        if host.is_legacy_keras(callback):
            warnings.warn(
                "This is a callback of tf_keras, which does nothing in Keras 3. Leave tfmot's "
                "UpdatePruningStep out, nothing here needs it, or take the one of keras_ntt. "
                f"Received: {type(callback).__module__}.{type(callback).__name__}",
                stacklevel=3,
            )


def check_fit_options(options: Mapping[str, Any]) -> None:
    """Raise a ValueError for options of `keras.Model.fit` that have no meaning without labels."""
    if options.get("validation_split"):
        raise ValueError(
            "validation_split is not supported: split the inputs and pass validation_data. "
            f"Received: validation_split={options['validation_split']!r}"
        )
    for argument in ("sample_weight", "class_weight"):
        if options.get(argument) is not None:
            raise ValueError(
                f"{argument} is not supported: the objective compares the samples of a batch "
                "in pairs, without labels, and all count alike. "
                f"Received: {argument} of type {type(options[argument]).__name__}"
            )


def check_heads(student: Logits, teacher: Logits) -> None:
    """Warn if the logits of one model would be compared with the probabilities of another."""
    ends = [sorted({str(name) for name in found.activations}) for found in (student, teacher)]
    if ends[0] != ends[1] and student.activations and teacher.activations:
        warnings.warn(
            "student and teacher end in different activations. What goes into each is compared, "
            "the logits. If they are not meant to be the same, give both the same last layer. "
            f"Received: student that ends in {student.names or 'none'}, teacher that ends in "
            f"{teacher.names or 'none'}",
            stacklevel=3,
        )
