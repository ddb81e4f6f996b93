"""The byte format of TensorFlow Lite Micro's DECODE operator: encode and unpack weights.

An encoded weight has two vectors of bytes. The *encoded* vector has a bit, a code word or an index
per entry. The *ancillary* vector has a header of 16 bytes, then values or tables. The format is
that of the kernels `decode_state_prune`, `decode_state_huffman` and `decode_state_lut` of
TensorFlow Lite Micro. They check no lengths, so what is written here must be right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keras_ntt.litert.format.flatbuffer import FileFormatError
from keras_ntt.litert.micro import huffman

HEADER = 16
LUT, HUFFMAN, PRUNING = 0, 1, 2  # byte 0 of the header
METHODS = {LUT: "lut", HUFFMAN: "huffman", PRUNING: "pruning"}
PRUNING_TYPES = ("int8", "int16", "int32", "int64", "float32", "bool")
_ONE_CHANNEL = 15  # in place of an axis


class Encoded(NamedTuple):
    """A weight in encoded form.

    Attributes:
        method: ``"pruning"``, ``"huffman"`` or ``"lut"``.
        encoded: uint8 ``[bytes]``, one bit, code word or index per entry.
        ancillary: uint8 ``[bytes]``, the header, then values or tables.
    """

    method: str
    encoded: np.ndarray
    ancillary: np.ndarray

    @property
    def size(self) -> int:
        """Bytes of both vectors."""
        return len(self.encoded) + len(self.ancillary)


class Channels(NamedTuple):
    """The zero points of a weight, one per channel.

    Attributes:
        zero_points: Integers ``[channels]``; empty stands for zero everywhere.
        axis: The axis of the channels, 0 or the last; not read for one channel.
    """

    zero_points: tuple[int, ...] = ()
    axis: int = 0

    def of_entries(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the zero point of each entry of a weight, with shape ``[entries]``.

        Args:
            shape: The shape of the weight.

        Returns:
            Integers, in the order of the weight's memory.

        Raises:
            FileFormatError: If the channels do not fit the shape.
        """
        count = int(np.prod(shape))
        if len(self.zero_points) < 2:
            return np.full(count, self.zero_points[0] if self.zero_points else 0)
        if self.axis not in (0, len(shape) - 1) or shape[self.axis] != len(self.zero_points):
            raise _corrupt(f"{len(self.zero_points)} channels on axis {self.axis} of shape {shape}")
        sizes = [1] * len(shape)
        sizes[self.axis] = -1
        return np.broadcast_to(np.reshape(self.zero_points, sizes), shape).reshape(-1)


def prune(array: np.ndarray, channels: Channels | None = None) -> Encoded:
    """Encode a weight as one bit per entry, and the values of the kept entries.

    An entry that equals its zero point has no value. For floats only +0.0 is a zero: -0.0 is kept,
    so that unpacked weights are identical bit by bit.

    Args:
        array: A weight of one of `PRUNING_TYPES`.
        channels: Its zero points; None means zero.

    Returns:
        The encoded weight, of ``16 + ceil(n / 8) + kept * itemsize`` bytes.

    Raises:
        ValueError: If the runtime cannot unpack this type, or these zero points.

    Examples:
        >>> found = prune(np.array([[0, 5, 0, 0, -3], [0, 0, 0, 7, 0]], np.int8))
        >>> found.encoded.tobytes().hex(" "), found.ancillary[16:].tobytes().hex(" ")
        ('48 80', '05 fd 07')
    """
    channels = channels or Channels()
    _check_type(array.dtype, PRUNING_TYPES, "PRUNING")
    shifted = any(channels.zero_points)
    if shifted and array.dtype != np.int8:
        raise ValueError(
            "PRUNING takes zero points other than 0 for int8 only. "
            f"Received: zero points {channels.zero_points[:4]} for {array.dtype}"
        )
    flat = np.ascontiguousarray(array).reshape(-1)
    if shifted:
        kept = flat != channels.of_entries(array.shape)
    else:
        kept = flat.view(f"u{array.dtype.itemsize}") != 0
    axis = _ONE_CHANNEL if len(set(channels.zero_points)) < 2 else channels.axis
    header = _header(PRUNING, axis << 4)
    values = np.frombuffer(flat[kept].tobytes(), np.uint8)
    return Encoded("pruning", np.packbits(kept), np.concatenate([header, values]))


def compress(array: np.ndarray, code: huffman.Code | None = None) -> Encoded:
    """Encode a weight by a Huffman code.

    Args:
        array: A weight of type int8 or int16.
        code: The code, for all values of the weight; None makes the best one.

    Returns:
        The encoded weight.

    Raises:
        ValueError: If the runtime cannot unpack this type, or the weight has no entry.
    """
    _check_type(array.dtype, ("int8", "int16"), "HUFFMAN")
    flat = np.ascontiguousarray(array).reshape(-1)
    code = code or huffman.code_of(flat)
    tables = huffman.tables(code, wide=array.dtype == np.int16)
    header = _header(HUFFMAN, array.dtype == np.int16)  # the first table takes one bit
    ancillary = np.concatenate([header, np.frombuffer(tables.tobytes(), np.uint8)])
    return Encoded("huffman", huffman.pack(flat, code), ancillary)


def decode(
    encoded: np.ndarray,
    ancillary: np.ndarray,
    shape: tuple[int, ...],
    dtype: np.dtype,
    channels: Channels | None = None,
) -> np.ndarray:
    """Unpack a weight as the runtime does, with checks that nothing is missing.

    Args:
        encoded: uint8 ``[bytes]``.
        ancillary: uint8 ``[bytes]``.
        shape: The shape of the weight.
        dtype: Its type.
        channels: Its quantization: zero points, one per scale, and their axis.

    Returns:
        The weight.

    Raises:
        FileFormatError: If the runtime refuses these bytes, or would read past their end.
    """
    method = method_of(ancillary)
    channels = channels or Channels()
    count, data = int(np.prod(shape)), ancillary[HEADER:]
    if method == "huffman":
        if dtype not in (np.int8, np.int16):
            raise _corrupt(f"HUFFMAN for {dtype}")
        wide = bool(ancillary[5] & 1)
        if dtype == np.int16 and not wide:
            raise _corrupt("HUFFMAN for int16 with 16-bit tables")
        try:
            symbols = huffman.unpack(encoded, data, int(ancillary[5] >> 4) + 1, wide, count)
        except ValueError as error:
            raise _corrupt(str(error)) from error
        return symbols.astype(dtype).reshape(shape)
    if dtype.name not in PRUNING_TYPES:
        raise _corrupt(f"{method.upper()} for {dtype}")
    if method == "pruning":
        return _unpruned(encoded, data, shape, dtype, channels)
    return _looked_up(
        encoded, data, (int(ancillary[5]) & 7, int(ancillary[6])), shape, dtype, channels
    )


def method_of(ancillary: np.ndarray) -> str:
    """Return how a weight is encoded: ``"pruning"``, ``"huffman"`` or ``"lut"``.

    Args:
        ancillary: uint8 ``[bytes]``.

    Returns:
        The method.

    Raises:
        FileFormatError: If the header is cut off or of another version.
    """
    if len(ancillary) < HEADER:
        raise _corrupt(f"{len(ancillary)} bytes of ancillary data")
    kind, version, *_, own = (int(b) for b in ancillary[:5])
    if kind not in METHODS or version != 1 or own != 1:
        raise _corrupt(f"decode type {kind} of versions {version} and {own}")
    return METHODS[kind]


def _unpruned(
    encoded: np.ndarray,
    data: np.ndarray,
    shape: tuple[int, ...],
    dtype: np.dtype,
    channels: Channels,
) -> np.ndarray:
    count = int(np.prod(shape))
    if len(encoded) < -(-count // 8):
        raise _corrupt(f"{len(encoded)} bytes of bits for {count} entries")
    if any(channels.zero_points) and dtype != np.int8:
        raise _corrupt(f"zero points other than 0 for {dtype}")
    kept = np.unpackbits(encoded, count=count).astype(bool)
    needed = int(np.count_nonzero(kept)) * dtype.itemsize
    if len(data) < needed:
        raise _corrupt(f"{len(data)} bytes of values instead of {needed}")
    flat = channels.of_entries(shape).astype(dtype)
    flat[kept] = np.frombuffer(data[:needed].tobytes(), dtype)
    return flat.reshape(shape)


def _looked_up(
    encoded: np.ndarray,
    data: np.ndarray,
    sizes: tuple[int, int],
    shape: tuple[int, ...],
    dtype: np.dtype,
    channels: Channels,
) -> np.ndarray:
    (width, stride), count = sizes, int(np.prod(shape))
    if not width or len(encoded) * 8 < count * width:
        raise _corrupt(f"{len(encoded)} bytes for {count} indices of {width} bits")
    bits = np.unpackbits(encoded, count=count * width).reshape(count, width)
    indices = bits @ (1 << np.arange(width)[::-1])
    tables = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize].tobytes(), dtype)
    count_channels = max(len(channels.zero_points), 1)
    numbers = channels._replace(zero_points=tuple(range(count_channels))).of_entries(shape)
    places = numbers * stride + indices
    if count and (indices.max() >= stride or places.max() >= len(tables)):
        raise _corrupt(f"index {indices.max()} into {len(tables)} values, {stride} a channel")
    return tables[places].reshape(shape)


def _header(kind: int, options: int) -> np.ndarray:
    header = np.zeros(HEADER, np.uint8)
    header[[0, 1, 4, 5]] = kind, 1, 1, options
    return header


def _check_type(dtype: np.dtype, known: tuple[str, ...], method: str) -> None:
    if dtype.name not in known:
        raise ValueError(
            f"{method} unpacks weights of {', '.join(known)} only. Received: dtype={dtype}"
        )


def _corrupt(what: str) -> FileFormatError:
    return FileFormatError(
        "An encoded weight of the LiteRT file is damaged, or of a kind that TensorFlow Lite Micro "
        f"does not unpack. Export the file again. Received: {what}"
    )
