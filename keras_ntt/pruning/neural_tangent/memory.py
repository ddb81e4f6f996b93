"""Estimate from the graph how much memory a step needs, before it runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host, memory
from keras_ntt.core.memory import written
from keras_ntt.pruning.neural_tangent.gradient import loss_and_gradient
from keras_ntt.pruning.neural_tangent.objective import Pair

# Operations that return their input under another name or shape.
_VIEWS = {
    "EnsureShape", "ExpandDims", "Identity", "IdentityN", "PreventGradient", "Reshape", "Squeeze",
    "StopGradient",
}  # fmt: skip

# How many copies of an activation's derivatives are held, at most: forwards, backwards, patches.
_COPIES = 16
# A step that needs a larger part of the memory gets a warning: estimates are off by a third.
_CLOSE = 0.8
# Outputs, or steps of a sequence, if their number is unknown.
_GUESS = 64


def peak_memory(function: Callable, specs: Sequence[tf.TensorSpec]) -> int:
    """Return the most memory that the tensors of a function need at one time, in bytes.

    The operations are assumed to run in the order of their creation, and each tensor exists from
    its operation to the last one that reads it. Buffers inside operations, and operations of
    independent branches that run at the same time, are not counted. The estimate is right within
    about a third.

    Args:
        function: A function of tensors.
        specs: Their fully known shapes, and dtypes.

    Returns:
        The number of bytes, apart from variables.
    """
    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    return _peak(traced.graph)


def _peak(graph: tf.Graph) -> int:
    operations = _needed(graph)
    home: dict[Any, Any] = {}  # tensor -> the tensor whose memory it shares
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
    """Return the operations that the outputs depend on, in the order of their creation."""
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
    """Return the bytes of a list of tensors; only loops fill lists of a known size."""
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
        parts: The number of parts of each half of the batch.

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
    """Return the number of parts of each half of a batch with which a step fits in memory.

    Args:
        limit: The number of available bytes.
        samples: The number of samples of a batch.
        estimate: A function from the number of parts to the bytes that a step needs.

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


def check_room(
    model: keras.Model, batch: Any, estimate: Callable[[], int], *, combinations: int | None = None
) -> None:
    """Raise if a step needs more memory than there is.

    A step that is far below the limit by a rough bound is not estimated, because the estimate takes
    as long as compiling the step.

    Args:
        model: The student.
        batch: ``tf.TensorSpec`` of a batch, fully known.
        estimate: Returns the number of bytes that a step needs.
        combinations: The number of combinations that replace the outputs, or None.

    Raises:
        ValueError: If there is not enough memory; the message says what to set.

    Warns:
        UserWarning: If the memory is only just enough.
    """
    if tf.config.list_logical_devices("GPU"):  # a GPU has its own memory
        return
    there = memory.available()
    if there is None or rough_bound(model, batch, combinations) < there / 2:
        return
    needed = estimate()
    if needed < _CLOSE * there:
        return
    samples = keras.tree.flatten(batch)[0].shape[0]
    said = (
        f"A step needs about {written(needed)}, and there are {written(there)} of memory left. Set "
        "output_projections to a small number such as 8, so that fewer derivatives are held; set "
        f"memory_limit={there // 2}, so that the step is taken in blocks with the same result; or "
        f"make batch_size smaller. Received: batches of {samples} samples for the model "
        f"{model.name!r} with {_outputs(model)} outputs"
    )
    if needed > there:
        raise ValueError(said)
    warnings.warn(said, stacklevel=3)


def rough_bound(model: keras.Model, batch: Any, combinations: int | None) -> float:
    """Return more bytes than a step is likely to need, without tracing it.

    Derivatives of each output with respect to each activation of a batch are held several times,
    and for each layer the kernel of the two halves.

    Args:
        model: The student.
        batch: ``tf.TensorSpec`` of a batch, fully known.
        combinations: The number of combinations that replace the outputs, or None.
    """
    samples = keras.tree.flatten(batch)[0].shape[0]
    outputs = combinations or _outputs(model)
    activations, layers = _activations(model)
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    held = samples * outputs * activations * _COPIES
    kernels = (samples * outputs / 2) ** 2 * layers * 4
    return 4.0 * (held + kernels + weights * _COPIES)


def _outputs(model: keras.Model) -> int:
    """Return how many outputs a sample has; for custom code it is a guess."""
    graph: Any = host.functional_of(model)
    return _GUESS if graph is None else _entries(graph.outputs)


def _activations(model: keras.Model) -> tuple[int, int]:
    """Return how many numbers all layers return for a sample, and how many layers have weights."""
    graph: Any = host.functional_of(model)
    if graph is None:  # custom code: a guess
        layers = sum(bool(host.own_variables(layer)) for layer in host.layers_of(model))
        return model.count_params(), max(layers, 1)
    total = count = 0
    for node in host.nodes_in_order(graph):
        total += _entries(node.output_tensors) + _inside(node.operation, node.input_tensors)
        if isinstance(node.operation, keras.Model):
            more, layers = _activations(node.operation)
            total, count = total + more, count + layers
        else:
            count += bool(getattr(node.operation, "trainable_variables", ()))
    return total, count


def _inside(operation: Any, inputs: Any) -> int:
    """Return how many numbers, without its outputs, a layer holds for a sample while it computes.

    Recurrent layers have gates and states for each step; attention has a number for each two
    positions.
    """
    if not inputs:
        return 0
    positions = math.prod(side or _GUESS for side in inputs[0].shape[1:-1])
    if isinstance(operation, keras.layers.RNN | keras.layers.Bidirectional):
        return positions * sum(int(v.shape[-1]) for v in operation.trainable_variables)
    heads = getattr(operation, "num_heads", None) or getattr(operation, "num_query_heads", 0)
    width = sum(math.prod(v.shape[1:]) for v in getattr(operation, "trainable_variables", ()))
    return positions * (heads * positions + width) if heads else 0


def _entries(tensors: Any) -> int:
    """Return how many numbers tensors hold for a sample, with a guess for unknown sizes."""
    return sum(
        math.prod(side or _GUESS for side in t.shape[1:]) for t in keras.tree.flatten(tensors)
    )
