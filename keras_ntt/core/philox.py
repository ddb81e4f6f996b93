"""First values of weights from a seed, the same on any machine: Philox (Salmon et al., SC 2011).

Philox 4x32-10 makes four 32-bit words of a counter of four words and a key of two (Salmon, Moraes,
Dror & Shaw, "Parallel random numbers: As easy as 1, 2, 3", 2011). No word depends on another, so a
device can make one weight at a time. Entry j of weight t of a model, in row-major order, is

    word   = philox((j // 4 mod 2^32, j // 2^34, t, 0), (seed mod 2^32, seed // 2^32))[j mod 4]
    number = 2 * (word // 256) + 1 - 2^24            an odd integer between -2^24 and 2^24
    value  = float32(number) * (limit * 2^-24)       one rounding, by a float32 product

which is uniform between -limit and limit, and never 0. The integers are exact in float32, and so is
the factor, because a power of two changes the exponent alone.
"""

from __future__ import annotations

import numpy as np

NAME = "philox4x32-10"

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10
_CHUNK = 2**20  # blocks of four words at a time: 32 MB an array


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the words of Philox 4x32-10.

    Args:
        counters: Words ``[n, 4]`` of 32 bits, in ``uint32``.
        key: Two integers of 32 bits.

    Returns:
        Words ``[n, 4]`` in ``uint32``.

    >>> words = philox(np.zeros((1, 4), "uint32"), (0, 0))[0]
    >>> " ".join(f"{word:08x}" for word in words)
    '6627e8d5 e169c58d bc57ac4c 9b00dbd8'
    """
    c0, c1, c2, c3 = counters.astype("uint64").T
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1 = (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0), second & _LOW
        c2, c3 = (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1), first & _LOW
        k0, k1 = ((k + step) & 0xFFFFFFFF for k, step in zip((k0, k1), _KEY_STEPS, strict=True))
    return np.stack([c0, c1, c2, c3], axis=1).astype("uint32")


def uniform(seed: int, weight: int, size: int, limit: float) -> np.ndarray:
    """Return the first values of one weight, see the formula above.

    Args:
        seed: The seed, below 2^64.
        weight: Which weight of the model it is.
        size: How many entries it has.
        limit: The bound of the values; it is rounded to float32.

    Returns:
        Values ``[size]`` in ``float32``.

    >>> uniform(0, 0, 3, 1.0).tolist()
    [-0.20190709829330444, 0.7610403895378113, 0.4714255928993225]
    """
    key = (seed & 0xFFFFFFFF, seed >> 32)
    scale = np.float32(limit) * np.float32(2.0**-24)
    values = np.empty(size, "float32")
    for start in range(0, -(-size // 4), _CHUNK):
        blocks = np.arange(start, min(start + _CHUNK, -(-size // 4)), dtype="uint64")
        counters = np.zeros((len(blocks), 4), "uint32")
        counters[:, 0], counters[:, 1] = blocks & _LOW, blocks >> np.uint64(32)
        counters[:, 2] = weight
        words = philox(counters, key).ravel()
        numbers = 2 * (words >> np.uint32(8)).astype("int32") + 1 - 2**24
        part = values[4 * start : 4 * start + words.size]
        part[:] = numbers[: part.size].astype("float32") * scale
    return values
