"""Judge the effect of rounding on a model: signal-to-noise ratio, and unchanged decisions.

The largest difference of all outputs is not suitable: it grows with the number of samples, and even
a good file has some probability that is far off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_ntt.litert.runtime.run import ExportError

RUINED_DB = 0.0  # noise as strong as the variation of the outputs: their mean would be as good
SMALL = 0.01  # an error below this part of the largest entry does no harm, whatever the variation
POOR_DB = 10.0
POOR_AGREEMENT = 0.9


class RuinedError(ExportError):
    """Rounding has ruined a model."""


@dataclass(frozen=True)
class Rounding:
    """The effect of rounding on a model's outputs, in the worst of the ways to run its file.

    Attributes:
        samples: Number of samples it was measured on.
        held_out: Whether ranges were measured on other samples than these.
        signal_to_noise: Decibels of the variance of the outputs by the mean square of their error,
            of the worst output.
        error: Root of the mean square of the error, by the largest entry, of the worst output.
        agreement: Fraction of decisions that stay: the class of the largest entry, or for one
            probability on which side of 0.5 it lies. None if no output decides anything.
        probabilities: Whether the decisions are taken from probabilities.
        accuracy: Fraction of labels that the file predicts, or None without labels.
        model_accuracy: The same of the Keras model.
    """

    samples: int
    held_out: bool
    signal_to_noise: float
    error: float
    agreement: float | None
    probabilities: bool = False
    accuracy: float | None = None
    model_accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name; decibels that are infinite become None."""
        finite = np.isfinite(self.signal_to_noise)
        return {**asdict(self), "signal_to_noise": self.signal_to_noise if finite else None}

    def __str__(self) -> str:
        """Return the numbers in one line."""
        kind = "held-out samples" if self.held_out else "samples, the same that ranges come from"
        text = f"rounding, on {self.samples} {kind}: signal to noise {self.signal_to_noise:.1f} dB"
        if self.agreement is not None:
            text += f", {self.agreement:.1%} of decisions as the model's"
        if self.accuracy is not None and self.model_accuracy is not None:
            text += f", accuracy {self.accuracy:.1%} (model {self.model_accuracy:.1%})"
        return text

    @property
    def is_ruined(self) -> bool:
        """Whether the file is useless: its error is as large as the variation of the outputs."""
        return not (self.signal_to_noise > RUINED_DB or self.error <= SMALL)

    @property
    def is_poor(self) -> bool:
        """Whether a user should look twice before shipping the file."""
        few = self.agreement is not None and self.agreement < POOR_AGREEMENT
        return (few and self.probabilities) or self.signal_to_noise < POOR_DB


def signal_to_noise(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the ratio of the variance of an output to the mean square of its error.

    Args:
        found: An output ``[n, ...]``.
        expected: What it should be.

    Returns:
        Decibels, ``10 log10(mean |expected - mean_n|^2 / mean |found - expected|^2)``. For a single
        sample the signal is its mean square. Infinity if there is no error, minus infinity if the
        error is not finite.

    >>> y = np.array([[1.0], [3.0]])
    >>> round(signal_to_noise(y + 0.1, y), 6)
    20.0
    """
    a, b = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        noise = np.mean(np.square(a - b))
        if noise == 0:
            return np.inf
        signal = np.mean(np.square(b - b.mean(axis=0) if len(b) > 1 else b))
        ratio = 10 * np.log10(signal / noise)
    return float(ratio) if np.isfinite(noise) and not np.isnan(ratio) else -np.inf


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean square of the error, relative to the largest expected entry."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        error = np.sqrt(np.mean(np.square(a - b))) / max(np.abs(b).max(initial=0), 1e-30)
    return float(error) if np.isfinite(error) else np.inf


def decisions(output: np.ndarray, expected: np.ndarray) -> np.ndarray | None:
    """Return the decision of an output: the largest of its last axis, or a side of 0.5.

    Args:
        output: An output ``[n, ...]``.
        expected: The output of the model, which shows whether a single number is a probability.

    Returns:
        Whole numbers or booleans; None if it decides nothing.
    """
    if expected.dtype.kind != "f" or expected.ndim < 2 or not expected.size:
        return None
    if expected.shape[-1] > 1:
        return output.argmax(axis=-1)
    return output[..., 0] >= 0.5 if are_probabilities(expected) else None


def are_probabilities(output: np.ndarray) -> bool:
    """Tell whether an output looks like those of a softmax or of a sigmoid."""
    if not output.size or output.min() < 0 or output.max() > 1:
        return False
    return output.shape[-1] == 1 or bool(np.abs(output.sum(axis=-1) - 1).max() < 1e-3)


def judge_rounding(
    found: Sequence[Sequence[np.ndarray]],
    expected: Sequence[np.ndarray],
    *,
    held_out: bool,
    labels: np.ndarray | None = None,
) -> Rounding:
    """Measure the effect of rounding.

    Args:
        found: The outputs ``[n, ...]`` of each way to run a file.
        expected: The model's.
        held_out: Whether the samples were held out.
        labels: Class numbers ``[n]`` for the first output, or None.

    Returns:
        The figures of the way that is worst in each.
    """
    ratios, errors, same, right = [], [], [], []
    ours = [decisions(b, b) for b in expected]
    for outputs in found:
        for a, b, decided in zip(outputs, expected, ours, strict=True):
            ratios.append(signal_to_noise(a, b))
            errors.append(relative_error(a, b))
            if decided is not None:
                same.append(float(np.mean(decisions(a, b) == decided)))
        if labels is not None:
            right.append(float(np.mean(decisions(outputs[0], expected[0]) == labels)))
    deciding = [are_probabilities(b) for b, d in zip(expected, ours, strict=True) if d is not None]
    return Rounding(
        len(expected[0]),
        held_out,
        min(ratios),
        max(errors),
        min(same, default=None),
        bool(deciding) and all(deciding),
        min(right, default=None),
        None if labels is None else float(np.mean(ours[0] == labels)),
    )


def check_rounding(rounding: Rounding, name: str, quantization: str) -> None:
    """Raise a `RuinedError` if rounding has ruined a model.

    Args:
        rounding: The effect of rounding.
        name: The name of the model.
        quantization: How values were rounded.
    """
    if not rounding.is_ruined:
        return
    advice = {
        "int8": "Pass representative_data like what the model will see, scaled as in training, or "
        "take quantization='int16' or 'int8_weights'",
        "int16": "Pass representative_data like what the model will see, scaled as in training, or "
        "take quantization='int8_weights'",
        "int8_weights": "Take quantization='float16', or None for float32",
        "float16": "Take quantization='int8_weights', or None for float32",
    }
    raise RuinedError(
        f"Rounding has ruined the model {name!r}, so its file was not written: the error of its "
        f"outputs is as large as their variation. {advice[quantization]}. To write it anyway, "
        "pass tolerance=, the largest difference allowed relative to the largest output, such as "
        f"tolerance=2. Received: quantization={quantization!r}; {rounding}"
    )


def rounding_warnings(rounding: Rounding | None) -> list[str]:
    """Return what not to expect of a file with rounding."""
    if rounding is None or not rounding.is_poor:
        return []
    return [
        "rounding changes what this model computes a lot; more representative_data, scaled as in "
        "training, or quantization='int8_weights', 'float16' or None keep more of it"
    ]
