"""How far outputs agree with those of the dense model, and with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def agreement(
    found: Sequence[np.ndarray], dense: Sequence[np.ndarray], kinds: Sequence[str]
) -> float:
    """Return how far outputs agree with the dense model's, 1 if they are the same.

    Args:
        found: Outputs.
        dense: The dense model's outputs.
        kinds: For each output ``"softmax"``: the fraction of equal largest classes counts;
            ``"sigmoid"``: of equal answers, yes above 1/2; ``"linear"``: one less the mean squared
            error over the variance of the dense outputs, 0 at the least.

    Returns:
        The mean over outputs.

    >>> agreement([np.array([[0.9, 0.1], [0.4, 0.6]])], [np.array([[0.8, 0.2], [0.7, 0.3]])],
    ...           ["softmax"])
    0.5
    """
    parts = []
    for y, t, kind in zip(found, dense, kinds, strict=True):
        y, t = np.asarray(y, np.float64), np.asarray(t, np.float64)
        if not np.isfinite(y).all():
            parts.append(0.0)
        elif kind == "softmax":
            parts.append(float((y.argmax(axis=-1) == t.argmax(axis=-1)).mean()))
        elif kind == "sigmoid":
            parts.append(float(((y > 0.5) == (t > 0.5)).mean()))
        else:
            spread = float(((t - t.mean(axis=0)) ** 2).mean())
            error = float(((y - t) ** 2).mean())
            parts.append(1.0 if error == 0 else max(0.0, 1 - error / max(spread, 1e-300)))
    return float(np.mean(parts))


def accuracy(outputs: Sequence[np.ndarray], labels: np.ndarray) -> float:
    """Return the fraction of samples whose class is found.

    Args:
        outputs: Outputs of a model with one output: a score for each class, or one number that
            says yes above 1/2.
        labels: Class numbers, or rows with a weight for each class.

    Returns:
        A number from 0 to 1.

    >>> accuracy([np.array([[0.9, 0.1], [0.4, 0.6]])], np.array([0, 0]))
    0.5
    """
    (scores,) = outputs
    labels = np.asarray(labels)
    if scores.shape[-1] == 1:
        return float(((scores.ravel() > 0.5) == (labels.ravel() > 0.5)).mean())
    classes = labels.argmax(axis=-1) if labels.ndim > 1 and labels.shape[-1] > 1 else labels.ravel()
    return float((scores.argmax(axis=-1) == classes).mean())


def check_labelled(data: Any, outputs: Sequence[np.ndarray]) -> tuple[Any, np.ndarray] | None:
    """Return labelled data as ``(x, labels)``, or raise a ValueError; None for none."""
    if data is None:
        return None
    if not isinstance(data, tuple) or len(data) != 2 or len(outputs) != 1:
        raise ValueError(
            "data must be (x, labels), arrays, of a model with one output. Leave it out to measure "
            f"agreement with the dense model. Received: data of type {type(data).__name__}, "
            f"{len(outputs)} output(s)"
        )
    return data[0], np.asarray(data[1])
