"""How much memory a step needs, from its graph, before it is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.pruning.neural_tangent.gradient import loss_and_gradient
from keras_ntt.pruning.neural_tangent.objective import Pair

# Operations whose result is their input under another name or shape.
_VIEWS = {
    "EnsureShape", "ExpandDims", "Identity", "IdentityN", "PreventGradient", "Reshape", "Squeeze",
    "StopGradient",
}  # fmt: skip


def peak_memory(function: Callable, specs: Sequence[tf.TensorSpec]) -> int:
    """Return the most memory that the tensors of a function need at one time, in bytes.

    The operations are taken in the order they were made, each tensor living from its own
    operation to the last that reads it. Buffers inside of operations are not seen, nor that
    operations of independent branches may run at once: expect the truth within about a third.

    Args:
        function: A function of tensors.
        specs: Their shapes, fully known, and dtypes.

    Returns:
        The number of bytes, apart from variables.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    return _peak(traced.graph)


def _peak(graph: tf.Graph) -> int:
    operations = _needed(graph)
    home: dict[Any, Any] = {}  # tensor -> the tensor whose memory it lies in
    last: dict[Any, int] = {}
    for i, op in enumerate(operations):
        for k, tensor in enumerate(op.outputs):
            seen = op.type in _VIEWS and k < len(op.inputs)
            source = op.inputs[k] if seen else tensor
            home[tensor.ref()] = home.get(source.ref(), source.ref())
            last.setdefault(home[tensor.ref()], i)
        for tensor in op.inputs:
            last[home.get(tensor.ref(), tensor.ref())] = i
    ends: dict[int, list[Any]] = {}
    for ref, i in last.items():
        ends.setdefault(i, []).append(ref)
    live = peak = 0
    for i, op in enumerate(operations):
        if op.type not in ("Const", "Placeholder", "ReadVariableOp"):
            live += sum(_bytes(t) for t in op.outputs if home[t.ref()] == t.ref())
        peak = max(peak, live)
        for ref in ends.get(i, []):
            if ref.deref().op.type not in ("Const", "Placeholder", "ReadVariableOp"):
                live -= _bytes(ref.deref())
    return peak


def _needed(graph: tf.Graph) -> list[tf.Operation]:
    """Return the operations that the outputs depend on, in the order they were made."""
    todo = [t.op for t in graph.outputs]
    found = set()
    while todo:
        op = todo.pop()
        if op not in found:
            found.add(op)
            todo += [t.op for t in op.inputs] + list(op.control_inputs)
    return [op for op in graph.get_operations() if op in found]


def _bytes(tensor: tf.Tensor) -> int:
    if tensor.dtype == tf.variant:
        return _list_bytes(tensor)
    size = tensor.shape.num_elements()
    return 0 if size is None else math.ceil(size * tensor.dtype.size)


def _list_bytes(tensor: tf.Tensor) -> int:
    """Return what a list of tensors holds; only loops fill lists of a known size."""
    if tensor.op.type not in ("While", "StatelessWhile"):
        return 0
    source = tensor.op.inputs[tensor.value_index].op
    if source.type not in ("EmptyTensorList", "TensorListReserve"):
        return 0
    shape, count = (tf.get_static_value(t) for t in source.inputs)
    if shape is None or count is None or np.min(shape, initial=0) < 0 or count < 0:
        return 0
    return int(count * np.prod(shape) * source.get_attr("element_dtype").size)


def step_memory(
    make_pair: Callable[[], Pair], sources: Sequence[tf.Variable], batch: Any, parts: int
) -> int:
    """Estimate the memory of the objective and its gradient.

    Args:
        make_pair: Returns student, teacher and settings, inside the graph.
        sources: The variables to differentiate by.
        batch: ``tf.TensorSpec`` of a batch or arrays, nested as the model takes them.
        parts: In how many parts either half of the batch is taken.

    Returns:
        The number of bytes.
    """
    flat = [
        tf.TensorSpec(t.shape, tf.as_dtype(keras.backend.standardize_dtype(t.dtype)))
        for t in keras.tree.flatten(batch)
    ]
    n = flat[0].shape[0] if parts == 1 else 2 * -(-flat[0].shape[0] // (2 * parts))

    def step(*tensors: tf.Tensor) -> Any:
        x = keras.tree.pack_sequence_as(batch, tensors)
        loss, gradients = loss_and_gradient(make_pair(), x, sources)
        return loss.total, [g for g in gradients if g is not None]

    sums = sum(v.shape.num_elements() * v.dtype.size for v in sources) if parts > 1 else 0
    return sums + peak_memory(step, [tf.TensorSpec([n, *s.shape[1:]], s.dtype) for s in flat])


def parts_within(limit: int, samples: int, estimate: Callable[[int], int]) -> int:
    """Return in how many parts either half of a batch fits in memory.

    Args:
        limit: The number of bytes there are.
        samples: The number of samples of a batch.
        estimate: Parts to the number of bytes that a step needs.

    Returns:
        The smallest number of parts that fits, of 1, 2, 4, ...

    Raises:
        ValueError: If not even two samples fit.
    """
    most = (samples + 1) // 2
    parts = 1
    whole = needed = estimate(parts)
    while needed > limit and parts < most:
        parts = min(2 * parts, most)
        needed = estimate(parts)
    if needed > limit:
        raise ValueError(
            "A step does not fit in memory_limit, not even taken for two samples at a time. Set "
            "output_projections to a small number such as 8, so that fewer derivatives are held, "
            "or outputs='trace'; make the inputs smaller; or raise the limit. Received: "
            f"memory_limit={limit} ({written(limit)}), while a batch of {samples} needs "
            f"{written(whole)} and two samples {written(needed)}"
        )
    return parts


def written(size: float) -> str:
    """Write a number of bytes for a reader.

    >>> written(3 * 2**30), written(700_000)
    ('3.0 GiB', '0.7 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
