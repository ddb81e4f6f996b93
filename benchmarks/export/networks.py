"""The networks of the export benchmarks, with random weights and masks of exact sparsity."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from keras_ntt import edge_mobilenet


def lenet_300_100() -> keras.Model:
    hidden = layers.Dense(300, "relu"), layers.Dense(100, "relu")
    return keras.Sequential([keras.Input(batch_shape=(1, 784)), *hidden, layers.Dense(10)])


def lenet_5() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(batch_shape=(1, 28, 28, 1)),
            layers.Conv2D(20, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(50, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(500, "relu"),
            layers.Dense(10),
        ]
    )


def conv_4() -> keras.Model:
    def convolution(filters: int) -> keras.layers.Layer:
        return layers.Conv2D(filters, 3, padding="same", activation="relu")

    return keras.Sequential(
        [
            keras.Input(batch_shape=(1, 32, 32, 3)),
            *(convolution(64), convolution(64), layers.MaxPooling2D()),
            *(convolution(128), convolution(128), layers.MaxPooling2D()),
            *(layers.Flatten(), layers.Dense(256, "relu"), layers.Dense(256, "relu")),
            layers.Dense(10),
        ]
    )


def mobilenet() -> keras.Model:
    return edge_mobilenet((96, 96, 3), 10)


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "conv-4": conv_4,
    "mobilenet": mobilenet,
}


def prune(model: keras.Model, sparsity: float, seed: int = 0) -> keras.Model:
    """Give kernels normal values and uniformly random masks; depthwise ones and a stem stay."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is None or isinstance(layer, layers.DepthwiseConv2D):
            continue
        size, fan_in = int(np.prod(kernel.shape)), int(np.prod(kernel.shape[:-1]))
        values = rng.normal(size=kernel.shape) * np.sqrt(2 / fan_in)
        if model.name != "edge_mobilenet" or kernel.shape[2:3] != (3,):
            mask = rng.permutation(size) >= round(size * sparsity)
            values = values * mask.reshape(kernel.shape) / np.sqrt(1 - sparsity)
        kernel.assign(values)
        if layer.bias is not None:
            layer.bias.assign(0.1 * rng.normal(size=layer.bias.shape))
    return model
