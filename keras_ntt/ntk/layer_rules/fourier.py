"""The backward pass through a convolution of images, by a Fourier transform.

The cotangent of a convolution's input is the full convolution of the output's cotangent with the
kernel. For each output of the network it is another image, with the same kernel for all of them. So
the kernel's transform costs almost nothing, and the product in the frequency domain is a few matrix
products with many rows (Mathieu, Henaff & LeCun, "Fast Training of Convolutional Networks through
FFTs", ICLR 2014). The images are small, so the transforms are matrix products as well, along one
axis after the other, in real numbers.

Along each axis the length n is even. A *pair* of real numbers stands for one frequency, as its
real and imaginary part; frequencies 0 and n/2, which are real, make a pair together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# By which factor the multiply-adds must decrease: the products are small, and read and write much
# for what they compute. With 2.3 a step is faster, with 2.1 slower.
_GAIN = 2.25

Size = tuple[int, int]


class Shapes(NamedTuple):
    """The spatial sizes of a convolution of stride 1.

    Attributes:
        image: Of the input.
        kernel: Of the kernel.
        result: Of the output.
        before: How many zeros are padded before the input.
    """

    image: Size
    kernel: Size
    result: Size
    before: Size

    @classmethod
    def of(cls, image: Sequence[int], kernel: Sequence[int], padding: str) -> Shapes:
        """Return the sizes for an image and a kernel with the padding ``"same"`` or ``"valid"``."""
        (h, w), (k, m) = image, kernel
        if padding == "same":
            return cls((h, w), (k, m), (h, w), ((k - 1) // 2, (m - 1) // 2))
        return cls((h, w), (k, m), (h - k + 1, w - m + 1), (0, 0))

    @property
    def periods(self) -> Size:
        """The lengths of the transforms: even, and without aliasing in the wanted entries."""
        along_axes = zip(*self, strict=True)
        found = (max(p + k - 1 - before, before + q) for q, k, p, before in along_axes)
        first, second = (n + n % 2 for n in found)
        return first, second


class Matrices(NamedTuple):
    """The transforms of a convolution, as real matrices.

    Attributes:
        first: Of the cotangents along their first axis, ``[n, p]``.
        second: Of the pairs along the second axis, ``[n/2, 2 m, 2 q]``.
        kernel: From the kernel's entries to the matrix that each pair of both axes is multiplied
            with, ``[n m/2 * 2 * 2, entries]``.
        second_back: Back along the second axis, ``[n/2, 2 w, 2 m]``.
        first_back: Back along the first, ``[h, n]``.
    """

    first: np.ndarray
    second: np.ndarray
    kernel: np.ndarray
    second_back: np.ndarray
    first_back: np.ndarray


def pays(shapes: Shapes, inputs: int, outputs: int) -> bool:
    """Tell whether the Fourier transform takes far fewer operations.

    Args:
        shapes: The spatial sizes.
        inputs: The number of channels of the convolution's input.
        outputs: That of its output.
    """
    (h, w), _, (p, q), _ = shapes
    n, m = shapes.periods
    direct = math.prod(shapes.result) * math.prod(shapes.kernel) * inputs * outputs
    there = outputs * (n * p * q + n * 2 * m * q)
    back = inputs * (n * 2 * m * w + h * n * w)
    return _GAIN * (there + 2 * n * m * inputs * outputs + back) <= direct


def cotangent_of_input(delta: tf.Tensor, kernel: tf.Tensor, shapes: Shapes) -> tf.Tensor:
    """Return the gradient of a convolution of stride 1 with respect to its input.

    Args:
        delta: The gradient with respect to the output, ``[n, o, p * q]``.
        kernel: ``[k, m, i, o]``.
        shapes: The spatial sizes, which must be those of `delta` and `kernel`.

    Returns:
        ``[n, i, h, w]``.
    """
    (h, w), _, (p, q), _ = shapes
    periods = shapes.periods
    first, second, of_kernel, second_back, first_back = (
        tf.constant(matrix, delta.dtype) for matrix in matrices(shapes)
    )
    half, pairs = periods[0] // 2, math.prod(periods) // 2
    inputs, outputs = kernel.shape[2:]
    # The samples are the last axis, so that each product has long rows and none needs a transpose.
    x = tf.reshape(tf.transpose(delta, [2, 1, 0]), [p, -1])
    x = tf.matmul(first, x)
    x = tf.matmul(second, tf.reshape(x, [half, 2 * q, -1]))
    weights = tf.matmul(of_kernel, tf.reshape(kernel, [-1, inputs * outputs]))
    weights = tf.transpose(tf.reshape(weights, [pairs, 2, 2, inputs, outputs]), [0, 1, 3, 2, 4])
    weights = tf.reshape(weights, [pairs, 2 * inputs, 2 * outputs])
    x = tf.matmul(weights, tf.reshape(x, [pairs, 2 * outputs, -1]))
    x = tf.matmul(second_back, tf.reshape(x, [half, 2 * periods[1], -1]))
    x = tf.matmul(first_back, tf.reshape(x, [periods[0], -1]))
    return tf.transpose(tf.reshape(x, [h, w, inputs, -1]), [3, 2, 0, 1])


@functools.cache
def matrices(shapes: Shapes) -> Matrices:
    """Return the transforms for a convolution."""
    (h, w), kernel, (p, q), before = shapes
    n, m = shapes.periods
    # The first pair along the first axis is two real sequences, the others are complex ones.
    there = [_apart(_real(m, range(q))), *[_complex(m, range(q))] * (n // 2 - 1)]
    columns = range(before[1], before[1] + w)
    back = [_apart(_real_back(m, columns)), *[_complex(m, columns) / m] * (n // 2 - 1)]
    return Matrices(
        _real(n, range(p)).reshape(n, p),
        np.stack(there).reshape(n // 2, 2 * m, 2 * q),
        _of_kernel((n, m), kernel),
        np.stack(back).reshape(n // 2, 2 * m, 2 * w).transpose(0, 2, 1),
        _real_back(n, range(before[0], before[0] + h)).reshape(n, h).T,
    )


def _angles(n: int, places: Sequence[int]) -> np.ndarray:
    return 2 * np.pi * np.outer(np.arange(n), places) / n


def _real(n: int, places: Sequence[int]) -> np.ndarray:
    """Return the transform of a real sequence, ``[pairs, parts, places]``."""
    angles = _angles(n, places)[: n // 2 + 1]
    pairs = np.stack([np.cos(angles), -np.sin(angles)], axis=1)
    pairs[0, 1] = pairs[-1, 0]
    return pairs[:-1]


def _real_back(n: int, places: Sequence[int]) -> np.ndarray:
    """Return the inverse, ``[pairs, parts, places]``."""
    pairs = _real(n, places) * 2 / n  # for itself and for its conjugate
    pairs[0] /= 2
    return pairs


def _complex(n: int, places: Sequence[int]) -> np.ndarray:
    """Return the transform of a complex sequence, ``[pairs, parts, parts, places]``.

    Its transpose, from pairs to places, is n times the inverse.
    """
    cos, sin = np.cos(_angles(n, places)), np.sin(_angles(n, places))
    return np.stack([np.stack([cos, sin], axis=1), np.stack([-sin, cos], axis=1)], axis=1)


def _apart(pairs: np.ndarray) -> np.ndarray:
    """Return a transform of two sequences, one after the other, ``[2 pairs, parts, 2, places]``."""
    zero = np.zeros_like(pairs)
    return np.concatenate([np.stack([pairs, zero], axis=2), np.stack([zero, pairs], axis=2)])


def _of_kernel(periods: Size, kernel: Size) -> np.ndarray:
    n, m = periods
    along = [np.exp(-1j * _angles(k, range(size))) for k, size in zip(periods, kernel, strict=True)]
    values = np.einsum("aj,bk->abjk", *along).reshape(n, m, -1)
    products = _product(values[: n // 2])
    for u, part in zip((0, n // 2), np.split(products[0], 2), strict=True):
        part[:] = _product(values[u, : m // 2])
        zero = np.zeros(values.shape[-1])
        part[0] = [[values[u, 0].real, zero], [zero, values[u, m // 2].real]]
    return products.reshape(n * m // 2 * 4, -1)


def _product(values: np.ndarray) -> np.ndarray:
    """Return the matrices ``[..., 2, 2, :]`` that multiply pairs with complex numbers."""
    real, imaginary = values.real, values.imag
    rows = [np.stack([real, -imaginary], axis=-2), np.stack([imaginary, real], axis=-2)]
    return np.stack(rows, axis=-3)
