"""Monarch matrices (Dao et al., ICML 2022): a Dense layer as two products of small blocks.

A vector of k * p numbers goes through k blocks ``[q, p]``, is transposed, and goes through l blocks
``[s, r]``, with l * r = k * q; the output with number ``i * l + j`` is number i of block j (T. Dao
et al., "Monarch: Expressive structured matrices for efficient and accurate training", 2022).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_ntt.core import checks


class Blocks(NamedTuple):
    """The sizes of a Monarch matrix.

    Attributes:
        first: The sizes of the blocks that read the inputs, ``(k, q, p)``.
        second: The sizes of the blocks that compute the outputs, ``(l, s, r)``.
    """

    first: tuple[int, int, int]
    second: tuple[int, int, int]

    @property
    def parameters(self) -> int:
        """The number of its parameters, which is also the number of multiply-adds."""
        return int(np.prod(self.first) + np.prod(self.second))


def blocks_of(inputs: int, outputs: int, blocks: int) -> Blocks:
    """Return the sizes for a number of blocks; inputs and outputs are padded to a multiple of it.

    >>> blocks_of(784, 300, 4).parameters
    81300
    """
    p, s = -(-inputs // blocks), -(-outputs // blocks)
    middle = min(p, s)
    return Blocks((blocks, middle, p), (blocks, s, middle))


def project(matrix: np.ndarray, sizes: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Return the Monarch matrix nearest to a matrix, in the sum of squares.

    The slice from block i of the inputs to block j of the outputs has the rank of the middle
    numbers that both share. Each slice is truncated to that rank by its singular values.

    Args:
        matrix: ``[inputs, outputs]``, at most ``k * p`` and ``l * s``.
        sizes: The sizes.

    Returns:
        The first blocks ``[k, q, p]`` and the second ``[l, s, r]`` in float64.
    """
    (k, q, p), (l, s, _) = sizes  # noqa: E741, the letters of the paper
    whole = np.zeros((k * p, l * s))
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    first, second = np.zeros(sizes.first), np.zeros(sizes.second)
    for i in range(k):
        middle = i * q + np.arange(q)
        for j in range(l):
            mine = np.flatnonzero(middle % l == j)
            left, values, right = np.linalg.svd(whole[i * p : (i + 1) * p, j::l].T)
            rank = min(len(mine), len(values))
            roots = np.sqrt(values[:rank])
            first[i, mine[:rank]] = roots[:, None] * right[:rank]
            second[j][:, middle[mine[:rank]] // l] = left[:, :rank] * roots
    return first, second


def as_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the matrix ``[k * p, l * s]`` of two factors."""
    (k, q, p), (l, s, _) = first.shape, second.shape  # noqa: E741, the letters of the paper
    found = np.zeros((k * p, l * s))
    for i in range(k):
        for x in range(q):
            r, j = divmod(i * q + x, l)
            found[i * p : (i + 1) * p, j::l] += np.outer(first[i, x], second[j, :, r])
    return found


@keras.saving.register_keras_serializable("keras_ntt")
class MonarchDense(keras.layers.Layer):
    """A Dense layer with fewer weights and multiply-adds: ``2 / blocks`` of those of a square one.

    Train with it, or convert a trained Dense layer with `keras_ntt.to_monarch`.

    Args:
        units: Number of outputs.
        blocks: Number of blocks of each factor.
        activation: As of ``keras.layers.Dense``.
        use_bias: As of ``keras.layers.Dense``.
        **options: As of ``keras.layers.Layer``.

    Examples:
        >>> import keras
        >>> from keras_ntt import MonarchDense
        >>> model = keras.Sequential([keras.Input((784,)), MonarchDense(300, use_bias=False)])
        >>> model.count_params(), 784 * 300
        (81300, 235200)
    """

    def __init__(
        self,
        units: int,
        blocks: int = 4,
        activation: Any = None,
        use_bias: bool = True,
        **options: Any,
    ):
        super().__init__(**options)
        self.units, self.blocks = (
            checks.check_count(name, value)
            for name, value in (("units", units), ("blocks", blocks))
        )
        self.use_bias = bool(use_bias)
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: Any) -> None:
        """Make the two factors, with the variances of Glorot's initializer in each block."""
        self.sizes = blocks_of(int(input_shape[-1]), self.units, self.blocks)
        self.first, self.second = (
            self.add_weight(
                shape=shape,
                name=name,
                initializer=keras.initializers.RandomUniform(-limit, limit),
            )
            for name, shape, limit in (
                ("first", self.sizes.first, np.sqrt(6 / sum(self.sizes.first[1:]))),
                ("second", self.sizes.second, np.sqrt(6 / sum(self.sizes.second[1:]))),
            )
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), name="bias", initializer="zeros")

    def middle(self, x: Any) -> Any:
        """Return the inputs of each block of the second factor, ``[l, n, r]``."""
        (k, q, p), (l, _, r) = self.sizes  # noqa: E741, the letters of the paper
        x = ops.reshape(x, (-1, x.shape[-1]))
        if x.shape[-1] < k * p:
            x = ops.pad(x, [(0, 0), (0, k * p - x.shape[-1])])
        x = ops.transpose(ops.reshape(x, (-1, k, p)), (1, 0, 2))
        x = ops.matmul(x, ops.transpose(self.first, (0, 2, 1)))  # [k, n, q]
        if (k, q) == (r, l):  # LiteRT's converter makes a wrong reshape of the operation below
            return ops.transpose(x, (2, 1, 0))
        x = ops.reshape(ops.transpose(x, (1, 0, 2)), (-1, r, l))
        return ops.transpose(x, (2, 0, 1))

    def call(self, inputs: Any) -> Any:
        """Return the outputs ``[..., units]``."""
        _, (l, s, _) = self.sizes  # noqa: E741, the letters of the paper
        y = ops.matmul(self.middle(inputs), ops.transpose(self.second, (0, 2, 1)))  # [l, n, s]
        y = ops.reshape(ops.transpose(y, (1, 2, 0)), (-1, l * s))[:, : self.units]
        if len(inputs.shape) != 2:
            y = ops.reshape(y, (*ops.shape(inputs)[:-1], self.units))
        if self.bias is not None:
            y = y + self.bias
        return self.activation(y)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the outputs."""
        return (*input_shape[:-1], self.units)

    def get_prunable_weights(self) -> list[Any]:
        """Return the factors."""
        return [self.first, self.second]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to rebuild the layer from."""
        return {
            **super().get_config(),
            "units": self.units,
            "blocks": self.blocks,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
        }
