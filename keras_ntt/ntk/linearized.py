"""Predict training from the tangent kernel (Lee et al., NeurIPS 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.core import checks


class Prediction(NamedTuple):
    """Predicted outputs after given numbers of steps.

    Attributes:
        train: ``[len(steps), n, c]``, on the training samples.
        test: ``[len(steps), m, c]``, on other samples, or None.
    """

    train: np.ndarray
    test: np.ndarray | None


def predict_training(
    ntk: Any,
    outputs: Any,
    targets: Any,
    *,
    learning_rate: float,
    steps: Sequence[int],
    test_ntk: Any = None,
    test_outputs: Any = None,
) -> Prediction:
    """Predict full-batch gradient descent on Keras's mean squared error from the tangent kernel.

    The network is replaced by its first-order expansion in the weights (Lee, Xiao, Schoenholz et
    al., "Wide neural networks of any depth evolve as linear models under gradient descent",
    NeurIPS 2019). With n training samples, c outputs and targets y, the outputs f on the training
    samples are then

        f(t) - y = (1 - 2 * learning_rate / (n * c) * ntk)^t (f(0) - y)

    This is exact for the expansion, and so for a network that is linear in its weights. For other
    networks it holds while the kernel changes little. If ``learning_rate * eigenvalue > n * c`` for
    the largest eigenvalue, the learning rate is too high: the prediction then grows without bound,
    as training does.

    Args:
        ntk: The kernel of the training samples ``[n, n, c, c]``, as `keras_ntt.empirical_ntk`
            returns it; with ``wrt="kept"`` for a sparse network.
        outputs: Outputs before training, ``[n, c]``.
        targets: Targets ``[n, c]``.
        learning_rate: The learning rate of SGD without momentum.
        steps: Numbers of steps, none negative.
        test_ntk: The kernel between other samples and the training samples ``[m, n, c, c]``.
        test_outputs: Outputs on the other samples before training ``[m, c]``.

    Returns:
        The outputs after each number of steps.

    Raises:
        ValueError: If shapes or numbers do not fit.

    Example, one weight w = 0 with output w * x at x = 2, whose target is 4: each step of SGD takes
    w to w + 0.1 * 2 * (4 - 2 * w) * 2.

    >>> predict_training([[[[4.0]]]], [[0.0]], [[4.0]], learning_rate=0.1, steps=[0, 1, 2]).train
    array([[[0.  ]],
    <BLANKLINE>
           [[3.2 ]],
    <BLANKLINE>
           [[3.84]]])
    """
    learning_rate = checks.check_number("learning_rate", learning_rate)
    times = checks.as_floats("steps", steps).reshape(-1, 1)
    if not times.size or (times < 0).any():
        raise ValueError(f"steps must be numbers of at least 0. Received: steps={steps!r}")
    start, goal = checks.as_floats("outputs", outputs), checks.as_floats("targets", targets)
    if start.ndim != 2 or goal.shape != start.shape:
        raise ValueError(
            "outputs and targets must have the same shape [samples, outputs]. "
            f"Received: outputs of shape {start.shape}, targets of shape {goal.shape}"
        )
    n, c = start.shape
    matrix = _as_matrix(ntk, n, n, c, "ntk")
    if (test_ntk is None) != (test_outputs is None):
        missing = "test_ntk" if test_ntk is None else "test_outputs"
        raise ValueError(
            f"test_ntk and test_outputs belong together. Received: {missing}=None, not the other"
        )
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    rates = 2 * learning_rate / (n * c) * np.maximum(values, 0)
    left = vectors.T @ (start - goal).ravel()
    powers = (1 - rates) ** times
    train = (powers * left) @ vectors.T + goal.ravel()
    test = None
    if test_ntk is not None:
        first = checks.as_floats("test_outputs", test_outputs)
        if first.ndim != 2 or first.shape[1] != c:
            raise ValueError(
                f"test_outputs must have the shape [samples, {c}]. "
                f"Received: test_outputs of shape {first.shape}"
            )
        across = _as_matrix(test_ntk, len(first), n, c, "test_ntk")
        # The sum of (1 - rate)^s over the steps s < t, which is t if the rate is 0.
        safe = np.where(rates > 0, rates, 1.0)
        sums = np.where(rates > 0, (1 - powers) / safe, times)
        moved = (sums * left) @ vectors.T @ across.T
        test = first.ravel() - 2 * learning_rate / (n * c) * moved
        test = test.reshape(-1, *first.shape)
    return Prediction(train.reshape(-1, n, c), test)


def _as_matrix(ntk: Any, rows: int, columns: int, c: int, name: str) -> np.ndarray:
    array = checks.as_floats(name, ntk)
    if array.shape != (rows, columns, c, c):
        raise ValueError(
            f"{name} must be a full kernel of shape {(rows, columns, c, c)}, as empirical_ntk "
            f"returns it with outputs='full'. Received: {name} of shape {array.shape}"
        )
    return array.transpose(0, 2, 1, 3).reshape(rows * c, columns * c)
