"""The channel dependency graph of a model (Fang 2023, arXiv 2301.12900).

Each index of an axis of a tensor or weight has a label. Layers couple labels, or map them to other
indices. Labels of one set are removed together, by taking their indices out of all axes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_ntt.core.channels.call import ChannelCall, Traced
from keras_ntt.core.channels.labels import Axes, Labels, labelled
from keras_ntt.core.channels.records import Reader, Records, Rescale, Size, WeightAxis, Work
from keras_ntt.core.channels.rules.table import apply
from keras_ntt.core.network import Call, Network, unroll


@dataclass(frozen=True, eq=False)
class Passage:
    """What becomes of constants in a call: see `ChannelCall.constant`."""

    call: Call
    constant: str


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Which channels of a model depend on each other. Labels are those that stand for their sets.

    Attributes:
        model: The model.
        network: The model unrolled.
        weights: The axes of its weights.
        sizes: Entries of its layers' configurations.
        rescales: Weights that grow or shrink with the number of channels.
        readers: The kernels that sum over channels.
        work: Kernels and their positions.
        fixed: Why sets cannot be removed.
        inexact: Why the removal of channels of zeros changes outputs, by set.
        bilinear: Sets over which products of two tensors are summed.
        axes: The labels of the tensors, by slot.
        passages: The calls, with what becomes of constants.
    """

    model: Any
    network: Network
    weights: tuple[WeightAxis, ...]
    sizes: tuple[Size, ...]
    rescales: tuple[Rescale, ...]
    readers: tuple[Reader, ...]
    work: tuple[Work, ...]
    fixed: dict[int, str]
    inexact: dict[int, str]
    bilinear: frozenset[int]
    axes: dict[int, Axes]
    passages: tuple[Passage, ...]

    def counted(self) -> list[Labels]:
        """Return the labels of all axes of weights and entries of configurations."""
        axes = [axis.labels for axis in self.weights if axis.labels is not None]
        return axes + [size.labels for size in self.sizes]

    def removable(self) -> Labels:
        """Return the sets that may be removed."""
        found = [axis.labels for axis in self.weights if axis.labels is not None]
        labels = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
        return np.array([label for label in labels.tolist() if label not in self.fixed], np.int64)


def channel_graph(model: keras.Model) -> ChannelGraph:
    """Return the channel dependency graph of a built model.

    Args:
        model: A Sequential or functional model; of any other kind all channels are fixed.

    Returns:
        The graph.
    """
    network, records = unroll(model), Records()
    traced: dict[int, Traced] = {}
    for slot in network.inputs:
        shape = network.shapes[slot]
        traced[slot] = Traced((None,) * len(shape), shape, slot)
    passages = []
    for call in network.calls:
        tensors = [traced[slot] for slot in call.inputs]
        shapes = [network.shapes[slot] for slot in call.outputs]
        arguments = call.with_tensors(tensors)
        context = ChannelCall(records, call.operation, arguments, shapes)
        for slot, axes, shape in zip(call.outputs, apply(context), shapes, strict=True):
            traced[slot] = Traced(axes, shape, slot)
        passages.append(Passage(call, context.constant))
    for slot in network.outputs:
        for labels in labelled(traced[slot].axes):
            records.sets.fix(labels, "they are an output of the model")
    return _resolved(model, network, records, traced, passages)


def _resolved(
    model: Any,
    network: Network,
    records: Records,
    traced: dict[int, Traced],
    passages: Iterable[Passage],
) -> ChannelGraph:
    """Return the graph with each label replaced by the one that stands for its set."""
    roots = records.sets.roots

    def of(labels: Labels | None) -> Labels | None:
        return None if labels is None else roots(labels)

    weights = tuple(
        WeightAxis(a.layer, a.variable, a.axis, of(a.labels), a.role)
        for a in records.weights.values()
    )
    inexact: dict[int, str] = {}
    for labels, reason in records.inexact:
        for label in roots(labels).tolist():
            inexact.setdefault(label, reason)
    return ChannelGraph(
        model,
        network,
        weights,
        tuple(Size(s.layer, s.path, roots(s.labels), s.value) for s in records.sizes.values()),
        tuple(Rescale(r.variable, roots(r.labels), r.power) for r in records.rescales.values()),
        tuple(_reader(records, r) for r in records.readers),
        tuple(records.work),
        records.sets.reasons(),
        inexact,
        frozenset(label for labels in records.bilinear for label in roots(labels).tolist()),
        {slot: tuple(of(labels) for labels in t.axes) for slot, t in traced.items()},
        tuple(passages),
    )


def _reader(records: Records, reader: Reader) -> Reader:
    """Return a reader of resolved labels; a bias that is added at several places holds nothing."""
    calls = sum(other.kernel is reader.kernel for other in records.readers)
    return replace(
        reader, labels=records.sets.roots(reader.labels), exact=reader.exact and calls == 1
    )
