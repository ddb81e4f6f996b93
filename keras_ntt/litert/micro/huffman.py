"""Huffman codes (Huffman 1952, A Method for the Construction of Minimum-Redundancy Codes).

The tables are those of the HUFFMAN decoder of TensorFlow Lite Micro's DECODE operator. A table of k
bits has 2^k entries. An entry is a symbol, with the number of bits of its code among these k, or
the offset of the next table. The tables written here have one bit each: two entries per branch of
the code's tree, which takes the fewest bytes.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

_SPARE_BITS = 32  # after the last code word, because decoders read ahead
_WINDOW = 16  # maximum bits of a code for fast unpacking


class Code(NamedTuple):
    """A prefix code.

    Attributes:
        symbols: Integers ``[symbols]``.
        words: Code words ``[symbols]``, as strings of 0 and 1.
    """

    symbols: tuple[int, ...]
    words: tuple[str, ...]


class Form(NamedTuple):
    """The layout of an entry of a table.

    Attributes:
        dtype: Type of an entry.
        found: The bit that marks a symbol.
        shift: The lowest of the four bits of the size.
        value: The bits of the symbol, or of the distance to the next table.
    """

    dtype: type
    found: int
    shift: int
    value: int


NARROW = Form(np.uint16, 15, 11, 0x7FF)
WIDE = Form(np.uint32, 31, 27, 0x7FFFFFF)


def code_of(values: np.ndarray) -> Code:
    """Return the code with the fewest bits for given values.

    Args:
        values: Integers ``[n]``, at least one.

    Returns:
        A code for all values that occur. Equal counts are ordered by value, so the code is the same
        in every run.

    Raises:
        ValueError: If there is no value.

    Examples:
        >>> code_of(np.array([5, 9, -3, 5, 5, 9, 5, 9, 5], np.int8))
        Code(symbols=(-3, 5, 9), words=('00', '1', '01'))
    """
    if not len(values):
        raise ValueError("A code needs values. Received: values of length 0")
    symbols, counts = np.unique(values, return_counts=True)
    if len(symbols) == 1:
        return Code((int(symbols[0]),), ("0",))
    heap: list[tuple[int, int, tuple[int, ...]]] = [
        (int(count), place, (place,)) for place, count in enumerate(counts)
    ]
    heapq.heapify(heap)
    words = [""] * len(symbols)
    for number in range(len(symbols), 2 * len(symbols) - 1):
        (left, _, zeros), (right, _, ones) = heapq.heappop(heap), heapq.heappop(heap)
        for place in zeros:
            words[place] = "0" + words[place]
        for place in ones:
            words[place] = "1" + words[place]
        heapq.heappush(heap, (left + right, number, zeros + ones))
    return Code(tuple(int(s) for s in symbols), tuple(words))


def tables(code: Code, *, wide: bool) -> np.ndarray:
    """Return the tables of a code, of one bit each.

    Args:
        code: The code.
        wide: Whether entries have 32 bits, as int16 symbols need, or 16.

    Returns:
        Little-endian entries ``[2 * branches]``.

    Raises:
        ValueError: If a table is too far away for an entry of 16 bits.

    Examples:
        >>> [f"{n:04x}" for n in tables(Code((5, 9, -3), ("0", "10", "11")), wide=False)]
        ['8805', '0001', '8809', '88fd']
    """
    form = WIDE if wide else NARROW
    by_word = dict(zip(code.words, code.symbols, strict=True))
    if len(by_word) == 1:
        ((word, symbol),) = by_word.items()
        by_word = {word: symbol, "1": symbol}
    branches = {word[:length] for word in by_word for length in range(len(word))}
    places = {prefix: 2 * i for i, prefix in enumerate(sorted(branches, key=lambda p: (len(p), p)))}
    entries = np.zeros(2 * len(places), np.dtype(form.dtype).newbyteorder("<"))
    symbol_bits = 0xFFFF if wide else 0xFF
    for prefix, place in places.items():
        for bit in (0, 1):
            word = f"{prefix}{bit}"
            if word in by_word:
                value = by_word[word] & symbol_bits
                entries[place + bit] = 1 << form.found | 1 << form.shift | value
                continue
            distance = places[word] - (place + bit)
            if distance > form.value:
                raise ValueError(f"A code has too many symbols. Received: {len(by_word)} symbols")
            entries[place + bit] = distance
    return entries


def pack(values: np.ndarray, code: Code) -> np.ndarray:
    """Write values in a code.

    Args:
        values: Integers ``[n]``.
        code: A code that has all of them.

    Returns:
        uint8 ``[bytes]``, a multiple of 4, with 32 or more bits to spare at the end.

    Raises:
        ValueError: If the code lacks a value.
    """
    order = np.argsort(code.symbols)
    symbols = np.array(code.symbols)[order]
    places = np.minimum(np.searchsorted(symbols, values), len(symbols) - 1)
    if len(values) and np.any(symbols[places] != values):
        raise ValueError("The code lacks some of the values. Received: values outside the code")
    lengths = np.array([len(code.words[i]) for i in order])
    bits = np.zeros((len(symbols), lengths.max()), np.uint8)
    for row, i in enumerate(order):
        bits[row, : lengths[row]] = [int(bit) for bit in code.words[i]]
    written = bits[places][np.arange(bits.shape[1]) < lengths[places, None]]
    size = -(-(len(written) + _SPARE_BITS) // 32) * 4
    packed = np.zeros(size, np.uint8)
    stream = np.packbits(written)
    packed[: len(stream)] = stream
    return packed


def unpack(encoded: np.ndarray, data: np.ndarray, first: int, wide: bool, count: int) -> np.ndarray:
    """Read values by tables.

    Args:
        encoded: uint8 ``[bytes]``, the code words.
        data: uint8 ``[bytes]``, the tables.
        first: Bits of the first table.
        wide: Whether entries have 32 bits, or 16.
        count: Number of values.

    Returns:
        Integers ``[count]``.

    Raises:
        ValueError: If tables lead outside of themselves, or the code words end too early.
    """
    form = WIDE if wide else NARROW
    size = np.dtype(form.dtype).itemsize
    entries = np.frombuffer(data[: len(data) // size * size].tobytes(), f"<u{size}").tolist()
    width = 16 if wide else 8
    words: dict[tuple[int, int], int] = {}  # (length, bits) -> symbol
    todo = [(0, first, 0, 0)]  # a table's position and bits, and the code word up to it
    steps = 0
    while todo:
        place, bits, length, prefix = todo.pop()
        if place + (1 << bits) > len(entries):
            raise ValueError(f"a table at entry {place} of {len(entries)}")
        for i in range(1 << bits):
            steps += 1
            if steps > 1 << 20 or length + bits > 512:
                raise ValueError("tables that lead in a circle")
            entry = entries[place + i]
            taken, value = entry >> form.shift & 15, entry & form.value
            if not entry >> form.found & 1:
                todo.append((place + i + value, taken + 1, length + bits, prefix << bits | i))
                continue
            if taken > bits or length + taken == 0:
                raise ValueError(f"a code word of {taken} bits in a table of {bits}")
            symbol = (value & (1 << width) - 1) ^ 1 << width - 1
            words[length + taken, prefix << taken | i >> bits - taken] = symbol - (1 << width - 1)
    return _read(encoded, words, count)


def _read(encoded: np.ndarray, words: dict[tuple[int, int], int], count: int) -> np.ndarray:
    """Read code words, the short ones with a table of all 16-bit numbers."""
    symbols = np.zeros(1 << _WINDOW, np.int64)
    lengths = np.zeros(1 << _WINDOW, np.int64)
    long = {key: symbol for key, symbol in words.items() if key[0] > _WINDOW}
    for (length, bits), symbol in words.items():
        if length <= _WINDOW:
            begin = bits << _WINDOW - length
            symbols[begin : begin + (1 << _WINDOW - length)] = symbol
            lengths[begin : begin + (1 << _WINDOW - length)] = length
    total = 8 * len(encoded)
    padded = np.concatenate([encoded, np.zeros(4, np.uint8)]).astype(np.int64)
    triples = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    windows = (triples[: len(encoded), None] >> np.arange(8, 0, -1) & 0xFFFF).reshape(-1)
    length_at, symbol_at = lengths[windows].tolist(), symbols[windows].tolist()
    found, position = [], 0
    for _ in range(count):
        taken = length_at[position] if position < total else 0
        if taken:
            found.append(symbol_at[position])
        else:
            taken, symbol = _long(encoded, position, long)
            found.append(symbol)
        position += taken
        if position > total:
            raise ValueError(f"{len(encoded)} bytes of code words for {count} entries")
    return np.array(found, np.int64)


def _long(encoded: np.ndarray, position: int, words: dict[tuple[int, int], int]) -> tuple[int, int]:
    """Return the length and symbol of the code word at a bit, of more than 16 bits."""
    bits = np.unpackbits(encoded[position // 8 : position // 8 + 66])[position % 8 :].tolist()
    value = 0
    for length, bit in enumerate(bits, 1):
        value = value << 1 | bit
        if (length, value) in words:
            return length, words[length, value]
    raise ValueError(f"no code word at bit {position}")
