"""The objective of Neural Tangent Transfer (Liu & Zenke, ICML 2020) for two Keras models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import checks, host, input_checks
from keras_ntt.core.logits import logits_of, warn_of_logits, warn_of_probabilities
from keras_ntt.core.network import Network, unroll
from keras_ntt.masks.apply import kept_entries
from keras_ntt.masks.names import masks_by_variable
from keras_ntt.masks.policies import choose_weights
from keras_ntt.ntk.least_memory import check_memory, derivatives_memory, samples_of
from keras_ntt.pruning.neural_tangent.checks import check_heads, check_shapes
from keras_ntt.pruning.neural_tangent.objective import NTTLoss, Pair, Weighting, objective


def ntt_loss(
    student: keras.Model,
    teacher: keras.Model,
    x: Any,
    *,
    sparsity: float | None = None,
    density: float | None = None,
    ntk_weight: float = 1e-3,
    l2: float = 1e-5,
    wrt: str = "all",
    outputs: str = "full",
    output_projections: int | None = None,
    normalize: bool = False,
    seed: int = 0,
    masks: Mapping[str, Any] | None = None,
) -> NTTLoss:
    """Return the objective of Neural Tangent Transfer for a student and a teacher on a batch.

    A ``tf.GradientTape`` can differentiate it with respect to the student's variables. The gradient
    is zero at masked entries.

    Args:
        student: A built model. If it ends in softmax or sigmoid, the objective uses its logits.
        teacher: A built model with outputs of the same shape, treated likewise.
        x: Inputs ``[n, ...]``. The tangent kernel is computed between the first and the second
            half.
        sparsity: Fraction of zeros in the prunable weights, in [0, 1); ``1 - sparsity`` divides
            `l2`.
        density: Deprecated: ``1 - sparsity``, in (0, 1]. Pass `sparsity` instead.
        ntk_weight: Weight of the kernel distance.
        l2: Weight of the sum of squares of the pruned kernels (biases have none).
        wrt: ``"all"`` differentiates with respect to every entry of the weights at the masked
            point, as the published code does. ``"kept"`` differentiates only with respect to the
            kept entries. This is the kernel that governs the training of the sparse network.
        outputs: ``"full"`` compares the kernels of all pairs of outputs. ``"trace"`` compares
            their mean over equal outputs, which is one number for each pair of samples.
        output_projections: Estimate the full distance, without bias, from k random combinations of
            the outputs of each sample. At most 10,000. The cost then does not grow with the square
            of the number of outputs. None uses all outputs.
        normalize: Whether to divide the kernel distance by the mean square of the teacher's kernel,
            and the output distance by the variance of the teacher's outputs, both on this batch.
            `ntk_weight` then has no units. The published form needs another one for each network.
        seed: Seed of the combinations.
        masks: Masks of the student's weights, by variable path. With None these are the masks that
            the student holds or, if it holds none, its exact zeros.

    Returns:
        The `NTTLoss`: total, ntk_distance, output_distance, l2.

    Raises:
        TypeError: If a model is not a Keras 3 model, or `sparsity` is missing.
        ValueError: If models, inputs or settings do not fit, or if there is less memory than the
            kernels need at the least.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import apply_masks, ntt_loss
        >>> dense, sparse = (
        ...     keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        ...     for _ in range(2)
        ... )
        >>> for model in (dense, sparse):
        ...     model.set_weights([np.array([[1.0], [2.0]])])
        >>> sparse = apply_masks(sparse, {sparse.weights[0].path: np.array([[True], [False]])})
        >>> x = np.array([[1.0, 1.0], [1.0, 3.0]])  # kernels of 1 * 1 + 1 * 3 and of 1 * 1
        >>> loss = ntt_loss(sparse, dense, x, sparsity=0.5, wrt="kept")
        >>> float(loss.ntk_distance), float(loss.output_distance), float(loss.l2)
        (9.0, 20.0, 1.0)
    """
    for model, name in ((student, "student"), (teacher, "teacher")):
        checks.check_differentiable(model, name)
    check_shapes(student, teacher)
    symbolic = input_checks.is_symbolic(x)
    check = input_checks.check_structure if symbolic else input_checks.check_arrays
    check(x, student, "x")
    input_checks.check_structure(x, teacher, "x")
    student_logits, teacher_logits = logits_of(student), logits_of(teacher)
    check_heads(student_logits, teacher_logits)
    warn_of_logits(student_logits, "ntt_loss")
    if not symbolic:
        warn_of_probabilities([student_logits, teacher_logits], x, "ntt_loss")
    weighting = Weighting(ntk_weight, l2, wrt, outputs, output_projections, normalize)
    density = _density_of(sparsity, density)
    networks = unroll(student_logits.model), unroll(teacher_logits.model)
    _check_memory(networks[0].bound_to(x), x, weighting)
    seed = checks.check_seed(seed)
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
    masked = {key: (v, host.value_of(v) * tensors[key]) for key, v in pruned.items()}
    pair = Pair(
        *networks,
        pruned=list(pruned.values()),
        masks=tensors,
        density=density,
        weighting=weighting,
        seed=(seed, 0),
        student_values=masked,
    )
    return objective(pair, x)


def _check_memory(network: Network, x: Any, weighting: Weighting) -> None:
    """Raise a ValueError if there is less memory than the two kernels need at the least."""
    n, size = samples_of(x), network.output_size
    if n is None:
        return
    k, trace = weighting.output_projections, weighting.outputs == "trace"
    halves = (n - n // 2, max(n // 2, 1))
    bytes_each = tf.as_dtype(network.model.compute_dtype).size
    # The distance is that of two kernels, which are there at the same time, in one order.
    kernels = 8 * halves[0] * halves[1] * (1 if trace else (k or size) ** 2)
    check_memory(
        max(kernels, derivatives_memory(n, size, k, None, bytes_each)),
        "Set output_projections to a small number such as 8, or outputs='trace', or take fewer "
        "samples.",
        lambda: f"{n} samples for the model {network.model.name!r} with {size} outputs",
    )


def _density_of(sparsity: Any, density: Any) -> float:
    """Check and return the kept fraction, from the argument or from the deprecated one."""
    if (sparsity is None) == (density is None):
        raise TypeError(
            "ntt_loss needs sparsity, the fraction of zeros, and not density as well. "
            f"Received: sparsity={sparsity!r}, density={density!r}"
        )
    if density is None:
        return 1 - checks.check_sparsity(sparsity)
    if not checks.is_number(density) or not 0 < density <= 1:
        raise ValueError(
            "density is the fraction of weights that are kept, 1 - sparsity, and must be a number "
            f"in (0, 1]. Received: density={density!r}"
        )
    warnings.warn(
        "ntt_loss(density=) is deprecated: pass sparsity, which is 1 - density. "
        f"Received: density={density!r}",
        DeprecationWarning,
        stacklevel=3,
    )
    return float(density)
