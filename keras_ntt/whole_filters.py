"""The pattern of whole output channels: a filter of a convolution, a unit of a Dense layer."""

from __future__ import annotations

import tensorflow as tf

from keras_ntt import checks
from keras_ntt.masks import keep_count


def whole_filters(scores: tf.Tensor, sparsity: float) -> tf.Tensor:
    """Return the mask that keeps whole output channels, those with the largest sum of scores.

    Pass it as ``pattern=`` to `keras_ntt.prune_at_init`. The kernels that can shrink for it are
    those of Dense and ordinary convolution layers, whose last axis is the output channel; leave
    out others, and the last layer, by ``filters=``.

    Args:
        scores: Scores of a kernel ``[..., outputs]``.
        sparsity: Fraction of channels that become zero; at least one channel is kept.

    Returns:
        A boolean tensor of the shape of `scores`.

    Raises:
        ValueError: If the scores have no axis besides the channels, or `sparsity` is none.

    >>> scores = tf.constant([[1.0, 5.0, 2.0], [1.0, 0.0, 2.0]])
    >>> whole_filters(scores, 1 / 3).numpy().astype(int).tolist()
    [[0, 1, 1], [0, 1, 1]]
    """
    if not isinstance(scores, tf.Tensor):
        scores = checks.as_array("scores", scores)
        scores = tf.convert_to_tensor(scores if checks.is_numeric(scores.dtype) else [])
    if scores.shape.rank < 2 or not (scores.dtype.is_floating or scores.dtype.is_integer):
        raise ValueError(
            "Whole filters are for kernels of at least 2 axes. Leave the others out by filters=. "
            f"Received: scores of shape {tuple(scores.shape)} and dtype {scores.dtype.name}"
        )
    channels = scores.shape[-1]
    sums = tf.reduce_sum(tf.reshape(scores, [-1, channels]), axis=0)
    order = tf.argsort(sums, direction="DESCENDING", stable=True)
    rank = tf.math.invert_permutation(order)
    return tf.broadcast_to(rank < keep_count(channels, sparsity), scores.shape)
