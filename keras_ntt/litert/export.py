"""LiteRT (TFLite) files that are run and compared with Keras before they are declared written."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_ntt.core import atomic_files, checks, host
from keras_ntt.litert.convert import QUANTIZATIONS, convert, in_float32
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import sizes
from keras_ntt.litert.format.storage import CPUS
from keras_ntt.litert.inspect import FileReport, inspect_tflite, stored_weights
from keras_ntt.litert.ports import Ports
from keras_ntt.litert.reencode import TARGETS, Reencoded, reencode
from keras_ntt.litert.report import ExportReport, file_warnings
from keras_ntt.litert.runtime import benchmark as timing
from keras_ntt.litert.runtime import run as runs
from keras_ntt.litert.runtime.predict import tflite_predict
from keras_ntt.litert.runtime.run import ExportError
from keras_ntt.litert.samples import outputs_of, samples_of
from keras_ntt.masks.compaction import remove_dead_units

__all__ = [
    "ExportError",
    "ExportReport",
    "FileReport",
    "export_tflite",
    "inspect_tflite",
    "tflite_predict",
]

# Relative to the largest output. Rounded weights move the outputs of deep networks by per cents.
TOLERANCES = {None: 1e-4, "float16": 1e-2, "int8_weights": 0.1, "int8": 0.2}


@dataclass(frozen=True)
class _Options:
    target: str
    quantization: str | None
    cpu: str
    tolerance: float


def _options(target: str, quantization: Any, cpu: str, tolerance: Any, data: Any) -> _Options:
    """Return options that fit together, or raise."""
    checks.check_choice("target", target, TARGETS)
    checks.check_choice("cpu", cpu, CPUS)
    if quantization is not None:
        checks.check_choice("quantization", quantization, QUANTIZATIONS)
    if target == "int8":
        if quantization not in (None, "int8"):
            raise ValueError(
                'target="int8" is a file that computes in int8 throughout, which leaves no '
                "choice of quantization. Leave it out, or take another target. "
                f"Received: target='int8', quantization={quantization!r}"
            )
        quantization = "int8"
    if quantization == "int8" and data is None:
        raise ValueError(
            "A file that computes in int8 needs inputs to measure the ranges of activations on. "
            "Pass representative_data, some hundred samples as the model will see them. "
            "Received: representative_data=None"
        )
    if isinstance(tolerance, str) and tolerance == "auto":
        tolerance = TOLERANCES[quantization]
    return _Options(target, quantization, cpu, checks.check_number("tolerance", tolerance))


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    target: str = "size",
    quantization: str | None = None,
    representative_data: Any = None,
    sparse: bool = True,
    tolerance: float | str = "auto",
    cpu: str = "any",
    compact: bool = False,
    benchmark: bool = False,
) -> ExportReport:
    """Write a LiteRT file of a model, small or fast by its zeros, and check it against Keras.

    A file has its inputs and outputs in the model's order, those of a dictionary in that of their
    names; where there are several its signature names them.

    The model is converted densely; then each weight is stored as the target wants. The file is
    written beside its place, run in several ways and moved to `path` only if its outputs are the
    model's.

    Args:
        model: A built model; one with code of its own needs `representative_data`. Masks it holds
            do no harm. Of one whose layers compute in float16, bfloat16 or float64, as in mixed
            precision, a copy in float32 with the same weights is written and compared.
        path: The file to write. An older file is replaced only on success.
        target: ``"size"``: each weight takes the fewest bytes, sparse where that is smaller.
            ``"latency"``: sparse only where a sparse kernel is faster at batch 1, else dense.
            ``"int8"``: computes in int8, stored densely. ``"dense"``: everything densely.
        quantization: None keeps float32 exactly. ``"float16"`` rounds constants.
            ``"int8_weights"`` rounds weights to int8, one scale an output channel; activations
            stay float. ``"int8"`` is the quantization of ``target="int8"``.
        representative_data: Inputs ``[n, ...]``, nested as the model takes them, to compare
            outputs on, and to measure ranges for int8; of more than 256 the first 256. None
            compares on 16 samples, or one batch where the model fixes its size: standard normal
            ones, or zeros and ones where the model takes whole numbers.
        sparse: Whether weights may be stored sparsely. False stores them densely, whatever the
            target.
        tolerance: Largest difference allowed, relative to the largest number of an output.
            ``"auto"`` is 1e-4 for float32, 1e-2 for float16, 0.1 for int8 weights and 0.2 for
            int8.
        cpu: What ``"latency"`` is for: ``"arm"``, ``"x86"`` (with AVX), or ``"any"``, which
            takes sparse kernels only where they win on both.
        compact: Whether to remove units that are constant or that nothing reads before the
            conversion (see `remove_dead_units`). The outputs stay the same.
        benchmark: Whether to measure latency and memory on this host, beside the dense file.

    Returns:
        An `ExportReport`, whose ``str()`` is a table.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the model cannot be converted, or the converted one does not run or its
            outputs differ.
        FileNotFoundError: If the directory of `path` does not exist.
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If the model, the data or an option do not fit.

    Examples:
        >>> import keras, os, tempfile
        >>> from keras_ntt import export_tflite, prune_at_init, strip_pruning
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(100)])
        >>> sparse = strip_pruning(prune_at_init(model, sparsity=0.95, saliency="magnitude"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "sparse.tflite")
        ...     report = export_tflite(sparse, path)
        ...     report.size == os.path.getsize(path) < 6400 * 4 / 8
        True
    """
    _check_model(model, representative_data)
    target_path = atomic_files.writable(path)
    options = _options(target, quantization, cpu, tolerance, representative_data)
    if not sparse and options.target != "int8":
        options = replace(options, target="dense")
    exact = in_float32(model)
    samples, ports = samples_of(exact, representative_data)
    batch = ports.batch
    smaller, removed = remove_dead_units(exact) if compact else (exact, ())
    dense, result = _store(smaller, options, samples, ports)
    if removed:
        (dense,) = convert(exact, [None], ports=ports)
    content = fb.write(result.model)
    expected = outputs_of(exact, samples, ports)
    with atomic_files.replacing(target_path) as temporary:
        temporary.write_bytes(content)
        found = runs.compare(os.fspath(temporary), samples, expected, batch=batch)
        difference, allowed = _judge(model, found, expected, options.tolerance)
        sample = [array[: batch or 1] for array in samples]
        timed = _benchmark(temporary, dense, sample) if benchmark else None
    values = [keras.ops.convert_to_numpy(w) for w in model.weights]
    reasons = {weight.name: choice.reason for weight, choice in result.choices.values()}
    tensors = stored_weights(result.model, reasons)
    measured = sizes.of(content)
    return ExportReport(
        path=target_path,
        size=measured.raw,
        max_difference=difference,
        tolerance=allowed,
        samples=len(samples[0]),
        nonzeros=sum(int(np.count_nonzero(v)) for v in values),
        weights=sum(v.size for v in values),
        target=options.target,
        quantization=options.quantization,
        sizes=measured,
        dense=sizes.of(dense),
        limit=sizes.limit_of_model(result.model),
        tensors=tensors,
        verdict=result.verdict,
        runs=found,
        warnings=(*result.notes, *file_warnings(tensors, result.verdict)),
        removed=removed,
        benchmark=timed,
    )


def _check_model(model: Any, representative_data: Any) -> None:
    """Raise unless a file can be made of a model."""
    checks.check_model(model)
    if host.functional_of(model) is None and representative_data is None:
        raise ValueError(
            "The model has code of its own, which does not say what it takes. Pass some inputs as "
            "representative_data, with the shapes that the file is to take. "
            f"Received: model={model.name!r} of type {type(model).__name__}"
        )
    stateful = [layer.name for layer in host.layers_of(model) if getattr(layer, "stateful", False)]
    if stateful:
        raise ValueError(
            "Stateful layers keep a state between calls, and a file does not. Make the model again "
            f"without stateful=True. Received: model={model.name!r} with {', '.join(stateful)}"
        )


def _store(
    model: keras.Model, options: _Options, samples: Sequence[np.ndarray], ports: Ports
) -> tuple[bytes, Reencoded]:
    """Return the dense float32 file, and the model stored as the options want."""
    weights_only = options.quantization == "int8_weights"
    wanted: list[str | None] = [None]
    by_converter = options.quantization is not None and not (
        weights_only and options.target == "size"
    )
    if by_converter:
        wanted.append(options.quantization)
    contents = convert(model, wanted, samples, ports=ports)
    dense = fb.read(contents[0])
    if weights_only and options.target in ("size", "latency"):
        result = reencode(dense, target=options.target, int8=True, cpu=options.cpu)
        if options.target == "size" or result.verdict.kind == "sparse":
            return contents[0], result
    base = fb.read(contents[-1])
    stays = options.quantization in ("int8_weights", "int8")
    target = "dense" if stays else options.target
    return contents[0], reencode(base, target=target, cpu=options.cpu)


def _judge(
    model: keras.Model,
    found: tuple[runs.Run, ...],
    expected: Sequence[np.ndarray],
    tolerance: float,
) -> tuple[float, float]:
    """Return the difference and the limit of the output that is nearest to its limit, or raise."""
    with np.errstate(invalid="ignore", over="ignore"):
        scales = [max(float(np.abs(output).max()), 1e-30) for output in expected]
    differences = [
        (difference / scale, difference, scale, run)
        for run in found
        for difference, scale in zip(run.differences, scales, strict=True)
    ]
    _, difference, scale, run = max(differences, key=lambda d: (not np.isfinite(d[0]), d[0]))
    if not difference <= tolerance * scale:
        raise ExportError(
            f"The LiteRT file computes something else than the model {model.name!r}, so it "
            f"was not written. Received: outputs that differ by {difference:.3g}, where "
            f"{tolerance * scale:.3g} is allowed ({run})"
        )
    return difference, tolerance * scale


def _benchmark(path: pathlib.Path, dense: bytes, sample: Sequence[np.ndarray]) -> timing.Benchmark:
    with tempfile.TemporaryDirectory() as folder:
        twin = pathlib.Path(folder) / "dense.tflite"
        twin.write_bytes(dense)
        return timing.measure(os.fspath(path), os.fspath(twin), sample)
