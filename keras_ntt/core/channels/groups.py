"""Groups of channels that can be removed one by one, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks
from keras_ntt.core.channels.graph import ChannelGraph, channel_graph
from keras_ntt.core.tables import table


@dataclass(frozen=True)
class ChannelMember:
    """An axis of a weight that a group's channels are indices of.

    Attributes:
        layer: The name of the layer; of a wrapped layer, that of the wrapper.
        weight: The path of the weight.
        axis: The axis.
        role: ``"out"`` makes the channels, ``"in"`` reads them, ``"own"`` goes along with them.
    """

    layer: str
    weight: str
    axis: int
    role: str


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of the same layers, each of which can be removed without the others.

    What a channel couples goes with it: its filter in all layers that make it, its inputs in all
    layers that read it, its normalization.

    Attributes:
        name: The name of the first layer of the group.
        channels: How many there are.
        parameters: How many weights belong to one channel or more.
        members: The axes of weights that they are indices of.
        kept: Why they cannot be removed; None if they can.
        inexact: Why the removal even of channels of zeros changes the outputs; None if it does not.
        labels: What the dependency graph calls them.
    """

    name: str
    channels: int
    parameters: int
    members: tuple[ChannelMember, ...]
    kept: str | None
    inexact: str | None
    labels: tuple[int, ...]

    @property
    def makers(self) -> tuple[str, ...]:
        """Names of the layers that make the channels."""
        return tuple(dict.fromkeys(m.layer for m in self.members if m.role == "out"))


class ChannelGroups(tuple[ChannelGroup, ...]):
    """The groups of a model in the order of its layers; ``str()`` is a table."""

    __slots__ = ()

    def __str__(self) -> str:
        body = []
        for group in self:
            layers = list(dict.fromkeys(member.layer for member in group.members))
            more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
            row = (group.name, f"{group.channels:,}", f"{group.parameters:,}")
            note = (group.kept and f"kept: {group.kept}") or group.inexact or ""
            body.append((*row, ", ".join(layers[:3]) + more, note))
        head = ("group", "channels", "parameters", "layers", "note")
        return table(head, body, right=(1, 2))


def channel_groups(model: keras.Model) -> ChannelGroups:
    """Return which channels of a model depend on each other, and which can be removed.

    The channel dependency graph follows Fang et al. (2023), "DepGraph: Towards Any Structural
    Pruning", arXiv 2301.12900.

    Args:
        model: A built Keras model.

    Returns:
        A tuple of `ChannelGroup`, in the order of the layers. Channels that must stay, because
        they are outputs of the model or because nothing is known of a layer that reads them, form
        groups that say why (`ChannelGroup.kept`). A model whose ``call`` is custom code has none.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not built.
    """
    checks.check_model(model)
    return groups_of(channel_graph(model))


def groups_of(graph: ChannelGraph) -> ChannelGroups:
    """Return the groups of a graph."""
    places: dict[int, list[int]] = {}
    for number, axis in enumerate(graph.weights):
        for label in () if axis.labels is None else np.unique(axis.labels).tolist():
            places.setdefault(label, []).append(number)
    together: dict[Any, list[int]] = {}
    for label, numbers in places.items():
        key = (tuple(numbers), graph.fixed.get(label), graph.inexact.get(label))
        together.setdefault(key, []).append(label)
    found = [
        _group(graph, numbers, kept, inexact, labels)
        for (numbers, kept, inexact), labels in together.items()
    ]
    order = {label: number for number, label in enumerate(places)}
    return ChannelGroups(sorted(found, key=lambda group: order[group.labels[0]]))


def _group(
    graph: ChannelGraph,
    numbers: tuple[int, ...],
    kept: str | None,
    inexact: str | None,
    labels: list[int],
) -> ChannelGroup:
    axes = [graph.weights[number] for number in numbers]
    members = tuple(ChannelMember(a.layer.name, a.variable.path, a.axis, a.role) for a in axes)
    makers = [axis.layer.name for axis in axes if axis.role == "out"]
    name = (makers or [axes[0].layer.name])[0]
    left: dict[int, float] = {}
    sizes = {id(a.variable): int(np.prod(a.variable.shape)) for a in axes}
    for axis in axes:
        assert axis.labels is not None
        share = float(np.mean(~np.isin(axis.labels, labels)))
        left[id(axis.variable)] = left.get(id(axis.variable), 1.0) * share
    count = sum(round(sizes[key] * (1 - share)) for key, share in left.items())
    return ChannelGroup(name, len(labels), count, members, kept, inexact, tuple(labels))
