"""Errors that change nothing, and the small models that they are tried on."""

from __future__ import annotations

import contextlib
import re

import keras
import numpy as np
import pytest

from keras_ntt import (
    NeuralTangentTransfer,
)


@contextlib.contextmanager
def refused(error, match, *models):
    """Expect an error with a message, and models as they were before it."""
    before = [(m.get_weights(), [v.constraint for v in m.weights]) for m in models]
    with pytest.raises(error, match=re.compile(match, re.DOTALL)):
        yield
    for model, (weights, constraints) in zip(models, before, strict=True):
        for old, new in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old.astype("float64"), new.astype("float64"))
        for old, new in zip(constraints, [v.constraint for v in model.weights], strict=True):
            assert old is new


def small(outputs=3, inputs=6, units=4, **options):
    return keras.Sequential(
        [
            keras.Input((inputs,), **options),
            keras.layers.Dense(units, activation="tanh"),
            keras.layers.Dense(outputs),
        ]
    )


def samples(n=8, size=6):
    return np.random.default_rng(0).normal(size=(n, size)).astype("float32")


def ready(student, *args, **options):
    transfer = NeuralTangentTransfer(student, *args, **{"pruning_schedule": 0.5, **options})
    transfer.compile(keras.optimizers.Adam(1e-3))
    return transfer


def kernels_of(model):
    return [v.path for v in model.weights if v.name == "kernel"]
