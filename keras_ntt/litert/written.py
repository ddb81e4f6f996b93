"""What an export compares a file with, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.litert.inspect import StoredWeight
from keras_ntt.litert.micro.report import MicroReport
from keras_ntt.litert.runtime.run import Run


class Expected(NamedTuple):
    """What a file should compute.

    Attributes:
        of: What computes it, in words.
        outputs: Its outputs ``[n, ...]``.
    """

    of: str
    outputs: Sequence[np.ndarray]


class Written(NamedTuple):
    """A file that has taken its place.

    Attributes:
        content: Its bytes.
        dense: The ``ModelT`` whose constants it holds, with all of them unpacked.
        tensors: How each weight is stored, and why.
        runs: The ways in which it, or its dense twin, was run and compared.
        difference: Largest difference of an output from the expected one, of those compared.
        allowed: The largest that was allowed.
        warnings: What one should not expect of it.
        micro: What a firmware needs to know of it, or None.
    """

    content: bytes
    dense: Any
    tensors: tuple[StoredWeight, ...]
    runs: tuple[Run, ...]
    difference: float
    allowed: float
    warnings: tuple[str, ...]
    micro: MicroReport | None = None
