"""The inputs and outputs of a model as those of a file: flat, in the model's order, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.litert.format import flatbuffer as fb


@dataclass(frozen=True)
class Ports:
    """What a model takes and returns.

    Attributes:
        structure: How the model nests its inputs.
        inputs: Name, shape and dtype of each input, in the order of the model.
        outputs: The names of its outputs in their order, or None where only a call tells how many
            there are.
    """

    structure: Any
    inputs: tuple[tf.TensorSpec, ...]
    outputs: tuple[str, ...] | None

    @property
    def batch(self) -> int | None:
        """The number of samples at a time, if the model fixes it."""
        return next((spec.shape[0] for spec in self.inputs if spec.shape[0] is not None), None)

    def with_batch(self, size: int | None) -> Ports:
        """Return the same ports with a number of samples at a time, unless the model fixes one."""
        size = self.batch or size
        if size is None:
            return self
        specs = [tf.TensorSpec((size, *s.shape[1:]), s.dtype, s.name) for s in self.inputs]
        return Ports(self.structure, tuple(specs), self.outputs)

    @property
    def is_single(self) -> bool:
        """Whether there is one input and one output."""
        return len(self.inputs) == 1 and self.outputs is not None and len(self.outputs) == 1

    def call(self, model: keras.Model, tensors: Sequence[Any]) -> list[Any]:
        """Return the outputs of a model in inference mode, flat.

        Args:
            model: The model.
            tensors: Its inputs, flat.

        Returns:
            Its outputs.
        """
        x = keras.tree.pack_sequence_as(self.structure, list(tensors))
        return keras.tree.flatten(model(x, training=False))

    def endpoint(self, model: keras.Model) -> Callable[..., dict[str, tf.Tensor]]:
        """Return a function of the flat inputs to the outputs by name.

        One input and one output keep the name of Keras's own export, ``"output_0"``.
        """

        def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            found = self.call(model, tensors)
            names = _numbered(1) if self.is_single else self.outputs or _numbered(len(found))
            return {name: tf.identity(t) for name, t in zip(names, found, strict=True)}

        return serve

    def in_order(self, content: bytes) -> bytes:
        """Return a file that has its inputs and outputs in the order of the model.

        Args:
            content: A file that was converted from a SavedModel of `endpoint`.

        Returns:
            The file, with the inputs and outputs of its graph sorted.
        """
        model = fb.read(content)
        (signature,) = model.signatureDefs
        graph = model.subgraphs[signature.subgraphIndex]
        outputs = self.outputs or _numbered(len(signature.outputs))
        graph.inputs = _sorted(signature.inputs, [spec.name for spec in self.inputs])
        graph.outputs = _sorted(signature.outputs, outputs)
        return fb.write(model)


def ports_of(model: keras.Model, data: Any = None) -> Ports | None:
    """Return the ports of a model.

    Args:
        model: A built model.
        data: Inputs, nested as the model takes them. They show what a model with a custom `call()`
            takes.

    Returns:
        The `Ports`; None for a model with a custom `call()` and no data.
    """
    functional = host.functional_of(model)
    if functional is not None:
        inputs = functional.inputs
        names = _told_apart([tensor.name for tensor in inputs])
        specs = [tf.TensorSpec(t.shape, t.dtype, n) for t, n in zip(inputs, names, strict=True)]
        return Ports(host.input_structure(functional), tuple(specs), _output_names(functional))
    if data is None:
        return None
    arrays = keras.tree.flatten(data)
    named = sorted(data) if isinstance(data, dict) and len(data) == len(arrays) else None
    names = _told_apart(named or [f"input_{i}" for i in range(len(arrays))])
    specs = [
        tf.TensorSpec((None, *array.shape[1:]), array.dtype, name)
        for array, name in zip(arrays, names, strict=True)
    ]
    return Ports(data, tuple(specs), None)


def _output_names(functional: Any) -> tuple[str, ...]:
    structure = host.output_structure(functional)
    if isinstance(structure, dict) and len(structure) == len(functional.outputs):
        return tuple(_told_apart(sorted(structure)))
    return tuple(_told_apart([host.operation_of(t).name for t in functional.outputs]))


def _numbered(count: int) -> list[str]:
    return [f"output_{i}" for i in range(count)]


def _told_apart(names: Iterable[Any]) -> list[str]:
    """Return names of letters, digits and underscores, no two alike."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", str(name), flags=re.ASCII)
        plain = plain if plain[:1].isalpha() else f"x{plain}"
        number, candidate = 1, plain
        while candidate in found:
            number += 1
            candidate = f"{plain}_{number}"
        found.append(candidate)
    return found


def _sorted(maps: Iterable[Any], names: Sequence[str]) -> list[int]:
    """Return the tensors of a signature in the order of some names."""
    tensors = {entry.name.decode(): entry.tensorIndex for entry in maps}
    return [tensors[name] for name in names if name in tensors]
