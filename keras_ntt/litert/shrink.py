"""Make an existing LiteRT file smaller, without the model that it was made from."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from keras_ntt.core import atomic_files, checks
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import sizes
from keras_ntt.litert.format.weights import source_of, weights_read_by
from keras_ntt.litert.inspect import stored_weights
from keras_ntt.litert.micro import export as micro
from keras_ntt.litert.micro.build import build
from keras_ntt.litert.micro.graph import decodes, resolve
from keras_ntt.litert.micro.report import micro_warnings
from keras_ntt.litert.micro.slim import slim
from keras_ntt.litert.options import Micro, check_micro
from keras_ntt.litert.reencode import reencode
from keras_ntt.litert.report import ExportReport, file_warnings
from keras_ntt.litert.runtime import run as runs
from keras_ntt.litert.runtimes import closed, dangers, runtimes_of
from keras_ntt.litert.written import Written
from keras_ntt.litert.xnnpack import verdict as verdicts

_TOLERANCE = 1e-5  # relative; sparse kernels sum in another order
_SAMPLES = 8


def shrink_tflite(
    source: str | os.PathLike,
    path: str | os.PathLike,
    *,
    target: str = "size",
    huffman: bool = False,
    arena_limit: int | str | None = None,
    c_array: str | os.PathLike | None = None,
    npu: str | None = None,
) -> ExportReport:
    """Write a smaller file that computes the same as a LiteRT file of any origin.

    Weights with zeros are stored sparsely, and equal vectors once. Names and metadata of the
    conversion are removed. No value is rounded.

    Args:
        source: A LiteRT (TFLite) file. It is not changed, unless `path` is the same file.
        path: The file to write. An older file is replaced only on success.
        target: ``"size"``: a file that LiteRT runs, compared with the source on random inputs.
            ``"micro"``: one for TensorFlow Lite Micro, compared with the source bit by bit.
        huffman: As in `export_tflite`. This and the following arguments are only for ``"micro"``.
        arena_limit: As in `export_tflite`.
        c_array: As in `export_tflite`.
        npu: As in `export_tflite`.

    Returns:
        An `ExportReport`, in which the source replaces Keras and the dense file.

    Raises:
        ArenaLimitError: If no form of the file stays within the limit of the arena.
        ExportError: If the file does not run, or computes something else than the source.
        FileNotFoundError: If there is no such source, or no directory of `path`.
        ImportError: If `ai_edge_litert` is not installed, for ``"size"``.
        TypeError: If `source` or `path` is not a path.
        ValueError: If the source is not a LiteRT model, or an option does not fit.
    """
    checks.check_choice("target", target, ("size", "micro"))
    options = check_micro(Micro(huffman, arena_limit, c_array, npu), target)
    content = atomic_files.as_path(source, "source").read_bytes()
    target_path = atomic_files.writable(path)
    model = fb.read(content)
    try:
        verdict = verdicts.predict(model)
        original = resolve(model) if any(True for _ in decodes(model)) else model
        arrays = _weights_of(original)
    except fb.FileFormatError:
        raise
    except Exception as error:  # tables of the wrong kind make the lookups raise anything
        raise fb.damaged(content, error) from error
    try:
        if target == "micro":
            written = _for_micro(original, len(content), target_path, options)
        else:
            written = _for_litert(original, content, target_path)
    except (LookupError, TypeError, AttributeError) as error:  # such as a signature of no tensor
        raise fb.damaged(content, error) from error
    measured = sizes.of(written.content)
    return ExportReport(
        path=target_path,
        size=measured.raw,
        max_difference=written.difference,
        tolerance=written.allowed,
        samples=_SAMPLES,
        nonzeros=sum(int(np.count_nonzero(array)) for array in arrays),
        weights=sum(array.size for array in arrays),
        target=target,
        quantization=None,
        sizes=measured,
        dense=sizes.of(content),
        limit=sizes.limit_of_model(written.dense),
        tensors=written.tensors,
        verdict=verdict,
        runs=written.runs,
        warnings=written.warnings,
        runtimes=runtimes_of(fb.read(written.content)),
        micro=written.micro,
        reference="source",
    )


def _weights_of(model: Any) -> list[np.ndarray]:
    found: dict[tuple[int, int], np.ndarray] = {}
    for number, subgraph in enumerate(model.subgraphs):
        producers = fb.producers(subgraph)
        for operator in subgraph.operators:
            for index in weights_read_by(model, operator):
                source = source_of(model, subgraph, producers, index)
                if source.array is not None:
                    found[number, source.tensor] = source.array
    return list(found.values())


def _for_micro(model: Any, size: int, path: pathlib.Path, options: Micro) -> Written:
    built = build(
        model,
        size,
        micro.inputs_of(model, _drawn(model)),
        huffman=options.huffman,
        arena_limit=options.arena_limit,
        npu=options.npu,
    )
    micro.put(built, path, options.c_array)
    warnings = tuple(micro_warnings(built.report))
    return Written(built.content, model, built.tensors, (), 0.0, 0.0, warnings, built.report)


def _for_litert(model: Any, content: bytes, path: pathlib.Path) -> Written:
    result = reencode(model, target="size")
    smaller = fb.write(closed(slim(result.model, micro=False)))
    kept = closed(model)
    whole = content if kept is model else fb.write(kept)
    if len(smaller) > len(whole):
        smaller = whole
    samples = _drawn(model)
    batch = _batch_of(model)
    with atomic_files.replacing(path) as temporary, tempfile.TemporaryDirectory() as folder:
        twin = os.path.join(folder, "source.tflite")
        pathlib.Path(twin).write_bytes(content)
        temporary.write_bytes(smaller)
        expected = runs.run(twin, samples, dequantize=True)
        found = runs.compare(
            runs.outputs_by(os.fspath(temporary), samples, batch=batch),
            runs.outputs_by(twin, samples, batch=batch),
        )
        difference, allowed = runs.judge("its source", found, expected, _TOLERANCE)
    reasons = {weight.name: choice.reason for weight, choice in result.choices.values()}
    tensors = stored_weights(result.model, reasons)
    warnings = (*result.notes, *file_warnings(tensors, result.verdict), *dangers(fb.read(smaller)))
    return Written(smaller, result.model, tensors, found, difference, allowed, warnings)


def _batch_of(model: Any) -> int | None:
    """Return the batch size, if the file fixes it."""
    graph = model.subgraphs[0]
    tensor = graph.tensors[int(graph.inputs[0])]
    signature = tensor.shapeSignature
    is_open = signature is not None and len(signature) and int(signature[0]) < 0
    return None if is_open else int(tensor.shape[0])


def _drawn(model: Any) -> list[np.ndarray]:
    """Return random inputs: normal floats, quantized integers of all sizes, else 0 and 1."""
    graph, rng, found = model.subgraphs[0], np.random.default_rng(0), []
    for index in map(int, graph.inputs):
        tensor = graph.tensors[index]
        dtype = fb.dtypes().get(tensor.type)
        if dtype is None:
            raise ValueError(
                "The file takes something else than numbers, which cannot be drawn to compare the "
                f"smaller file on. Received: an input of type number {tensor.type}"
            )
        shape = tuple(int(n) for n in tensor.shape)
        size = (_SAMPLES * max(shape[0], 1), *shape[1:]) if shape else ()
        quantized = tensor.quantization is not None and tensor.quantization.scale is not None
        if dtype.kind == "f":
            found.append(rng.standard_normal(size).astype(dtype))
        elif quantized and dtype.kind in "iu":
            limits = np.iinfo(dtype)
            found.append(rng.integers(limits.min, limits.max, size, dtype, endpoint=True))
        else:
            found.append(rng.integers(0, 2, size).astype(dtype))
    return found
