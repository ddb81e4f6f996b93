"""What layers make of channels that are multiples of others: relu(c z) = c relu(z) for c > 0.

Units of a layer whose columns of kernel and bias point the same way are multiples of each other.
What comes after keeps that or ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.channels.graph import ChannelGraph, Passage
from keras_ntt.core.channels.rules.elementwise import ELEMENTWISE_OPERATIONS, is_elementwise
from keras_ntt.core.kinds import kind_of


class Multiple(NamedTuple):
    """That a channel is ``factor * other + shift`` at all positions and for all inputs.

    Attributes:
        of: The label of the other channel.
        factor: The factor.
        shift: What is added.
    """

    of: int
    factor: float
    shift: float


Multiples = dict[int, Multiple]

_LINEAR = (
    *(layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_NAMES = """
    Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianNoise GaussianDropout
    Identity Flatten Reshape Permute RepeatVector Concatenate
    AveragePooling1D AveragePooling2D AveragePooling3D UpSampling1D UpSampling2D UpSampling3D
    Cropping1D Cropping2D Cropping3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
"""
_PASSED = {getattr(layers, name) for name in _NAMES.split()}
_NAMES = """
    MaxPooling1D MaxPooling2D MaxPooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
"""
_MAXIMA = {getattr(layers, name) for name in _NAMES.split()}
_PADDED = {layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D}
_HOMOGENEOUS = (keras.activations.relu, keras.activations.leaky_relu)


def multiples_after(
    graph: ChannelGraph, passage: Passage, known: dict[int, Multiples]
) -> Multiples:
    """Return which channels of a call's outputs are multiples of others.

    Args:
        graph: The graph of the model.
        passage: The call.
        known: Those of its inputs, by slot.

    Returns:
        Multiples by label.
    """
    layer = passage.call.operation
    inputs = [known[slot] for slot in passage.call.inputs]
    kind = kind_of(layer)
    if kind in _LINEAR and getattr(layer, "groups", 1) == 1:
        return _activated(layer.activation, _made(graph, layer))
    if not inputs:
        return {}
    first = inputs[0]
    if kind in _DEPTHWISE:
        return _activated(layer.activation, _through_depthwise(graph, layer, first))
    if kind is layers.BatchNormalization:
        return _through_normalization(graph, layer, first)
    if kind is layers.Activation:
        return _activated(layer.activation, first)
    if kind in (layers.ReLU, layers.LeakyReLU, layers.ELU):
        return _activated(layer, first)
    if kind in _PADDED:
        return {x: m for x, m in first.items() if not m.shift}
    if kind in _MAXIMA:
        return {x: m for x, m in first.items() if m.factor > 0}
    if kind in _PASSED:
        return first if len(inputs) == 1 else _joined(graph, passage, inputs)
    if kind is layers.Add:
        return _combined(inputs, lambda a, b: a if abs(a - b) <= 1e-12 * abs(a) else None)
    if kind is layers.Multiply and all(_has_channels(graph, s) for s in passage.call.inputs):
        return _combined(inputs, lambda a, b: a * b)
    if host.is_of_keras(layer, "ops") and len(inputs) == 1:
        if type(layer).__name__ == "Relu":
            return _activated(keras.activations.relu, first)
        if type(layer).__name__ in ELEMENTWISE_OPERATIONS:
            return _equal(first)
    return {}


def _has_channels(graph: ChannelGraph, slot: int) -> bool:
    return any(labels is not None for labels in graph.axes[slot])


def _equal(multiples: Multiples) -> Multiples:
    return {x: m for x, m in multiples.items() if m.factor == 1 and not m.shift}


def _activated(function: Any, multiples: Multiples) -> Multiples:
    """Return what is left of multiples behind an activation."""
    if function is None or function is keras.activations.linear:
        return multiples
    plain = isinstance(function, layers.ReLU) and function.max_value is None
    if (plain and not function.threshold) or isinstance(function, layers.LeakyReLU):
        return {x: m for x, m in multiples.items() if m.factor > 0 and not m.shift}
    if any(function is f for f in _HOMOGENEOUS):
        return {x: m for x, m in multiples.items() if m.factor > 0 and not m.shift}
    return _equal(multiples) if is_elementwise(function) else {}


def _precision(variable: keras.Variable) -> float:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return 32 * {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10}.get(dtype, 2.0**-7)


def _made(graph: ChannelGraph, layer: Any) -> Multiples:
    """Return which units of a layer have parallel columns of the kernel."""
    axes = [
        axis
        for axis in graph.weights
        if axis.layer is layer and axis.role == "out" and len(axis.variable.shape) > 1
    ]
    if len(axes) != 1 or axes[0].labels is None:
        return {}
    axis, labels = axes[0], axes[0].labels
    value = np.moveaxis(host.array_of(axis.variable).astype(np.float64), axis.axis, -1)
    columns, precision = value.reshape(-1, value.shape[-1]), _precision(axis.variable)
    bias = np.zeros(columns.shape[1])
    if layer.bias is not None:
        bias = host.array_of(layer.bias).astype(np.float64)
    unique, counts = np.unique(labels, return_counts=True)
    once = np.isin(labels, unique[counts == 1])
    found: Multiples = {}
    for j, i, factor in parallel_columns(columns, precision):
        if once[i] and once[j]:
            shift = _rounded(bias[j] - factor * bias[i], bias[j], factor * bias[i], precision)
            found[int(labels[j])] = Multiple(int(labels[i]), factor, shift)
    return found


def _rounded(difference: float, one: float, other: float, precision: float) -> float:
    """Return a difference, zero if it is one of rounding."""
    return 0.0 if abs(difference) <= precision * max(abs(one), abs(other)) else difference


def parallel_columns(columns: np.ndarray, precision: float) -> list[tuple[int, int, float]]:
    """Return which columns of a matrix are multiples of an earlier one.

    Args:
        columns: A matrix ``[rows, columns]``.
        precision: How much directions may differ by rounding.

    Returns:
        Tuples ``(column, earlier column, factor)``; columns of zeros are in none.

    >>> parallel_columns(np.array([[1.0, 2.0, 1.0, -3.0], [2.0, 4.0, 0.0, -6.0]]), 1e-6)
    [(1, 0, 2.0), (3, 0, -3.0)]
    """
    norms = np.linalg.norm(columns, axis=0)
    usable = np.flatnonzero((norms > 0) & np.isfinite(norms))
    if not len(usable):
        return []
    units = columns[:, usable] / norms[usable]
    peaks = np.abs(units).argmax(axis=0)
    signs = np.sign(units[peaks, np.arange(len(usable))])
    # Directions of equal columns have equal products with any vector; few others do.
    probe = np.random.default_rng(0).normal(size=len(units))
    sums = probe @ (units * signs)
    width = 4 * precision * np.abs(probe).sum()
    leaders: list[int] = []
    found = []
    for place in range(len(usable)):
        near = [k for k in leaders if abs(abs(sums[k]) - abs(sums[place])) <= width]
        for k in near:
            sign = 1.0 if units[:, k] @ units[:, place] > 0 else -1.0
            if np.abs(units[:, place] - sign * units[:, k]).max() <= precision:
                i, j = int(usable[k]), int(usable[place])
                factor = sign * float(norms[j] / norms[i])
                found.append((j, i, 1.0 if abs(factor - 1) <= precision else factor))
                break
        else:
            leaders.append(place)
    return found


def _through_depthwise(graph: ChannelGraph, layer: Any, multiples: Multiples) -> Multiples:
    """Return multiples whose depthwise filters are multiples, too."""
    place = _places(graph, layer.kernel)
    if layer.depth_multiplier != 1 or not place:
        return {}
    kernel = host.array_of(layer.kernel).astype(np.float64)
    kernel = kernel.reshape(-1, kernel.shape[-2])
    precision = _precision(layer.kernel)
    bias = np.zeros(kernel.shape[1])
    if layer.bias is not None:
        bias = host.array_of(layer.bias).astype(np.float64)
    found: Multiples = {}
    for label, (of, factor, shift) in multiples.items():
        pair = [place[x] for x in (of, label) if x in place]
        parallel = parallel_columns(kernel[:, pair], precision)
        if not shift and parallel:
            factor = factor * parallel[0][2]
            a, b = bias[pair[1]], factor * bias[pair[0]]
            found[label] = Multiple(of, factor, _rounded(a - b, a, b, precision))
    return found


def _through_normalization(graph: ChannelGraph, layer: Any, multiples: Multiples) -> Multiples:
    """Return multiples behind a normalization by the statistics that it keeps."""
    place = _places(graph, layer.moving_mean)
    mean, variance = (
        host.array_of(w).astype(np.float64) for w in (layer.moving_mean, layer.moving_variance)
    )
    scale = 1 / np.sqrt(variance + layer.epsilon)
    beta = np.zeros_like(mean)
    if layer.gamma is not None:
        scale = scale * host.array_of(layer.gamma).astype(np.float64)
    if layer.beta is not None:
        beta = host.array_of(layer.beta).astype(np.float64)
    precision = _precision(layer.moving_mean)
    found: Multiples = {}
    for label, (of, factor, shift) in multiples.items():
        if label not in place or of not in place:
            continue
        j, i = place[label], place[of]
        if not scale[i] or not scale[j]:
            continue
        own = factor * scale[j] / scale[i]
        own = 1.0 if abs(own - 1) <= precision else own
        parts = np.array(
            [
                *(scale[j] * shift, -scale[j] * mean[j], beta[j]),
                *(own * scale[i] * mean[i], -own * beta[i]),
            ]
        )
        rest = float(parts.sum())
        found[label] = Multiple(of, own, _rounded(rest, np.abs(parts).max(), 0.0, precision))
    return found


def _places(graph: ChannelGraph, variable: Any) -> dict[int, int]:
    """Return the index of each label on the one axis of a weight that has labels."""
    axes = [a for a in graph.weights if a.variable is variable and a.labels is not None]
    if len(axes) != 1:
        return {}
    labels = axes[0].labels
    assert labels is not None
    found = {label: number for number, label in enumerate(labels.tolist())}
    return found if len(found) == len(labels) else {}


def _joined(graph: ChannelGraph, passage: Passage, inputs: Sequence[Multiples]) -> Multiples:
    """Return multiples that hold in all of several tensors that have the channel."""
    found: Multiples = {}
    lost: set[int] = set()
    for slot, multiples in zip(passage.call.inputs, inputs, strict=True):
        here = {int(x) for axis in graph.axes[slot] if axis is not None for x in axis}
        for label in here:
            mine = multiples.get(label)
            if mine is None or found.setdefault(label, mine) != mine:
                lost.add(label)
    return {x: m for x, m in found.items() if x not in lost}


def _combined(
    inputs: Sequence[Multiples], together: Callable[[float, float], float | None]
) -> Multiples:
    """Return the multiples of the same channels in all inputs, with factors put together."""
    found = {x: m for x, m in inputs[0].items() if not m.shift}
    for other in inputs[1:]:
        left: Multiples = {}
        for label, mine in found.items():
            theirs = other.get(label)
            if theirs is not None and theirs.of == mine.of and not theirs.shift:
                factor = together(mine.factor, theirs.factor)
                if factor is not None:
                    left[label] = Multiple(mine.of, factor, 0.0)
        found = left
    return found
