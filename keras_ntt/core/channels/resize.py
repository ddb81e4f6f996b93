"""Make a model again with smaller layers: the same graph and names, fewer channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.core.channels.graph import ChannelGraph
from keras_ntt.core.channels.labels import Labels
from keras_ntt.core.channels.records import Path, Size
from keras_ntt.core.configurations import configuration_of, configurations_share
from keras_ntt.core.copies import hand_over, undisturbed
from keras_ntt.core.network import unroll


class Removal:
    """Sets of channels that are removed, and what is left of axes and weights.

    Attributes:
        graph: The graph.
        removed: The labels of the sets.
    """

    def __init__(self, graph: ChannelGraph, removed: Collection[int]):
        self.graph, self.removed = graph, frozenset(int(label) for label in removed)
        self._gone = np.array(sorted(self.removed), np.int64)

    def keeps(self, labels: Labels) -> np.ndarray:
        """Return which indices of an axis stay."""
        return ~np.isin(labels, self._gone)

    def sliced(self, values: Mapping[int, np.ndarray] | None = None) -> dict[int, np.ndarray]:
        """Return what is left of the weights that lose something or change.

        Args:
            values: Values that take the place of those of the weights, by ``id(variable)``.

        Returns:
            Arrays by ``id(variable)``.
        """
        found = dict(values or {})
        for axis in self.graph.weights:
            if axis.labels is None:
                continue
            kept = self.keeps(axis.labels)
            if not kept.all():
                key = id(axis.variable)
                value = found[key] if key in found else host.array_of(axis.variable)
                found[key] = np.compress(kept, value, axis.axis)
        for rescale in self.graph.rescales:
            kept = self.keeps(rescale.labels)
            if not kept.all():
                key = id(rescale.variable)
                value = found[key] if key in found else host.array_of(rescale.variable)
                factor = (kept.sum() / kept.size) ** rescale.power
                found[key] = (value * factor).astype(value.dtype)
        return found


def resized(removal: Removal, values: Mapping[int, np.ndarray] | None = None) -> keras.Model:
    """Return a model without some channels.

    Args:
        removal: What to remove.
        values: New values of weights, in their old shapes, by ``id(variable)``.

    Returns:
        The model: the same graph of layers of the same names. The old one is left as it is.

    Raises:
        ValueError: If a layer cannot be made again in its new size.
    """
    model = removal.graph.model
    with undisturbed(), configurations_share(model), host.zero_weights():
        maker = _Maker(removal)
        new = maker.model(model, None)
        maker.fill(removal.sliced(values))
    _check(removal, new)
    return new


class _Maker:
    """Makes layers and models again, each once."""

    def __init__(self, removal: Removal):
        self._removal = removal
        self._sizes: dict[int, list[Size]] = {}
        for size in removal.graph.sizes:
            self._sizes.setdefault(id(size.layer), []).append(size)
        self._made: dict[int, tuple[Any, Any]] = {}

    def operation(self, old: Any) -> Any:
        """Return the new layer or operation for an old one."""
        if id(old) not in self._made:
            self._made[id(old)] = (old, self._again(old))
        return self._made[id(old)][1]

    def _again(self, old: Any) -> Any:
        sizes = self._sizes.get(id(old), [])
        changes = []
        for size in sizes:
            kept = self._removal.keeps(size.labels)
            if not kept.all():
                after, before = int(kept.sum()), int(kept.size)
                value = after if size.value is None else size.value(after, before)
                changes.append((size.path, value))
        if not isinstance(old, keras.layers.Layer) and not changes:
            return old  # an operation has learnt nothing
        config = _unbuilt(configuration_of(old))
        for path, value in changes:
            config = _with(config, path, value)
        return type(old).from_config(config)

    def model(self, old: Any, given: list[Any] | None) -> keras.Model:
        """Return a Sequential or functional model, made again on inputs of given shapes."""
        functional: Any = host.functional_of(old)
        symbols = functional.inputs if given is None else given
        inputs = [
            keras.Input(
                batch_shape=new.shape,
                dtype=symbol.dtype,
                name=host.operation_of(symbol).name,
                sparse=getattr(symbol, "sparse", False) or None,
            )
            for symbol, new in zip(functional.inputs, symbols, strict=True)
        ]
        if isinstance(old, keras.Sequential):
            layers = [self._part(layer) for layer in old.layers]
            made = keras.Sequential([inputs[0]], name=old.name)
            for layer, part in zip(old.layers, layers, strict=True):
                if part is None:
                    part = self.model(layer, made.outputs if made.layers else inputs)
                    self._made[id(layer)] = (layer, part)
                made.add(part)
            made.trainable = old.trainable
            return made
        tensor_of = dict(zip(map(id, functional.inputs), inputs, strict=True))

        def new_of(leaf: Any) -> Any:
            return tensor_of[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf

        for node in host.nodes_in_order(functional):
            if any(id(t) not in tensor_of for t in node.input_tensors):
                continue
            args, kwargs = keras.tree.map_structure(
                new_of, (tuple(node.arguments.args), dict(node.arguments.kwargs))
            )
            part = self._part(node.operation)
            if part is None:
                tensors = [t for t in keras.tree.flatten(args) if isinstance(t, keras.KerasTensor)]
                part = self.model(node.operation, tensors)
                self._made[id(node.operation)] = (node.operation, part)
            outputs = keras.tree.flatten(part(*args, **kwargs))
            tensor_of.update(zip(map(id, node.outputs), outputs, strict=True))
        structures = host.input_structure(functional), host.output_structure(functional)
        ins, outs = keras.tree.map_structure(new_of, structures)
        made = _class_of(old)(ins, outs, name=old.name)
        made.trainable = old.trainable
        return made

    def _part(self, old: Any) -> Any | None:
        """Return a new layer; None for a nested model, which is made on the tensors it reads."""
        if id(old) not in self._made and host.functional_of(old) is not None:
            return None
        return self.operation(old)

    def fill(self, values: Mapping[int, np.ndarray]) -> None:
        """Give the new layers their weights."""
        for old, new in self._made.values():
            if not isinstance(old, keras.layers.Layer) or host.functional_of(old) is not None:
                continue
            if not any(id(variable) in values for variable in old.weights):
                hand_over(old, new)
                continue
            if len(old.weights) != len(new.weights):
                raise _cannot(old, f"{len(new.weights)} weights instead of {len(old.weights)}")
            for mine, theirs in zip(new.weights, old.weights, strict=True):
                value = values[id(theirs)] if id(theirs) in values else host.array_of(theirs)
                if tuple(mine.shape) != value.shape:
                    found = f"{mine.path!r} of {tuple(mine.shape)} instead of {value.shape}"
                    raise _cannot(old, found)
                mine.assign(value)


def _class_of(model: Any) -> Any:
    """Return the class to make a functional model of: its own, if that has no ``__init__``."""
    own = [
        cls for cls in type(model).__mro__ if not cls.__module__.startswith(("keras.", "builtins"))
    ]
    return keras.Model if any("__init__" in vars(cls) for cls in own) else type(model)


def _unbuilt(config: Any) -> Any:
    """Return a configuration without the shapes that layers inside a wrapper were built on."""
    if not isinstance(config, dict):
        return config
    return {key: _unbuilt(value) for key, value in config.items() if key != "build_config"}


def _with(config: Any, path: Path, value: Any) -> Any:
    """Return a configuration with another entry."""
    if not path:
        return value
    key, *rest = path
    if isinstance(config, dict):
        return {**config, key: _with(config.get(key), tuple(rest), value)}
    entries = list(config)
    entries[key] = _with(entries[key], tuple(rest), value)
    return tuple(entries) if isinstance(config, tuple) else entries


def _cannot(layer: Any, found: str) -> ValueError:
    return ValueError(
        f"The layer {layer.name!r} cannot be made again in its new size: its channel rule and its "
        f"get_config() do not say the same. Received: {type(layer).__name__} with {found}"
    )


def _check(removal: Removal, new: keras.Model) -> None:
    """Raise a ValueError unless the tensors of a new model have the sizes that labels say."""
    graph = removal.graph
    shapes = unroll(new).shapes
    for slot, axes in graph.axes.items():
        before = graph.network.shapes[slot]
        expected = tuple(
            size if labels is None else int(removal.keeps(labels).sum())
            for size, labels in zip(before, axes, strict=True)
        )
        if len(expected) != len(shapes[slot]) or any(
            a is not None and b is not None and a != b
            for a, b in zip(expected, shapes[slot], strict=True)
        ):
            raise ValueError(
                "A tensor of the smaller model has another shape than its channels say: a layer "
                "keeps a size that its channel rule does not name. Received: a shape "
                f"{shapes[slot]} instead of {expected}"
            )
