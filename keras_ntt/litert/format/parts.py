"""Where the bytes of a LiteRT file are: weights, other constants, scales, names, tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import TABLE, sparse_bytes, sparse_of, weights_read_by
from keras_ntt.litert.micro.graph import is_decode

PARTS = ("weights", "other constants", "scales", "zero points", "names and metadata", "tables")

# Numbers of fields in the schema.
_SUBGRAPHS, _DESCRIPTION, _BUFFERS, _METADATA = 2, 3, 4, 6  # of a model
_TENSORS, _GRAPH_NAME = 0, 4  # of a graph
_TENSOR_NAME, _QUANTIZATION = 3, 4  # of a tensor
_RANGES, _SCALE, _ZERO_POINT = (0, 1), 2, 3  # of a quantization


def parts_of(content: bytes) -> dict[str, int]:
    """Return how many bytes of a file are what.

    A vector that several tensors share counts once, as it is stored.

    Args:
        content: The file.

    Returns:
        Bytes by part, in the order of `PARTS`; their sum is that of the file. ``"weights"`` are
        those of convolutions and fully-connected operators in the form they are stored in,
        ``"other constants"`` biases and the like, and ``"tables"`` all that is left: the graph.

    Raises:
        FileFormatError: If the content is no LiteRT model, or a damaged one.
    """
    model = fb.read(content)
    try:
        return _measured(content, model)
    except (struct.error, IndexError) as error:
        raise fb.damaged(content, error) from error


def _measured(content: bytes, model: Any) -> dict[str, int]:
    root = _Table(content, struct.unpack_from("<I", content)[0])
    places = [buffer.vector(0, 1) for buffer in root.tables(_BUFFERS)]
    weights, metadata = _weight_buffers(model), {entry.buffer for entry in model.metadata}
    found: dict[str, set[_Span]] = {name: set() for name in PARTS}
    for number, span in enumerate(places):
        part = "weights" if number in weights else "other constants"
        found["names and metadata" if number in metadata else part].add(span)
    names = [root.vector(_DESCRIPTION, 1)]
    names += [entry.vector(0, 1) for entry in root.tables(_METADATA)]
    for graph in root.tables(_SUBGRAPHS):
        names.append(graph.vector(_GRAPH_NAME, 1))
        for tensor in graph.tables(_TENSORS):
            names.append(tensor.vector(_TENSOR_NAME, 1))
            quantization = tensor.table(_QUANTIZATION)
            if quantization is not None:
                found["scales"] |= {quantization.vector(n, 4) for n in (*_RANGES, _SCALE)}
                found["zero points"].add(quantization.vector(_ZERO_POINT, 8))
    found["names and metadata"] |= set(names)
    result = {name: sum(span.size for span in spans) for name, spans in found.items()}
    result["weights"] += _index_bytes(model, weights)
    result["tables"] = len(content) - sum(result.values())
    return result


def _weight_buffers(model: Any) -> set[int]:
    """Return the buffers that weights are made of, in whatever form."""
    found = set()
    for graph in model.subgraphs:
        producers = fb.producers(graph)
        for operator in graph.operators:
            if fb.operator_name(model, operator) == TABLE:
                continue
            todo, seen = weights_read_by(model, operator), set[int]()
            while todo:
                index = todo.pop()
                if index < 0 or index in seen:
                    continue
                seen.add(index)
                maker = producers.get(index)
                found.add(graph.tensors[index].buffer)
                if maker is None:
                    continue
                kind = fb.operator_name(model, maker)
                if is_decode(model, maker) or kind in ("DENSIFY", "DEQUANTIZE"):
                    todo += [int(i) for i in maker.inputs]
    return found


def _index_bytes(model: Any, weights: set[int]) -> int:
    """Return the bytes of segments and indices of sparse weights."""
    by_buffer = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            sparse = sparse_of(model, tensor) if tensor.buffer in weights else None
            if sparse is not None:
                by_buffer[tensor.buffer] = sparse_bytes(sparse)
    return sum(by_buffer.values())


class _Span(NamedTuple):
    """A vector of a file: where it begins, and its bytes."""

    start: int
    size: int


class _Table:
    """A table of a flatbuffer, read where it lies: the generated classes do not say where."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place = content, place

    def table(self, number: int) -> _Table | None:
        """Return the table in a field, or None if it is absent."""
        place = self._field(number)
        return None if place is None else _Table(self.content, place + self._number(place, "<I"))

    def vector(self, number: int, size: int) -> _Span:
        """Return where the vector or string in a field lies; of no bytes if it is absent."""
        place = self._field(number)
        if place is None:
            return _Span(0, 0)
        start = place + self._number(place, "<I")
        return _Span(start, self._number(start, "<I") * size)

    def tables(self, number: int) -> Iterator[_Table]:
        """Yield the tables of the vector in a field."""
        span = self.vector(number, 4)
        for i in range(span.size // 4):
            place = span.start + 4 * (i + 1)
            yield _Table(self.content, place + self._number(place, "<I"))

    def _field(self, number: int) -> int | None:
        virtual = self.place - self._number(self.place, "<i")
        entry = 4 + 2 * number
        if entry >= self._number(virtual, "<H"):
            return None
        offset = self._number(virtual + entry, "<H")
        return self.place + offset if offset else None

    def _number(self, place: int, kind: str) -> int:
        return int(struct.unpack_from(kind, self.content, place)[0])
