"""Patches of convolutions: what each output position of a filter reads, as rows of a matrix.

Arrays are NumPy's, channels last. A patch lists its channels position after position, in the order
of a Keras kernel ``[positions ..., inputs, outputs]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np


def patches(
    x: np.ndarray,
    kernel_size: Sequence[int],
    *,
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: str,
) -> np.ndarray:
    """Return the patches that a convolution reads.

    Args:
        x: Inputs ``[n, ..., channels]``.
        kernel_size: Positions of the filter along each axis.
        strides: Strides.
        dilation: Dilation rates.
        padding: ``"valid"``, ``"same"`` or, along one axis, ``"causal"``.

    Returns:
        An array ``[n, ..., positions, channels]``.

    >>> patches(np.arange(4.0).reshape(1, 4, 1), [2], strides=[1], dilation=[1],
    ...         padding="same")[0, :, :, 0].tolist()
    [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 0.0]]
    """
    pads = []
    for n, k, s, d in zip(x.shape[1:-1], kernel_size, strides, dilation, strict=True):
        reach = d * (k - 1)
        total = max((-(-n // s) - 1) * s + reach + 1 - n, 0)
        pads.append({"same": (total // 2, total - total // 2), "causal": (reach, 0)}.get(padding))
    padded = np.pad(x, [(0, 0), *(pad or (0, 0) for pad in pads), (0, 0)])
    return _windows(padded, kernel_size, strides, dilation)


def transposed_patches(
    x: np.ndarray,
    kernel_size: Sequence[int],
    *,
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: str,
    output_size: Sequence[int],
) -> np.ndarray:
    """Return the patches that a transposed convolution reads.

    It is the gradient of a convolution: input i goes to the outputs ``i * stride + tap * dilation
    - padding``, so each output reads inputs with zeros between them, taps in reverse.

    Args:
        x: Inputs ``[n, ..., channels]``.
        kernel_size: Positions of the filter along each axis.
        strides: Strides.
        dilation: Dilation rates.
        padding: ``"valid"`` or ``"same"``.
        output_size: Positions of the outputs along each axis.

    Returns:
        An array ``[n, ..., positions, channels]``.
    """
    sizes = x.shape[1:-1]
    spread = [(n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True)]
    wide = np.zeros((len(x), *spread, x.shape[-1]), x.dtype)
    at = [slice(None), *(slice(None, None, s) for s in strides)]
    wide[tuple(at)] = x
    for axis, (k, s, d, out) in enumerate(
        zip(kernel_size, strides, dilation, output_size, strict=True), start=1
    ):
        reach = d * (k - 1)
        total = max((-(-out // s) - 1) * s + reach + 1 - out, 0)
        before = reach - (total // 2 if padding == "same" else 0)
        after = out + reach - before - wide.shape[axis]
        if before < 0 or after < 0:
            wide = np.take(wide, range(max(-before, 0), wide.shape[axis] + min(after, 0)), axis)
        pads = [(0, 0)] * wide.ndim
        pads[axis] = (max(before, 0), max(after, 0))
        wide = np.pad(wide, pads)
    windows = _windows(wide, kernel_size, [1] * len(sizes), dilation)
    return windows[..., ::-1, :]


def _windows(
    x: np.ndarray, kernel_size: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> np.ndarray:
    sizes = [
        max((n - d * (k - 1) - 1) // s + 1, 0)
        for n, k, s, d in zip(x.shape[1:-1], kernel_size, strides, dilation, strict=True)
    ]
    taps = list(itertools.product(*map(range, kernel_size)))
    found = np.empty((len(x), *sizes, len(taps), x.shape[-1]), x.dtype)
    for number, tap in enumerate(taps):
        at = [
            slice(t * d, t * d + (size - 1) * s + 1, s) if size else slice(0)
            for t, d, s, size in zip(tap, dilation, strides, sizes, strict=True)
        ]
        window: tuple[Any, ...] = (slice(None), *at)
        found[..., number, :] = x[window]
    return found
