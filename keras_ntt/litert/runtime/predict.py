"""Run a LiteRT file on any number of samples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ntt.core import atomic_files, input_checks
from keras_ntt.litert.runtime import run as runs


def tflite_predict(path: str | os.PathLike, x: Any) -> Any:
    """Run a LiteRT file.

    A file may take and return quantized integers. Floats are then rounded with the scales of the
    file, and its outputs are returned as floats. Integers are passed unchanged, and integers are
    returned.

    Args:
        path: The file.
        x: Inputs ``[n, ...]``, any number of them, also if the file has a fixed batch size. They
            are an array or, for a file with several inputs, a list of arrays in its order or a
            dictionary with the names of its signature.

    Returns:
        Outputs ``[n, ...]``: an array, or for a file with several outputs a list in its order.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the file does not run.
        TypeError: If `path` is not a path.
        ValueError: If `x` holds no arrays of samples, or different numbers of them.
    """
    names = list(x) if isinstance(x, Mapping) else None
    several = isinstance(x, list | tuple) and x and all(hasattr(part, "shape") for part in x)
    arrays = [_batch_of(a) for a in (x.values() if names else x if several else [x])]
    counts = {len(array) for array in arrays}
    if len(counts) != 1:
        raise ValueError(
            "The inputs of a file must all have as many samples. "
            f"Received: x with {sorted(counts)} samples"
        )
    given = dict(zip(names, arrays, strict=True)) if names else arrays
    floats = any(array.dtype.kind == "f" for array in arrays)
    outputs = runs.run(os.fspath(atomic_files.as_path(path)), given, dequantize=floats)
    return outputs[0] if len(outputs) == 1 else outputs


def _batch_of(x: Any) -> np.ndarray:
    """Return inputs as an array with an axis of the samples, or raise a ValueError."""
    array = input_checks.as_array("x", x)
    if array.ndim == 0 or not len(array) or array.dtype.kind not in "biuf":
        raise ValueError(
            "x must hold numbers, [n, ...] for n samples. "
            f"Received: x of shape {array.shape} and dtype {array.dtype}"
        )
    return array
