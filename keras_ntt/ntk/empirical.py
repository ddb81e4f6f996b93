"""The empirical neural tangent kernel.

For a network f with weights w,

    ntk(x1, x2)[i, j, a, b] = < d f_a(x1_i) / dw , d f_b(x2_j) / dw >

(Jacot, Gabriel & Hongler, "Neural Tangent Kernel", NeurIPS 2018), in inference mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_ntt.core import checks, host, input_checks
from keras_ntt.core.network import Network, unroll
from keras_ntt.masks.apply import kept_entries
from keras_ntt.ntk.factors import Factor, JacobianFactor, Masks, cast, full_precision, gather
from keras_ntt.ntk.layer_rules import Linearization
from keras_ntt.ntk.layer_rules.dispatch import linearize
from keras_ntt.ntk.layer_rules.stacking import Stacked
from keras_ntt.ntk.least_memory import (
    check_memory,
    derivatives_memory,
    kernel_memory,
    samples_of,
)
from keras_ntt.ntk.products import product

Values = Mapping[int, tuple[keras.Variable, tf.Tensor]]


class Tangents(NamedTuple):
    """The outputs of a batch, and their derivatives with respect to the trainable weights.

    Attributes:
        outputs: ``[n, c]``, all outputs of the model in a row.
        factors: The derivatives; no two are with respect to the same variable.
    """

    outputs: tf.Tensor
    factors: list[Factor]


def tangents(
    network: Network, x: Any, values: Values | None = None, directions: tf.Tensor | None = None
) -> Tangents:
    """Run a network and differentiate its outputs with respect to its trainable weights.

    Args:
        network: The unrolled model.
        x: A batch of inputs, ``[n, ...]`` each.
        values: Values that replace those of some variables.
        directions: Differentiate k combinations of the outputs of each sample instead of the c
            outputs, ``[n, k, c]``.

    Returns:
        Outputs and derivatives.
    """
    network = network.bound_to(x)
    size = network.output_size
    with host.values_in_place(values or {}), host.twice_differentiable():
        tensors = dict(zip(network.inputs, network.prepare(x), strict=True))
        active: set[int] = set()
        done: list[Linearization] = []
        for call in network.calls:
            step = linearize(call, [tensors[s] for s in call.inputs])
            done.append(step)
            tensors.update(zip(call.outputs, step.outputs, strict=True))
            if call.weights or active.intersection(call.inputs):
                active.update(call.outputs)
        ends = [tensors[slot] for slot in network.outputs]
        outputs = flat_outputs(ends)
        cotangents: dict[int, Stacked] = {}
        for slot, seed in zip(network.outputs, _seeds(ends, size, directions), strict=True):
            cotangents[slot] = cotangents[slot] + seed if slot in cotangents else seed
        factors: list[Factor] = []
        for call, step in zip(reversed(network.calls), reversed(done), strict=True):
            given = [cotangents.pop(s, None) for s in call.outputs]
            if all(ct is None for ct in given) or not active.intersection(call.outputs):
                continue
            wanted = [s in active for s in call.inputs]
            back, new = step.backward(given, wanted)
            factors.extend(new)
            for index, ct in zip(call.inputs, back, strict=True):
                if ct is not None:
                    # Each layer may cast its inputs to another float type.
                    ct = ct.cast(tensors[index].dtype)
                    cotangents[index] = cotangents[index] + ct if index in cotangents else ct
        return Tangents(outputs, gather(cast(factor, outputs.dtype) for factor in factors))


def flat_outputs(outputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return all outputs of a model as ``[n, c]``, in float32 or longer."""
    dtype = max((full_precision(y).dtype for y in outputs), key=lambda dtype: dtype.size)
    flat = [tf.reshape(tf.cast(y, dtype), [-1, y.shape[1:].num_elements()]) for y in outputs]
    return flat[0] if len(flat) == 1 else tf.concat(flat, axis=1)


def _seeds(outputs: Sequence[tf.Tensor], size: int, directions: tf.Tensor | None) -> list[Stacked]:
    """Return the initial cotangents, one for each output."""
    sizes = [y.shape[1:].num_elements() for y in outputs]
    n = tf.shape(outputs[0])[0] if outputs[0].shape[0] is None else outputs[0].shape[0]
    if directions is None:
        copies, stacked = size, tf.tile(tf.eye(size, dtype=outputs[0].dtype), [n, 1])
    else:
        copies, stacked = directions.shape[1], tf.reshape(directions, [-1, size])
    parts = tf.split(stacked, sizes, axis=1) if len(sizes) > 1 else [stacked]
    return [
        Stacked(tf.reshape(tf.cast(part, y.dtype), [n * copies, *y.shape[1:]]), copies)
        for part, y in zip(parts, outputs, strict=True)
    ]


def random_directions(
    shape: Sequence[int | tf.Tensor], seed: tf.Tensor | Sequence[int], dtype: tf.DType
) -> tf.Tensor:
    """Return independent random signs, whose second moment is the identity matrix.

    Args:
        shape: The shape. Its last axis is the outputs.
        seed: Two integers.
        dtype: The dtype.

    Returns:
        A tensor of -1 and 1.
    """
    bits = tf.random.stateless_uniform(shape, seed, 0, 2, dtype=tf.int32)
    return tf.cast(2 * bits - 1, dtype)


def kernel_matrix(
    first: list[Factor], second: list[Factor], *, masks: Masks | None = None, trace: bool = False
) -> tf.Tensor:
    """Sum the products of the factors of two batches.

    Args:
        first: Factors for n1 samples.
        second: Factors of the same weights, for n2 samples.
        masks: Entries of the weights that count. Without a mask all entries count.
        trace: Sum over equal outputs only.

    Returns:
        ``[n1 * c, n2 * c]``, or with `trace` ``[n1, n2]``.
    """
    terms = [
        product(f1, f2, masks=masks, trace=trace) for f1, f2 in zip(first, second, strict=True)
    ]
    return tf.add_n(terms)


def empirical_ntk(
    model: keras.Model,
    x1: Any,
    x2: Any = None,
    *,
    wrt: str = "all",
    outputs: str = "full",
    output_projections: int | None = None,
    seed: int = 0,
    implementation: str = "auto",
) -> tf.Tensor:
    """Return the empirical neural tangent kernel of a model, in inference mode.

    Args:
        model: A built Keras model. All axes of its outputs except the batch axis are flattened to c
            outputs. Several output tensors are concatenated.
        x1: Inputs ``[n1, ...]``.
        x2: Inputs ``[n2, ...]``; None means `x1`.
        wrt: The weights with respect to which the outputs are differentiated. ``"all"``: every
            entry of every trainable weight. ``"kept"``: only the kept entries of pruned weights.
            These are given by the masks that the model holds or, if it holds none, by the exact
            zeros of its kernels.
        outputs: ``"full"`` or ``"trace"``.
        output_projections: Compute the kernel of k random combinations of the outputs, with weights
            -1 and 1, for models with many outputs. At most 10,000. None uses the c outputs
            themselves.
        seed: Seed of the combinations.
        implementation: ``"auto"``: structured derivatives (Novak, Sohl-Dickstein & Schoenholz,
            "Fast Finite Width Neural Tangent Kernel", ICML 2022). ``"jacobian"``: the definition,
            one gradient per sample and output; slow, for checks.

    Returns:
        For ``outputs="full"`` ``[n1, n2, c, c]``; for ``"trace"`` ``[n1, n2]``, the mean of the
        diagonal over the outputs. The dtype is that of the model's outputs, but at least float32.
        With `output_projections` the full kernel is that of the combinations, ``[n1, n2, k, k]``,
        and the trace is an unbiased estimate of the trace without them.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If the model is not built or has no trainable weights, if an argument or the
            inputs do not fit, or if there is less memory than the kernel needs at the least.

    Examples:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> x = np.array([[1.0, 2.0], [3.0, 0.5]], "float32")
        >>> keras.ops.convert_to_numpy(empirical_ntk(model, x, outputs="trace"))  # x x^T + 1
        array([[ 6.  ,  5.  ],
               [ 5.  , 10.25]], dtype=float32)
    """
    checks.check_differentiable(model)
    checks.check_choice("wrt", wrt, ("all", "kept"))
    checks.check_choice("outputs", outputs, ("full", "trace"))
    checks.check_choice("implementation", implementation, ("auto", "jacobian"))
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None or name == "x1":
            input_checks.check_arrays(x, model, name)
    seed, masks = checks.check_seed(seed), None
    if wrt == "kept":
        masks = {key: tf.constant(mask) for key, mask in kept_entries(model).items()}
    network = unroll(model).bound_to(x1)
    c = network.output_size
    directions = None
    if output_projections is not None:
        c = checks.check_projections(output_projections)
    definition, trace = implementation == "jacobian", outputs == "trace"
    _check_memory(network, x1, x2, c, trace=trace, definition=definition)
    if output_projections is not None:
        directions = random_directions([1, c, network.output_size], [seed, 0], tf.float64)
    differentiate = _tangents_by_definition if definition else tangents
    first = differentiate(network, x1, directions=_for_each(x1, directions))
    second = first
    if x2 is not None:
        second = differentiate(network, x2, directions=_for_each(x2, directions))
    matrix = kernel_matrix(first.factors, second.factors, masks=masks, trace=trace)
    if trace:
        return matrix / (c * (1 if directions is None else network.output_size))
    blocks = tf.reshape(matrix, [first.outputs.shape[0], c, second.outputs.shape[0], c])
    return tf.transpose(blocks, [0, 2, 1, 3])


def _check_memory(
    network: Network, x1: Any, x2: Any, c: int, *, trace: bool, definition: bool
) -> None:
    """Raise a ValueError if there is less memory than a kernel of c outputs needs at the least."""
    n1 = samples_of(x1)
    n2 = n1 if x2 is None else samples_of(x2)
    if n1 is None or n2 is None:
        return
    size, model = network.output_size, network.model
    weights = sum(math.prod(v.shape) for v in model.trainable_variables)
    k = None if c == size else c
    bytes_each = tf.as_dtype(model.compute_dtype).size
    needed = max(
        kernel_memory((n1, n2), c, trace=trace),
        derivatives_memory(max(n1, n2), size, k, weights if definition else None, bytes_each),
    )
    fewer = "output_projections to a small number such as 8" + (
        "" if trace else ", outputs='trace'"
    )
    check_memory(
        needed,
        f"Set {fewer}, or take the kernel of fewer samples at a time: that of parts of x1 and x2 "
        "is a part of the whole.",
        lambda: f"{n1} and {n2} samples for the model {model.name!r} with {size} outputs",
    )


def _for_each(x: Any, directions: tf.Tensor | None) -> tf.Tensor | None:
    """Repeat directions for each sample of a batch."""
    if directions is None:
        return None
    return tf.repeat(directions, len(keras.tree.flatten(x)[0]), axis=0)


def _tangents_by_definition(
    network: Network, x: Any, directions: tf.Tensor | None = None
) -> Tangents:
    """Differentiate output by output and sample by sample; the reference for `tangents`."""
    variables = network.model.trainable_variables
    sources = [host.first_copy(v) for v in variables]
    functional = host.functional_of(network.model)
    structure = x if functional is None else host.input_structure(functional)
    inputs = keras.tree.pack_sequence_as(structure, network.prepare(x))
    with tf.GradientTape(persistent=True) as tape:
        outputs = flat_outputs(keras.tree.flatten(network.model(inputs, training=False)))
        ends = outputs
        if directions is not None:
            ends = tf.einsum("nkc,nc->nk", tf.cast(directions, outputs.dtype), outputs)
        entries = tf.unstack(tf.reshape(ends, [-1]))
    rows = []
    for entry in entries:
        gradients = tape.gradient(
            entry, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        parts = [tf.cast(tf.reshape(g, [-1]), outputs.dtype) for g in gradients]
        rows.append(tf.concat(parts, axis=0))
    factor = JacobianFactor(tf.stack(rows), ends.shape[1], tuple(variables))
    return Tangents(outputs, [factor])
