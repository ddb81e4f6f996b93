"""The weights of a LiteRT model that can be stored sparsely, and its sparse weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.encoding import Layout, Level, Sparse, decode
from keras_ntt.litert.micro.decode import Encoded
from keras_ntt.litert.micro.graph import decoded_of, encoded_of, is_decode, value_of

PACKED = "/packed"  # ends the name of a constant that is unpacked into the tensor of that name

# Operators whose input 1 is a weight, and the axis of the weight that counts output channels.
WEIGHT_AXIS = {"FULLY_CONNECTED": 0, "CONV_2D": 0, "TRANSPOSE_CONV": 0, "DEPTHWISE_CONV_2D": 3}
TABLE = "GATHER"  # reads rows of its input 0, as an Embedding does
LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
_LSTM_WEIGHTS = range(1, 9)  # its inputs: four of the sequence, four of the last outputs


@dataclass(frozen=True)
class Weight:
    """A constant weight of a model, stored densely.

    Attributes:
        subgraph: Number of its graph.
        tensor: Number of its tensor.
        name: The tensor's name.
        operators: Names of the operators that read it, without repetition.
        array: Its values.
        axis: The axis of output channels.
        mixed: Whether other weights mix its output channels before they leave the graph.
    """

    subgraph: int
    tensor: int
    name: str
    operators: tuple[str, ...]
    array: np.ndarray
    axis: int
    mixed: bool = False

    @property
    def half(self) -> bool:
        """Whether it is float16, which the model converts when it is read."""
        return self.array.dtype == np.float16

    @property
    def may_be_direct(self) -> bool:
        """Whether only fully-connected operators that accept sparse weights read it."""
        return self.operators == ("FULLY_CONNECTED",) and not self.half

    @property
    def may_be_unpacked(self) -> bool:
        """Whether all operators that read it give the right outputs after DENSIFY.

        XNNPACK gives NaN for transposed convolutions by float16 once the batch has been resized,
        for lookups in float16, and LiteRT for an LSTM.
        """
        return not self.half or not {"TRANSPOSE_CONV", TABLE, LSTM} & set(self.operators)

    @property
    def is_table(self) -> bool:
        """Whether its rows are looked up."""
        return self.operators == (TABLE,)

    @property
    def is_pointwise(self) -> bool:
        """Whether it belongs to 1x1 convolutions only."""
        return self.operators == ("CONV_2D",) and self.array.shape[1:3] == (1, 1)


@dataclass(frozen=True)
class Source:
    """The origin of a weight.

    Attributes:
        array: The constant's values as stored, or None if the weight is computed.
        way: Names of the operators between it and the one that reads it, last first.
        tensor: Number of the constant's tensor, -1 if there is none.
        scales: The factors of integers, one number or one per channel; None for floats.
        axis: The axis of these channels.
        encoded: Its encoded form, if DECODE unpacks it; `tensor` is then the unpacked tensor.
    """

    array: np.ndarray | None
    way: tuple[str, ...]
    tensor: int = -1
    scales: np.ndarray | None = None
    axis: int = 0
    encoded: Encoded | None = None

    @property
    def channels(self) -> int:
        """Number of scales, for integers."""
        return 0 if self.scales is None else len(self.scales)

    @property
    def numbers(self) -> np.ndarray | None:
        """The float32 numbers for the stored values, with zero points of 0."""
        if self.array is None or self.array.dtype.kind == "f" or self.scales is None:
            return None if self.array is None else self.array.astype(np.float32)
        shape = [1] * self.array.ndim
        shape[self.axis] = -1
        return self.array.astype(np.float32) * self.scales.reshape(shape)

    @property
    def is_densified(self) -> bool:
        """Whether a DENSIFY operator unpacks it."""
        return "DENSIFY" in self.way


def weights_of(model: Any) -> list[Weight]:
    """List the float weights that can be stored sparsely.

    These are constants that only fully-connected operators and convolutions read, as their weight,
    directly or, in float16 files, through DEQUANTIZE; and tables whose rows are looked up.

    Args:
        model: A ``ModelT``.

    Returns:
        The weights, in the order of their tensors.
    """
    found = []
    for number, subgraph in enumerate(model.subgraphs):
        uses = fb.uses(subgraph)
        ends = {int(i) for i in [*subgraph.inputs, *subgraph.outputs]}
        alone = unmixed(model, subgraph)
        for index, tensor in enumerate(subgraph.tensors):
            places = uses.get(index, [])
            if index in ends or not places:
                continue
            if _all_are(model, places, "DEQUANTIZE"):
                outputs = [int(use.operator.outputs[0]) for use in places]
                if ends & set(outputs):
                    continue
                places = [use for output in outputs for use in uses.get(output, [])]
            array = fb.constant(model, tensor)
            if array is None or array.dtype.kind != "f" or array.size == 0:
                continue
            names = tuple(sorted({fb.operator_name(model, use.operator) for use in places}))
            axes = {axis_of(name) for name in names}
            is_weight = places and all(_is_weight(model, use) for use in places) and len(axes) == 1
            axis = axes.pop() if is_weight else None
            shapes = (2,) if TABLE in names else (2, 4)
            if axis is not None and array.ndim in shapes and axis < array.ndim:
                name = fb.name_of(tensor)
                mixed = not any(int(use.operator.outputs[0]) in alone for use in places)
                found.append(Weight(number, index, name, names, array, axis, mixed))
    return found


def axis_of(name: str) -> int | None:
    """Return the axis of output channels of an operator's weights, or None if it has none."""
    return 0 if name in (LSTM, TABLE) else WEIGHT_AXIS.get(name)


def weights_read_by(model: Any, operator: Any) -> list[int]:
    """Return the tensors that an operator reads as its weights.

    Args:
        model: A ``ModelT``.
        operator: One of its operators.

    Returns:
        Their numbers: one of a convolution or a fully-connected operator, eight of an LSTM,
        the table of a lookup.
    """
    uses = [fb.Use(operator, place) for place in range(len(operator.inputs))]
    found = [int(operator.inputs[use.position]) for use in uses if _is_weight(model, use)]
    return [index for index in found if index >= 0]


def _is_weight(model: Any, use: fb.Use) -> bool:
    name = fb.operator_name(model, use.operator)
    if name == LSTM:
        return use.position in _LSTM_WEIGHTS
    if name == TABLE:
        return use.position == 0 and len(use.operator.inputs) > 1
    return name in WEIGHT_AXIS and use.position == 1


def unmixed(model: Any, subgraph: Any) -> set[int]:
    """Return the tensors that reach an output without weights that mix channels.

    Args:
        model: A ``ModelT``.
        subgraph: One of its graphs.

    Returns:
        Their numbers: outputs, and tensors from which outputs are computed without a convolution or
        a fully-connected operator. A depthwise convolution does not mix channels.
    """
    found = {int(index) for index in subgraph.outputs}
    for operator in reversed(subgraph.operators):
        name = fb.operator_name(model, operator)
        mixes = name in WEIGHT_AXIS and name != "DEPTHWISE_CONV_2D"
        if not mixes and any(int(index) in found for index in operator.outputs):
            found |= {int(index) for index in operator.inputs}
    return found


def _all_are(model: Any, places: list[fb.Use], name: str) -> bool:
    return all(fb.operator_name(model, use.operator) == name for use in places)


def sparse_of(model: Any, tensor: Any) -> Sparse | None:
    """Return the sparse form of a constant tensor.

    Args:
        model: A ``ModelT``.
        tensor: One of its tensors.

    Returns:
        The sparse form, or None if the tensor is stored densely or is not constant.

    Raises:
        FileFormatError: If the parts of the sparse form do not fit together.
    """
    parameters, data = tensor.sparsity, model.buffers[tensor.buffer].data
    dtype = fb.dtypes().get(tensor.type)
    if parameters is None or data is None or dtype is None:
        return None
    shape = tuple(int(s) for s in tensor.shape)
    try:
        sparse = _parse(parameters, shape, data, dtype)
        decode(sparse)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise fb.FileFormatError(
            f"The sparse tensor {fb.name_of(tensor)!r} of the LiteRT file is damaged: {error}. "
            f"Received: shape {shape} with {len(data):,} bytes"
        ) from error
    return sparse


def _parse(parameters: Any, shape: tuple[int, ...], data: Any, dtype: np.dtype) -> Sparse:
    rank = len(shape)
    order = [int(axis) for axis in parameters.traversalOrder]
    levels = [_level(entry) for entry in parameters.dimMetadata]
    cut = [] if parameters.blockMap is None else [int(axis) for axis in parameters.blockMap]
    if len(levels) != len(order) or order[rank:] != list(range(rank, rank + len(cut))):
        raise ValueError(f"the traversal order {order} does not fit {rank} axes")
    if sorted(cut) != cut or any(not 0 <= axis < rank for axis in cut):
        raise ValueError(f"the block map {cut} does not fit {rank} axes")
    blocks = [1] * rank
    for axis, level in zip(cut, levels[rank:], strict=True):
        if level.size < 2:
            raise ValueError(f"a block has length {level.size}")
        blocks[axis] = level.size
    if sorted(order[:rank]) != list(range(rank)):
        raise ValueError(f"the traversal order {order} does not fit {rank} axes")
    for i, axis in enumerate(order[:rank]):  # a compressed level does not say its size
        if levels[i].segments is not None:
            levels[i] = Level(shape[axis] // blocks[axis], levels[i].segments, levels[i].indices)
    packed = tuple(level.segments is not None for level in levels[:rank])
    layout = Layout(tuple(order[:rank]), packed, tuple(blocks))
    values = np.frombuffer(bytes(memoryview(data)), dtype)
    return Sparse(shape, layout, tuple(levels), values)


def _level(entry: Any) -> Level:
    if entry.format == fb.schema().DimensionType.DENSE:
        return Level(int(entry.denseSize))
    return Level(0, np.asarray(entry.arraySegments.values), np.asarray(entry.arrayIndices.values))


def sparse_bytes(sparse: Sparse) -> int:
    """Return the bytes of the segments and indices of a sparse form."""
    arrays = [a for level in sparse.levels for a in (level.segments, level.indices)]
    return sum(a.nbytes for a in arrays if a is not None)


def source_of(model: Any, subgraph: Any, producers: dict[int, Any], index: int) -> Source:
    """Follow a weight back to its constant.

    Args:
        model: A ``ModelT``.
        subgraph: One of its graphs.
        producers: The result of `flatbuffer.producers` for that graph.
        index: The tensor that an operator reads.

    Returns:
        The constant and the path to it.
    """
    way: list[str] = []
    scaled: Any = None
    while index in producers and len(way) < 4:
        operator = producers[index]
        way.append(fb.operator_name(model, operator))
        if is_decode(model, operator):
            return _decoded(model, subgraph, operator, index, tuple(way))
        if way[-1] not in ("DENSIFY", "DEQUANTIZE") or not len(operator.inputs):
            return Source(None, tuple(way))
        index = int(operator.inputs[0])
        scaled = scaled or _scales(subgraph.tensors[index])
    if index < 0:
        return Source(None, tuple(way))
    tensor = subgraph.tensors[index]
    sparse = sparse_of(model, tensor)
    array = fb.constant(model, tensor) if sparse is None else decode(sparse)
    return Source(array, tuple(way), index, *(scaled or _scales(tensor) or (None, 0)))


def _decoded(model: Any, subgraph: Any, operator: Any, index: int, way: tuple[str, ...]) -> Source:
    entry = next(found for found in decoded_of(operator) if found.output == index)
    scales, axis = _scales(subgraph.tensors[index]) or (None, 0)
    array = value_of(model, subgraph, entry)
    return Source(array, way, index, scales, axis, encoded_of(model, subgraph, entry))


def _scales(tensor: Any) -> tuple[np.ndarray, int] | None:
    """Return the scales of a tensor and the axis that they count along."""
    quantization = tensor.quantization
    scales = getattr(quantization, "scale", None)
    if scales is None or not len(scales):
        return None
    return np.asarray(scales, np.float32), int(quantization.quantizedDimension or 0)
