"""The objective of Neural Tangent Transfer, once, for training and validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_ntt import _host, checks
from keras_ntt.factors import split
from keras_ntt.network import Network, unroll
from keras_ntt.ntk import Tangents, Values, kernel_matrix, tangents
from keras_ntt.policies import choose_weights
from keras_ntt.sparse_model import kept_entries, masks_by_variable


class NTTLoss(NamedTuple):
    """The objective and its parts, scalars.

    Attributes:
        total: What is minimized.
        ntk_distance: Mean squared difference of the tangent kernels.
        output_distance: Mean squared difference of the outputs.
        l2: Sum of the squares of the pruned kernels that are kept.
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
        wrt: ``"all"`` or ``"kept"``, the weights that the student's kernel is taken by.
    """

    ntk_weight: float
    l2: float
    wrt: str

    def __post_init__(self) -> None:
        checks.check_number("ntk_weight", self.ntk_weight)
        checks.check_number("l2", self.l2)
        checks.check_choice("wrt", self.wrt, ("all", "kept"))


def objective(
    student: Network,
    teacher: Network,
    x: Any,
    *,
    pruned: Sequence[keras.Variable],
    masks: Mapping[int, tf.Tensor],
    density: tf.Tensor | float,
    weighting: Weighting,
    student_values: Values | None = None,
    teacher_values: Values | None = None,
) -> NTTLoss:
    """Compare a student with its teacher on a batch.

    With m the masks, w the student's weights, the tangent kernels between the first and the
    second half of the batch, and means over all entries,

        total = ntk_weight * mean((ntk_s - ntk_t)^2) + mean((f_s - f_t)^2)
                + l2 / density * sum((m * w)^2)

    (Liu & Zenke, "Finding trainable sparse networks through Neural Tangent Transfer", ICML
    2020; weights and divisor as in the published code). A batch of an odd number of samples has a
    first half one longer; a single sample is compared with itself.

    Args:
        student: The sparse network. Its masked entries are zero.
        teacher: The dense network.
        x: Inputs ``[n, ...]``.
        pruned: The student's variables that have masks.
        masks: ``id(variable) -> 0/1 tensor`` for them.
        density: Fraction of the entries that are kept.
        weighting: Settings.
        student_values: Values to use in place of the student's variables' own.
        teacher_values: Values to use in place of the teacher's variables' own.

    Returns:
        The `NTTLoss`.
    """
    student_values = student_values or {}
    x = keras.tree.map_structure(_at_least_two, x)
    target = tangents(teacher, x, teacher_values)
    found = tangents(student, x, student_values)
    if target.outputs.shape[1:] != found.outputs.shape[1:]:
        raise ValueError(
            "student and teacher must have outputs of the same shape. Received: outputs of "
            f"{found.outputs.shape[1]} and {target.outputs.shape[1]} numbers a sample"
        )
    kept = masks if weighting.wrt == "kept" else None
    target_ntk = tf.stop_gradient(_between_halves(target, None))
    ntk_distance = tf.reduce_mean(tf.square(_between_halves(found, kept) - target_ntk))
    output_distance = tf.reduce_mean(tf.square(found.outputs - tf.stop_gradient(target.outputs)))
    kernels = [
        student_values[id(v)][1] if id(v) in student_values else _host.value_of(v) for v in pruned
    ]
    l2 = 2 * tf.add_n([tf.nn.l2_loss(w) for w in kernels])
    total = (
        weighting.ntk_weight * ntk_distance
        + output_distance
        + weighting.l2 / _scalar(density, l2.dtype) * l2
    )
    return NTTLoss(total, ntk_distance, output_distance, l2)


def _scalar(value: tf.Tensor | float, dtype: tf.DType) -> tf.Tensor:
    """Return a number in a dtype; a Python float keeps all its digits."""
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


def _between_halves(batch: Tangents, masks: Mapping[int, tf.Tensor] | None) -> tf.Tensor:
    n = batch.outputs.shape[0]
    if n is None:
        rows = tf.shape(batch.outputs)[0]
        sizes: Any = tf.stack([rows - rows // 2, rows // 2])
    else:
        sizes = [n - n // 2, n // 2]
    halves = [split(factor, sizes) for factor in batch.factors]
    return kernel_matrix([a for a, _ in halves], [b for _, b in halves], masks=masks)


def ntt_loss(
    student: keras.Model,
    teacher: keras.Model,
    x: Any,
    *,
    density: float,
    ntk_weight: float = 1e-3,
    l2: float = 1e-5,
    wrt: str = "all",
    masks: Mapping[str, Any] | None = None,
) -> NTTLoss:
    """Return the objective of Neural Tangent Transfer for a student and a teacher on a batch.

    It can be differentiated by the student's variables with a ``tf.GradientTape``; the gradient
    is zero at masked entries.

    Args:
        student: A built model.
        teacher: A built model with outputs of the same shape.
        x: Inputs ``[n, ...]``, of which the tangent kernel is taken between the first and the
            second half.
        density: Fraction of the prunable weights that are kept, in (0, 1]; it divides `l2`.
        ntk_weight: Weight of the kernel distance.
        l2: Weight of the sum of squares of the pruned kernels (biases have none).
        wrt: ``"all"`` differentiates by every entry of the weights at the masked point, as the
            published code does; ``"kept"`` by the kept entries only, which is the kernel that
            governs the sparse network's own training.
        masks: Masks of the student's weights by variable path. None takes those that the
            student holds or, if it holds none, its exact zeros.

    Returns:
        The `NTTLoss`: total, ntk_distance, output_distance, l2.

    Raises:
        TypeError: If a model is not a Keras 3 model.
        ValueError: If models, inputs or settings do not fit.
    """
    for model, name in ((student, "student"), (teacher, "teacher")):
        checks.check_differentiable(model, name)
    checks.check_shapes(student, teacher)
    (checks.check_structure if checks.is_symbolic(x) else checks.check_arrays)(x, student, "x")
    weighting = Weighting(ntk_weight, l2, wrt)
    check_density(density)
    choice = {id(v): v for v in choose_weights(student).weights}
    if masks is None:
        kept = {key: m for key, m in kept_entries(student).items() if key in choice}
        pruned = choice
    else:
        matched = masks_by_variable(student, masks)
        kept = {key: mask for key, (_, mask) in matched.items()}
        pruned = {**choice, **{key: v for key, (v, _) in matched.items()}}
    tensors = {
        key: tf.cast(kept[key], v.dtype) if key in kept else tf.ones(v.shape, v.dtype)
        for key, v in pruned.items()
    }
    # The masks multiply the weights, so that gradients flow through them.
    masked = {key: (v, _host.value_of(v) * tensors[key]) for key, v in pruned.items()}
    return objective(
        unroll(student),
        unroll(teacher),
        x,
        pruned=list(pruned.values()),
        masks=tensors,
        density=density,
        weighting=weighting,
        student_values=masked,
    )


def check_density(density: Any) -> None:
    """Raise a ValueError unless a density is in (0, 1]."""
    if not checks.is_number(density) or not 0 < density <= 1:
        raise ValueError(
            "density is the fraction of weights that are kept, 1 - sparsity, and must be a number "
            f"in (0, 1]. Received: density={density!r}"
        )
