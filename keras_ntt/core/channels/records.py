"""What the calls of a model say of its channels: weights, sizes, readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_ntt.core.channels.labels import Labels, LabelSets

Path = tuple[Any, ...]  # keys that lead to an entry of a configuration


@dataclass(frozen=True, eq=False)
class WeightAxis:
    """The labels of one axis of a weight.

    Attributes:
        layer: The layer, or for a layer inside a wrapper the wrapper.
        variable: The weight.
        axis: The axis.
        labels: Its labels; an index is removed if its label is. None: nothing may be removed.
        role: ``"out"`` makes channels, ``"in"`` reads them, ``"own"`` goes along with them.
    """

    layer: Any
    variable: keras.Variable
    axis: int
    labels: Labels | None
    role: str


@dataclass(frozen=True, eq=False)
class Reader:
    """A kernel that sums over channels.

    Attributes:
        layer: Its layer.
        kernel: The kernel.
        axis: The axis of the kernel that counts channels read.
        labels: The labels of that axis.
        bias: The weight that a constant can be added to, if there is one.
        exact: Whether a constant that is read is a constant of the output, also at borders.
        slot: The tensor that is read; None if it is inside the layer.
        tensor_axis: The axis of that tensor, counted from the last, which is -1.
    """

    layer: Any
    kernel: keras.Variable
    axis: int
    labels: Labels
    bias: keras.Variable | None
    exact: bool
    slot: int | None
    tensor_axis: int


@dataclass(frozen=True, eq=False)
class Size:
    """An entry of a layer's configuration that counts channels."""

    layer: Any
    path: Path
    labels: Labels
    value: Callable[[int, int], Any] | None  # of the counts after and before; None: the count after


@dataclass(frozen=True, eq=False)
class Rescale:
    """A weight that is multiplied by ``(count after / count before) ** power``."""

    variable: keras.Variable
    labels: Labels
    power: float


@dataclass(frozen=True, eq=False)
class Work:
    """A kernel and at how many positions of a sample it is applied."""

    kernel: keras.Variable
    positions: int


@dataclass
class Records:
    """What the calls of a network have said of its channels."""

    sets: LabelSets = field(default_factory=LabelSets)
    weights: dict[tuple[int, int], WeightAxis] = field(default_factory=dict)
    sizes: dict[tuple[int, Path], Size] = field(default_factory=dict)
    rescales: dict[int, Rescale] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    inexact: list[tuple[Labels, str]] = field(default_factory=list)
    bilinear: list[Labels] = field(default_factory=list)
