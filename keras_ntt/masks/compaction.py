"""Remove dead units: a smaller model with the same outputs, without any sparse format.

A unit, or channel, is dead if all layers that read it have zero weights for it. It is also dead if
it is a constant that can be added to the biases of those layers. Where zero padding prevents this,
one constant unit replaces several.
Units that are multiples of each other for all inputs are merged: copies, and ReLU units whose
weights are parallel.
"""

from __future__ import annotations

import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.core.channels.constants import (
    Constants,
    constants_read,
    folded,
    mergeable_units,
    removable_units,
)
from keras_ntt.core.channels.graph import ChannelGraph, channel_graph
from keras_ntt.core.channels.parallel import parallel_units
from keras_ntt.core.channels.resize import Removal, resized


def remove_dead_units(
    model: keras.Model, *, tolerance: float = 0.0
) -> tuple[keras.Model, tuple[tuple[str, int], ...]]:
    """Return a model without its dead units.

    All weights that are coupled to a unit are removed with it: those in the layers that make it or
    read it, and in the normalizations and depthwise convolutions between them. The channel
    dependency graph (`channel_groups`) says what is coupled, also through residual connections and
    concatenations. Each layer keeps at least one unit.

    Units that are multiples of another one also count as dead: copies, and units of linear or ReLU
    layers whose columns of kernel and bias are parallel, since ``relu(c z) = c relu(z)`` for a
    positive c. BatchNormalization, depthwise convolutions, pooling and additions between may keep
    them so. What reads them weighs the other one by the sum.

    Args:
        model: A built Sequential or functional model. It is not changed.
        tolerance: Entries of a kernel of at most this size, relative to the kernel's largest entry,
            count as zero in the search for dead units. Weight decay leaves such entries behind.
            Remaining units keep such entries. With 0, only exact zeros count.

    Returns:
        The smaller model, or `model` itself if no unit is dead; and the number of removed units for
        each layer name, the first layer that makes them. With a tolerance of 0 the outputs are the
        same up to rounding, otherwise up to the contribution of such small entries.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is neither Sequential nor functional, or the tolerance is not a fraction.
    """
    checks.check_model(model)
    tolerance = checks.check_number("tolerance", tolerance)
    if tolerance >= 1:
        raise ValueError(
            "tolerance is relative to a kernel's largest entry, so it must be below 1; 1e-6 is "
            f"plenty for what weight decay leaves behind. Received: tolerance={tolerance!r}"
        )
    if host.functional_of(model) is None:
        raise ValueError(
            "Dead units can be removed from Sequential and functional models only, whose layers "
            f"say what reads what. Received: model={model.name!r} of type {type(model).__name__}"
        )
    graph = channel_graph(model)
    if not len(graph.removable()):
        return model, ()
    # The search sets weights to zero: it does so in a copy, whose graph has the same labels.
    copy = channel_graph(resized(Removal(graph, ())))
    if tolerance:
        _drop_small_entries(copy, tolerance)
    removed, merged = _search(copy)
    if not removed:
        return model, ()
    values = {}
    for number, (mine, theirs) in enumerate(zip(graph.readers, copy.readers, strict=True)):
        if mine.bias is not None:
            values[id(mine.bias)] = host.array_of(theirs.bias)
        if number in merged:
            kernel = host.array_of(mine.kernel)
            values[id(mine.kernel)] = (kernel + merged[number]).astype(kernel.dtype)
    return resized(Removal(graph, removed), values), _counts(graph, removed)


def _drop_small_entries(graph: ChannelGraph, tolerance: float) -> None:
    """Set the small entries of all kernels to zero."""
    for variable in {id(a.variable): a.variable for a in graph.weights}.values():
        value = host.array_of(variable)
        if value.ndim > 1 and value.size:
            variable.assign(value * (np.abs(value) > tolerance * np.abs(value).max()))


def _search(graph: ChannelGraph) -> tuple[set[int], dict[int, np.ndarray]]:
    """Find dead units, until no removal leaves another one dead; weights are set to zero.

    Returns:
        The labels of the units, and by the number of a reader what its kernel has to gain.
    """
    removed: set[int] = set()
    merged: dict[int, np.ndarray] = {}
    while True:
        constants = constants_read(graph)
        kernels = {id(r.kernel): host.array_of(r.kernel) for r in graph.readers}
        new = removable_units(graph, constants, kernels) - removed
        for labels in graph.counted():
            if (removed | new).issuperset(labels.tolist()):
                new.discard(next(label for label in labels.tolist() if label not in removed))
        if not new:
            new = _merge(graph, constants, kernels, merged)
        if not new:
            new = _merge_parallel(graph, merged)
        if not new:
            return removed, merged
        removed |= new
        gone = Removal(graph, removed)
        for reader, values in zip(graph.readers, constants, strict=True):
            dropped = np.isin(reader.labels, list(new)) & (values.values != 0) & values.known
            if dropped.any() and reader.bias is not None and reader.exact:
                kernel, bias = kernels[id(reader.kernel)], host.array_of(reader.bias)
                reader.bias.assign(folded(reader, values, kernel, bias, dropped))
        for axis in graph.weights:
            if axis.labels is not None:
                value = host.array_of(axis.variable)
                shape = [-1 if i == axis.axis else 1 for i in range(value.ndim)]
                axis.variable.assign(value * gone.keeps(axis.labels).reshape(shape))


def _merge(
    graph: ChannelGraph,
    constants: list[Constants],
    kernels: dict[int, np.ndarray],
    merged: dict[int, np.ndarray],
) -> set[int]:
    """Let one constant replace others with the same readers; return the labels of the others."""
    found: set[int] = set()
    for numbers, (first, *others) in mergeable_units(graph, constants, kernels):
        for number in numbers:
            labels, values = graph.readers[number].labels.tolist(), constants[number].values
            value = dict(zip(labels, values.tolist(), strict=True))
            factors = {label: value[label] / value[first] for label in others}
            _take_over(graph, number, first, factors, merged)
        found |= set(others)
    return found


def _merge_parallel(graph: ChannelGraph, merged: dict[int, np.ndarray]) -> set[int]:
    """Let one unit stand for its multiples; return the labels of these."""
    found: set[int] = set()
    for kept, by_reader in parallel_units(graph):
        for number, factors in by_reader.items():
            _take_over(graph, number, kept, factors, merged)
            found |= set(factors)
    return found


def _take_over(
    graph: ChannelGraph,
    number: int,
    kept: int,
    factors: dict[int, float],
    merged: dict[int, np.ndarray],
) -> None:
    """Add what a reader's kernel weighs some channels with to what it weighs another with."""
    reader = graph.readers[number]
    kernel = np.moveaxis(host.array_of(reader.kernel).astype(np.float64), reader.axis, 0)
    gain = np.zeros_like(kernel)
    for label, factor in factors.items():
        gain[reader.labels == kept] += factor * kernel[reader.labels == label]
    gain = np.moveaxis(gain, 0, reader.axis)
    reader.kernel.assign(host.array_of(reader.kernel) + gain)
    merged[number] = merged.get(number, 0.0) + gain


def _counts(graph: ChannelGraph, removed: set[int]) -> tuple[tuple[str, int], ...]:
    """Return how many units were removed, by the first layer that makes them."""
    found: dict[str, int] = {}
    left = set(removed)
    for axis in graph.weights:
        if axis.role == "out" and axis.labels is not None:
            mine = left & set(axis.labels.tolist())
            if mine:
                found[axis.layer.name] = found.get(axis.layer.name, 0) + len(mine)
                left -= mine
    return tuple(found.items())
