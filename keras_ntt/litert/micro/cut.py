"""Cut layers into pieces with some outputs each, so that less is unpacked at a time.

The outputs are identical bit by bit: each output channel has its own weights, bias and scale, and
CONCATENATION of tensors of one scale copies.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro.graph import Key

MOST = 10  # inputs that the runtime's CONCATENATION takes
_STEP = 4  # channels: kernels with vectors compute four at a time
_VERSION = {"int8": 2, "int16": 3}  # of CONCATENATION


def bounds(channels: int, pieces: int) -> list[tuple[int, int]]:
    """Return where to cut, in steps of four channels where there are enough.

    Args:
        channels: Output channels.
        pieces: The maximum number of pieces.

    Returns:
        First channel and end of each piece.

    Examples:
        >>> bounds(10, 2), bounds(3, 2)
        ([(0, 8), (8, 10)], [(0, 2), (2, 3)])
    """
    size = -(-channels // pieces)
    if channels >= _STEP * pieces:
        size = -(-size // _STEP) * _STEP
    return [(start, min(start + size, channels)) for start in range(0, channels, size)]


def may_be_cut(model: Any, key: Key) -> bool:
    """Return whether all operators that read a weight can compute their outputs in pieces.

    Args:
        model: A ``ModelT``.
        key: Graph and tensor of the weight.

    Returns:
        Whether they are fully-connected operators, or convolutions of one group.
    """
    subgraph = model.subgraphs[key[0]]
    weight = subgraph.tensors[key[1]]
    for operator, position in fb.uses(subgraph).get(key[1], []):
        name = fb.operator_name(model, operator)
        inputs = [int(i) for i in operator.inputs]
        source, bias = subgraph.tensors[inputs[0]], inputs[2] if len(inputs) > 2 else -1
        grouped = name == "CONV_2D" and int(source.shape[-1]) != int(weight.shape[-1])
        constant = bias < 0 or fb.constant(model, subgraph.tensors[bias]) is not None
        if position != 1 or name not in ("FULLY_CONNECTED", "CONV_2D") or grouped or not constant:
            return False
    return len(weight.shape) in (2, 4)


def cut(model: Any, pieces: Mapping[Key, int]) -> Any:
    """Return a copy of a model in which some layers are cut.

    Args:
        model: A ``ModelT``. It is not changed.
        pieces: The number of pieces, by graph and tensor of the weight.

    Returns:
        The new ``ModelT``. The whole weights are still in it, but nothing reads them.
    """
    model = fb.copy_of(model)
    code = None
    for number, subgraph in enumerate(model.subgraphs):
        weights = {index: count for (graph, index), count in pieces.items() if graph == number}
        made: dict[tuple[int, int, int], int] = {}
        operators = []
        for operator in subgraph.operators:
            index = int(operator.inputs[1]) if len(operator.inputs) > 1 else -1
            wanted = weights.get(index, 1)
            places = bounds(int(subgraph.tensors[index].shape[0]), wanted) if wanted > 1 else []
            if len(places) < 2:
                operators.append(operator)
                continue
            output = subgraph.tensors[int(operator.outputs[0])]
            if code is None:
                version = _VERSION.get(fb.dtypes()[output.type].name, 1)
                code = fb.operator_code(model, "CONCATENATION", version)
            parts = _pieces(model, subgraph, operator, places, made)
            operators += [*parts, _joined(operator, parts, code, len(output.shape) - 1)]
        subgraph.operators = operators
    return model


def _pieces(
    model: Any,
    subgraph: Any,
    operator: Any,
    places: list[tuple[int, int]],
    made: dict[tuple[int, int, int], int],
) -> list[Any]:
    inputs = [int(i) for i in operator.inputs]
    found = []
    for start, end in places:
        part = copy.copy(operator)
        taken = list(inputs)
        for position in (1, 2):
            if position < len(inputs) and inputs[position] >= 0:
                key = (inputs[position], start, end)
                if key not in made:
                    made[key] = _rows(model, subgraph, *key)
                taken[position] = made[key]
        output = copy.copy(subgraph.tensors[int(operator.outputs[0])])
        output.shape = np.array([*output.shape[:-1], end - start], np.int32)
        output.name, output.shapeSignature = b"", None
        subgraph.tensors.append(output)
        part.inputs = np.array(taken, np.int32)
        part.outputs = np.array([len(subgraph.tensors) - 1], np.int32)
        found.append(part)
    return found


def _rows(model: Any, subgraph: Any, index: int, start: int, end: int) -> int:
    """Add a tensor with some rows of a constant, and their scales."""
    whole = subgraph.tensors[index]
    array = fb.constant(model, whole)
    assert array is not None
    part = copy.copy(whole)
    part.shape = np.array([end - start, *array.shape[1:]], np.int32)
    part.name = f"{fb.name_of(whole)} {start}:{end}".encode()
    part.buffer = fb.add_buffer(model, array[start:end])
    if whole.quantization is not None:
        part.quantization = copy.copy(whole.quantization)
        for name in ("scale", "zeroPoint", "min", "max"):
            values = getattr(whole.quantization, name)
            if values is not None and len(values) == len(array):
                setattr(part.quantization, name, np.asarray(values)[start:end])
    subgraph.tensors.append(part)
    return len(subgraph.tensors) - 1


def _joined(operator: Any, parts: list[Any], code: int, axis: int) -> Any:
    generated = fb.schema()
    joined = generated.OperatorT()
    joined.opcodeIndex = code
    joined.inputs = np.array([int(part.outputs[0]) for part in parts], np.int32)
    joined.outputs = operator.outputs
    joined.builtinOptionsType = generated.BuiltinOptions.ConcatenationOptions
    joined.builtinOptions = generated.ConcatenationOptionsT()
    joined.builtinOptions.axis = axis
    return joined
