"""Cotangents of all outputs at once, stacked along the batch axis.

The derivative of a network with c outputs needs c backward passes. Here they are one: a
*stacked cotangent* of a tensor ``[n, ...]`` has shape ``[n * c, ...]``, and its row ``i * c + a``
is the derivative of output a of sample i. Samples do not see each other in inference mode, so
every layer can treat the rows as a batch.
"""

from __future__ import annotations

import tensorflow as tf


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
    """A stacked cotangent, perhaps with a factor still to be multiplied in.

    A derivative that acts entry by entry, of a relu or of a maximum over windows, is one factor
    a sample, the same for all outputs. Several in a row are multiplied among themselves first,
    on ``[n, ...]``, and reach the c times larger rows as one.

    Args:
        rows: ``[n * c, ...]``.
        copies: The number c of outputs.
        factor: ``[n, ...]``, or None for 1.
    """

    def __init__(self, rows: tf.Tensor, copies: int, factor: tf.Tensor | None = None):
        self._rows = rows
        self._factor = factor
        self.copies = copies

    @property
    def tensor(self) -> tf.Tensor:
        """The cotangent as a tensor ``[n * c, ...]``."""
        if self._factor is not None:
            factor, self._factor = self._factor, None
            size = flat_size(factor)
            by_sample = tf.reshape(self._rows, [-1, self.copies, size])
            product = by_sample * tf.reshape(factor, [-1, 1, size])
            self._rows = restack(tf.reshape(product, batch_shape(factor)), factor, self.copies)
        return self._rows

    def scaled(self, factor: tf.Tensor) -> Stacked:
        """Return the cotangent times one factor a sample, ``[n, ...]``."""
        if self._factor is not None:
            factor = factor * self._factor
        return Stacked(self._rows, self.copies, factor)

    def with_rows(self, rows: tf.Tensor) -> Stacked:
        """Return other rows for as many outputs."""
        return Stacked(rows, self.copies)

    def __add__(self, other: Stacked) -> Stacked:
        """Return the sum of two cotangents of one tensor."""
        return Stacked(self.tensor + other.tensor, self.copies)
