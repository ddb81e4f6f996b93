"""Channels that do not depend on the inputs, and their values where they are read."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.channels.graph import ChannelGraph, Passage
from keras_ntt.core.channels.labels import labelled
from keras_ntt.core.channels.records import Reader

_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_MAKERS = (
    *(layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.SeparableConv1D, layers.SeparableConv2D, layers.Embedding),
    *_DEPTHWISE,
)


class Constants(NamedTuple):
    """The constants that a kernel reads.

    Attributes:
        known: Which of its input channels are constant, at all positions and for all inputs.
        values: The values of all, in float64; those that are not known mean nothing.
    """

    known: np.ndarray
    values: np.ndarray


class _NotRunError(Exception):
    """A sample of the sizes that were guessed does not go through a layer."""


def constants_read(graph: ChannelGraph) -> list[Constants]:
    """Return the constants that each reader of a graph reads.

    That a channel is constant follows from zeros in the weights; which constant it is, from the
    model run on one sample.

    Args:
        graph: The graph of a model.

    Returns:
        The constants, one a reader.
    """
    known: dict[int, set[int]] = {slot: set() for slot in graph.network.inputs}
    tensors = dict(zip(graph.network.inputs, _sample(graph), strict=True))
    zeros = _zero_slices(graph)
    try:
        for passage in graph.passages:
            _pass(graph, passage, tensors, known, zeros)
    except _NotRunError:
        known = {}
    found = []
    for reader in graph.readers:
        count = len(reader.labels)
        here = known.get(-1 if reader.slot is None else reader.slot, set())
        mask = np.array([label in here for label in reader.labels.tolist()], bool)
        values = np.zeros(count)
        if mask.any():
            assert reader.slot is not None
            values = _rows(tensors[reader.slot], reader.tensor_axis)[0].astype(np.float64)
        found.append(Constants(mask, values))
    return found


def run_on_sample(graph: ChannelGraph) -> dict[int, Any]:
    """Return the tensors of a model for one random sample, by slot; none if it cannot be run."""
    tensors = dict(zip(graph.network.inputs, _sample(graph), strict=True))
    for passage in graph.passages:
        call = passage.call
        args, kwargs = call.with_tensors([tensors[slot] for slot in call.inputs])
        try:
            outputs = keras.tree.flatten(call.operation(*args, **kwargs))
        except Exception:
            return {}  # a size that was guessed does not go through
        tensors.update(zip(call.outputs, outputs, strict=True))
    return tensors


def _sample(graph: ChannelGraph) -> list[Any]:
    rng = np.random.default_rng(0)
    found = []
    functional: Any = host.functional_of(graph.model)
    for tensor in functional.inputs:
        guess = 32 if len(tensor.shape) > 3 else 8
        shape = (tensor.shape[0] or 1, *(size or guess for size in tensor.shape[1:]))
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        value = rng.normal(size=shape) if "float" in dtype else np.zeros(shape)
        found.append(keras.ops.convert_to_tensor(value.astype(dtype)))
    return found


def _zero_slices(graph: ChannelGraph) -> dict[int, set[int]]:
    """Return by layer the channels whose kernels are all zero."""
    found: dict[int, set[int]] = {}
    for axis in graph.weights:
        layer, labels = axis.layer, axis.labels
        if not isinstance(layer, _MAKERS) or labels is None:
            continue
        makes = axis.role == "out" or isinstance(layer, _DEPTHWISE)
        if not makes or axis.variable is getattr(layer, "bias", None):
            continue
        value = np.moveaxis(host.array_of(axis.variable), axis.axis, -1)
        empty = ~np.any(value != 0, axis=tuple(range(value.ndim - 1)))
        full = set(labels[~empty].tolist())
        zero = set(labels[empty].tolist()) - full
        found[id(layer)] = found[id(layer)] & zero if id(layer) in found else zero
    return found


def _pass(
    graph: ChannelGraph,
    passage: Passage,
    tensors: dict[int, Any],
    known: dict[int, set[int]],
    zeros: dict[int, set[int]],
) -> None:
    """Run a call, and find out which channels of its outputs are constant."""
    call = passage.call
    args, kwargs = call.with_tensors([tensors[slot] for slot in call.inputs])
    try:
        outputs = keras.tree.flatten(call.operation(*args, **kwargs))
    except Exception as error:
        raise _NotRunError from error
    tensors.update(zip(call.outputs, outputs, strict=True))
    inputs = [(known[slot], graph.axes[slot], tensors[slot]) for slot in call.inputs]
    for slot in call.outputs:
        axes = graph.axes[slot]
        own = {label for labels in labelled(axes) for label in labels.tolist()}
        found = own & zeros.get(id(call.operation), set())
        if passage.constant == "all":
            found |= own.intersection(*(mine for mine, _, _ in inputs)) if inputs else set()
        elif passage.constant == "moved":
            lost = {
                label
                for mine, theirs, _ in inputs
                for labels in labelled(theirs)
                for label in set(labels.tolist()) - mine
            }
            found |= own - lost
        elif passage.constant == "padded":
            mine, theirs, value = inputs[0]
            found |= own & _zero_channels(value, theirs, mine)
        if passage.constant == "all" and _multiplies(call.operation):
            for mine, theirs, value in inputs:
                found |= own & _zero_channels(value, theirs, mine)
        known[slot] = _uniform(tensors[slot], axes, found) if found else set()


def _multiplies(operation: Any) -> bool:
    name = type(operation).__name__
    return isinstance(operation, layers.Multiply) or (
        name == "Multiply" and host.is_of_keras(operation, "ops")
    )


def _rows(tensor: Any, axis: int) -> np.ndarray:
    """Return a tensor as a matrix whose columns are the indices of an axis."""
    value = np.moveaxis(keras.ops.convert_to_numpy(tensor), axis, -1)
    return value.reshape(-1, value.shape[-1])


def _zero_channels(tensor: Any, axes: Any, among: set[int]) -> set[int]:
    """Return which of some channels are zero in a tensor."""
    found = set(among)
    for axis, labels in enumerate(axes):
        if labels is not None and found:
            rows = _rows(tensor, axis)
            found -= set(labels[(rows != 0).any(axis=0)].tolist())
    return found


def _uniform(tensor: Any, axes: Any, among: set[int]) -> set[int]:
    """Return which of some channels are the same at all positions of a tensor."""
    found = set(among)
    for axis, labels in enumerate(axes):
        if labels is not None and found:
            rows = _rows(tensor, axis)
            apart = np.abs(rows - rows[:1]).max(axis=0)
            found -= set(labels[~(apart <= 1e-6 * np.abs(rows).max(axis=0))].tolist())
    return found


def removable_units(
    graph: ChannelGraph, constants: list[Constants], kernels: dict[int, np.ndarray]
) -> set[int]:
    """Return the channels that nothing reads, or that are constants which a bias can hold.

    Args:
        graph: The graph.
        constants: What `constants_read` says of it.
        kernels: The kernels of the readers, by ``id(variable)``.

    Returns:
        The labels. Each of them can be removed with any others of them.
    """
    read: set[int] = set()
    living: set[int] = set()
    for reader, (known, values) in zip(graph.readers, constants, strict=True):
        rows = np.moveaxis(kernels[id(reader.kernel)], reader.axis, -1)
        used = np.any(rows != 0, axis=tuple(range(rows.ndim - 1)))
        foldable = known & ((values == 0) | (reader.exact and reader.bias is not None))
        living |= set(reader.labels[used & ~foldable].tolist())
        read |= set(reader.labels.tolist())
    return {
        label
        for label in graph.removable().tolist()
        if label in read - living and label not in graph.inexact and label not in graph.bilinear
    }


def mergeable_units(
    graph: ChannelGraph, constants: list[Constants], kernels: dict[int, np.ndarray]
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Return constants that no bias can hold, because zeros come in at the borders.

    Where the same kernels read several of them, one can stand for all: what the others contribute
    is proportional to what it does, at the borders as well.

    Args:
        graph: The graph.
        constants: What `constants_read` says of it.
        kernels: The kernels of the readers, by ``id(variable)``.

    Returns:
        For each such set of constants the numbers of the readers that cannot fold them, and the
        labels, the one that is to stand for the others first.
    """
    blocked: dict[int, list[int]] = {}
    excluded = set(graph.fixed) | set(graph.inexact) | set(graph.bilinear)
    value_of: dict[tuple[int, int], float] = {}
    for number, (reader, (known, values)) in enumerate(zip(graph.readers, constants, strict=True)):
        rows = np.moveaxis(kernels[id(reader.kernel)], reader.axis, -1)
        used = np.any(rows != 0, axis=tuple(range(rows.ndim - 1)))
        labels, counts = np.unique(reader.labels, return_counts=True)
        excluded |= set(labels[counts > 1].tolist()) | set(reader.labels[used & ~known].tolist())
        calls = sum(other.kernel is reader.kernel for other in graph.readers)
        for place in np.flatnonzero(used & known):
            label, value = int(reader.labels[place]), float(values[place])
            value_of[number, label] = value
            if value != 0 and not (reader.exact and reader.bias is not None):
                blocked.setdefault(label, []).append(number)
            if value != 0 and calls > 1:
                excluded.add(label)
    together: dict[tuple[int, ...], list[int]] = {}
    for label, numbers in blocked.items():
        if label not in excluded:
            together.setdefault(tuple(numbers), []).append(label)
    return [
        (numbers, sorted(labels, key=lambda c: -min(abs(value_of[n, c]) for n in numbers)))
        for numbers, labels in together.items()
        if len(labels) > 1
    ]


def folded(
    reader: Reader, constants: Constants, kernel: np.ndarray, bias: np.ndarray, gone: np.ndarray
) -> np.ndarray:
    """Return the bias of a reader after it has taken in the constants of some channels.

    Args:
        reader: The reader.
        constants: What it reads.
        kernel: Its kernel.
        bias: Its bias.
        gone: Which of its input channels go.

    Returns:
        The bias, ``b + sum of values x kernel``.
    """
    rows = np.moveaxis(kernel.astype(np.float64), reader.axis, -2)
    rows = rows.reshape(-1, *rows.shape[-2:]).sum(axis=0)  # [inputs, outputs]
    return (bias + constants.values[gone] @ rows[gone]).astype(bias.dtype)
