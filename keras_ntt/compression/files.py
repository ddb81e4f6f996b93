"""The LiteRT files of one candidate, each with its row of the table."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras

from keras_ntt.compression.candidates import Candidate
from keras_ntt.compression.report import CompressionRow
from keras_ntt.compression.yardstick import Yardstick
from keras_ntt.litert.convert import conversions_shared
from keras_ntt.litert.export import export_tflite
from keras_ntt.litert.runtime.run import ExportError

TARGETS = ("size", "latency", "micro")
QUANTIZATIONS = ("float32", "float16", "int8_weights", "int8")

_TRIED = {
    "size": ("float32", "int8_weights"),
    "latency": ("float32", "int8"),
    "micro": ("int8",),
}
_CALIBRATION = 256  # inputs for the ranges of activations


def quantizations(candidate: Candidate, target: str, asked: str | None) -> list[str | None]:
    """Return how the files of a candidate are rounded; None is float32.

    The float32 file is always among them, but for microcontrollers, where it is that of the dense
    model alone unless it is asked for.
    """
    tried = _TRIED[target] if asked is None else (asked,)
    if target != "micro" or candidate.method == "dense":
        tried = ("float32", *tried)
    return [None if name == "float32" else name for name in dict.fromkeys(tried)]


def written(
    model: keras.Model,
    candidate: Candidate,
    kinds: Sequence[str | None],
    target: str,
    samples: Any,
    yardstick: Yardstick,
    place: Callable[[Candidate, str | None], pathlib.Path],
) -> Iterator[CompressionRow]:
    """Write the files of one model, and yield their rows.

    Args:
        model: The Keras model.
        candidate: Which one it is.
        kinds: The quantizations.
        target: One of `TARGETS`.
        samples: Inputs that ranges of activations are taken on.
        yardstick: What the files are measured by.
        place: Where a file of a candidate is written.

    Yields:
        A row a file.

    Raises:
        ExportError: If the float32 file of the dense model cannot be written.
    """
    few = keras.tree.map_structure(lambda a: a[:_CALIBRATION], samples)
    with conversions_shared():
        for kind in kinds:
            row = CompressionRow(candidate.sparsity, kind, channels=candidate.channels)
            file = place(candidate, kind)
            try:
                report = export_tflite(
                    model,
                    file,
                    target="dense" if kind == "int8" and target != "micro" else target,
                    quantization=(kind or "float32") if target == "micro" else kind,
                    representative_data=few,
                    tolerance="auto" if kind is None else 1e9,  # what is lost is measured here
                )
            except ExportError as error:
                if candidate.method == "dense" and kind is None:
                    raise
                yield replace(row, note=f"not written: {str(error)[:60]}")
                continue
            row = replace(row, size=report.sizes.raw, compressed=report.sizes.gzip)
            if report.micro is not None:
                row = replace(row, code=report.micro.code_size, arena=report.micro.arena)
            yield yardstick.measured(row, file)
