"""What ``keras-ntt evaluate`` does."""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
from typing import Any

import keras
import numpy as np

import keras_ntt
from keras_ntt.cli import data
from keras_ntt.cli.sources import Wanted
from keras_ntt.core import input_checks
from keras_ntt.core.logits import logits_of, looks_like_probabilities
from keras_ntt.core.tables import table as text_table
from keras_ntt.litert.runtime import run as runs
from keras_ntt.masks.policies import all_kernels

BATCH = 256
_TINY = 1e-7  # as Keras clips probabilities


@dataclasses.dataclass(frozen=True)
class Measured:
    """How well outputs fit labels.

    Attributes:
        loss: Mean loss.
        loss_name: The loss: ``"cross-entropy"`` or ``"mean squared error"``.
        accuracy: The fraction of right answers; None if the labels are not classes.
    """

    loss: float
    loss_name: str
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model or a file, measured on labelled samples.

    Attributes:
        path: The file or folder.
        source: Where the samples are.
        samples: The number of samples.
        measured: How well its outputs fit the labels.
        size: Bytes of the file, or of all files of the folder.
        gzip: Bytes after compression by gzip.
        sparsity: Fraction of zeros of the kernels.
        nonzeros: Number of their entries that are not zero.
    """

    path: pathlib.Path
    source: str
    samples: int
    measured: Measured
    size: int
    gzip: int
    sparsity: float
    nonzeros: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures in a form for JSON."""
        measured = dataclasses.asdict(self.measured)
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**rest, "path": str(self.path), "measured": measured}

    def __str__(self) -> str:
        """Return the figures as text."""
        found = self.measured
        rows = [("samples", f"{self.samples:,} of {self.source}")]
        if found.accuracy is not None:
            rows.append(("accuracy", f"{found.accuracy:.2%}"))
        rows += [
            (found.loss_name, f"{found.loss:.4g}"),
            ("size", f"{self.size:,} bytes, {self.gzip:,} by gzip"),
            ("sparsity", f"{self.sparsity:.2%}, {self.nonzeros:,} weights that are not zero"),
        ]
        return text_table((str(self.path), ""), rows)


def run(path: pathlib.Path, source: str, divide_by: float | None) -> Evaluation:
    """Measure a model or a file on labelled samples.

    Args:
        path: A Keras model in any form that `keras_ntt.load_model` reads, or a ``.tflite`` file.
        source: Where the samples are.
        divide_by: The number to divide the inputs by, or None.

    Returns:
        The figures.

    Raises:
        ImportError: If a file is to be run and LiteRT is not installed.
        OSError: If a file cannot be read.
        ValueError: If the samples do not fit.
    """
    if path.suffix == ".tflite":
        return of_file(path, source, divide_by)
    model = data.load_model(path)
    x, y = data.read_samples(source, model, divide_by)
    outputs = keras.tree.flatten(model.predict(x, batch_size=BATCH, verbose=0))
    kinds = logits_of(model).activations or (None,)
    measured = measure(outputs, y, is_probability=kinds[0] is not None or None)
    kernels = [keras.ops.convert_to_numpy(kernel) for kernel in all_kernels(model)]
    entries, nonzeros = sum(k.size for k in kernels), sum(map(np.count_nonzero, kernels))
    return Evaluation(
        path, source, len(y), measured, *_sizes(path), _sparsity(entries, nonzeros), int(nonzeros)
    )


def of_file(path: pathlib.Path, source: str, divide_by: float | None) -> Evaluation:
    """Measure a LiteRT file on labelled samples, see `run`."""
    report = keras_ntt.inspect_tflite(path)  # first, because it reports what is wrong with a file
    wanted = wanted_by_file(path)
    x, y = data.read_samples(source, wanted, divide_by)
    arrays = dict(zip(keras.tree.flatten(wanted.names), keras.tree.flatten(x), strict=True))
    given: Any = arrays if len(arrays) > 1 else list(arrays.values())
    outputs = runs.run(str(path), given, batch=_batch(wanted), dequantize=True)
    entries = sum(weight.entries for weight in report.weights)
    nonzeros = sum(weight.nonzeros for weight in report.weights)
    measured = measure(outputs, y)
    return Evaluation(
        path, source, len(y), measured, *_sizes(path), _sparsity(entries, nonzeros), nonzeros
    )


def _sparsity(entries: int, nonzeros: int) -> float:
    return 1 - nonzeros / entries if entries else 0.0


def _batch(wanted: Wanted) -> int | None:
    """Return how many samples a file takes at a time; None if the file has a fixed number."""
    return None if any(spec.shape[0] is not None for spec in wanted.inputs) else BATCH


def wanted_by_file(path: pathlib.Path) -> Wanted:
    """Return what a LiteRT file takes.

    Quantized inputs take real numbers, scaled as for a Keras model.

    Args:
        path: The file.

    Returns:
        Its inputs; if there are several, they have the names of its signature.
    """
    loaded = runs.interpreter(str(path))
    ports = {port["name"]: port for port in loaded.get_input_details()}
    signatures = list(loaded.get_signature_list())
    if len(ports) > 1 and len(signatures) == 1:
        ports = loaded.get_signature_runner(signatures[0]).get_input_details()
    inputs = []
    for name, port in ports.items():
        shape = tuple(None if side < 0 else int(side) for side in port["shape_signature"])
        dtype = np.dtype(port["dtype"]).name
        scaled = "float" in dtype or bool(port["quantization"][0])
        inputs.append(input_checks.InputSpec(name, shape, dtype, scaled))
    signature = input_checks.Signature(path.name, inputs, None)
    names = list(ports) if len(ports) > 1 else next(iter(ports))
    return Wanted(signature, names)


def measure(
    outputs: list[np.ndarray], labels: np.ndarray, *, is_probability: bool | None = None
) -> Measured:
    """Compare outputs with labels.

    Class numbers, or rows of weights that sum to 1, are compared by accuracy and cross-entropy:
    one for each sample, or for each position of an image or a sequence. So are zeros and ones, for
    one output or for several that are probabilities. Other labels, of the shape of the outputs, are
    compared by the mean squared error.

    Args:
        outputs: The outputs, of which there must be one, ``[n, ..., c]``.
        labels: Labels ``[n, ...]``.
        is_probability: Whether the outputs are probabilities; None finds out from their values.

    Returns:
        The `Measured`.

    Raises:
        ValueError: If they do not fit.

    >>> measure([np.array([[0.9, 0.1], [0.4, 0.6]])], np.array([0, 0])).accuracy
    0.5
    >>> measure([np.array([[1.0], [2.0]])], np.array([0.0, 0.5])).loss
    1.625
    """
    if len(outputs) != 1:
        raise ValueError(
            "A model is measured by one output. Make a model with that output alone: "
            "keras.Model(model.inputs, model.outputs[0]). "
            f"Received: {len(outputs)} outputs"
        )
    y = np.asarray(outputs[0], np.float64)
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biuf" or not np.isfinite(labels.astype(np.float64)).all():
        raise ValueError(
            "Labels must be finite numbers. Remove or correct those samples. "
            f"Received: labels of dtype {labels.dtype} and shape {labels.shape}"
        )
    if y.ndim == 1:
        y = y[:, None]
    if labels.ndim == y.ndim and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.shape == y.shape[:-1] and y.shape[-1] > 1:
        return _of_classes(y, _checked_classes(labels, y.shape[-1]), is_probability)
    if labels.shape == y.shape[:-1] and set(np.unique(labels)) <= {0, 1}:
        return _of_yes_and_no(y[..., 0], labels.astype(bool), is_probability)
    if labels.shape == y.shape[:-1]:
        return Measured(float(np.mean((y[..., 0] - labels) ** 2)), "mean squared error", None)
    if labels.shape == y.shape:
        if (labels >= 0).all() and (abs(labels.sum(axis=-1) - 1) < 1e-3).all():
            return _of_classes(y, labels.argmax(axis=-1), is_probability)
        if set(np.unique(labels)) <= {0, 1} and ((y >= 0) & (y <= 1)).all():
            return _of_yes_and_no(y, labels.astype(bool), True)
        return Measured(float(np.mean((y - labels) ** 2)), "mean squared error", None)
    raise ValueError(
        "Labels must be class numbers, one for each row of the outputs, or of the shape of the "
        f"outputs. Received: labels of shape {labels.shape}, outputs of shape {y.shape}"
    )


def _checked_classes(labels: np.ndarray, count: int) -> np.ndarray:
    if (labels != np.rint(labels)).any() or labels.min() < 0 or labels.max() >= count:
        raise ValueError(
            f"Labels must number the classes from 0 to {count - 1}, as there are {count} outputs. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)


def _of_classes(y: np.ndarray, classes: np.ndarray, is_probability: bool | None) -> Measured:
    rows = y.reshape(-1, y.shape[-1])
    if is_probability is None:
        # Rounded to 8 bits, the sum of probabilities differs from 1 by some thousandths.
        sums = rows.sum(axis=-1)
        rounded = bool((rows >= 0).all()) and bool((abs(sums - 1) < 0.05).all())
        is_probability = rounded or looks_like_probabilities(rows)
    chosen = np.take_along_axis(rows, classes.reshape(-1, 1), axis=-1)[:, 0]
    if is_probability:
        losses = -np.log(np.clip(chosen / np.maximum(rows.sum(axis=-1), _TINY), _TINY, 1))
    else:
        top = rows.max(axis=-1)
        losses = np.log(np.exp(rows - top[:, None]).sum(axis=-1)) + top - chosen
    right = rows.argmax(axis=-1) == classes.ravel()
    return Measured(float(losses.mean()), "cross-entropy", float(right.mean()))


def _of_yes_and_no(y: np.ndarray, labels: np.ndarray, is_probability: bool | None) -> Measured:
    if is_probability is None:
        is_probability = bool(((y >= 0) & (y <= 1)).all())
    p = y if is_probability else 1 / (1 + np.exp(-np.clip(y, -500, 500)))
    p = np.clip(p, _TINY, 1 - _TINY)
    losses = -np.where(labels, np.log(p), np.log1p(-p))
    right = (p > 0.5) == labels
    return Measured(float(losses.mean()), "cross-entropy", float(right.mean()))


def _sizes(path: pathlib.Path) -> tuple[int, int]:
    """Return the bytes of a file or folder, plain and compressed."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    contents = [file.read_bytes() for file in files]
    return sum(map(len, contents)), sum(len(gzip.compress(content, 9)) for content in contents)
