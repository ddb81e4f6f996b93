"""An entropy penalty while training (after LilNetX, Girish et al., ICLR 2023): `EntropyPenalty`.

Research. LilNetX (Girish et al., "LilNetX: Lightweight networks with EXtreme model compression and
structured sparsification") trains weights whose entropy-coded size is small: the loss has the bits
that a model of their distribution needs for them. Here that model is one logistic distribution per
kernel, fitted again each epoch. The paper trains a network for it. Decoders are a step size here.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, host
from keras_ntt.masks.apply import retrace
from keras_ntt.masks.filters import Filters, check_filters
from keras_ntt.masks.names import names_by_id
from keras_ntt.masks.policies import choose_weights

_MOST_BITS = 50.0
_TINY = 1e-10


def entropy_bits(values: Any) -> float:
    """Return how many bits an ideal coder needs for integers whose frequencies it knows.

    >>> round(entropy_bits([0] * 90 + [1] * 4 + [-1] * 4 + [2, -2]), 1)
    64.1
    """
    _, counts = np.unique(np.asarray(values), return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def rate(levels: Any, scale: Any) -> tf.Tensor:
    """Return the bits of each of some levels under a logistic distribution around 0.

    Args:
        levels: Numbers; integers are what is coded, noise in between lets gradients through.
        scale: The scale of the distribution.

    Returns:
        ``-log2(c(x + 1/2) - c(x - 1/2))`` with c the distribution function, at most 50.

    >>> [round(float(bits), 2) for bits in rate(tf.constant([0.0, 1.0]), 0.25)]
    [0.39, 3.1]
    """
    # Of the side where both are small numbers: the difference is exact there.
    x = -tf.abs(levels)
    inside = tf.sigmoid((x + 0.5) / scale) - tf.sigmoid((x - 0.5) / scale)
    bits = -tf.math.log(inside + tf.constant(_TINY, inside.dtype)) / math.log(2.0)
    return tf.clip_by_value(bits, 0.0, _MOST_BITS)


class EntropyPenalty(keras.callbacks.Callback):
    """Adds the bits that kernels need after entropy coding to the loss, and rounds them at the end.

    Research: for sizes in storage, where the reader unpacks an entropy code. Each kernel becomes
    multiples of one step, most of them 0. `keras_ntt.export_tflite` with quantization chooses its
    own steps.

    Args:
        weight: Weight of the mean bits an entry, over all chosen kernels.
        levels: How many steps the largest entry of a kernel is from zero when training begins.
        filters: Which layers, see `keras_ntt.NeuralTangentTransfer`.
        seed: Seed of the noise that stands for rounding.

    Attributes:
        bits: After training ``variable path -> bits`` of the rounded kernel, entropy-coded, the
            table of frequencies not included.

    Raises:
        ValueError: If something does not fit.
    """

    def __init__(
        self, weight: float = 1e-4, *, levels: int = 127, filters: Filters = None, seed: int = 0
    ):
        super().__init__()
        self.weight = checks.check_number("weight", weight)
        self.levels = checks.check_count("levels", levels)
        check_filters(filters)
        self.filters = filters
        self.seed = checks.check_seed(seed)
        self.bits: dict[str, float] = {}
        self._held: list[_Penalized] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Put the penalty on the kernels."""
        checks.check_model(self.model)
        kernels = choose_weights(self.model, filters=self.filters).weights
        total = sum(int(np.prod(v.shape)) for v in kernels)
        self._held = [
            _Penalized(v, self.weight / total, self.levels, self.seed + i)
            for i, v in enumerate(kernels)
        ]
        retrace(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Fit the distributions to the kernels of now."""
        for held in self._held:
            held.fit()

    def on_train_end(self, logs: Any = None) -> None:
        """Round the kernels, count their bits, and take the penalty away."""
        names = names_by_id(self.model.weights)
        self.bits = {names[id(held.variable)]: held.finish() for held in self._held}
        self._held = []
        retrace(self.model)

    def __str__(self) -> str:
        """Return the bits as lines."""
        lines = [f"{name}  {bits / 8:,.0f} bytes" for name, bits in self.bits.items()]
        return "\n".join([*lines, f"in all  {sum(self.bits.values()) / 8:,.0f} bytes"])


class _Penalized:
    """A kernel, the regularizer that penalizes its bits, and the one that it had before."""

    def __init__(self, variable: keras.Variable, weight: float, levels: int, seed: int):
        self.variable, self._weight, self._seed = variable, weight, seed
        self._before = variable.regularizer
        largest = float(np.abs(host.array_of(variable)).max())
        self._step = (largest or 1.0) / levels
        self._scale = tf.Variable(1.0, trainable=False)
        self._drawn = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.fit()
        variable.regularizer = self

    def __call__(self, value: Any) -> tf.Tensor:
        """Return the penalty of a value of the kernel."""
        value = tf.convert_to_tensor(value)
        self._drawn.assign_add(1)
        seed = tf.stack([tf.constant(self._seed, tf.int64), tf.convert_to_tensor(self._drawn)])
        noise = tf.random.stateless_uniform(tf.shape(value), seed, -0.5, 0.5)
        levels = tf.cast(value, tf.float32) / self._step + noise
        bits = rate(levels, tf.convert_to_tensor(self._scale))
        penalty = self._weight * tf.reduce_sum(bits)
        if self._before is None:
            return tf.cast(penalty, value.dtype)
        return tf.cast(penalty, value.dtype) + self._before(value)

    def fit(self) -> None:
        """Set the scale of the distribution by the deviation of the levels, noise included."""
        levels = host.array_of(self.variable).astype("float64") / self._step
        variance = float(np.square(levels).mean()) + 1 / 12
        self._scale.assign(math.sqrt(3 * variance) / math.pi)

    def finish(self) -> float:
        """Round the kernel to steps, and return its bits."""
        levels = np.round(host.array_of(self.variable).astype("float64") / self._step)
        self.variable.assign(levels * self._step)
        self.variable.regularizer = self._before
        return entropy_bits(levels)
