"""LiteRT files as objects: read and validate, look things up, add to them, write.

The classes are those that the schema's compiler generates; they ship with ai-edge-litert and
TensorFlow. Only this module knows how a file is laid out in bytes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.litert.format import builder

IDENTIFIER = b"TFL3"


class FileFormatError(ValueError):
    """A file is not a LiteRT model, or a damaged one."""


class Use(NamedTuple):
    """A place where a tensor is read: the operator, and which of its inputs it is."""

    operator: Any
    position: int


@functools.cache
def schema() -> ModuleType:
    """Return the module of the schema's generated classes.

    Returns:
        The module, of ai-edge-litert if it is installed, else of TensorFlow.
    """
    try:
        from ai_edge_litert import schema_py_generated as generated
    except ImportError:
        from tensorflow.lite.python import schema_py_generated as generated
    return generated


@functools.cache
def _names(enumeration: str) -> dict[int, str]:
    members = vars(getattr(schema(), enumeration))
    return {number: name for name, number in members.items() if isinstance(number, int)}


@functools.cache
def dtypes() -> dict[int, np.dtype]:
    """Return the NumPy type of each type of tensor that has one of fixed size."""
    names = "float32 float16 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool"
    kinds = vars(schema().TensorType)
    return {kinds[name.upper()]: np.dtype(name) for name in names.split() if name.upper() in kinds}


def type_of(dtype: Any) -> int:
    """Return the schema's number of a NumPy type."""
    return next(number for number, known in dtypes().items() if known == np.dtype(dtype))


# --- reading ---------------------------------------------------------------------------------


def read(content: bytes) -> Any:
    """Unpack a file and check that its parts fit together.

    Args:
        content: The file.

    Returns:
        A ``ModelT`` of the schema. Its vectors are lists or arrays, never None.

    Raises:
        FileFormatError: If the content is no LiteRT model, or is cut off or damaged.
    """
    if len(content) < 8 or content[4:8] != IDENTIFIER:
        raise FileFormatError(
            "This is not a LiteRT (TFLite) model: the mark TFL3 is missing from its beginning. "
            f"Received: {len(content):,} bytes that begin with {bytes(content[:8])!r}"
        )
    generated = schema()
    try:
        model = generated.ModelT.InitFromObj(generated.Model.GetRootAs(bytearray(content), 0))
        _normalize(model)
        _validate(model)
    except FileFormatError:
        raise
    except Exception as error:  # damaged offsets make the generated classes raise anything
        raise damaged(content, error) from error
    return model


def damaged(content: bytes, error: Exception) -> FileFormatError:
    """Return the error to raise for a file whose parts raise another error when they are read."""
    return FileFormatError(
        "The LiteRT file is cut off or damaged. Copy or export it again. "
        f"Received: {len(content):,} bytes, {type(error).__name__}: {error}"
    )


def _normalize(model: Any) -> None:
    """Replace vectors that are absent by empty ones."""
    for owner, names in _vectors(model):
        for name in names:
            if getattr(owner, name) is None:
                setattr(owner, name, [])


def _vectors(model: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    yield model, ("subgraphs", "operatorCodes", "buffers", "metadata", "signatureDefs")
    for subgraph in model.subgraphs:
        yield subgraph, ("tensors", "operators", "inputs", "outputs")
        for operator in subgraph.operators:
            yield operator, ("inputs", "outputs")
        for tensor in subgraph.tensors:
            yield tensor, ("shape",)


def _validate(model: Any) -> None:
    _require(model.subgraphs, "it has no graph")
    for subgraph in model.subgraphs:
        count = len(subgraph.tensors)
        for tensor in subgraph.tensors:
            _validate_tensor(model, tensor)
        for operator in subgraph.operators:
            _require(
                0 <= operator.opcodeIndex < len(model.operatorCodes),
                f"an operator has number {operator.opcodeIndex} of {len(model.operatorCodes)}",
            )
            _require_indices("an operator", [*operator.inputs, *operator.outputs], -1, count)
        _require_indices("a graph", [*subgraph.inputs, *subgraph.outputs], 0, count)
    for entry in model.metadata:
        _require_indices("metadata", [entry.buffer], 0, len(model.buffers))
    for signature in model.signatureDefs:
        _require_indices("a signature", [signature.subgraphIndex], 0, len(model.subgraphs))


def _validate_tensor(model: Any, tensor: Any) -> None:
    name = name_of(tensor)
    _require_indices(f"tensor {name!r}", [tensor.buffer], 0, len(model.buffers))
    _require(all(size >= 0 for size in tensor.shape), f"tensor {name!r} has a negative size")
    data, dtype = model.buffers[tensor.buffer].data, dtypes().get(tensor.type)
    if data is None or len(data) == 0 or dtype is None or tensor.sparsity is not None:
        return
    wanted = int(np.prod([int(s) for s in tensor.shape], dtype=object)) * dtype.itemsize
    _require(len(data) == wanted, f"tensor {name!r} has {len(data)} bytes instead of {wanted}")


def _require_indices(what: str, indices: Any, low: int, high: int) -> None:
    for index in indices:
        _require(low <= index < high, f"{what} points to number {index} of {high}")


def _require(condition: Any, what: str) -> None:
    if not condition:
        raise FileFormatError(
            f"The LiteRT file is damaged: {what}. Copy or export it again. Received: {what}"
        )


# --- looking ---------------------------------------------------------------------------------


def name_of(tensor: Any) -> str:
    """Return the name of a tensor as text."""
    name = tensor.name or b""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def operator_name(model: Any, operator: Any) -> str:
    """Return the name of an operator, such as ``"CONV_2D"``; of a custom one its own name."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if number == schema().BuiltinOperator.CUSTOM and code.customCode:
        return bytes(code.customCode).decode("utf-8", "replace")
    return _names("BuiltinOperator").get(number, f"operator {number}")


def operator_version(model: Any, operator: Any) -> int:
    """Return the version of an operator."""
    return int(model.operatorCodes[operator.opcodeIndex].version)


def option_name(enumeration: str, number: int) -> str:
    """Return the name of an option's value, such as ``option_name("Padding", 0)``: ``"SAME"``."""
    return _names(enumeration).get(number, str(number))


def constant(model: Any, tensor: Any) -> np.ndarray | None:
    """Return the values of a constant, densely stored tensor of a fixed-size type.

    Args:
        model: The model.
        tensor: One of its tensors.

    Returns:
        The array, or None if the tensor is not constant, is sparse or of another type.
    """
    data, dtype = model.buffers[tensor.buffer].data, dtypes().get(tensor.type)
    if data is None or len(data) == 0 or dtype is None or tensor.sparsity is not None:
        return None
    return np.frombuffer(_bytes(data), dtype).reshape(tuple(tensor.shape))


def _bytes(data: Any) -> bytes:
    return data.tobytes() if isinstance(data, np.ndarray) else bytes(data)


def uses(subgraph: Any) -> dict[int, list[Use]]:
    """Return where each tensor is read: ``index -> uses``."""
    found: dict[int, list[Use]] = {}
    for operator in subgraph.operators:
        for position, index in enumerate(operator.inputs):
            if index >= 0:
                found.setdefault(int(index), []).append(Use(operator, position))
    return found


def producers(subgraph: Any) -> dict[int, Any]:
    """Return the operator that computes each tensor: ``index -> operator``."""
    return {int(index): op for op in subgraph.operators for index in op.outputs}


# --- adding and writing ----------------------------------------------------------------------


def copy_of(model: Any) -> Any:
    """Return a copy of a model that shares the bytes of its buffers, which are never written to."""
    buffers = {id(b.data): b.data for b in model.buffers if b.data is not None}
    return copy.deepcopy(model, buffers)


def add_buffer(model: Any, data: np.ndarray) -> int:
    """Add a buffer with the bytes of an array.

    Returns:
        Its number.
    """
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def operator_code(model: Any, name: str, version: int) -> int:
    """Return the number of an operator and version in the model's list, where it is added.

    Returns:
        Its number.
    """
    number = getattr(schema().BuiltinOperator, name)
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version == version:
            return index
    code = schema().OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def drop_unused(model: Any) -> None:
    """Remove the buffers that nothing refers to, so that their bytes leave the file.

    Buffer 0 is the empty one by convention, which all tensors that are not constant share.
    """
    tensors = [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors]
    for tensor in tensors:
        data = model.buffers[tensor.buffer].data
        if data is None or len(data) == 0:
            tensor.buffer = 0
    owners = tensors + list(model.metadata)
    kept = sorted({0} | {owner.buffer for owner in owners})
    renumbered = {old: new for new, old in enumerate(kept)}
    model.buffers = [model.buffers[index] for index in kept]
    for owner in owners:
        owner.buffer = renumbered[owner.buffer]


def write(model: Any) -> bytes:
    """Pack a model into the bytes of a file. Vectors and strings that are equal are stored once.

    Args:
        model: A ``ModelT`` of the schema.

    Returns:
        The file.

    Raises:
        FileFormatError: If the model keeps weights outside its tables.
    """
    for buffer in model.buffers:
        if getattr(buffer, "offset", 0) > 1:
            raise FileFormatError(
                "The LiteRT file keeps weights outside its tables, as files above 2 GB do, which "
                f"cannot be rewritten. Received: a buffer at offset {buffer.offset:,}"
            )
    return builder.pack(model, schema(), IDENTIFIER)
