"""The memory that TensorFlow Lite Micro needs for a model, computed from the graph.

The runtime has one block of memory, the arena. Its head has activations, unpacked weights and
scratch buffers. A greedy planner places them: the largest buffer first, each at the lowest address
that is free during its lifetime. Its tail has persistent structures. The head is the same on all
targets with the reference kernels. The tail is that of a 64-bit host, which is larger than on a
microcontroller.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import WEIGHT_AXIS
from keras_ntt.litert.micro.decode import method_of
from keras_ntt.litert.micro.graph import CODE

ALIGNMENT = 16  # of each buffer of the arena

# Bytes of persistent structures on a 64-bit host, measured with the interpreter: the differences of
# graphs with one, two and three of an operator.
_BASE, _TENSOR, _OPERATOR, _PORT, _QUANTIZED_PORT = 552, 24, 64, 64, 32
_OWN = {
    "ADD": 72,
    "AVERAGE_POOL_2D": 72,
    "CONCATENATION": 104,
    "CONV_2D": 108,
    "DEPTHWISE_CONV_2D": 108,
    "DEQUANTIZE": 32,
    "ELU": 256,
    "EXPAND_DIMS": 16,
    "FULLY_CONNECTED": 112,
    "HARD_SWISH": 32,
    "L2_NORMALIZATION": 16,
    "LEAKY_RELU": 32,
    "LOGISTIC": 16,
    "MAXIMUM": 8,
    "MAX_POOL_2D": 72,
    "MEAN": 72,
    "MINIMUM": 8,
    "MUL": 56,
    "NEG": 8,
    "PAD": 64,
    "PRELU": 32,
    "QUANTIZE": 32,
    "REDUCE_MAX": 72,
    "RELU": 32,
    "RELU6": 16,
    "RESHAPE": 40,
    "RESIZE_BILINEAR": 8,
    "RESIZE_NEAREST_NEIGHBOR": 8,
    "SOFTMAX": 88,
    "SQUEEZE": 16,
    "STRIDED_SLICE": 128,
    "SUB": 72,
    "SUM": 72,
    "TANH": 16,
    "TRANSPOSE": 8,
    "TRANSPOSE_CONV": 120,
    CODE.decode(): 96,
}
_UNKNOWN = 128
_REDUCTIONS = ("MEAN", "SUM", "REDUCE_MAX")


class Plan(NamedTuple):
    """Bytes of an arena.

    Attributes:
        head: The peak of activations, unpacked weights and scratch.
        tail: Persistent structures on a 64-bit host, within a few dozen bytes.
        known: Whether all operators are among those whose memory is known. Otherwise the head may
            lack scratch memory.
    """

    head: int
    tail: int
    known: bool

    @property
    def total(self) -> int:
        """Bytes of both parts."""
        return self.head + self.tail


class Buffer(NamedTuple):
    """A part of the head.

    Attributes:
        size: Bytes, a multiple of `ALIGNMENT`.
        first: The operator before or in which its lifetime begins, counted from 1; 0 for inputs.
        last: The last operator that reads it.
    """

    size: int
    first: int
    last: int


def plan(model: Any) -> Plan:
    """Return the memory that TensorFlow Lite Micro needs for a model.

    Args:
        model: A ``ModelT`` of fixed shapes.

    Returns:
        The bytes of its arena.
    """
    known = len(model.subgraphs) == 1
    head = tail = 0
    for subgraph in model.subgraphs:
        names = [fb.operator_name(model, op) for op in subgraph.operators]
        known &= set(names) <= _OWN.keys()
        head += peak(buffers_of(model, subgraph))
        tail += _tail_of(model, subgraph, names)
    return Plan(head, _aligned(_BASE + tail), known)


def peak(buffers: list[Buffer]) -> int:
    """Return the bytes that the greedy planner needs for some buffers.

    Args:
        buffers: The buffers in the order of the runtime; of equal ones the last comes first.

    Returns:
        The end of the highest buffer.

    Examples:
        >>> peak([Buffer(32, 0, 1), Buffer(64, 1, 2), Buffer(16, 2, 3)])
        96
    """
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, -i))
    placed: list[tuple[int, int]] = []  # address and number
    end = 0
    for number in order:
        size, first, last = buffers[number]
        address = 0
        for start, other in sorted(placed, key=lambda entry: entry[0]):
            if buffers[other].first > last or first > buffers[other].last:
                continue
            if start - address >= size:
                break
            address = max(address, start + buffers[other].size)
        placed.append((address, number))
        end = max(end, address + size)
    return end


def buffers_of(model: Any, subgraph: Any) -> list[Buffer]:
    """Return the buffers of a graph in the head: tensors without data, and scratch.

    Args:
        model: A ``ModelT``.
        subgraph: One of its graphs.

    Returns:
        The buffers, in the order of the runtime.
    """
    first = {int(i): 0 for i in (*subgraph.inputs, *subgraph.outputs)}
    last = dict(first)
    scratch = []
    for scope, operator in enumerate(subgraph.operators, 1):
        for index in map(int, operator.outputs):
            first[index] = last[index] = scope
        for index in map(int, operator.inputs):
            if index >= 0:
                last[index] = scope
        sizes = _scratch_of(model, subgraph, operator)
        scratch += [Buffer(_aligned(size), scope, scope) for size in sizes]
    for index in map(int, subgraph.outputs):
        last[index] = len(subgraph.operators)
    tensors = []
    for index, tensor in enumerate(subgraph.tensors):
        data = model.buffers[tensor.buffer].data
        size = bytes_of(tensor)
        if (data is None or len(data) == 0) and not tensor.isVariable and size:
            begin = first.get(index, -1)
            tensors.append(Buffer(_aligned(size), begin, last.get(index, -1)))
    return tensors + scratch


def bytes_of(tensor: Any) -> int:
    """Return the bytes that a tensor takes unpacked."""
    dtype = fb.dtypes().get(tensor.type)
    return 0 if dtype is None else _entries(tensor) * dtype.itemsize


def _entries(tensor: Any) -> int:
    return int(np.prod([int(s) for s in tensor.shape], dtype=object))


def _scratch_of(model: Any, subgraph: Any, operator: Any) -> list[int]:
    """Return the bytes of each block of scratch that the reference kernel of an operator takes."""
    name = fb.operator_name(model, operator)
    if name == "TRANSPOSE_CONV":
        output = subgraph.tensors[int(operator.outputs[0])]
        width = {"int8": 4, "int16": 8}.get(fb.dtypes()[output.type].name, 0)
        return [_entries(output) * width] if width else []
    if name in _REDUCTIONS:
        source, axes = (subgraph.tensors[int(i)] for i in operator.inputs[:2])
        output = subgraph.tensors[int(operator.outputs[0])]
        sums = name != "REDUCE_MAX" and fb.dtypes()[source.type].kind == "i"
        return [4 * len(source.shape), 4 * _entries(axes), *([4 * _entries(output)] * sums)]
    return []


def _tail_of(model: Any, subgraph: Any, names: list[str]) -> int:
    total = _TENSOR * len(subgraph.tensors) + _OPERATOR * len(names)
    for index in (*subgraph.inputs, *subgraph.outputs):
        quantization = subgraph.tensors[int(index)].quantization
        total += _PORT + (_QUANTIZED_PORT if quantization is not None else 0)
    for name, operator in zip(names, subgraph.operators, strict=True):
        total += _OWN.get(name, _UNKNOWN)
        if name in WEIGHT_AXIS and len(operator.inputs) > 1:
            # Multipliers and shifts.
            total += 2 * _aligned(4 * _channels(model, subgraph, operator, name))
        if name == CODE.decode() and len(operator.inputs) > 1:
            ancillary = fb.constant(model, subgraph.tensors[int(operator.inputs[1])])
            if ancillary is not None and method_of(ancillary) != "pruning":
                total -= 16
    return total


def _channels(model: Any, subgraph: Any, operator: Any, name: str) -> int:
    """Return how many multipliers a kernel keeps: one per channel."""
    weight = subgraph.tensors[int(operator.inputs[1])]
    if name == "FULLY_CONNECTED":
        scales = getattr(weight.quantization, "scale", None)
        return 0 if scales is None or len(scales) < 2 else len(scales)
    return int(weight.shape[WEIGHT_AXIS[name]])


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
