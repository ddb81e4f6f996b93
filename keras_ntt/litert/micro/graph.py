"""DECODE operators in a model: put them before the readers of encoded weights, or resolve them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro.decode import Channels, Encoded, decode, method_of

CODE = b"TFLM_DECODE"

Key = tuple[int, int]
"""Graph and tensor."""


class Decoded(NamedTuple):
    """A tensor that a DECODE operator unpacks.

    Attributes:
        output: Number of the tensor that is unpacked.
        encoded: Number of the tensor of bits, code words or indices.
        ancillary: Number of the tensor of the header and values.
    """

    output: int
    encoded: int
    ancillary: int


def is_decode(model: Any, operator: Any) -> bool:
    """Return whether an operator is TensorFlow Lite Micro's DECODE."""
    return fb.operator_name(model, operator) == CODE.decode()


def decoded_of(operator: Any) -> list[Decoded]:
    """Return the tensors that a DECODE operator unpacks.

    Args:
        operator: The operator.

    Returns:
        One entry per output.

    Raises:
        FileFormatError: If it does not have two inputs for each output.
    """
    inputs, outputs = [[int(i) for i in side] for side in (operator.inputs, operator.outputs)]
    if len(inputs) != 2 * len(outputs) or min([*inputs, *outputs], default=-1) < 0:
        raise fb.FileFormatError(
            "The LiteRT file is damaged: a DECODE operator takes two inputs for each output. "
            f"Export the file again. Received: {len(inputs)} inputs, {len(outputs)} outputs"
        )
    return list(map(Decoded, outputs, inputs[::2], inputs[1::2]))


def encoded_of(model: Any, subgraph: Any, entry: Decoded) -> Encoded:
    """Return the two vectors of an encoded weight.

    Args:
        model: A ``ModelT``.
        subgraph: One of its graphs.
        entry: An entry of `decoded_of` for one of its operators.

    Returns:
        The encoded weight.

    Raises:
        FileFormatError: If they are not constants of bytes.
    """
    vectors = [fb.constant(model, subgraph.tensors[i]) for i in entry[1:]]
    encoded, ancillary = [
        None if v is None or v.dtype != np.uint8 else v.reshape(-1) for v in vectors
    ]
    if encoded is None or ancillary is None:
        raise fb.FileFormatError(
            "The LiteRT file is damaged: DECODE unpacks constants of uint8 only. Export the file "
            f"again. Received: tensors {entry.encoded} and {entry.ancillary} without such data"
        )
    return Encoded(method_of(ancillary), encoded, ancillary)


def channels_of(tensor: Any) -> Channels:
    """Return the zero points of a tensor, one per scale, and their axis."""
    quantization = tensor.quantization
    zero_points = getattr(quantization, "zeroPoint", None)
    if zero_points is None or len(zero_points) == 0:
        scales = getattr(quantization, "scale", None)
        zero_points = [0] * (0 if scales is None else len(scales))
    return Channels(
        tuple(int(z) for z in zero_points), getattr(quantization, "quantizedDimension", 0)
    )


def value_of(model: Any, subgraph: Any, entry: Decoded) -> np.ndarray:
    """Return the weight that a DECODE operator unpacks.

    Args:
        model: A ``ModelT``.
        subgraph: One of its graphs.
        entry: An entry of `decoded_of` for one of its operators.

    Returns:
        The weight.

    Raises:
        FileFormatError: If it cannot be unpacked.
    """
    tensor = subgraph.tensors[entry.output]
    dtype = fb.dtypes().get(tensor.type)
    if dtype is None:
        raise fb.FileFormatError(
            "The LiteRT file is damaged: DECODE has an output of a type that it cannot unpack. "
            f"Export the file again. Received: type number {tensor.type}"
        )
    encoded = encoded_of(model, subgraph, entry)
    shape = tuple(int(s) for s in tensor.shape)
    return decode(encoded.encoded, encoded.ancillary, shape, dtype, channels_of(tensor))


def decodes(model: Any) -> Iterator[tuple[Any, Decoded]]:
    """Yield each tensor that DECODE unpacks, with its graph."""
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if is_decode(model, operator):
                for entry in decoded_of(operator):
                    yield subgraph, entry


def insert(model: Any, weights: Mapping[Key, Encoded]) -> Any:
    """Return a copy of a model in which DECODE operators unpack some weights.

    One DECODE is inserted directly before each operator that reads such weights, and unpacks all
    weights of this operator. Operators that read the same weight share its encoded form.

    Args:
        model: A ``ModelT`` with these weights as constants. It is not changed.
        weights: The encoded form of each, by graph and tensor.

    Returns:
        The new ``ModelT``, without the bytes of the constants.
    """
    model = fb.copy_of(model)
    by_graph: dict[int, dict[int, Encoded]] = {}
    for (number, index), encoded in weights.items():
        by_graph.setdefault(number, {})[index] = encoded
    for number, chosen in by_graph.items():
        _insert(model, model.subgraphs[number], chosen)
    drop_tensors(model)
    fb.drop_unused(model)
    return model


def _insert(model: Any, subgraph: Any, chosen: Mapping[int, Encoded]) -> None:
    sources = {}
    for index, encoded in chosen.items():
        subgraph.tensors[index].buffer = 0
        quantization = subgraph.tensors[index].quantization
        if len(channels_of(subgraph.tensors[index]).zero_points) == 1:
            quantization.quantizedDimension = 0  # DECODE refuses another one with a single scale
        sources[index] = [_bytes_tensor(model, subgraph, vector) for vector in encoded[1:]]
    code, placed, operators = _decode_code(model), set[int](), []
    for operator in subgraph.operators:
        reads = list(dict.fromkeys(int(i) for i in operator.inputs if int(i) in chosen))
        if reads:
            outputs = {}
            for index in reads:
                outputs[index] = index
                if index in placed:
                    subgraph.tensors.append(copy.copy(subgraph.tensors[index]))
                    outputs[index] = len(subgraph.tensors) - 1
                placed.add(index)
            unpack = fb.schema().OperatorT()
            unpack.opcodeIndex = code
            unpack.inputs = np.array([i for index in reads for i in sources[index]], np.int32)
            unpack.outputs = np.array(list(outputs.values()), np.int32)
            operators.append(unpack)
            moved = [outputs.get(int(i), int(i)) for i in operator.inputs]
            operator.inputs = np.array(moved, np.int32)
        operators.append(operator)
    subgraph.operators = operators


def _bytes_tensor(model: Any, subgraph: Any, vector: np.ndarray) -> int:
    tensor = fb.schema().TensorT()
    tensor.name, tensor.shape = b"", np.array([len(vector)], np.int32)
    tensor.type, tensor.buffer = fb.type_of(np.uint8), fb.add_buffer(model, vector)
    subgraph.tensors.append(tensor)
    return len(subgraph.tensors) - 1


def _decode_code(model: Any) -> int:
    """Return the number of DECODE in the model's list of operators, where it is added."""
    custom = fb.schema().BuiltinOperator.CUSTOM
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == custom and code.customCode == CODE:
            return index
    code = fb.schema().OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = custom
    code.customCode, code.version = CODE, 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def resolve(model: Any) -> Any:
    """Return a copy of a model whose encoded weights are constants again.

    Args:
        model: A ``ModelT``. It is not changed.

    Returns:
        The new ``ModelT``, without DECODE operators.

    Raises:
        FileFormatError: If a weight cannot be unpacked.
    """
    model = fb.copy_of(model)
    shared: dict[tuple[int, int, bytes], int] = {}
    for subgraph, entry in list(decodes(model)):
        value = value_of(model, subgraph, entry)
        key = (entry.encoded, entry.ancillary, value.tobytes())
        if key not in shared:
            shared[key] = fb.add_buffer(model, value)
        subgraph.tensors[entry.output].buffer = shared[key]
    for subgraph in model.subgraphs:
        subgraph.operators = [op for op in subgraph.operators if not is_decode(model, op)]
    drop_codes(model)
    drop_tensors(model)
    fb.drop_unused(model)
    return model


def drop_codes(model: Any) -> None:
    """Remove unused entries from the model's list of operators."""
    operators = [op for subgraph in model.subgraphs for op in subgraph.operators]
    kept = sorted({op.opcodeIndex for op in operators})
    for operator in operators:
        operator.opcodeIndex = kept.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[index] for index in kept]


def drop_tensors(model: Any) -> None:
    """Remove the tensors that no operator reads or writes and that are not inputs or outputs.

    TensorFlow Lite Micro gives memory to each tensor without data, whether it is read or not.
    """
    for number, subgraph in enumerate(model.subgraphs):
        kept = {int(i) for i in [*subgraph.inputs, *subgraph.outputs]}
        for operator in subgraph.operators:
            kept |= {int(i) for i in _numbers_of(operator) if i >= 0}
        renumbered = {old: new for new, old in enumerate(sorted(kept))}
        renumbered[-1] = -1
        subgraph.tensors = [subgraph.tensors[index] for index in sorted(kept)]
        for owner in (subgraph, *subgraph.operators):
            for name in ("inputs", "outputs", "intermediates"):
                numbers = getattr(owner, name, None)
                if numbers is not None:
                    new = [renumbered[int(i)] for i in numbers]
                    setattr(owner, name, np.array(new, np.int32))
        for signature in model.signatureDefs:
            if signature.subgraphIndex == number:
                for entry in [*(signature.inputs or []), *(signature.outputs or [])]:
                    entry.tensorIndex = renumbered[entry.tensorIndex]


def _numbers_of(operator: Any) -> list[int]:
    intermediates = operator.intermediates
    inside = [] if intermediates is None else intermediates
    return [*operator.inputs, *operator.outputs, *inside]
