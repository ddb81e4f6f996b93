"""Write a checked file for a microcontroller, and its C source, or neither."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keras_ntt.core import atomic_files
from keras_ntt.litert.check import Sources, check
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro import c_array as c_source
from keras_ntt.litert.micro.build import Built, build, corners
from keras_ntt.litert.micro.levels import few_levels
from keras_ntt.litert.micro.refit import refit_biases
from keras_ntt.litert.micro.report import LevelsEffect, effect_of, micro_warnings
from keras_ntt.litert.options import Options
from keras_ntt.litert.rounding import rounding_warnings
from keras_ntt.litert.runtime import run as runs
from keras_ntt.litert.runtime.run import quantized
from keras_ntt.litert.samples import Samples
from keras_ntt.litert.written import Expected, Written

_MOST = 32  # calibration inputs to compare the interpreter's outputs on


def write(
    dense: Any,
    path: pathlib.Path,
    samples: Samples,
    expected: Expected,
    options: Options,
    exact: bytes,
) -> Written:
    """Make a file for a microcontroller and move it to its path.

    LiteRT runs the dense file, and its outputs are compared with those of the model. The file for
    the microcontroller is compared with the dense file bit by bit.

    Args:
        dense: The ``ModelT`` of the dense file.
        path: The file to write.
        samples: The samples to run it on.
        expected: The expected outputs of the dense file.
        options: The options of the export.
        exact: The dense float32 file.

    Returns:
        The written file.

    Raises:
        ArenaLimitError: If no form of the model stays within the limit of the arena.
        ExportError: If a file does not run, or has wrong outputs.
        OSError: If a file cannot be written.
    """
    wanted, effect = options.micro, None
    if wanted.levels is not None:
        dense, effect = with_levels(dense, wanted.levels, samples.given)
    content = fb.write(dense)
    batch = int(dense.subgraphs[0].tensors[int(dense.subgraphs[0].inputs[0])].shape[0])
    with tempfile.TemporaryDirectory() as folder:
        twin = pathlib.Path(folder) / "dense.tflite"
        twin.write_bytes(content)
        found = check(twin, Sources(exact, dense, dense), samples, expected, options, batch)
    built = build(
        dense,
        len(content),
        inputs_of(dense, samples.given),
        huffman=wanted.huffman or wanted.levels is not None,
        arena_limit=wanted.arena_limit,
        npu=wanted.npu,
    )
    built = replace(built, report=replace(built.report, levels=effect))
    put(built, path, wanted.c_array)
    warnings = (*micro_warnings(built.report), *rounding_warnings(found.rounding))
    return Written(
        built.content,
        dense,
        built.tensors,
        found.runs,
        found.difference,
        found.allowed,
        warnings,
        built.report,
        found.rounding,
    )


def with_levels(model: Any, count: int, samples: Sequence[np.ndarray]) -> tuple[Any, LevelsEffect]:
    """Round the weights of a model to few levels, and refit its biases.

    Args:
        model: A ``ModelT`` that computes in integers. It is not changed.
        count: Number of levels per tensor.
        samples: Calibration inputs ``[n, ...]``, in the order of the file.

    Returns:
        The new ``ModelT``, and the effect of rounding on the outputs for the samples.
    """
    rounded = few_levels(model, count)
    result = refit_biases(model, rounded.model, rounded.keys, samples)
    outputs = []
    with tempfile.TemporaryDirectory() as folder:
        for name, side in (("before", model), ("after", result)):
            file = pathlib.Path(folder) / f"{name}.tflite"
            file.write_bytes(fb.write(side))
            outputs.append(runs.run(os.fspath(file), samples, dequantize=True))
    return result, effect_of(count, len(rounded.keys), rounded.candidates, *outputs)


def put(built: Built, path: pathlib.Path, c_array: str | os.PathLike | None) -> None:
    """Move a file and its C source to their paths, or neither.

    Args:
        built: The file.
        path: The file to write.
        c_array: Where to write C source, or None.

    Raises:
        OSError: If a file cannot be written.
    """
    with atomic_files.replacing(path) as temporary:
        temporary.write_bytes(built.content)
        if c_array is not None:
            c_source.write(c_array, built.content, built.report)


def inputs_of(model: Any, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the inputs to run a file on: extreme inputs, then the first calibration inputs.

    Args:
        model: A ``ModelT`` of fixed shapes.
        samples: Calibration inputs ``[n, ...]``, in the order of the file.

    Returns:
        One array ``[runs, batch, ...]`` per input, in the types of the file.
    """
    graph, found = model.subgraphs[0], []
    for index, array, ends in zip(graph.inputs, samples, corners(model), strict=True):
        tensor = graph.tensors[int(index)]
        scale = (0.0, 0)
        if tensor.quantization is not None and tensor.quantization.scale is not None:
            scale = (float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0]))
        shape = tuple(int(n) for n in tensor.shape)
        count = min(len(array) // max(shape[0], 1), _MOST)
        part = quantized(array[: count * shape[0]], fb.dtypes()[tensor.type], scale)
        found.append(np.concatenate([ends, part.reshape((count, *shape))]))
    return found
