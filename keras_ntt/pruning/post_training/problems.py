"""Layers as linear problems: which rows a kernel multiplies, and the kernel as a matrix.

A `Problem` is one kernel. Its outputs are ``rows @ matrix`` for each group of the layer (grouped
and depthwise convolutions have several), plus a bias and whatever else the layer adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.axes import Axes, axes_of
from keras_ntt.pruning.post_training import recurrent
from keras_ntt.pruning.post_training.unfold import patches, transposed_patches
from keras_ntt.pruning.post_training.walk import Arguments

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)


class Layout(NamedTuple):
    """How the axes of a kernel are those of a stack of matrices.

    Attributes:
        shape: Shape of the kernel.
        split: The shape that it is first brought to.
        order: The order that these axes are then brought to.
        groups: Number of matrices.
        features: Rows of each.
        outputs: Columns of each.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    groups: int
    features: int
    outputs: int

    def matrix(self, kernel: np.ndarray) -> np.ndarray:
        """Return a kernel as ``[groups, features, outputs]``."""
        apart = np.asarray(kernel).reshape(self.split).transpose(self.order)
        return apart.reshape(self.groups, self.features, self.outputs)

    def kernel(self, matrix: np.ndarray) -> np.ndarray:
        """Return what `matrix` made of a kernel as a kernel again."""
        apart = np.asarray(matrix).reshape([self.split[axis] for axis in self.order])
        return apart.transpose(np.argsort(self.order)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Problem:
    """One kernel of a layer as a linear problem.

    Attributes:
        layer: The layer.
        variable: The kernel.
        axes: What the kernel's axes stand for.
        layout: How the kernel is a stack of matrices; None if the layer is not known, and then
            scores of single entries are all there is.
        rows: What the kernel multiplies: arguments of a call to ``[groups, n, features]``.
        bias: The bias that is added to the same outputs, None if there is none.
        bias_row: The row of a bias of two rows; None for a bias of one.
        counts: For tables that are looked up: arguments of a call to how often each row was.
        is_whole_output: Whether the outputs of the kernel are those of the layer, before its
            activation.
    """

    layer: Any
    variable: keras.Variable
    axes: Axes
    layout: Layout | None = None
    rows: Callable[[Arguments], np.ndarray] | None = None
    bias: keras.Variable | None = None
    bias_row: int | None = None
    counts: Callable[[Arguments], np.ndarray] | None = None
    is_whole_output: bool = True

    def shifted_bias(self, bias: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Return a bias plus a shift of the problem's outputs, ``[groups, outputs]``."""
        found = np.array(bias, np.float64)
        if self.bias_row is None:
            return found + shift.reshape(found.shape)
        found[self.bias_row] += shift.ravel()
        return found


def problems_of(layer: Any, variables: Sequence[keras.Variable]) -> list[Problem]:
    """Return the linear problems of a layer.

    Args:
        layer: The layer, a recurrent one with its cell.
        variables: Those of its kernels that are pruned.

    Returns:
        One `Problem` a kernel, in the order in which the layer uses them.
    """
    find = next((find for kinds, find in _KINDS if isinstance(layer, kinds)), None)
    known = {} if find is None or not host.is_called_as_in_keras(layer) else find(layer)
    found = [known[key] for key in known if any(key == id(v) for v in variables)]
    rest = [v for v in variables if id(v) not in known]
    return [*found, *(Problem(layer, v, axes_of(layer, len(v.shape))) for v in rest)]


def _bias_of(layer: Any) -> keras.Variable | None:
    bias = getattr(layer, "bias", None)
    return bias if getattr(layer, "use_bias", True) else None


def _kernel_of(layer: Any) -> keras.Variable:
    kernel = host.kernel_of(layer)
    assert kernel is not None
    return kernel


def _dense(layer: Any) -> dict[int, Problem]:
    kernel = _kernel_of(layer)
    shape = tuple(kernel.shape)
    layout = Layout(shape, shape, (0, 1), 1, *shape)

    def rows(given: Arguments) -> np.ndarray:
        return _unmasked(given, np.asarray(given.first))[None]

    axes = axes_of(layer, 2)
    return {id(kernel): Problem(layer, kernel, axes, layout, rows, _bias_of(layer))}


def _unmasked(given: Arguments, x: np.ndarray) -> np.ndarray:
    """Return timesteps as rows, without those that a mask leaves out."""
    mask = given.mask
    if mask is not None and tuple(mask.shape) == x.shape[: len(mask.shape)] and x.ndim > 2:
        return x[np.asarray(mask, bool)].reshape(-1, x.shape[-1])
    return x.reshape(-1, x.shape[-1])


def _channels_last(layer: Any, x: Any) -> np.ndarray:
    x = np.asarray(x)
    return np.moveaxis(x, 1, -1) if layer.data_format == "channels_first" else x


def _geometry(layer: Any) -> dict[str, Any]:
    return {
        "strides": tuple(layer.strides),
        "dilation": tuple(layer.dilation_rate),
        "padding": layer.padding,
    }


def _convolution(layer: Any) -> dict[int, Problem]:
    kernel = _kernel_of(layer)
    shape, groups, size = tuple(kernel.shape), layer.groups, tuple(layer.kernel_size)
    taps, inputs, outputs = math.prod(size), shape[-2], shape[-1] // groups
    layout = Layout(
        shape, (taps, inputs, groups, outputs), (2, 0, 1, 3), groups, taps * inputs, outputs
    )

    def rows(given: Arguments) -> np.ndarray:
        found = patches(_channels_last(layer, given.first), size, **_geometry(layer))
        found = found.reshape(-1, taps, groups, inputs).transpose(2, 0, 1, 3)
        return found.reshape(groups, -1, taps * inputs)

    axes = axes_of(layer, len(shape))
    return {id(kernel): Problem(layer, kernel, axes, layout, rows, _bias_of(layer))}


def _transposed(layer: Any) -> dict[int, Problem]:
    kernel = _kernel_of(layer)
    shape, size = tuple(kernel.shape), tuple(layer.kernel_size)
    taps, outputs, inputs = math.prod(size), shape[-2], shape[-1]
    layout = Layout(shape, (taps, outputs, inputs), (0, 2, 1), 1, taps * inputs, outputs)

    def rows(given: Arguments) -> np.ndarray:
        whole = layer.compute_output_shape(tuple(given.first.shape))
        ends = whole[2:] if layer.data_format == "channels_first" else whole[1:-1]
        x = _channels_last(layer, given.first)
        found = transposed_patches(x, size, **_geometry(layer), output_size=ends)
        return found.reshape(1, -1, taps * inputs)

    axes = axes_of(layer, len(shape))
    return {id(kernel): Problem(layer, kernel, axes, layout, rows, _bias_of(layer))}


def _depthwise_of(layer: Any, kernel: keras.Variable, **options: Any) -> Problem:
    shape, size = tuple(kernel.shape), tuple(layer.kernel_size)
    taps, channels, multiplier = math.prod(size), shape[-2], shape[-1]
    layout = Layout(shape, (taps, channels, multiplier), (1, 0, 2), channels, taps, multiplier)

    def rows(given: Arguments) -> np.ndarray:
        found = patches(_channels_last(layer, given.first), size, **_geometry(layer))
        return found.reshape(-1, taps, channels).transpose(2, 0, 1)

    return Problem(layer, kernel, Axes((0, 1)[: len(size)], (), (-2, -1)), layout, rows, **options)


def _depthwise(layer: Any) -> dict[int, Problem]:
    kernel = layer.kernel
    return {id(kernel): _depthwise_of(layer, kernel, bias=_bias_of(layer))}


def _separable(layer: Any) -> dict[int, Problem]:
    first, kernel = layer.depthwise_kernel, layer.pointwise_kernel
    depthwise = _depthwise_of(layer, first, is_whole_output=False)
    shape = tuple(kernel.shape)
    layout = Layout(shape, shape[-2:], (0, 1), 1, *shape[-2:])

    def rows(given: Arguments) -> np.ndarray:
        assert depthwise.rows is not None
        assert depthwise.layout is not None
        # As the layer has it now: in the dense model's place, the dense one.
        values = np.asarray(host.value_of(first))
        found = np.matmul(depthwise.rows(given), depthwise.layout.matrix(values))
        return found.transpose(1, 0, 2).reshape(1, -1, shape[-2])

    axes = axes_of(layer, len(shape))
    pointwise = Problem(layer, kernel, axes, layout, rows, _bias_of(layer))
    return {id(first): depthwise, id(kernel): pointwise}


def _einsum(layer: Any) -> dict[int, Problem]:
    kernel = _kernel_of(layer)
    operands, _, result = layer.equation.replace(" ", "").partition("->")
    x_labels, _, labels = operands.partition(",")
    if len(labels) != len(kernel.shape) or len(set(labels)) < len(labels):
        return {}
    shared = [a for a in labels if a in x_labels and a in result]
    inputs = [a for a in labels if a in x_labels and a not in result]
    outputs = [a for a in labels if a not in x_labels and a in result]
    if len(shared) + len(inputs) + len(outputs) < len(labels):
        return {}
    shape = tuple(kernel.shape)
    size = dict(zip(labels, shape, strict=True))
    groups, features, columns = (
        math.prod(size[a] for a in axes) for axes in (shared, inputs, outputs)
    )
    order = tuple(labels.index(a) for a in (*shared, *inputs, *outputs))
    layout = Layout(shape, shape, order, groups, features, columns)

    def rows(given: Arguments) -> np.ndarray:
        x = np.asarray(given.first)
        front, dots, back = x_labels.partition("...")
        extra = x.ndim - len(front) - len(back) if dots else 0
        all_labels = [*front, *(f".{i}" for i in range(extra)), *back]
        ends = [*shared, *inputs]
        free = [a for a in all_labels if a not in ends]
        position = [all_labels.index(a) for a in (*shared, *free, *inputs)]
        return x.transpose(position).reshape(groups, -1, features)

    # Only a bias with the very axes of the outputs moves each of them freely.
    fits = _bias_of(layer) is not None and list(layer.bias_axes or "") == [
        a for a in result.replace("...", "") if a in (*shared, *outputs)
    ] == [*shared, *outputs]
    bias = layer.bias if fits else None
    return {id(kernel): Problem(layer, kernel, axes_of(layer, len(shape)), layout, rows, bias)}


def _embedding(layer: Any) -> dict[int, Problem]:
    table = host.embeddings_of(layer)
    rows, columns = tuple(table.shape)
    layout = Layout((rows, columns), (rows, columns), (0, 1), 1, rows, columns)

    def counts(given: Arguments) -> np.ndarray:
        indices = np.asarray(given.first).astype(np.int64).ravel()
        return np.bincount(indices[(indices >= 0) & (indices < rows)], minlength=rows)

    axes = axes_of(layer, 2)
    return {id(table): Problem(layer, table, axes, layout, counts=counts)}


def _recurrent(layer: Any) -> dict[int, Problem]:
    cell, found = layer.cell, {}
    bias = cell.bias if cell.use_bias else None
    two = bias is not None and len(bias.shape) == 2
    for number, kernel in enumerate((cell.kernel, cell.recurrent_kernel)):
        shape = tuple(kernel.shape)
        layout = Layout(shape, shape, (0, 1), 1, *shape)
        if number and isinstance(layer, layers.GRU) and not layer.reset_after:
            continue  # a third of it multiplies what the gates have let through
        rows = (recurrent.inputs_of_steps, recurrent.states_of_steps)[number](layer)
        found[id(kernel)] = Problem(
            layer,
            kernel,
            axes_of(layer, 2),
            layout,
            rows,
            bias,
            number if two else None,
            is_whole_output=False,
        )
    return found


_KINDS: tuple[tuple[Any, Callable[[Any], dict[int, Problem]]], ...] = (
    (layers.Dense, _dense),
    (layers.EinsumDense, _einsum),
    (_CONVOLUTIONS, _convolution),
    (_TRANSPOSED, _transposed),
    (_DEPTHWISE, _depthwise),
    (_SEPARABLE, _separable),
    (layers.Embedding, _embedding),
    (_RECURRENT, _recurrent),
)
