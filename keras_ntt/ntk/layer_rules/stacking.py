"""Cotangents of all outputs at once, stacked along the batch axis.

The derivative of a network with c outputs needs c backward passes. Here they are one: a
*stacked cotangent* of a tensor ``[n, ...]`` has shape ``[n * c, ...]``, and its row ``i * c + a``
is the derivative of output a of sample i. Samples do not affect each other in inference mode, so
every layer can treat the rows as a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# At most so many windows are spread by a product with a matrix.
_FEW_WINDOWS = 64


def repeat(x: tf.Tensor, copies: int) -> tf.Tensor:
    """Repeat each sample: ``[n, ...] -> [n * copies, ...]``, row ``i * copies + a`` is ``x[i]``."""
    shape = tf.shape(x)
    multiples = tf.concat([[1, copies], tf.ones_like(shape[1:])], axis=0)
    tiled = tf.tile(tf.expand_dims(x, 1), multiples)
    return restack(tf.reshape(tiled, tf.concat([[-1], shape[1:]], axis=0)), x, copies)


def zeros(x: tf.Tensor, copies: int) -> tf.Tensor:
    """Return zeros of the shape of ``repeat(x, copies)``."""
    n = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
    return restack(tf.zeros([n * copies, *batch_shape(x)[1:]], x.dtype), x, copies)


def restack(stacked: tf.Tensor, like: tf.Tensor, copies: int) -> tf.Tensor:
    """Give a stacked tensor the static shape that follows from the unstacked one."""
    n = like.shape[0]
    stacked.set_shape([None if n is None else n * copies, *like.shape[1:]])
    return stacked


def flat_size(x: tf.Tensor) -> int | tf.Tensor:
    """Return the number of entries of one sample of ``[n, ...]``."""
    size = x.shape[1:].num_elements()
    return tf.reduce_prod(tf.shape(x)[1:]) if size is None else size


def batch_shape(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Return the shape with the first axis as -1 and static sizes where they are known."""
    dynamic = tf.shape(x)
    return [-1] + [dynamic[i] if s is None else s for i, s in enumerate(x.shape) if i > 0]


class Stacked:
    """A stacked cotangent, perhaps with a pending factor.

    An elementwise derivative, of a ReLU or of a maximum over windows, is one factor per sample, the
    same for all outputs. Consecutive factors are first multiplied with each other, on ``[n, ...]``,
    and then applied at once to the rows, which are c times larger.

    Args:
        rows: ``[n * c, ...]``; with `window`, one entry for each window.
        copies: The number c of outputs.
        factor: ``[n, ...]``, or None for 1.
        window: Sizes of windows along the spatial axes of ``[n, *spatial, channels]``. The entries
            of a window share an entry of the rows, each times its factor.
        channels_first: Whether the rows of an image have the channels first, not the factor.
    """

    def __init__(
        self,
        rows: tf.Tensor,
        copies: int,
        factor: tf.Tensor | None = None,
        window: tuple[int, ...] | None = None,
        channels_first: bool = False,
    ):
        self.rows = rows
        self.copies = copies
        self.factor = factor
        self.window = window
        self.channels_first = channels_first

    @property
    def tensor(self) -> tf.Tensor:
        """The cotangent as a tensor ``[n * c, ...]``."""
        if self.channels_first:
            self.rows = tf.transpose(self.rows, [0, *range(2, self.rows.shape.rank), 1])
            self.channels_first = False
        if self.factor is not None:
            factor, self.factor = self.factor, None
            rows = self.rows
            if self.window is not None:
                rows = _spread(rows, self.window, batch_shape(factor)[1:])
                factor, self.window = factor * math.prod(self.window), None
            size = flat_size(factor)
            product = tf.reshape(rows, [-1, self.copies, size]) * tf.reshape(factor, [-1, 1, size])
            self.rows = restack(tf.reshape(product, batch_shape(factor)), factor, self.copies)
        return self.rows

    def by_channel(self, like: tf.Tensor) -> tf.Tensor:
        """Return the cotangent of ``[n, *spatial, channels]`` as ``[n * c, channels, positions]``.

        Args:
            like: The tensor whose cotangent it is, of known spatial sizes.
        """
        *spatial, channels = like.shape[1:]
        count, size = self._count_of_rows(spatial), math.prod(spatial)
        rows, factor = self.rows, self.factor
        if count < size and count > _FEW_WINDOWS:
            rows, factor, count = self.tensor, None, size
        if self.channels_first:
            rows = tf.reshape(rows, [-1, channels, count])
        else:
            rows = tf.transpose(tf.reshape(rows, [-1, count, channels]), [0, 2, 1])
        if factor is None:
            return rows
        if self.window is not None:
            # A product with a matrix of 0 and 1 is the fastest way to spread single numbers.
            rows = tf.matmul(rows, tf.constant(_belongs(self.window, spatial), rows.dtype))
        factor = tf.transpose(tf.reshape(factor, [-1, 1, size, channels]), [0, 1, 3, 2])
        product = tf.reshape(rows, [-1, self.copies, channels, size]) * factor
        return tf.reshape(product, [-1, channels, size])

    def _count_of_rows(self, spatial: Sequence[int]) -> int:
        """Return the number of positions, or of windows if these share the rows."""
        window = self.window or (1,) * len(spatial)
        return math.prod(n // size for n, size in zip(spatial, window, strict=True))

    def cast(self, dtype: tf.DType) -> Stacked:
        """Return the cotangent in a float type."""
        if self.rows.dtype == dtype:
            return self
        factor = None if self.factor is None else tf.cast(self.factor, dtype)
        return self._like(tf.cast(self.rows, dtype), factor)

    def scaled(self, factor: tf.Tensor) -> Stacked:
        """Return the cotangent times one factor a sample, ``[n, ...]``."""
        factor = tf.cast(factor, self.rows.dtype)
        if self.factor is not None:
            factor = factor * self.factor
        return self._like(self.rows, factor)

    def where_positive(self, x: tf.Tensor) -> Stacked:
        """Return the cotangent where ``x``, ``[n, ...]``, is positive, and 0 elsewhere."""
        if self.factor is None:
            return self.scaled(tf.cast(x > 0, x.dtype))
        factor = tf.raw_ops.ReluGrad(gradients=tf.cast(self.factor, x.dtype), features=x)
        return self._like(self.rows, factor)

    def _like(self, rows: tf.Tensor, factor: tf.Tensor | None) -> Stacked:
        return Stacked(rows, self.copies, factor, self.window, self.channels_first)

    def over_windows(self, window: tuple[int, ...], winners: tf.Tensor) -> Stacked:
        """Return the cotangent of a tensor that was reduced to its maxima over windows.

        Args:
            window: Sizes of the windows.
            winners: Which entry of each window gets the whole cotangent, ``[n, ...]``.
        """
        if self.factor is not None:
            return Stacked(self.tensor, self.copies, winners, window)
        return Stacked(self.rows, self.copies, winners, window, self.channels_first)

    def with_rows(self, rows: tf.Tensor) -> Stacked:
        """Return other rows for as many outputs."""
        return Stacked(rows, self.copies)

    def __add__(self, other: Stacked) -> Stacked:
        """Return the sum of two cotangents of one tensor."""
        return Stacked(self.tensor + other.tensor, self.copies)


def windows_of(x: tf.Tensor, window: Sequence[int]) -> tf.Tensor:
    """Cut ``[n, *spatial, channels]`` into windows that do not overlap.

    Args:
        x: The entries; those outside whole windows are left out.
        window: Sizes of the windows, along each spatial axis.

    Returns:
        ``[n, windows, entries of a window, channels]``.
    """
    rank = len(window)
    counts = [x.shape[1 + i] // size for i, size in enumerate(window)]
    whole = [c * size for c, size in zip(counts, window, strict=True)]
    x = tf.slice(x, [0] * (rank + 2), [-1, *whole, -1])
    pairs = [size for pair in zip(counts, window, strict=True) for size in pair]
    x = tf.reshape(x, [-1, *pairs, x.shape[-1]])
    order = [0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1]
    return tf.reshape(
        tf.transpose(x, order), [-1, math.prod(counts), math.prod(window), x.shape[-1]]
    )


def places_of_winners(
    factor: tf.Tensor, window: Sequence[int], spatial: Sequence[int]
) -> tf.Tensor:
    """Return which position won each window.

    Args:
        factor: ``[n, windows, entries of a window, channels]``, of which at most one entry of a
            window is not zero.
        window: Sizes of the windows, along each spatial axis.
        spatial: Numbers of positions along each spatial axis.

    Returns:
        Numbers of positions in row-major order, ``[n, windows, channels]``; where no entry won,
        that of the first.
    """
    numbers = np.arange(math.prod(spatial), dtype="int32").reshape(1, *spatial, 1)
    numbers = windows_of(tf.constant(numbers), window)[..., 0]  # [1, windows, entries]
    offsets = (numbers - numbers[..., :1])[:, :1, :, None]
    won = tf.cast(factor != 0, tf.float32) * tf.cast(offsets, tf.float32)
    # Only for NaN is more than one entry not zero.
    found = tf.minimum(tf.cast(tf.reduce_sum(won, axis=2), tf.int32), offsets[:, :, -1])
    return found + numbers[..., :1]


def _belongs(window: Sequence[int], spatial: Sequence[int]) -> np.ndarray:
    """Return which positions lie in which window, ``[windows, positions]`` of 0 and 1."""
    found = np.ones([1, 1])
    for size, n in zip(window, spatial, strict=True):
        found = np.kron(found, np.arange(n // size)[:, None] == np.arange(n) // size)
    return found


def _spread(x: tf.Tensor, window: Sequence[int], shape: Sequence[int]) -> tf.Tensor:
    """Divide the entries of ``[n, *spatial, channels]`` evenly among their windows.

    Args:
        x: One entry per window.
        window: Sizes of the windows, along each spatial axis.
        shape: Shape of a sample of the result; entries in no window are zero.

    Returns:
        The gradient of the mean over windows, ``[n, *shape]``.
    """
    n = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
    if len(window) == 1:
        wide = _spread(x[:, :, None], (*window, 1), (shape[0], 1, shape[1]))
        return wide[:, :, 0]
    arguments = {
        "orig_input_shape": tf.stack([n, *shape]),
        "grad": x,
        "ksize": [1, *window, 1],
        "strides": [1, *window, 1],
        "padding": "VALID",
    }
    return (tf.raw_ops.AvgPoolGrad if len(window) == 2 else tf.raw_ops.AvgPool3DGrad)(**arguments)
