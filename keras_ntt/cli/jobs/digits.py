"""The demos' data: 1,797 handwritten digits of 8 x 8 pixels, which ship with scikit-learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Digits(NamedTuple):
    """Images ``[n, 64]`` in [0, 1] and labels ``[n]``, in two parts."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_digits() -> Digits:
    """Return scikit-learn's digits, 1,347 to train on and 450 to test on.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "The demo's data ship with scikit-learn: pip install 'keras-ntt[demo]'."
        ) from error
    data = load()
    x = (data.data / 16).astype("float32")
    parts = train_test_split(x, data.target, test_size=450, random_state=0, stratify=data.target)
    return Digits(parts[0], parts[2], parts[1], parts[3])
