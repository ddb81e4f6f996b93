"""The expected outputs of an exported file, and the written file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_ntt.core import input_checks
from keras_ntt.litert.inspect import StoredWeight
from keras_ntt.litert.micro.report import MicroReport
from keras_ntt.litert.rounding import Rounding, decisions
from keras_ntt.litert.runtime.run import Run
from keras_ntt.litert.samples import Samples, outputs_of


class Expected(NamedTuple):
    """The expected outputs of a file.

    Attributes:
        name: The name of the model.
        outputs: Its outputs ``[n, ...]`` on the given samples.
        held_out: Its outputs on the held-out samples.
        labels: Class numbers of the samples on which rounding is judged, or None.
    """

    name: str
    outputs: Sequence[np.ndarray]
    held_out: Sequence[np.ndarray]
    labels: np.ndarray | None = None

    @property
    def of(self) -> str:
        """The name of what computes the outputs."""
        return f"the model {self.name!r}"


def expected_of(model: keras.Model, samples: Samples, labels: Any) -> Expected:
    """Return the expected outputs of a file, and the labels.

    Args:
        model: The model.
        samples: The samples to run it on.
        labels: Class numbers ``[n]`` or ``[n, 1]``, or a row for each sample with a weight for each
            class; None for none.

    Returns:
        The outputs, and the class numbers of the samples that rounding is judged on.

    Raises:
        ValueError: If there are too few labels, or they are not class numbers.
    """
    outputs = outputs_of(model, samples.given, samples.ports)
    held_out = outputs
    if samples.has_held_out:
        held_out = outputs_of(model, samples.held_out, samples.ports)
    if labels is None:
        return Expected(model.name, outputs, held_out)
    first = len(samples.given[0]) if samples.has_held_out else 0
    end = first + len(samples.held_out[0])
    array = input_checks.as_array("labels", labels)
    if array.ndim == 2:
        array = array[:, 0] if array.shape[1] == 1 else array.argmax(axis=1)
    is_whole = array.dtype.kind in "iub" or (array.dtype.kind == "f" and (array % 1 == 0).all())
    if array.ndim != 1 or not is_whole or len(array) < end:
        raise ValueError(
            "labels must be class numbers, one for each sample of representative_data. "
            f"Received: labels of shape {array.shape} and dtype {array.dtype} for {end} samples"
        )
    decided = decisions(held_out[0], held_out[0])
    if decided is None or decided.ndim != 1:
        raise ValueError(
            "labels are for a model whose first output has a score for each class, or one "
            f"probability. Received: an output of shape {held_out[0].shape}"
        )
    return Expected(model.name, outputs, held_out, array[first:end].astype(np.int64))


class Written(NamedTuple):
    """A file that was moved to its path.

    Attributes:
        content: Its bytes.
        dense: The ``ModelT`` with its constants, all unpacked.
        tensors: How each weight is stored, and why.
        runs: The ways in which it, or its dense twin, was run and compared.
        difference: Largest difference of an output from the expected one, of those compared.
        allowed: The largest allowed difference.
        warnings: What not to expect of it.
        micro: Its figures for a firmware, or None.
        rounding: The effect of rounding on the model, or None if nothing was rounded.
    """

    content: bytes
    dense: Any
    tensors: tuple[StoredWeight, ...]
    runs: tuple[Run, ...]
    difference: float
    allowed: float
    warnings: tuple[str, ...]
    micro: MicroReport | None = None
    rounding: Rounding | None = None
