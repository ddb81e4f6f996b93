"""The gradient of the objective, at once or block by block in limited memory.

The kernel distance is a sum over pairs of samples, one of the first and one of the second half of a
batch. If both halves are cut into parts, each pair of parts is a block. Its derivatives need less
memory, and the gradients of all blocks add up to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.pruning.neural_tangent.objective import (
    Half,
    NTTLoss,
    Pair,
    distances,
    halves,
    nonzero,
    objective,
    output_size,
    sum_up,
)

Gradients = list[tf.Tensor | None]


def loss_and_gradient(
    pair: Pair,
    x: Any,
    sources: Sequence[tf.Variable],
    *,
    parts: int = 1,
    scale: Callable[[tf.Tensor], tf.Tensor] = lambda loss: loss,
) -> tuple[NTTLoss, Gradients]:
    """Return the objective on a batch and its gradient.

    Args:
        pair: Student, teacher and settings.
        x: Inputs ``[n, ...]``.
        sources: The variables to differentiate with respect to.
        parts: The number of parts of each half of the batch. Derivatives of so many times fewer
            samples are held at a time, and computed `parts` times as often.
        scale: A linear function, applied to the loss before its gradient is taken.

    Returns:
        The loss, and gradients of the scaled loss; None for a source that it does not depend on.
    """
    if parts == 1:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            loss = objective(pair, x)
            scaled = scale(loss.total)
        return loss, _dense(tape.gradient(scaled, sources))
    ntk_distance, output_distance, gradients = _by_blocks(pair, x, sources, parts, scale)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        loss = sum_up(pair, ntk_distance, output_distance)
        scaled = scale(loss.total)
    for i, gradient in enumerate(_dense(tape.gradient(scaled, sources))):
        if gradient is not None:
            gradients[i] += gradient
    return loss, gradients


def _dense(gradients: Sequence[Any]) -> Gradients:
    """Expand gradients that exist only for some rows of a table."""
    return [None if g is None else tf.convert_to_tensor(g) for g in gradients]


def _by_blocks(
    pair: Pair, x: Any, sources: Sequence[tf.Variable], parts: int, scale: Callable
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Return the distances and the gradient of their weighted sum."""
    whole = halves(pair, x)
    dtype = tf.float64 if any(v.dtype == tf.float64 for v in sources) else tf.float32
    lengths = [tf.shape(keras.tree.flatten(half.x)[0])[0] for half in whole]
    sizes = [-(-n // parts) for n in lengths]
    counts = [-(-n // size) for n, size in zip(lengths, sizes, strict=True)]

    def part(which: int, index: tf.Tensor) -> Half:
        start = index * sizes[which]
        end = tf.minimum(start + sizes[which], lengths[which])
        half = whole[which]
        directions = None if half.directions is None else half.directions[start:end]
        return Half(keras.tree.map_structure(lambda leaf: leaf[start:end], half.x), directions)

    def compare(block: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        row, column = block // counts[1], block % counts[1]
        return distances(
            pair,
            part(0, row),
            part(1, column),
            # Each sample is in many blocks, but its outputs count once.
            counted=(tf.cast(column == 0, tf.float32), tf.cast(row == 0, tf.float32)),
            samples=(lengths[0], lengths[1]),
        )

    blocks = counts[0] * counts[1]
    sizes_of_teacher = tf.ones([2], dtype)
    if pair.weighting.normalize:
        _, size = tf.while_loop(
            lambda block, _: block < blocks,
            lambda block, total: (block + 1, total + tf.cast(compare(block)[2], dtype)),
            (tf.constant(0), tf.zeros([], dtype)),
            parallel_iterations=1,
        )
        sizes_of_teacher = tf.stack([nonzero(size), output_size(pair, x, dtype)])

    def add(block: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            found = [
                value / tf.cast(size, value.dtype)
                for value, size in zip(
                    compare(block)[:2], tf.unstack(sizes_of_teacher), strict=True
                )
            ]
            scaled = scale(pair.weighting.ntk_weight * found[0] + found[1])
        gradients = tape.gradient(scaled, sources, unconnected_gradients="zero")
        terms = [*found, *(tf.convert_to_tensor(g) for g in gradients)]
        added = zip(sums, terms, strict=True)
        return [block + 1, *(total + tf.cast(term, total.dtype) for total, term in added)]

    zeros = [tf.zeros([], dtype)] * 2 + [tf.zeros(v.shape, v.dtype) for v in sources]
    _, ntk_distance, output_distance, *gradients = tf.while_loop(
        lambda block, *_: block < blocks, add, [tf.constant(0), *zeros], parallel_iterations=1
    )
    return ntk_distance, output_distance, list(gradients)
