"""LiteRT (TFLite) files that are run and compared with Keras before they are declared written."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import tempfile
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt import _host, checks, files


class ExportError(RuntimeError):
    """A converted model could not be run or does not compute what the Keras model computes."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file.
        size: Its size in bytes.
        max_difference: Largest difference of an output from Keras's, of those compared.
        tolerance: The largest that was allowed.
        samples: Number of samples compared.
        nonzeros: Number of weights that are not zero.
        weights: Number of weights.
    """

    path: pathlib.Path
    size: int
    max_difference: float
    tolerance: float
    samples: int
    nonzeros: int
    weights: int

    def __str__(self) -> str:
        """Return the report as a person reads it."""
        return (
            f"{self.path}: {self.size:,} bytes, {self.nonzeros:,} of {self.weights:,} weights "
            f"non-zero, outputs within {self.max_difference:.1e} of Keras "
            f"(allowed {self.tolerance:.1e}) on {self.samples} samples"
        )


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    representative_data: Any = None,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write a float32 LiteRT file of a model and check it against Keras.

    The file is converted beside its place, loaded with the LiteRT interpreter, run on samples
    and moved to `path` only if its outputs are the model's. Weights are stored dense: zeros do
    not make the file smaller, only its compressed form.

    Args:
        model: A built model with one input and one output. Masks it holds do no harm.
        path: The file to write. An older file is replaced only on success.
        representative_data: Inputs ``[n, ...]`` to compare outputs on; None compares on 16
            standard normal samples.
        tolerance: Largest difference allowed, relative to the largest output.

    Returns:
        An `ExportReport`.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the model cannot be converted, or the converted one does not run or its
            outputs differ.
        FileNotFoundError: If the directory of `path` does not exist.
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If the model or the data do not fit.
    """
    checks.check_model(model)
    checks.check_number("tolerance", tolerance)
    functional = _host.functional_of(model)
    if functional is None or len(functional.inputs) != 1 or len(functional.outputs) != 1:
        raise ValueError(
            "export_tflite takes Sequential and functional models with one input and one output. "
            f"Received: model={model.name!r} of type {type(model).__name__}"
        )
    samples = _samples(functional, representative_data)
    target = pathlib.Path(path)
    interpreter_class = _interpreter_class()
    content = _convert(model)
    expected = keras.ops.convert_to_numpy(model(samples, training=False))
    with files.replacing(target) as temporary:
        temporary.write_bytes(content)
        found = _run(interpreter_class, os.fspath(temporary), samples)
        with np.errstate(invalid="ignore", over="ignore"):
            scale = max(float(np.abs(expected).max()), 1e-30)
            difference = float(np.abs(found - expected).max())
        if not difference <= tolerance * scale:
            raise ExportError(
                f"The LiteRT file computes something else than the model {model.name!r}, so it "
                f"was not written. Received: outputs that differ by {difference:.3g}, where "
                f"{tolerance * scale:.3g} is allowed"
            )
    values = [keras.ops.convert_to_numpy(w) for w in model.weights]
    return ExportReport(
        target,
        target.stat().st_size,
        difference,
        tolerance * scale,
        len(samples),
        sum(int(np.count_nonzero(v)) for v in values),
        sum(v.size for v in values),
    )


def tflite_predict(path: str | os.PathLike, x: np.ndarray) -> np.ndarray:
    """Run a LiteRT file with one input and one output.

    Args:
        path: The file.
        x: Inputs ``[n, ...]``.

    Returns:
        Outputs ``[n, ...]``.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the file does not run.
    """
    return _run(_interpreter_class(), os.fspath(path), np.asarray(x))


def _samples(functional: Any, representative_data: Any) -> np.ndarray:
    symbol = functional.inputs[0]
    if representative_data is not None:
        checks.check_arrays(representative_data, functional, "representative_data")
        return np.asarray(representative_data)[:256].astype(symbol.dtype)
    if None in symbol.shape[1:]:
        raise ValueError(
            "The model leaves a size of its input open, so there is nothing to compare outputs "
            f"on. Pass representative_data. Received: input of shape {tuple(symbol.shape)}"
        )
    shape = (symbol.shape[0] or 16, *symbol.shape[1:])
    return np.random.default_rng(0).standard_normal(shape).astype(symbol.dtype)


def _interpreter_class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "Checking a LiteRT file needs the LiteRT interpreter: "
            "pip install 'keras-ntt[litert]' (the package ai-edge-litert)."
        ) from error
    return Interpreter


def _run(interpreter_class: Any, path: str, x: np.ndarray) -> np.ndarray:
    try:
        interpreter = interpreter_class(model_path=path)
        (given,) = interpreter.get_input_details()
        interpreter.resize_tensor_input(given["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], x.astype(given["dtype"]))
        interpreter.invoke()
        (result,) = interpreter.get_output_details()
        return interpreter.get_tensor(result["index"]).copy()
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"The LiteRT interpreter could not run the file: {error}. Received: path={path!r}"
        ) from error


def _convert(model: keras.Model) -> bytes:
    """Convert a model by way of a SavedModel, without the prints about it.

    The converter's own door for Keras models aborts the process with TensorFlow 2.16.
    """
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            model.export(folder)
            return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    except Exception as error:  # the converter raises whatever its passes raise
        raise ExportError(
            f"TensorFlow could not convert the model {model.name!r} to LiteRT. "
            f"Received: {type(error).__name__}: {error}"
        ) from error
