"""Dense and convolutional layers as products of patches and a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.channels.rules import kernels
from keras_ntt.core.channels.rules.table import rule_of

LIMIT = 2**25
"""How many numbers the patches of a piece of a batch may have."""


def is_linear(layer: Any) -> bool:
    """Tell whether `patches` are known of a layer: Dense, Conv1D, Conv2D, without groups."""
    rule = rule_of(layer)
    if rule is kernels.dense:
        return True
    if rule is not kernels.convolution or isinstance(layer, layers.Conv3D):
        return False
    return bool(layer.groups == 1 and layer.data_format == "channels_last")


def patches(layer: Any, x: Any) -> tf.Tensor:
    """Return what each output position of a layer reads.

    Args:
        layer: A layer that `is_linear`.
        x: Its inputs ``[n, ..., channels]``.

    Returns:
        A matrix ``[positions of all samples, features]``, features in the order of the kernel
        reshaped to ``[features, outputs]``.
    """
    x = tf.convert_to_tensor(x)
    if x.dtype in (tf.float16, tf.bfloat16):  # too short for sums
        x = tf.cast(x, tf.float32)
    if isinstance(layer, layers.Dense):
        return tf.reshape(x, [-1, x.shape[-1]])
    size, strides, rates = (
        tuple(v) for v in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    padding = layer.padding
    if isinstance(layer, layers.Conv1D):
        if padding == "causal":
            x = tf.pad(x, [[0, 0], [rates[0] * (size[0] - 1), 0], [0, 0]])
            padding = "valid"
        x = x[:, None]
        size, strides, rates = (1, *size), (1, *strides), (1, *rates)
    if size == (1, 1):  # no taps to gather
        found = x[:, :: strides[0], :: strides[1]]
    else:
        found = tf.image.extract_patches(
            x, [1, *size, 1], [1, *strides, 1], [1, *rates, 1], padding.upper()
        )
    return tf.reshape(found, [-1, found.shape[-1]])


def pieces(samples: int, features: int, positions: int) -> Iterator[slice]:
    """Yield slices of samples whose patches fit into `LIMIT` numbers, of one sample at least.

    >>> list(pieces(5, LIMIT // 8, 4))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(LIMIT // max(features * positions, 1), 1)
    for start in range(0, samples, size):
        yield slice(start, min(start + size, samples))


def pieces_of(layer: Any, x: Any) -> Iterator[slice]:
    """Yield the `pieces` for what a layer reads."""
    kernel = host.array_of(host.kernel_of(layer))
    shape = tuple(x.shape)
    yield from pieces(shape[0], kernel.size // kernel.shape[-1], math.prod(shape[1:-1]))


def matrix(layer: Any) -> np.ndarray:
    """Return a layer's kernel as a matrix ``[features, outputs]`` in float64."""
    kernel = host.array_of(host.kernel_of(layer)).astype(np.float64)
    return kernel.reshape(-1, kernel.shape[-1])


def bias(layer: Any) -> np.ndarray | None:
    """Return a layer's bias in float64, None if it has none."""
    return None if layer.bias is None else host.array_of(layer.bias).astype(np.float64)
