"""Texts that are equal where arrays, or functions, are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from types import CodeType
from typing import Any

import numpy as np


def fingerprint(arrays: Iterable[Any]) -> str:
    """Return the SHA-256 of the types, shapes and bytes of arrays, in hexadecimal digits.

    >>> fingerprint([np.zeros(2)]) == fingerprint([np.zeros(2)]) != fingerprint([np.ones(2)])
    True
    """
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype.name} {array.shape};".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def in_words(value: Any) -> str:
    """Return a value as a text that is the same in another process.

    A function has its name and a digest of its code, so that two lambdas differ if they do
    different things.

    >>> in_words(0.5), in_words(lambda x: x + 1) == in_words(lambda x: x + 2)
    ('0.5', False)
    """
    code = getattr(value, "__code__", None)
    if isinstance(code, CodeType):
        return f"{value.__qualname__} {hashlib.sha256(_of_code(code).encode()).hexdigest()[:16]}"
    return getattr(value, "__qualname__", None) or repr(value)


def _of_code(code: CodeType) -> str:
    """Return what code does, without the place where it stands."""
    return f"{code.co_code.hex()} {code.co_names} {[_of_constant(c) for c in code.co_consts]}"


def _of_constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _of_code(value)
    # The order of a set is another one in each process.
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
