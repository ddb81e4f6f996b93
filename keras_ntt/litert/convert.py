"""Densely stored LiteRT files by TensorFlow's converter."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_ntt import _host
from keras_ntt.litert.checks import ExportError

QUANTIZATIONS = ("float16", "int8_weights", "int8")


def convert(
    model: keras.Model, quantizations: Sequence[str | None], samples: np.ndarray | None = None
) -> list[bytes]:
    """Convert a model by way of one SavedModel, without the prints about it.

    The converter's own door for Keras models aborts the process with TensorFlow 2.16. Its
    sparse mode is never used: it writes files that compute something else or do not load.
    Recurrent layers are written step by step, because it cannot convert their loops.

    Args:
        model: The model.
        quantizations: One file for each: None, ``"float16"``, ``"int8_weights"`` (activations
            stay float) or ``"int8"``.
        samples: Inputs, from which ``"int8"`` measures the ranges of activations; the others
            have no need of them.

    Returns:
        The files.

    Raises:
        ExportError: If the model cannot be converted.
    """
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            _save(model, folder)
            batches = [] if samples is None else _batches(model, samples)
            return [_convert(folder, kind, batches) for kind in quantizations]
    except Exception as error:  # the converter raises whatever its passes raise
        raise ExportError(
            f"TensorFlow could not convert the model {model.name!r} to LiteRT. {_hint(model)}"
            f"Received: {type(error).__name__}: {error}"
        ) from error


def _save(model: keras.Model, folder: str) -> None:
    """Write a SavedModel of inference, which `Model.export` takes for the default of each layer."""
    functional = _host.functional_of(model)
    if functional is None:  # the shapes that a call of its own takes are known to Keras alone
        with _host.unrolled(model, []):
            model.export(folder)
        return
    spec = keras.tree.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype, t.name), _host.input_structure(functional)
    )
    archive = keras.export.ExportArchive()
    archive.track(model)
    with _host.unrolled(model, keras.tree.flatten(spec)):
        archive.add_endpoint("serve", lambda x: model(x, training=False), [spec])
        archive.write_out(folder)


def _hint(model: keras.Model) -> str:
    functional = _host.functional_of(model)
    specs = [] if functional is None else [tf.TensorSpec(t.shape) for t in functional.inputs]
    if _host.loops_of(model) and _host.are_of_open_length(specs):
        return "Recurrent layers need sequences of a length that is fixed in keras.Input. "
    return ""


def _batches(model: keras.Model, samples: np.ndarray) -> list[np.ndarray]:
    size = model.inputs[0].shape[0] or 1
    return [samples[i : i + size] for i in range(0, len(samples) - size + 1, size)]


def _convert(folder: str, quantization: str | None, batches: list[np.ndarray]) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.representative_dataset = lambda: ([batch] for batch in batches)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()
