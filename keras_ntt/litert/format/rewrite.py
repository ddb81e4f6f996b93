"""Store the weights of a LiteRT model as chosen: dense tensors become sparse ones."""

from __future__ import annotations

import collections
import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ntt.litert.format import encoding, storage
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.storage import Choice
from keras_ntt.litert.format.weights import PACKED, Weight

Key = tuple[int, int]
"""Graph and tensor."""

_DENSIFY, _DEQUANTIZE_CHANNELS, _SPARSE_FULLY_CONNECTED = 1, 5, 8  # operator versions


def rewrite(model: Any, weights: Mapping[Key, tuple[Weight, Choice]]) -> Any:
    """Return a copy of a model with its weights stored as chosen.

    A weight that is unpacked keeps its tensor, which DENSIFY or DEQUANTIZE now computes from a
    new one; operators that read it are not touched. A weight that is computed with directly
    becomes sparse in place, and its operators get the version that allows it.

    Args:
        model: A ``ModelT``. It is not changed.
        weights: What to change.

    Returns:
        The new ``ModelT``, without the bytes that are no longer used.
    """
    result = fb.copy_of(model)
    stored: dict[tuple[int, Choice], int] = {}  # constants that share a buffer go on sharing
    for (number, index), (weight, choice) in weights.items():
        subgraph = result.subgraphs[number]
        if choice.storage == "dense" and not choice.is_packed:
            continue
        if choice.storage == "direct":
            _store(result, subgraph.tensors[index], weight, choice, stored)
            for use in fb.uses(subgraph)[index]:
                use.operator.opcodeIndex = fb.operator_code(
                    result, "FULLY_CONNECTED", _SPARSE_FULLY_CONNECTED
                )
        else:
            _unpack(result, subgraph, index, weight, choice, stored)
    fb.drop_unused(result)
    return result


def _store(
    model: Any, tensor: Any, weight: Weight, choice: Choice, stored: dict[tuple[int, Choice], int]
) -> np.ndarray | None:
    """Make a tensor hold a weight as chosen.

    Returns:
        The scales if integers are stored.
    """
    array, scales = weight.array, None
    if choice.is_packed:
        array, scales = storage.quantize(array, weight.axis, mixed=weight.mixed)
    values = array
    if choice.layout is not None:
        sparse = encoding.encode(array, choice.layout)
        tensor.sparsity, values = _parameters(sparse), sparse.values
    key = (id(model.buffers[tensor.buffer].data), choice)
    if key not in stored:
        stored[key] = fb.add_buffer(model, values)
    tensor.buffer = stored[key]
    return scales


def _unpack(
    model: Any,
    subgraph: Any,
    index: int,
    weight: Weight,
    choice: Choice,
    stored: dict[tuple[int, Choice], int],
) -> None:
    """Compute a weight's tensor from a new, packed one."""
    tensor = subgraph.tensors[index]
    packed = copy.copy(tensor)
    packed.name = (fb.name_of(tensor) + PACKED).encode()
    scales = _store(model, packed, weight, choice, stored)
    if scales is not None:
        packed.type = fb.type_of(np.int8)
        packed.quantization = _quantization(scales, weight.axis)
    tensor.buffer = 0
    subgraph.tensors.append(packed)
    source, steps = len(subgraph.tensors) - 1, []
    if choice.storage == "densify":
        target = index
        if scales is not None:
            unpacked = copy.copy(packed)
            packed.quantization = None  # of as many bytes as the scales; DENSIFY has no need
            unpacked.name = b""
            unpacked.sparsity, unpacked.buffer = None, 0
            subgraph.tensors.append(unpacked)
            target = len(subgraph.tensors) - 1
        steps.append(_operator(model, "DENSIFY", _DENSIFY, source, target))
        source = target
    if scales is not None:
        steps.append(_operator(model, "DEQUANTIZE", _DEQUANTIZE_CHANNELS, source, index))
    subgraph.operators = steps + list(subgraph.operators)


def trimmed(model: Any) -> Any:
    """Return a model without what no interpreter reads.

    Args:
        model: A ``ModelT``. It is not changed.

    Returns:
        The new ``ModelT``, which shares the bytes of the constants.
    """
    model = fb.copy_of(model)
    _shorten_names(model)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            q = tensor.quantization
            if q is not None and all(v is None for v in (q.scale, q.min, q.max, q.details)):
                tensor.quantization = None  # which the converter gives every tensor
    for entry in list(model.metadata):
        if entry.name == b"CONVERSION_METADATA":  # of the file as it was converted
            model.metadata.remove(entry)
    fb.drop_unused(model)
    return model


def _shorten_names(model: Any) -> None:
    """Leave what tells tensors apart of the names that the converter has given them.

    Names begin with that of the model, and operators that are fused, such as a convolution with its
    bias and activation, have the names of all of them, joined by semicolons: a good part of a small
    file. Inputs and outputs keep theirs.
    """
    for graph in model.subgraphs:
        outside = {int(i) for i in (*graph.inputs, *graph.outputs)}
        names = [fb.name_of(tensor).partition(";")[0] for tensor in graph.tensors]
        scopes = collections.Counter(n.partition("/")[0] for n in names if "/" in n)
        scope = next((f"{scope}/" for scope, _ in scopes.most_common(1)), "")
        taken = {fb.name_of(graph.tensors[i]) for i in outside}
        for index, (tensor, name) in enumerate(zip(graph.tensors, names, strict=True)):
            if index in outside or not name:
                continue
            short = name.removeprefix(scope)
            number, unique = 0, short
            while unique in taken:
                number += 1
                unique = f"{short}{number}"
            taken.add(unique)
            tensor.name = unique.encode()


def _operator(model: Any, name: str, version: int, source: int, target: int) -> Any:
    generated = fb.schema()
    operator = generated.OperatorT()
    operator.opcodeIndex = fb.operator_code(model, name, version)
    operator.inputs = np.array([source], np.int32)
    operator.outputs = np.array([target], np.int32)
    options = {"DENSIFY": "DensifyOptions", "DEQUANTIZE": "DequantizeOptions"}[name]
    operator.builtinOptionsType = getattr(generated.BuiltinOptions, options)
    operator.builtinOptions = getattr(generated, f"{options}T")()
    return operator


def _quantization(scales: np.ndarray, axis: int) -> Any:
    quantization = fb.schema().QuantizationParametersT()
    quantization.scale = scales.astype(np.float32)
    quantization.zeroPoint = np.zeros(len(scales), np.int64)
    quantization.quantizedDimension = axis
    return quantization


def _parameters(sparse: encoding.Sparse) -> Any:
    """Return the schema's form of the levels of a sparse array."""
    generated, layout = fb.schema(), sparse.layout
    rank = len(sparse.shape)
    cut = [axis for axis, block in enumerate(layout.blocks) if block > 1]
    order = [*layout.order, *range(rank, rank + len(cut))]
    parameters = generated.SparsityParametersT()
    parameters.traversalOrder = np.array(order, np.int32)
    parameters.blockMap = np.array(cut, np.int32) if cut else None
    parameters.dimMetadata = []
    for level in sparse.levels:
        entry = generated.DimensionMetadataT()
        if level.segments is None or level.indices is None:
            entry.format, entry.denseSize = generated.DimensionType.DENSE, level.size
        else:
            entry.format = generated.DimensionType.SPARSE_CSR
            entry.arraySegmentsType, entry.arraySegments = _vector(level.segments)
            entry.arrayIndicesType, entry.arrayIndices = _vector(level.indices)
        parameters.dimMetadata.append(entry)
    return parameters


def _vector(numbers: np.ndarray) -> tuple[int, Any]:
    generated = fb.schema()
    name = {"uint8": "Uint8Vector", "uint16": "Uint16Vector", "int32": "Int32Vector"}
    kind = name[numbers.dtype.name]
    vector = getattr(generated, f"{kind}T")()
    vector.values = numbers
    return getattr(generated.SparseIndexVector, kind), vector
