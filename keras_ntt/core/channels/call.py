"""One call of a layer, as a channel rule sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.core.channels.labels import Axes, Labels, labelled
from keras_ntt.core.channels.records import (
    Path,
    Reader,
    Records,
    Rescale,
    Size,
    WeightAxis,
    Work,
)


class Traced:
    """A tensor of the graph: its shape, and the labels of its axes.

    Attributes:
        axes: Labels of each axis, None for an axis with nothing to remove.
        shape: Sizes, None where they are not known; the first axis counts samples.
        slot: The number of the tensor in the unrolled network.
    """

    def __init__(self, axes: Axes, shape: Sequence[int | None], slot: int):
        self.axes, self.shape, self.slot = axes, tuple(shape), slot

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)


class ChannelCall:
    """One call of a layer or operation: what a rule reads, and what it says.

    A rule is a function of a `ChannelCall` that returns the axes of the layer's output, a list of
    them for several outputs. Whatever else it has to say it says by the methods.

    Attributes:
        layer: The layer or operation.
        args: Its positional arguments, with `Traced` in the place of tensors.
        kwargs: Its keyword arguments.
        inputs: The tensors among the arguments, one that is given twice twice.
        output_shapes: The shapes of the outputs.
        constant: What becomes of channels that are constant: ``"never"`` constant afterwards,
            ``"all"`` (constant if they are in all inputs), ``"moved"`` (if they are in those inputs
            that have them), ``"padded"`` (if they are zero).
    """

    def __init__(
        self,
        records: Records,
        layer: Any,
        arguments: tuple[Any, Any],
        output_shapes: Sequence[Sequence[int | None]],
        *,
        owner: Any = None,
        prefix: Path = (),
        repeats: Sequence[int | None] = (),
    ):
        self._records, self.layer = records, layer
        self.args, self.kwargs = arguments
        leaves = keras.tree.flatten(arguments)
        self.inputs: list[Traced] = [leaf for leaf in leaves if isinstance(leaf, Traced)]
        self.output_shapes = [tuple(shape) for shape in output_shapes]
        self._owner, self._prefix = layer if owner is None else owner, prefix
        self._repeats = tuple(repeats)
        self.constant = "never"

    def inner(
        self,
        layer: Any,
        x: Traced,
        output_shape: Sequence[int | None],
        prefix: Path,
        repeats: Sequence[int | None] = (),
    ) -> ChannelCall:
        """Return the call of a layer inside a wrapper.

        Args:
            layer: The inner layer.
            x: What it reads.
            output_shape: What it makes of it.
            prefix: Where in the wrapper's configuration that of the inner layer is.
            repeats: How often it is called.
        """
        return ChannelCall(
            self._records,
            layer,
            ((x,), {}),
            [output_shape],
            owner=self._owner,
            prefix=(*self._prefix, *prefix),
            repeats=(*self._repeats, *repeats),
        )

    # ---- labels

    def new(self, count: int) -> Labels:
        """Return labels of new channels, each of which may be removed by itself."""
        return self._records.sets.new(count)

    def couple(self, first: Labels | None, second: Labels | None, reason: str = "") -> None:
        """State that two axes lose the same indices."""
        if first is not None and second is not None:
            if len(first) == len(second):
                self._records.sets.couple(first, second)
                return
            reason = f"{self.name} joins axes of {len(first)} and {len(second)} channels"
        reason = reason or f"{self.name} joins them with what has no channels to remove"
        for labels in labelled((first, second)):
            self._records.sets.fix(labels, reason)

    def couple_all(self, labels: Labels) -> None:
        """State that all indices of an axis are removed together."""
        self._records.sets.couple_all(labels)

    def fix(self, labels: Labels | None, reason: str) -> None:
        """State that the channels of an axis cannot be removed, and why."""
        if labels is not None:
            self._records.sets.fix(labels, f"{self.name} {reason}")

    def opaque(self, reason: str) -> list[Axes]:
        """Return axes without channels, and fix all channels that come in."""
        for tensor in self.inputs:
            for labels in labelled(tensor.axes):
                self.fix(labels, reason)
        return [(None,) * len(shape) for shape in self.output_shapes]

    def only(self, x: Traced, axis: int, reason: str = "mixes positions") -> Labels | None:
        """Return the labels of one axis, and fix those of all others but the samples'."""
        axis %= x.rank
        for i, labels in enumerate(x.axes):
            if i != axis:
                self.fix(labels, reason)
        return x.axes[axis]

    # ---- weights

    def weight(
        self, variable: Any, axes: dict[int, Labels | None], roles: dict[int, str] | None = None
    ) -> None:
        """State which labels the axes of a weight have.

        Args:
            variable: The weight; None is skipped.
            axes: Labels by axis; axes that are not named cannot lose anything.
            roles: ``"out"`` or ``"in"`` by axis; otherwise an axis goes along (``"own"``).
        """
        if variable is None:
            return
        rank = len(variable.shape)
        given = {axis % rank: labels for axis, labels in axes.items()}
        role = {axis % rank: name for axis, name in (roles or {}).items()}
        for axis in range(rank):
            labels = given.get(axis)
            if labels is not None and len(labels) != variable.shape[axis]:
                raise ValueError(
                    f"A channel rule gives an axis as many labels as it has indices. Received: "
                    f"{len(labels)} labels for axis {axis} of {variable.path!r} of shape "
                    f"{tuple(variable.shape)}"
                )
            key = (id(variable), axis)
            earlier = self._records.weights.get(key)
            if earlier is not None:
                why = f"{self.name} is shared with a call whose channels stay"
                self.couple(earlier.labels, labels, why)
                continue
            self._records.weights[key] = WeightAxis(
                self._owner, variable, axis, labels, role.get(axis, "own")
            )

    def resize(
        self,
        path: Any,
        labels: Labels | None,
        value: Callable[[int, int], Any] | None = None,
    ) -> None:
        """State which entry of the layer's configuration counts the channels of an axis.

        Args:
            path: The key, or a tuple of keys and indices that leads to the entry.
            labels: The labels of the axis; None: nothing changes.
            value: The entry's new value, of the counts after and before; None for the count.
        """
        if labels is None:
            return
        path = (*self._prefix, *(path if isinstance(path, tuple) else (path,)))
        earlier = self._records.sizes.get((id(self._owner), path))
        if earlier is not None:
            self.couple(earlier.labels, labels)
            return
        self._records.sizes[id(self._owner), path] = Size(self._owner, path, labels, value)

    def forget_sizes(self, key: str) -> None:
        """Take back what was said of the sizes in one part of the layer's configuration."""
        start = (*self._prefix, key)
        for owner, path in list(self._records.sizes):
            if owner == id(self._owner) and path[: len(start)] == start:
                del self._records.sizes[owner, path]

    def rescale(self, variable: Any, labels: Labels | None, power: float) -> None:
        """State that a weight grows by ``(count after / count before) ** power``."""
        if labels is not None and variable is not None:
            self._records.rescales[id(variable)] = Rescale(variable, labels, power)

    def reads(
        self,
        kernel: keras.Variable,
        axis: int,
        labels: Labels | None,
        *,
        bias: Any = None,
        exact: bool = False,
        tensor: Traced | None = None,
        tensor_axis: int = -1,
    ) -> None:
        """State that a kernel sums over channels; see `Reader`."""
        if labels is None:
            return
        slot = None if tensor is None else tensor.slot
        self._records.readers.append(
            Reader(self._owner, kernel, axis, labels, bias, exact, slot, tensor_axis)
        )

    def works(self, kernel: keras.Variable, positions: Sequence[int | None]) -> None:
        """State at how many positions of a sample a kernel is applied; unknown sizes count one."""
        count = math.prod(size or 1 for size in (*positions, *self._repeats))
        self._records.work.append(Work(kernel, count))

    def inexact(self, labels: Labels | None, reason: str) -> None:
        """State that the removal even of channels of zeros changes the outputs, and why."""
        if labels is not None:
            self._records.inexact.append((labels, f"{self.name} {reason}"))

    def multiplies(self, labels: Labels | None) -> None:
        """State that a sum over channels of products of two tensors is taken."""
        if labels is not None:
            self._records.bilinear.append(labels)

    @property
    def name(self) -> str:
        """The name of the layer, by which reasons speak of it."""
        return self._owner.name


def spread(labels: Labels | None, times: int) -> Labels | None:
    """Return labels, each repeated as often.

    >>> spread(np.array([3, 4]), 2)
    array([3, 3, 4, 4])
    """
    return None if labels is None else np.repeat(labels, times)


def tiled(labels: Labels | None, times: int) -> Labels | None:
    """Return labels, all of them as often one after the other.

    >>> tiled(np.array([3, 4]), 2)
    array([3, 4, 3, 4])
    """
    return None if labels is None else np.tile(labels, times)
