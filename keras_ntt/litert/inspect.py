"""Inspect a LiteRT file: how its weights are stored, and what XNNPACK will do with it."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_ntt.core.atomic_files import as_path
from keras_ntt.core.tables import table
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import sizes
from keras_ntt.litert.format.interface import Port, ports_in
from keras_ntt.litert.format.parts import parts_of
from keras_ntt.litert.format.weights import (
    LSTM,
    PACKED,
    TABLE,
    Source,
    source_of,
    sparse_bytes,
    sparse_of,
    weights_read_by,
)
from keras_ntt.litert.runtimes import runtimes_of
from keras_ntt.litert.xnnpack import verdict as verdicts

_LSTM_NAMES = [
    f"LSTM, {source} to {gate}"
    for source in ("inputs", "last outputs")
    for gate in ("input gate", "forget gate", "candidate", "output gate")
]


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a LiteRT file.

    Attributes:
        name: Its name.
        shape: Its shape.
        operators: The operators that read it.
        nonzeros: Number of non-zero entries.
        storage: ``"dense"``, ``"densify"`` (sparse, unpacked when the file is loaded) or
            ``"direct"`` (sparse, used without unpacking). In files for microcontrollers
            ``"pruning"``, ``"huffman"`` or ``"lut"``, unpacked by DECODE each time it is used.
        dtype: Type of the stored values.
        layout: The levels of a sparse form, compressed ones in brackets; empty for dense ones.
        size: Bytes of its values, indices and scales.
        reason: Why it is stored so, if that is known.
    """

    name: str
    shape: tuple[int, ...]
    operators: str
    nonzeros: int
    storage: str
    dtype: str
    layout: str
    size: int
    reason: str = ""

    @property
    def entries(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape))

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1 - self.nonzeros / self.entries

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain numbers and strings."""
        return {**vars(self), "shape": list(self.shape), "sparsity": self.sparsity}


@dataclass(frozen=True)
class FileReport:
    """The contents of a LiteRT file.

    Attributes:
        path: The file.
        sizes: Its bytes, raw and compressed.
        operators: The number of each operator.
        weights: The weights of fully-connected operators and convolutions, and tables of lookups.
        verdict: What XNNPACK will do with it.
        runtimes: For each runtime ``"yes"`` if it can run the file, or the reason why not.
        parts: The number of bytes of weights, other constants, scales, zero points, names and
            metadata, and tables.
        ports: Its inputs and outputs.
    """

    path: pathlib.Path
    sizes: sizes.Sizes
    operators: Mapping[str, int]
    weights: tuple[StoredWeight, ...]
    verdict: verdicts.Verdict
    runtimes: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers and strings."""
        return {
            "path": os.fspath(self.path),
            "sizes": self.sizes.to_dict(),
            "operators": dict(self.operators),
            "weights": [weight.to_dict() for weight in self.weights],
            "xnnpack": self.verdict.to_dict(),
            "runtimes": dict(self.runtimes),
            "parts": dict(self.parts),
            "ports": [port.to_dict() for port in self.ports],
        }

    def __str__(self) -> str:
        """Return the report as text."""
        counts = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        parts = ", ".join(f"{name} {size:,}" for name, size in self.parts.items())
        lines = [f"{self.path}: {self.sizes}", f"bytes: {parts}", f"operators: {counts or 'none'}"]
        lines += [str(port) for port in self.ports]
        if self.weights:
            lines += ["", weights_table(self.weights), ""]
        if self.runtimes.get("LiteRT", "yes") == "yes":
            lines.append(f"XNNPACK on ARM and x86 without AVX: {self.verdict}")
        return "\n".join([*lines, *(f"{name}: {a}" for name, a in self.runtimes.items())])


def inspect_tflite(path: str | os.PathLike) -> FileReport:
    """Inspect a LiteRT file without running it.

    Args:
        path: The file.

    Returns:
        Its contents.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `path` is not a path.
        ValueError: If it is not a LiteRT model, or is damaged.
    """
    file = as_path(path)
    content = file.read_bytes()
    model = fb.read(content)
    try:
        counts = collections.Counter(
            fb.operator_name(model, op) for graph in model.subgraphs for op in graph.operators
        )
        weights, verdict = stored_weights(model), verdicts.predict(model)
        runtimes, parts, ports = runtimes_of(model), parts_of(content), ports_in(model)
    except fb.FileFormatError:
        raise
    except Exception as error:  # with tables of the wrong kind the lookups may raise any error
        raise fb.damaged(content, error) from error
    return FileReport(
        path=file,
        sizes=sizes.of(content),
        operators=dict(sorted(counts.items())),
        weights=weights,
        verdict=verdict,
        runtimes=runtimes,
        parts=parts,
        ports=ports,
    )


def stored_weights(
    model: Any, reasons: Mapping[str, str] | None = None
) -> tuple[StoredWeight, ...]:
    """List the weights of a model as they are stored.

    Args:
        model: A ``ModelT``.
        reasons: The reasons, by the name of the weight.

    Returns:
        One row for each constant that convolutions, fully-connected operators or LSTMs read as a
        weight, or whose rows are looked up. Weights of LSTMs have the names of their gates. Other
        weights without a name are numbered.
    """
    rows: list[StoredWeight] = []
    for subgraph in model.subgraphs:
        producers = fb.producers(subgraph)
        readers: dict[int, set[str]] = {}
        first: dict[int, Source] = {}
        gates: dict[int, str] = {}
        for operator in subgraph.operators:
            kind = fb.operator_name(model, operator)
            for place, index in enumerate(weights_read_by(model, operator)):
                source = source_of(model, subgraph, producers, index)
                if source.array is not None and (kind != TABLE or _is_table(source.array)):
                    readers.setdefault(source.tensor, set()).add(kind)
                    first.setdefault(source.tensor, source)
                    if kind == LSTM:
                        gates[source.tensor] = _LSTM_NAMES[place]
        for index, source in first.items():
            name = fb.name_of(subgraph.tensors[index]).removesuffix(PACKED) or f"tensor {index}"
            kinds = "+".join(sorted(readers[index]))
            reason = (reasons or {}).get(name, "")
            shown = gates.get(index) or name or f"weight {len(rows)}"
            rows.append(_row(model, subgraph.tensors[index], source, shown, kinds, reason))
    return tuple(rows)


def _is_table(array: np.ndarray) -> bool:
    """Tell whether a constant has rows of numbers, and is not a shape or a list of indices."""
    return array.ndim == 2 and array.dtype in (np.float32, np.float16, np.int8)


def _row(
    model: Any, tensor: Any, source: Source, name: str, kinds: str, reason: str
) -> StoredWeight:
    sparse, array = sparse_of(model, tensor), source.array
    assert array is not None
    storage = "dense"
    if source.encoded is not None:
        size, storage = source.encoded.size, source.encoded.method
    else:
        size = len(model.buffers[tensor.buffer].data)
    if sparse is not None:
        size += sparse_bytes(sparse)
        storage = "densify" if source.is_densified else "direct"
    if array.dtype.kind == "i":
        size += 12 * source.channels
    return StoredWeight(
        name.split(";")[0],
        array.shape,
        kinds,
        int(np.count_nonzero(array)),
        storage,
        array.dtype.name,
        "" if sparse is None else str(sparse.layout),
        size,
        reason,
    )


def weights_table(weights: tuple[StoredWeight, ...]) -> str:
    """Return rows of weights as a table."""
    columns = ["weight", "shape", "zeros", "stored", "levels", "bytes"]
    with_reasons = any(w.reason for w in weights)
    body = [
        [
            w.name,
            "x".join(map(str, w.shape)),
            f"{w.sparsity:.1%}",
            f"{w.storage} {w.dtype}",
            w.layout,
            f"{w.size:,}",
            *([w.reason] if with_reasons else []),
        ]
        for w in weights
    ]
    return table([*columns, *(["why"] if with_reasons else [])], body, right=(2, 5))
