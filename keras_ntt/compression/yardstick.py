"""What files are measured by: inputs that pruning does not see, and labels if there are any."""

from __future__ import annotations

import pathlib
import tempfile
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_ntt.compression.agreement import accuracy, agreement, check_labelled
from keras_ntt.compression.report import CompressionRow
from keras_ntt.core.logits import logits_of, looks_like_probabilities
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro.graph import resolve
from keras_ntt.litert.runtime.predict import tflite_predict
from keras_ntt.pruning.post_training.calibration import calibration_batches

_HELD_OUT = 0.2  # of the inputs
_MOST_HELD_OUT = 1_000


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What files are measured by.

    Attributes:
        x: Inputs, nested as the model takes them.
        dense: The dense model's outputs.
        kinds: What these are: ``"softmax"``, ``"sigmoid"`` or ``"linear"``.
        labelled: Labelled data ``(x, labels)``, if there are any.
        reached: The dense model's accuracy on them.
        is_micro: Whether the files are for microcontrollers.
    """

    x: Any
    dense: list[np.ndarray]
    kinds: list[str]
    labelled: tuple[Any, np.ndarray] | None
    reached: float
    is_micro: bool

    @property
    def one(self) -> list[np.ndarray]:
        """One sample, of each input."""
        return [np.asarray(a)[:1] for a in keras.tree.flatten(self.x)]

    def measured(self, row: CompressionRow, path: pathlib.Path) -> CompressionRow:
        """Return the row of a file with what it loses."""
        if not self.is_micro:
            return self._measured(row, path)
        with tempfile.TemporaryDirectory() as folder:
            twin = pathlib.Path(folder) / "twin.tflite"  # which computes the same, to the bit
            twin.write_bytes(fb.write(resolve(fb.read(path.read_bytes()))))
            return self._measured(row, twin)

    def _measured(self, row: CompressionRow, path: pathlib.Path) -> CompressionRow:
        found = agreement(_outputs_of(path, self.x), self.dense, self.kinds)
        if self.labelled is None:
            return replace(row, agreement=found, drop=1 - found)
        x, labels = self.labelled
        right = accuracy(_outputs_of(path, x), labels)
        return replace(row, agreement=found, accuracy=right, drop=self.reached - right)


def yardstick_of(model: keras.Model, held: Any, data: Any, *, is_micro: bool) -> Yardstick:
    """Return what the files of a model are measured by.

    Args:
        model: The dense model.
        held: Inputs that pruning does not see.
        data: Labelled data ``(x, labels)``, or None.
        is_micro: Whether the files are for microcontrollers.

    Returns:
        The `Yardstick`.

    Raises:
        ValueError: If `data` are no labelled data.
    """
    dense = _flat(model.predict(held, verbose=0))
    labelled = check_labelled(data, dense)
    reached = 0.0
    if labelled is not None:
        reached = accuracy(_flat(model.predict(labelled[0], verbose=0)), labelled[1])
    return Yardstick(held, dense, _kinds(model, dense), labelled, reached, is_micro)


def parted(model: keras.Model, inputs: Any, seed: int) -> tuple[Any, Any, int]:
    """Return inputs to prune with, inputs to measure on, and how many these are."""
    batches = calibration_batches(model, inputs, seed=seed)
    whole = keras.tree.map_structure(
        lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *batches
    )
    count = len(keras.tree.flatten(whole)[0])
    if count < 2:
        raise ValueError(
            "There must be two inputs at least: some to prune with, some to measure on. "
            f"Received: {count} input(s)"
        )
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(1, int(count * _HELD_OUT)), _MOST_HELD_OUT)
    parts = [
        keras.tree.map_structure(lambda a, rows=rows: a[rows], whole)
        for rows in (order[held:], order[:held])
    ]
    return parts[0], parts[1], held


def _kinds(model: keras.Model, outputs: list[np.ndarray]) -> list[str]:
    """Return what each output of a model is."""
    found = logits_of(model).activations or (None,) * len(outputs)
    return [
        name or ("softmax" if y.ndim == 2 and looks_like_probabilities(y) else "linear")
        for name, y in zip(found, outputs, strict=True)
    ]


def _outputs_of(path: pathlib.Path, x: Any) -> list[np.ndarray]:
    given = keras.tree.flatten(x) if isinstance(x, list | tuple) else x
    return _flat(tflite_predict(path, given))


def _flat(outputs: Any) -> list[np.ndarray]:
    return [np.asarray(y) for y in keras.tree.flatten(outputs)]
