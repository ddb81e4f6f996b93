"""Models in training: data, optimizers and named weights."""

from __future__ import annotations

import keras
import numpy as np

SAMPLES = 32

BATCH = 4


def named(model):
    weights = {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}
    assert len(weights) == len(model.weights), "paths must be unique for this helper"
    return weights


def data_for(model, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(SAMPLES, *model.input_shape[1:])).astype("float32")
    y = rng.normal(size=(SAMPLES, *model.output_shape[1:])).astype("float32")
    return x, y


def compile_(model, optimizer=None, **options):
    optimizer = keras.optimizers.Adam(0.01) if optimizer is None else optimizer
    model.compile(optimizer, loss="mse", **{"jit_compile": False, **options})
    if model.built:  # a step that makes the optimizer's variables is traced twice
        model.optimizer.build(model.trainable_variables)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
    "adamw_clipped": lambda: keras.optimizers.AdamW(
        0.01, weight_decay=0.1, global_clipnorm=0.1, clipnorm=None
    ),
    "clipped_by_value": lambda: keras.optimizers.SGD(0.05, clipvalue=0.01, weight_decay=0.1),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "ema": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5),
    "ema_overwriting": lambda: keras.optimizers.Adam(
        0.01, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
}
if hasattr(keras.optimizers, "Muon"):  # newer than the oldest Keras that is supported
    OPTIMIZERS["muon"] = lambda: keras.optimizers.Muon(0.01)
