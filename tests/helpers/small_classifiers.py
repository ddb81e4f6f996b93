"""Dense networks without optimizers, and labelled samples for them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from keras_ntt import (
    get_masks,
)
from keras_ntt.masks.policies import choose_weights


def mlp(sizes=(6, 8, 5, 3), **options):
    return keras.Sequential(
        [keras.Input(sizes[:1]), *(layers.Dense(n, **options) for n in sizes[1:])]
    )


def data(n=12, size=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, size)).astype("float32"), rng.integers(0, classes, n)


def counts_of(model):
    return [int(m.sum()) for m in get_masks(model).values()]


def kernels(model):
    return [keras.ops.convert_to_numpy(v) for v in choose_weights(model).weights]
