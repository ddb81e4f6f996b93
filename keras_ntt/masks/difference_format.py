"""The bytes of a difference: which entries of weights are other ones, and what they are.

    8 bytes     "KNTTdif1"
    4 bytes     size of the header, little-endian
    header      JSON, packed by zlib
    places      packed by zlib: for each weight, the entries between one that differs and the next,
                a byte each; 255 means 255 and more to come
    values      packed by zlib: for each size of number, low bytes of all values, then the next
                bytes, and so on
    16 bytes    the first of SHA-256 of all before

A value is stored as the difference of its bits to those of the base, as integers, with the sign in
the lowest bit: small steps of a float are small integers.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ntt.core import philox

_MAGIC = b"KNTTdif1"
_CHECKSUM = 16
_MORE = 255
_LONGEST_HEADER = 2**26


@dataclass(frozen=True)
class Part:
    """One weight.

    Attributes:
        value: Its values.
        base: What they are compared with, of the same shape and type.
        limit: The bound of the base's values if they come from a seed, else None.
    """

    value: np.ndarray
    base: np.ndarray
    limit: float | None


@dataclass(frozen=True)
class Content:
    """What a file is made of.

    Attributes:
        parts: The weights.
        fingerprint: That of the base, if it is a model.
        seed: The base, if it is a seed.
    """

    parts: list[Part]
    fingerprint: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        shapes: Type and shape of each weight, such as ``"float32 3x4"``.
        counts: How many entries of each differ.
        limits: The bound of each base's values, None where the base is zeros or a model's.
        fingerprint: That of the base, if it is a model.
        seed: The base, if it is a seed.
        start: Where the places begin in the file.
        sizes: How many bytes the places and the values have, packed.
    """

    shapes: list[str]
    counts: list[int]
    limits: list[float | None]
    fingerprint: str | None
    seed: int | None
    start: int
    sizes: tuple[int, int]


def bits(value: np.ndarray) -> np.ndarray:
    """Return the bits of an array as unsigned integers, flat.

    >>> [hex(b) for b in bits(np.array([1.0, -0.0], "float32"))]
    ['0x3f800000', '0x80000000']
    """
    return np.ascontiguousarray(value).reshape(-1).view(f"u{value.dtype.itemsize}")


def encode(content: Content) -> bytes:
    """Return the bytes of a file."""
    places, steps, weights = [], [], []
    for part in content.parts:
        mine, theirs = bits(part.value), bits(part.base)
        found = np.flatnonzero(mine != theirs)
        places.append(_gaps(found))
        steps.append(_folded(mine[found] - theirs[found]))
        weights.append([shape_of(part.value), len(found), part.limit])
    packed = [zlib.compress(b"".join(places), 9), zlib.compress(_planes(steps), 9)]
    said: dict[str, Any] = {"base": content.fingerprint, "weights": weights}
    said["sizes"] = [len(part) for part in packed]
    if content.seed is not None:
        said |= {"seed": content.seed, "generator": philox.NAME}
    header = zlib.compress(json.dumps(said, separators=(",", ":")).encode(), 9)
    body = b"".join([_MAGIC, len(header).to_bytes(4, "little"), header, *packed])
    return body + hashlib.sha256(body).digest()[:_CHECKSUM]


def decode_header(written: bytes, size: int) -> Header:
    """Return what a file says of itself.

    Args:
        written: All bytes of the file.
        size: How many bytes the weights have; nothing much larger is unpacked.

    Raises:
        ValueError: If they are none of a file as `encode` makes it.
    """
    body, checksum = written[:-_CHECKSUM], written[-_CHECKSUM:]
    if not body.startswith(_MAGIC):
        raise ValueError("it does not begin as one")
    if hashlib.sha256(body).digest()[:_CHECKSUM] != checksum:
        raise ValueError("its bytes are not those that were written")
    start = len(_MAGIC) + 4
    end = start + int.from_bytes(body[len(_MAGIC) : start], "little")
    said = json.loads(_unpacked(body[start:end], min(_LONGEST_HEADER, 2**16 + 256 * size)))
    if said.get("generator", philox.NAME) != philox.NAME:
        raise ValueError(f"its first values come from {said['generator']!r}, not {philox.NAME!r}")
    shapes, counts, limits = (list(column) for column in zip(*said["weights"], strict=True))
    sizes = (int(said["sizes"][0]), int(said["sizes"][1]))
    return Header(shapes, counts, limits, said["base"], said.get("seed"), end, sizes)


def decode(written: bytes, header: Header, bases: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the values of the weights.

    Args:
        written: All bytes of the file.
        header: What `decode_header` found in it.
        bases: What the values were compared with.

    Raises:
        ValueError: If the bytes are not those of such a file.
    """
    middle = header.start + header.sizes[0]
    entries, size = sum(b.size for b in bases), sum(b.nbytes for b in bases)
    gaps = np.frombuffer(
        _unpacked(written[header.start : middle], 2 * entries + len(bases)), "uint8"
    )
    planes = _unpacked(written[middle : middle + header.sizes[1]], size)
    ends = np.flatnonzero(gaps != _MORE)
    if len(ends) != sum(header.counts) or (len(gaps) and ends[-1:] != len(gaps) - 1):
        raise ValueError("there is not one place for each value")
    steps = _steps(planes, header.counts, [b.dtype.itemsize for b in bases])
    values, first, start = [], 0, 0
    for base, count in zip(bases, header.counts, strict=True):
        stop = int(ends[first + count - 1]) + 1 if count else start
        found = _places(gaps[start:stop])
        mine = bits(base).copy()
        if count and found[-1] >= mine.size:
            raise ValueError("a place is beyond its weight")
        mine[found] += _unfolded(next(steps))
        values.append(mine.view(base.dtype).reshape(base.shape))
        first, start = first + count, stop
    return values


def _gaps(places: np.ndarray) -> bytes:
    """Return places as bytes: entries passed over, in parts of 255.

    >>> list(_gaps(np.array([2, 3, 600])))
    [2, 0, 255, 255, 86]
    """
    passed = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(passed // _MORE + 1) - 1
    found = np.full(int(ends[-1]) + 1 if len(ends) else 0, _MORE, "uint8")
    found[ends] = passed % _MORE
    return found.tobytes()


def _places(gaps: np.ndarray) -> np.ndarray:
    """Return the places that `_gaps` made bytes of.

    >>> _places(np.array([2, 0, 255, 255, 86], "uint8")).tolist()
    [2, 3, 600]
    """
    ends = np.flatnonzero(gaps != _MORE)
    return np.cumsum(gaps, dtype="int64")[ends] + np.arange(len(ends))


def _folded(step: np.ndarray) -> np.ndarray:
    """Return integers modulo a power of two with the sign in the lowest bit.

    >>> _folded(np.array([0, 1, 2**32 - 1, 2], "uint32")).tolist()
    [0, 2, 1, 4]
    """
    negative = step >> (8 * step.itemsize - 1)
    return (step << 1) ^ (0 - negative)


def _unfolded(folded: np.ndarray) -> np.ndarray:
    """Return the integers that `_folded` was given.

    >>> _unfolded(np.array([0, 2, 1, 4], "uint32")).tolist()
    [0, 1, 4294967295, 2]
    """
    return (folded >> 1) ^ (0 - (folded & 1))


def _planes(steps: Sequence[np.ndarray]) -> bytes:
    """Return the bytes of integers: those of one size together, the low bytes of all first."""
    found = b""
    for size in sorted({s.itemsize for s in steps}):
        same = np.concatenate([s for s in steps if s.itemsize == size]).astype(f"<u{size}")
        found += same.view("uint8").reshape(-1, size).T.tobytes()
    return found


def _steps(planes: bytes, counts: Sequence[int], sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the integers of each weight that `_planes` made bytes of."""
    numbers, start = {}, 0
    for size in sorted(set(sizes)):
        total = sum(c for c, s in zip(counts, sizes, strict=True) if s == size)
        part = np.frombuffer(planes[start : start + total * size], "uint8").reshape(size, total)
        numbers[size] = np.ascontiguousarray(part.T).view(f"<u{size}").ravel().astype(f"u{size}")
        start += total * size
    if start != len(planes):
        raise ValueError("there is not one value for each place")
    for count, size in zip(counts, sizes, strict=True):
        yield numbers[size][:count]
        numbers[size] = numbers[size][count:]


def _unpacked(packed: bytes, most: int) -> bytes:
    """Return what zlib packed, at most so many bytes."""
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(packed, most + 1)
    if len(found) > most or not unpacker.eof or unpacker.unused_data:
        raise ValueError("a part is not as long as it should be")
    return found


def shape_of(value: np.ndarray) -> str:
    """Return type and shape of an array.

    >>> shape_of(np.zeros((3, 4), "float32"))
    'float32 3x4'
    """
    return f"{value.dtype.name} {'x'.join(map(str, value.shape)) or 'scalar'}"
