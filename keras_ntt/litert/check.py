"""Check a file before it is moved to its path: its faults, and the effect of rounding."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.litert import judge
from keras_ntt.litert.options import Options
from keras_ntt.litert.rounding import Rounding, check_rounding, judge_rounding
from keras_ntt.litert.runtime import run as runs
from keras_ntt.litert.samples import Samples
from keras_ntt.litert.written import Expected

_FEW = 16  # samples are enough to show a fault, which does not depend on chance


class Checked(NamedTuple):
    """The figures of a file that has passed the checks.

    Attributes:
        runs: The ways in which it was run and compared with the model.
        difference: Largest difference of an output from the model's output.
        allowed: The largest allowed difference.
        rounding: The effect of rounding, or None if nothing was rounded.
    """

    runs: tuple[runs.Run, ...]
    difference: float
    allowed: float
    rounding: Rounding | None


class Sources(NamedTuple):
    """The sources of a file.

    Attributes:
        exact: The dense float32 file.
        converted: The ``ModelT`` of the converter's dense file of the same quantization.
        dense: The same with zeros in dead channels.
    """

    exact: bytes
    converted: Any
    dense: Any


def check(
    path: str | os.PathLike,
    sources: Sources,
    samples: Samples,
    expected: Expected,
    options: Options,
    batch: int | None,
) -> Checked:
    """Run a file in every way and check it.

    Args:
        path: The file.
        sources: Its sources.
        samples: The inputs to run it on.
        expected: What it should compute.
        options: How values are rounded, and the tolerance. With None `rounding.check_rounding`
            judges the rounding.
        batch: The fixed batch size of the file, or None.

    Returns:
        The figures.

    Raises:
        ExportError: If the file has other weights or other outputs than the dense file of the same
            numbers; if the dense float32 file has other outputs than the model; or if rounding has
            ruined the model or exceeds the tolerance.
    """
    content = pathlib.Path(path).read_bytes()
    judge.check_weights(content, sources.converted, expected.name)
    found = runs.outputs_by(os.fspath(path), samples.given, batch=batch)
    compared = runs.compare(found, expected.outputs)
    if options.quantization is None:
        tolerance = judge.EXACT if options.tolerance is None else options.tolerance
        return Checked(
            compared, *runs.judge(expected.of, compared, expected.outputs, tolerance), None
        )
    _check_faults(path, content, sources, samples, expected, options, batch)
    limit = np.inf if options.tolerance is None else options.tolerance
    rounding = round_off(path, found, samples, expected, batch)
    if options.tolerance is None:
        check_rounding(rounding, expected.name, options.quantization)
    return Checked(compared, *runs.judge(expected.of, compared, expected.outputs, limit), rounding)


def _check_faults(
    path: str | os.PathLike,
    content: bytes,
    sources: Sources,
    samples: Samples,
    expected: Expected,
    options: Options,
    batch: int | None,
) -> None:
    """Raise an ExportError if the conversion, or the new file, has a fault."""
    few = _first(samples.given, batch)
    with tempfile.TemporaryDirectory() as folder:
        exact, twin = (pathlib.Path(folder) / name for name in ("exact.tflite", "twin.tflite"))
        exact.write_bytes(sources.exact)
        wanted = [output[: len(few[0])] for output in expected.outputs]
        converted = runs.compare(runs.outputs_by(os.fspath(exact), few, batch=batch), wanted)
        tolerance = max(judge.EXACT, options.tolerance or 0)
        runs.judge(expected.of, converted, expected.outputs, tolerance)
        dense = judge.twin_of(sources.dense, content)
        if dense != content:
            twin.write_bytes(dense)
            judge.check_alike(
                runs.outputs_by(os.fspath(path), few, batch=batch),
                runs.outputs_by(os.fspath(twin), few, batch=batch),
                expected.name,
            )


def round_off(
    path: str | os.PathLike,
    found: Sequence[tuple[runs.Way, Sequence[np.ndarray]]],
    samples: Samples,
    expected: Expected,
    batch: int | None,
) -> Rounding:
    """Measure the effect of rounding, on held-out samples if there are any.

    Args:
        path: The file.
        found: The result of `run.outputs_by` on `samples.given`.
        samples: The samples.
        expected: What the file should compute.
        batch: The fixed batch size of the file, or None.

    Returns:
        The figures.
    """
    outputs = expected.outputs
    if samples.has_held_out:
        found = runs.outputs_by(os.fspath(path), samples.held_out, batch=batch)
        outputs = expected.held_out
    most = max(len(way[1][0]) for way in found)
    whole = [outputs_ for _, outputs_ in found if len(outputs_[0]) == most]
    return judge_rounding(whole, outputs, held_out=samples.has_held_out, labels=expected.labels)


def _first(arrays: Sequence[np.ndarray], batch: int | None) -> list[np.ndarray]:
    """Return a few samples, in whole batches."""
    size = batch or 1
    count = min(max(_FEW // size, 1) * size, len(arrays[0]))
    return [array[:count] for array in arrays]
