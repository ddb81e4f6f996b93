"""Moments of a layer's inputs and targets, summed over batches in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """What the least squares of a layer need of its inputs, per group of the layer.

    Attributes:
        hessian: ``X'X / n``, ``[groups, features, features]``.
        cross: ``X'T / n``, ``[groups, features, outputs]``.
        inputs: Means of the inputs, ``[groups, features]``.
        targets: Means of the targets, ``[groups, outputs]``.
        squares: Mean squares of the inputs, not centred, ``[groups, features]``.
        rows: The number of rows n.
    """

    hessian: np.ndarray
    cross: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray
    squares: np.ndarray
    rows: int


class Moments:
    """Sums over rows of inputs X and targets T, taken about the means of the first batch.

    About a point near the mean, the products of a large mean do not drown those of the variance.
    """

    def __init__(self) -> None:
        self._count = 0

    def add(self, x: np.ndarray, t: np.ndarray) -> None:
        """Add rows.

        Args:
            x: Inputs ``[groups, n, features]``.
            t: Targets ``[groups, n, outputs]``.
        """
        if x.shape[1] == 0:
            return
        x, t = np.asarray(x, np.float64), np.asarray(t, np.float64)
        if not self._count:
            self._x0, self._t0 = x.mean(axis=1), t.mean(axis=1)
            groups, features, outputs = x.shape[0], x.shape[2], t.shape[2]
            self._x, self._t = np.zeros_like(self._x0), np.zeros_like(self._t0)
            self._xx = np.zeros((groups, features, features))
            self._xt = np.zeros((groups, features, outputs))
        x, t = x - self._x0[:, None], t - self._t0[:, None]
        self._count += x.shape[1]
        self._x += x.sum(axis=1)
        self._t += t.sum(axis=1)
        for group in range(len(x)):  # a product of a matrix with itself costs half
            self._xx[group] += x[group].T @ x[group]
        self._xt += np.swapaxes(x, 1, 2) @ t

    def statistics(self, *, centred: bool = True) -> Statistics:
        """Return the means of the products.

        Args:
            centred: Whether they are taken about the means, for layers whose bias is fitted.

        Returns:
            The `Statistics`.

        Raises:
            ValueError: If no row was added.
        """
        if not self._count:
            raise ValueError("There are no rows to take moments of. Received: 0 rows")
        n = self._count
        x, t = self._x / n, self._t / n
        hessian = self._xx / n - x[:, :, None] * x[:, None, :]
        cross = self._xt / n - x[:, :, None] * t[:, None, :]
        means, targets = self._x0 + x, self._t0 + t
        squares = np.einsum("gff->gf", hessian) + means**2
        if not centred:
            hessian = hessian + means[:, :, None] * means[:, None, :]
            cross = cross + means[:, :, None] * targets[:, None, :]
        return Statistics(hessian, cross, means, targets, squares, n)
