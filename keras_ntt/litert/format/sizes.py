"""The size of a file, raw and compressed, and its lower limit."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import source_of, weights_read_by

_THOROUGH_BYTES = 2**25  # above this size zstd's thorough level takes minutes


@dataclass(frozen=True)
class Sizes:
    """Bytes of a file.

    Attributes:
        raw: Without compression.
        gzip: Compressed by gzip, level 9.
        zstd: Compressed by Zstandard, level 19 (3 above 32 MiB), or None where Python has
            neither `compression.zstd` nor the package zstandard.
    """

    raw: int
    gzip: int
    zstd: int | None

    def to_dict(self) -> dict[str, int | None]:
        """Return the numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the numbers in one line."""
        packed = f"{self.raw:,} bytes, {self.gzip:,} by gzip"
        return packed if self.zstd is None else f"{packed}, {self.zstd:,} by zstd"


def of(content: bytes) -> Sizes:
    """Measure the content of a file.

    Args:
        content: The bytes.

    Returns:
        Their numbers.
    """
    compress = _zstd()
    level = 19 if len(content) <= _THOROUGH_BYTES else 3
    packed = None if compress is None else len(compress(content, level))
    return Sizes(len(content), len(gzip.compress(content, 9)), packed)


def _zstd() -> Callable[[bytes, int], bytes] | None:
    try:
        from compression import zstd  # Python 3.14

        return lambda content, level: zstd.compress(content, level)
    except ImportError:
        pass
    try:
        import zstandard

        return lambda content, level: zstandard.ZstdCompressor(level=level).compress(content)
    except ImportError:
        return None


def entropy(probabilities: np.ndarray) -> float:
    """Return the entropy of a distribution in bits.

    >>> entropy(np.array([0.5, 0.25, 0.25, 0.0]))
    1.5
    """
    p = probabilities[probabilities > 0]
    return float(-(p * np.log2(p)).sum())


def limit(array: np.ndarray) -> float:
    """Return the minimum number of bytes of an array with zeros at random positions.

    The mask costs its entropy, n H(density); each non-zero costs the bits of its type, or for
    integers the entropy of their distribution. Floats count as incompressible, although a good
    compressor saves some bytes, because the exponents of weights are similar.

    Args:
        array: A weight as its values are stored.

    Returns:
        A number of bytes.

    >>> limit(np.array([0, 0, 0, 1.5], "float32")) == (4 * entropy(np.array([0.25, 0.75])) + 32) / 8
    True
    """
    kept = array[array != 0]
    density = kept.size / array.size
    bits = array.size * entropy(np.array([density, 1 - density]))
    if array.dtype.kind == "f":
        return (bits + kept.size * array.dtype.itemsize * 8) / 8
    _, counts = np.unique(kept, return_counts=True)
    each = entropy(counts / max(kept.size, 1))
    return math.fsum((bits, kept.size * each)) / 8


def limit_of_model(model: Any) -> float:
    """Return the minimum number of bytes of the constants of a model.

    Args:
        model: A ``ModelT``.

    Returns:
        The sum of `limit` over the weights of convolutions, fully-connected operators and lookups,
        and of the bytes of all other constants.
    """
    total, seen = 0.0, set()
    for subgraph in model.subgraphs:
        producers = fb.producers(subgraph)
        for operator in subgraph.operators:
            for index in weights_read_by(model, operator):
                source = source_of(model, subgraph, producers, index)
                buffer = subgraph.tensors[source.tensor].buffer
                if source.array is not None and buffer not in seen:
                    seen.add(buffer)
                    total += limit(source.array)
    used = {t.buffer for subgraph in model.subgraphs for t in subgraph.tensors} - seen
    rest = [model.buffers[buffer].data for buffer in used]
    return total + sum(len(data) for data in rest if data is not None)
