"""The objective of Neural Tangent Transfer (Liu & Zenke, ICML 2020), on two unrolled networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_ntt.core import checks, host
from keras_ntt.core.network import Network
from keras_ntt.ntk.empirical import (
    Tangents,
    Values,
    kernel_matrix,
    random_directions,
    tangents,
)
from keras_ntt.ntk.factors import split


class NTTLoss(NamedTuple):
    """The objective and its parts, scalars.

    Attributes:
        total: The objective.
        ntk_distance: Mean squared difference of the tangent kernels. With ``normalize`` it is
            divided by the mean square of the teacher's kernel.
        output_distance: Mean squared difference of the outputs. With ``normalize`` it is divided by
            the variance of the teacher's outputs.
        l2: Sum of the squares of the kept entries of the pruned kernels, without its weight.
    """

    total: tf.Tensor
    ntk_distance: tf.Tensor
    output_distance: tf.Tensor
    l2: tf.Tensor


@dataclass(frozen=True)
class Weighting:
    """The settings of the objective.

    Attributes:
        ntk_weight: Weight of the kernel distance.
        l2: Weight of the sum of squares, which is divided by the density.
        wrt: ``"all"`` or ``"kept"``: the weights of the student's kernel.
        outputs: ``"full"``: all pairs of outputs. ``"trace"``: the mean over equal outputs.
        output_projections: Number of random combinations that replace the outputs.
        normalize: Whether each distance is divided by the teacher's own size on the batch.
    """

    ntk_weight: float
    l2: float
    wrt: str
    outputs: str = "full"
    output_projections: int | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        checks.check_number("ntk_weight", self.ntk_weight)
        checks.check_number("l2", self.l2)
        checks.check_choice("wrt", self.wrt, ("all", "kept"))
        checks.check_choice("outputs", self.outputs, ("full", "trace"))
        if not isinstance(self.normalize, bool):
            raise ValueError(
                f"normalize must be True or False. Received: normalize={self.normalize!r}"
            )
        if self.output_projections is not None:
            count = checks.check_projections(self.output_projections)
            object.__setattr__(self, "output_projections", count)  # 2.0 is 2 from here on
            if self.outputs == "trace":
                raise ValueError(
                    "The square of a trace that is estimated by random projections is biased. "
                    "Use output_projections with outputs='full', or outputs='trace' without. "
                    f"Received: outputs='trace', output_projections={self.output_projections}"
                )


@dataclass(frozen=True, eq=False)
class Pair:
    """A student, its teacher, and the settings of the comparison.

    Attributes:
        student: The sparse network. Its masked entries are zero.
        teacher: The dense network.
        pruned: The student's variables that have masks.
        masks: ``id(variable) -> 0/1 tensor`` for them.
        density: Fraction of the entries that are kept.
        weighting: Settings.
        seed: Two integers, the seed of random combinations of outputs.
        student_values: Values that replace those of the student's variables.
        teacher_values: Values that replace those of the teacher's variables.
    """

    student: Network
    teacher: Network
    pruned: Sequence[keras.Variable]
    masks: Mapping[int, tf.Tensor]
    density: tf.Tensor | float
    weighting: Weighting
    seed: tf.Tensor | Sequence[int] = (0, 0)
    student_values: Values = field(default_factory=dict)
    teacher_values: Values = field(default_factory=dict)


def objective(pair: Pair, x: Any) -> NTTLoss:
    """Compare a student with its teacher on a batch.

    With m the masks, w the student's weights, the tangent kernels between the first and the
    second half of the batch, and means over all entries,

        total = ntk_weight * mean((ntk_s - ntk_t)^2) + mean((f_s - f_t)^2)
                + l2 / density * sum((m * w)^2)

    (Liu & Zenke, "Finding trainable sparse networks through Neural Tangent Transfer", ICML
    2020; weights and divisor as in the published code). If the number of samples is odd, the first
    half has one more. A single sample is compared with itself.

    With `output_projections` the kernel distance is estimated from random combinations of the
    outputs, drawn for each sample. For independent vectors r and s of random signs, the expectation
    of ``(r^T d s)^2`` is the sum of the squares of the matrix d, so the estimate is unbiased.

    With `normalize` the first distance is divided by the mean of ntk_t^2 over the same entries. The
    second is divided by the variance of f_t over the batch, averaged over the outputs. Both then
    have no units: a kernel of zeros has the distance 1, and so have outputs that equal the mean.

    Args:
        pair: Student, teacher and settings.
        x: Inputs ``[n, ...]``.

    Returns:
        The `NTTLoss`.
    """
    first, second = halves(pair, x)
    ntk_distance, output_distance, size = distances(pair, first, second)
    if pair.weighting.normalize:
        ntk_distance /= nonzero(size)
        output_distance /= output_size(pair, x, output_distance.dtype)
    return sum_up(pair, ntk_distance, output_distance)


def nonzero(size: tf.Tensor) -> tf.Tensor:
    """Return what to divide by: a size, 1 where it is 0 and there is nothing to measure by."""
    return tf.where(size > 0, size, tf.ones_like(size))


def output_size(pair: Pair, x: Any, dtype: tf.DType) -> tf.Tensor:
    """Return the variance of the teacher's outputs on a batch, the mean over outputs."""
    with host.values_in_place(pair.teacher_values):
        outputs = keras.tree.flatten(pair.teacher.model(x, training=False))
    squares, count = tf.zeros([], dtype), 0
    for y in outputs:
        y = tf.cast(y, dtype)
        centred = tf.square(y - tf.reduce_mean(y, axis=0, keepdims=True))
        squares += tf.reduce_sum(tf.reduce_mean(centred, axis=0))
        count += tf.size(y[0])
    return tf.stop_gradient(nonzero(squares / tf.cast(count, dtype)))


class Half(NamedTuple):
    """One half of a batch.

    Attributes:
        x: Inputs ``[n, ...]``, nested as the model takes them.
        directions: Combinations of outputs ``[n, k, c]``, or None for the outputs themselves.
    """

    x: Any
    directions: tf.Tensor | None


def halves(pair: Pair, x: Any) -> tuple[Half, Half]:
    """Split a batch in two; the first half has one more if the number of samples is odd."""
    x = keras.tree.map_structure(_at_least_two, x)
    leaf = keras.tree.flatten(x)[0]
    n = tf.shape(leaf)[0] if leaf.shape[0] is None else leaf.shape[0]
    k = pair.weighting.output_projections
    directions = None
    if k is not None:
        size = pair.student.bound_to(x).output_size
        directions = random_directions([n, k, size], pair.seed, tf.float32)
    cut = n - n // 2

    def half(part: slice) -> Half:
        own = keras.tree.map_structure(lambda leaf: leaf[part], x)
        return Half(own, None if directions is None else directions[part])

    return half(slice(None, cut)), half(slice(cut, None))


def distances(
    pair: Pair,
    first: Half,
    second: Half,
    *,
    counted: tuple[tf.Tensor | float, tf.Tensor | float] = (1.0, 1.0),
    samples: tuple[tf.Tensor | int, tf.Tensor | int] | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Compare kernels and outputs of student and teacher on parts of the halves of a batch.

    Args:
        pair: Student, teacher and settings.
        first: Samples of the first half.
        second: Samples of the second half.
        counted: The weights of the outputs of each half.
        samples: The numbers of samples of the whole halves; None if these are whole.

    Returns:
        Their shares of the mean squared differences of the kernels and of the outputs, and of the
        mean square of the teacher's kernel.
    """
    both = keras.tree.map_structure(lambda *parts: tf.concat(parts, axis=0), first.x, second.x)
    directions = None
    if first.directions is not None:
        directions = tf.concat([first.directions, second.directions], axis=0)
    target = tangents(pair.teacher, both, pair.teacher_values, directions)
    found = tangents(pair.student, both, pair.student_values, directions)
    if target.outputs.shape[1:] != found.outputs.shape[1:]:
        raise ValueError(
            "student and teacher must have outputs of the same shape. Received: outputs of "
            f"{found.outputs.shape[1]} and {target.outputs.shape[1]} numbers a sample"
        )
    sizes = [_length(half.x) for half in (first, second)]
    n1, n2 = samples or sizes
    c, dtype = found.outputs.shape[1], found.outputs.dtype
    weighting = pair.weighting
    trace = weighting.outputs == "trace"
    kept = pair.masks if weighting.wrt == "kept" else None
    target_ntk = tf.stop_gradient(_between(target, sizes, None, trace))
    squares = tf.reduce_sum(tf.square(_between(found, sizes, kept, trace) - target_ntk))
    # A kernel of k combinations has k^2 entries per pair of samples. The expectation of each is the
    # sum over all c^2. A trace is c times the mean that is compared.
    entries = (weighting.output_projections or 1) ** 2 * c**2
    counts = tf.cast(n1 * n2 * entries, dtype)
    size = tf.reduce_sum(tf.square(target_ntk)) / counts
    differences = tf.square(found.outputs - tf.stop_gradient(target.outputs))
    parts = tf.split(tf.reduce_sum(differences, axis=1), sizes, num=2)
    total = tf.add_n(
        [tf.cast(w, dtype) * tf.reduce_sum(p) for w, p in zip(counted, parts, strict=True)]
    )
    return squares / counts, total / tf.cast((n1 + n2) * c, dtype), size


def sum_up(pair: Pair, ntk_distance: tf.Tensor, output_distance: tf.Tensor) -> NTTLoss:
    """Return the objective from its distances, with the sum of squares of the pruned kernels."""
    values = pair.student_values
    kernels = [values[id(v)][1] if id(v) in values else host.value_of(v) for v in pair.pruned]
    dtype = ntk_distance.dtype
    l2 = 2 * tf.add_n([tf.cast(tf.nn.l2_loss(w), dtype) for w in kernels])
    weighting = pair.weighting
    total = (
        weighting.ntk_weight * ntk_distance
        + output_distance
        + weighting.l2 / _scalar(pair.density, dtype) * l2
    )
    return NTTLoss(total, ntk_distance, output_distance, l2)


def _scalar(value: tf.Tensor | float, dtype: tf.DType) -> tf.Tensor:
    """Return a number in a dtype; a Python float keeps its full precision."""
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)


def _at_least_two(x: Any) -> tf.Tensor:
    """Repeat a batch of one, so that it has two halves."""
    x = tf.convert_to_tensor(x)
    n = x.shape[0]
    if n is not None:
        return tf.concat([x, x], axis=0) if n == 1 else x
    copies = 1 + tf.cast(tf.shape(x)[0] == 1, tf.int32)
    ones = tf.ones([x.shape.rank - 1], tf.int32)
    return tf.tile(x, tf.concat([[copies], ones], axis=0))


def _length(x: Any) -> int | tf.Tensor:
    leaf = keras.tree.flatten(x)[0]
    return tf.shape(leaf)[0] if leaf.shape[0] is None else leaf.shape[0]


def _between(batch: Tangents, sizes: Any, masks: Any, trace: bool) -> tf.Tensor:
    """Return the kernel between the first and the second part of a batch."""
    if any(map(tf.is_tensor, sizes)):
        sizes = tf.stack(sizes)
    parts = [split(factor, sizes) for factor in batch.factors]
    return kernel_matrix([a for a, _ in parts], [b for _, b in parts], masks=masks, trace=trace)
