"""Check a file before it takes its place: its faults, and what rounding has done to the model."""

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

_FEW = 16  # samples that show a fault, which is not a matter of chance


class Checked(NamedTuple):
    """A file that has passed.

    Attributes:
        runs: The ways in which it was run and compared with the model.
        difference: Largest difference of an output from the model's.
        allowed: The largest that was allowed.
        rounding: What rounding has done, or None where nothing was rounded.
    """

    runs: tuple[runs.Run, ...]
    difference: float
    allowed: float
    rounding: Rounding | None


class Sources(NamedTuple):
    """What a file was made of.

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
    """Run a file in every way and judge it.

    Args:
        path: The file.
        sources: What it was made of.
        samples: What to run it on.
        expected: What it should compute.
        options: How values are rounded, and the tolerance: None leaves the judgement of rounding
            to `rounding.check_rounding`.
        batch: The number of samples at a time that the file fixes, or None.

    Returns:
        The figures.

    Raises:
        ExportError: If the file has other weights or computes something else than the dense file
            of the same numbers; if the dense float32 file computes something else than the model;
            or if rounding has ruined the model, or passes the tolerance.
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
    """Raise an ExportError at a fault of the conversion or of what was made of its file."""
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
    """Measure what rounding has done, on held-out samples where there are some.

    Args:
        path: The file.
        found: What `run.outputs_by` has returned of it on `samples.given`.
        samples: The samples.
        expected: What the file should compute.
        batch: The number of samples at a time that the file fixes, or None.

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
