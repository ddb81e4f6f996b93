"""Channels that another one can stand for, because they are multiples of it wherever they are read.

Merging them is the exact core of tropical pruning: a ReLU unit is an edge of a zonotope, and
parallel edges add up (Fotopoulos et al., TropNNC, arXiv 2409.03945).
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np

from keras_ntt.core.channels.constants import run_on_sample
from keras_ntt.core.channels.graph import ChannelGraph
from keras_ntt.core.channels.multiples import Multiples, multiples_after


class Merge(NamedTuple):
    """Channels that one of them can stand for.

    Attributes:
        kept: The label that stays.
        factors: By the number of each reader and the label of each other channel, the multiple of
            the kept channel that it is there.
    """

    kept: int
    factors: dict[int, dict[int, float]]


def parallel_units(graph: ChannelGraph) -> list[Merge]:
    """Return channels that all readers read as multiples of another one.

    Args:
        graph: The graph of a model.

    Returns:
        What to merge: the rows of the readers' kernels are added up, and nothing else changes.
    """
    known: dict[int, Multiples] = {slot: {} for slot in graph.network.inputs}
    for passage in graph.passages:
        found = multiples_after(graph, passage, known)
        for slot in passage.call.outputs:
            own = {int(x) for axis in graph.axes[slot] if axis is not None for x in axis}
            known[slot] = {x: m for x, m in found.items() if x in own and m.of in own}
    return _confirmed(graph, _agreed(graph, known))


def _agreed(graph: ChannelGraph, known: dict[int, Multiples]) -> list[Merge]:
    """Return the channels that are multiples of the same one wherever they are read."""
    readers: dict[int, list[int]] = {}
    for number, reader in enumerate(graph.readers):
        for label in np.unique(reader.labels).tolist():
            readers.setdefault(label, []).append(number)
    removable = set(graph.removable().tolist()) - set(graph.inexact) - set(graph.bilinear)
    merges: dict[int, Merge] = {}
    for label in sorted(removable & set(readers)):
        found = []
        for number in readers[label]:
            slot = graph.readers[number].slot
            found.append(known[slot].get(label) if slot is not None else None)
        same = {m.of for m in found if m is not None and not m.shift}
        if None in found or len(same) != 1 or any(m.shift for m in found if m is not None):
            continue
        (of,) = same
        if readers.get(of) != readers[label]:
            continue
        merge = merges.setdefault(of, Merge(of, {number: {} for number in readers[label]}))
        for number, multiple in zip(readers[label], found, strict=True):
            assert multiple is not None
            merge.factors[number][label] = multiple.factor
    return list(merges.values())


def _confirmed(graph: ChannelGraph, merges: list[Merge]) -> list[Merge]:
    """Return the merges that a run of the model on a sample does not contradict."""
    tensors = run_on_sample(graph) if merges else {}
    found = []
    for merge in merges:
        apart: set[int] = set()
        factors: dict[int, dict[int, float]] = {}
        for number, theirs in merge.factors.items():
            reader = graph.readers[number]
            kernel = [r for r in graph.readers if r.kernel is reader.kernel]
            slot = reader.slot
            if slot not in tensors or len(kernel) > 1:
                apart |= set(theirs)
                continue
            value = np.moveaxis(
                keras.ops.convert_to_numpy(tensors[slot]), reader.tensor_axis, -1
            ).astype(np.float64)
            kept = value[..., reader.labels == merge.kept]
            for label, factor in theirs.items():
                mine = value[..., reader.labels == label]
                limit = 1e-3 * (np.abs(mine).max(initial=0) + 1e-30)
                if mine.shape != kept.shape or np.abs(mine - factor * kept).max() > limit:
                    apart.add(label)
            factors[number] = theirs
        factors = {
            number: {label: f for label, f in theirs.items() if label not in apart}
            for number, theirs in factors.items()
        }
        if factors and all(factors.values()):
            found.append(Merge(merge.kept, factors))
    return found
