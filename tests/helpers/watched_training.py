"""A classifier in training, what its masks are meanwhile, and runs that are stopped."""

from __future__ import annotations

import functools

import keras
import numpy as np
from keras import layers

from keras_ntt import get_masks
from keras_ntt.masks.policies import choose_weights


def mlp(compiled=True, **options):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(3)])
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, **{"jit_compile": False, **options})
    return model


def data(n=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 3, n)


def kernels(model):
    return [keras.ops.convert_to_numpy(v) for v in choose_weights(model).weights]


def masks_of(model):
    return [m.copy() for m in get_masks(model).values()]


class Watch(keras.callbacks.Callback):
    """Notes masks and kernels after each batch, and at the beginning of each epoch."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append((masks_of(self.model), kernels(self.model)))

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append((masks_of(self.model), kernels(self.model)))


def total(masks):
    return sum(int(m.sum()) for m in masks)


class StoppedError(Exception):
    pass


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise StoppedError


@functools.cache
def whole_run(run):
    return run(0)
