"""Write LiteRT (TFLite) files, and compare them with Keras before they are reported as written."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_ntt.core import atomic_files
from keras_ntt.litert.check import Sources, check
from keras_ntt.litert.convert import convert, in_float32
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import sizes
from keras_ntt.litert.format.dead_channels import without_dead_channels
from keras_ntt.litert.format.interface import ports_in
from keras_ntt.litert.inspect import FileReport, inspect_tflite, stored_weights
from keras_ntt.litert.lost_zeros import model_notes, weights_computed_with
from keras_ntt.litert.micro import export as micro
from keras_ntt.litert.micro.slim import slim
from keras_ntt.litert.model_checks import check_exportable
from keras_ntt.litert.options import Micro, Options, options_of
from keras_ntt.litert.ports import Ports
from keras_ntt.litert.recurrent import has_lstm, recurrent_notes
from keras_ntt.litert.reencode import Reencoded, reencode
from keras_ntt.litert.report import ExportReport, file_warnings
from keras_ntt.litert.rounding import RuinedError, rounding_warnings
from keras_ntt.litert.runtime import benchmark as timing
from keras_ntt.litert.runtime.predict import tflite_predict
from keras_ntt.litert.runtime.run import ExportError
from keras_ntt.litert.runtimes import closed, dangers, runtimes_of
from keras_ntt.litert.samples import Samples, samples_of
from keras_ntt.litert.savings import savings
from keras_ntt.litert.written import Expected, Written, expected_of
from keras_ntt.masks.compaction import remove_dead_units

__all__ = [
    "ExportError",
    "ExportReport",
    "FileReport",
    "export_tflite",
    "inspect_tflite",
    "tflite_predict",
]


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
    inference_input_type: Any = None,
    inference_output_type: Any = None,
    huffman: bool = False,
    arena_limit: int | str | None = None,
    c_array: str | os.PathLike | None = None,
    npu: str | None = None,
    levels: int | None = None,
    batch_size: int | str | None = None,
    labels: Any = None,
) -> ExportReport:
    """Write a LiteRT file of a model, which its zeros make small or fast, and check it with Keras.

    A file has its inputs and outputs in the order of the model, or in the order of their names if
    they are in a dictionary. If there are several, its signature names them.

    The model is converted densely. Then each weight is stored as the target needs it. The file is
    written under a temporary name in the same folder and run in several ways. It is moved to `path`
    only if its outputs are those of the model.

    Args:
        model: A built model; one with a custom `call()` needs `representative_data`. It may hold
            masks. If its layers compute in float16, bfloat16 or float64, as in mixed precision, a
            float32 copy with the same weights is written and compared.
        path: The file to write. An older file is replaced only on success.
        target: ``"size"``: each weight takes the fewest bytes, and is sparse where that is smaller.
            ``"latency"``: sparse only where a sparse kernel is faster at batch size 1, else dense.
            ``"int8"``: for devices. The file takes one sample in int8, computes in int8, returns
            int8, and is dense. ``"dense"``: all weights are dense; with ``quantization="int8"`` the
            file computes in int8 on a CPU. ``"micro"``: for TensorFlow Lite Micro. The file takes
            one sample and computes in int8, and pruned weights take one bit per zero. LiteRT cannot
            run such a file.
        quantization: None keeps float32 exactly, or takes the default of the target. ``"float16"``
            rounds constants. ``"int8_weights"`` rounds weights to int8, with one scale per output
            channel; activations stay float. ``"int8"`` computes in int8, ``"int16"`` with int16
            activations. ``"float32"`` is for ``target="micro"``, whose default is int8.
        representative_data: Calibration inputs, to compare outputs and to measure ranges for int8:
            arrays ``[n, ...]``, nested as the model takes them; or batches of them, with or without
            labels, in a list, a ``tf.data.Dataset``, a ``keras.utils.PyDataset``, a generator, or a
            function that returns one, as in the guides of TensorFlow Lite. Of more than 256 samples
            the first 256 are used, and up to 256 further ones are held out to judge rounding. None
            compares on 16 random samples, or on one batch if the model fixes the batch size. They
            are standard normal, or zeros and ones if the model takes integers.
        sparse: Whether weights may be stored sparsely. False stores them densely, whatever the
            target.
        tolerance: Largest allowed difference, relative to the largest number of an output.
            ``"auto"`` is 1e-4 for float32. Files with rounding are then judged by its effect on the
            model (`ExportReport.rounding`). They are refused only if it ruins the model: if the
            mean square of the error is as large as the variance of an output. Faults are never
            tolerated: any file must compute what the dense file of the same numbers computes, and
            the float32 file what the model computes.
        cpu: The processor for ``"latency"``: ``"arm"``, ``"x86"`` (with AVX), or ``"any"``, which
            uses sparse kernels only where they are faster on both.
        compact: Whether to remove units that are constant or that nothing reads before the
            conversion (see `remove_dead_units`). The outputs stay the same.
        benchmark: Whether to measure latency and memory on this host, also those of the dense file;
            not for ``"micro"``.
        inference_input_type: The input type of a file that computes in int8: ``"int8"``,
            ``"uint8"`` or ``"float32"``; with int16 ``"int16"`` or ``"float32"``. None is float32;
            for ``"int8"`` and ``"micro"`` it is the type in which the file computes.
            `tflite_predict` converts floats. The scales are in `ExportReport.ports`.
        inference_output_type: The output type, likewise.
        huffman: For ``"micro"``: whether weights may be stored as a Huffman code where that is
            smaller. Unpacking takes about 3 times as long.
        arena_limit: For ``"micro"``: bytes of memory, as counted on a 64-bit host, or ``"dense"``
            for no higher peak of activations and unpacked weights than the dense model has. Layers
            are cut into pieces or left dense to keep the limit.
        c_array: For ``"micro"``: where to write the file also as C source, a header and a ``.cc``.
        npu: For ``"micro"``: ``"ethos-u"`` writes a dense file for the compiler Vela, which packs
            zeros itself.
        levels: For ``"micro"`` with integers: the number of values, without zero, to which the
            weights of a tensor are rounded if a Huffman code then makes the file smaller. 15 takes
            about 0.22 bytes per weight at 80 % zeros. Biases are refitted on `representative_data`.
            The report has the effect on the outputs.
        batch_size: The batch size of the file, or ``"any"``. None is 1 for ``"int8"`` and
            ``"micro"``, else any. If the model fixes its batch size, the file has the same.
        labels: Class numbers ``[n]`` of the samples of `representative_data`, or a row of class
            weights for each. With these the report has the accuracy of the file and of the model,
            if something is rounded.

    Returns:
        An `ExportReport`, whose ``str()`` is a table.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the model cannot be converted, or the file does not run or has other
            outputs.
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
    check_exportable(model, representative_data)
    target_path = atomic_files.writable(path)
    options = options_of(
        target=target,
        quantization=quantization,
        cpu=cpu,
        tolerance=tolerance,
        data=representative_data,
        input_type=inference_input_type,
        output_type=inference_output_type,
        batch_size=batch_size,
        micro=Micro(huffman, arena_limit, c_array, npu, levels),
    )
    if not sparse and options.target not in ("int8", "micro"):
        options = replace(options, target="dense")
    exact = in_float32(model)
    samples = samples_of(exact, representative_data, options.batch_size)
    own = samples.ports.batch
    if batch_size not in (None, "any") and own not in (None, options.batch_size):
        raise ValueError(
            "The model fixes the number of samples at a time, so a file cannot have another. Build "
            f"it again without batch_shape. Received: batch_size={batch_size!r}, {own} in the model"
        )
    expected = expected_of(exact, samples, labels)
    ports = samples.ports.with_batch(options.batch_size)
    smaller, removed = remove_dead_units(exact) if compact else (exact, ())
    try:
        sources, result, written = _made(smaller, options, samples, expected, ports, target_path)
    except RuinedError:
        # In an LSTM operator the gates have 12 bits after the binary point; unrolled steps have
        # more.
        if not has_lstm(smaller) or ports.batch is None:
            raise
        steps = replace(options, operators=False)
        sources, result, written = _made(smaller, steps, samples, expected, ports, target_path)
    dense = convert(exact, [None], ports=ports)[0] if removed else sources.exact
    timed = None
    if benchmark and options.target != "micro":
        one = [array[: ports.batch or 1] for array in samples.given]
        timed = _benchmark(target_path, dense, one)
    values = weights_computed_with(model)
    measured = sizes.of(written.content)
    return ExportReport(
        path=target_path,
        size=measured.raw,
        max_difference=written.difference,
        tolerance=written.allowed,
        samples=len(samples.given[0]),
        nonzeros=sum(int(np.count_nonzero(v)) for v in values),
        weights=sum(v.size for v in values),
        target=options.target,
        quantization=options.quantization,
        sizes=measured,
        dense=sizes.of(dense),
        limit=sizes.limit_of_model(written.dense),
        tensors=written.tensors,
        verdict=result.verdict,
        runs=written.runs,
        warnings=(
            *result.notes,
            *model_notes(model, written.tensors),
            *written.warnings,
            *recurrent_notes(model, fb.read(written.content), measured.raw, ports.batch),
        ),
        removed=removed,
        benchmark=timed,
        runtimes=runtimes_of(fb.read(written.content)),
        micro=written.micro,
        rounding=written.rounding,
        ports=ports_in(fb.read(written.content)),
    )


def _made(
    model: keras.Model,
    options: Options,
    samples: Samples,
    expected: Expected,
    ports: Ports,
    path: pathlib.Path,
) -> tuple[Sources, Reencoded, Written]:
    """Make a file, check it and move it to its path."""
    sources, result = _store(model, options, samples.given, ports)
    if options.target == "micro":
        written = micro.write(result.model, path, samples, expected, options, sources.exact)
    else:
        written = _write(result, sources, path, samples, expected, options, ports.batch)
    return sources, result, written


def _write(
    result: Reencoded,
    sources: Sources,
    path: pathlib.Path,
    samples: Samples,
    expected: Expected,
    options: Options,
    batch: int | None,
) -> Written:
    """Write a file for LiteRT, after a check that it runs."""
    content = fb.write(
        closed(slim(result.model, micro=False)) if options.target == "size" else result.model
    )
    with atomic_files.replacing(path) as temporary:
        temporary.write_bytes(content)
        found = check(temporary, sources, samples, expected, options, batch)
    reasons = {weight.name: choice.reason for weight, choice in result.choices.values()}
    tensors = stored_weights(result.model, reasons)
    return Written(
        content,
        result.model,
        tensors,
        found.runs,
        found.difference,
        found.allowed,
        (
            *file_warnings(tensors, result.verdict),
            *dangers(result.model),
            *rounding_warnings(found.rounding),
            *(savings(result.model, options, batch) if options.target == "int8" else ()),
        ),
        rounding=found.rounding,
    )


def _store(
    model: keras.Model, options: Options, samples: Sequence[np.ndarray], ports: Ports
) -> tuple[Sources, Reencoded]:
    """Return the sources of a file, and the model stored according to the options."""
    weights_only = options.quantization == "int8_weights"
    wanted: list[str | None] = [None]
    by_converter = options.quantization is not None and not (
        weights_only and options.target == "size"
    )
    if by_converter:
        wanted.append(options.quantization)
    types = {"input_type": options.input_type, "output_type": options.output_type}
    # XNNPACK computes unrolled steps but not an LSTM operator, whose weights can be sparse but not
    # int8.
    whole = options.operators and not (weights_only and options.target == "size")
    loops = options.target == "size"
    contents = convert(model, wanted, samples, ports=ports, operators=whole, loops=loops, **types)
    dense = fb.read(contents[0])
    if weights_only and options.target in ("size", "latency"):
        result = reencode(dense, target=options.target, int8=True, cpu=options.cpu)
        if options.target == "size" or result.verdict.kind == "sparse":
            return Sources(contents[0], dense, dense), result
    converted = base = fb.read(contents[-1])
    stays = options.quantization in ("int8_weights", "int8", "int16") or options.target == "micro"
    if stays:
        base = without_dead_channels(converted)
    target = "dense" if stays else options.target
    result = reencode(base, target=target, cpu=options.cpu)
    return Sources(contents[0], converted, base), result


def _benchmark(path: pathlib.Path, dense: bytes, sample: Sequence[np.ndarray]) -> timing.Benchmark:
    with tempfile.TemporaryDirectory() as folder:
        twin = pathlib.Path(folder) / "dense.tflite"
        twin.write_bytes(dense)
        return timing.measure(os.fspath(path), os.fspath(twin), sample)
