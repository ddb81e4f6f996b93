"""A model run layer after layer on all calibration inputs, as it is and as it was.

Layers behind see what changed layers before them return, beside what they saw in the dense model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.network import Call, unroll
from keras_ntt.pruning.post_training.activations import MEMORY_LIMIT, Activations, Kept


class Arguments(NamedTuple):
    """What a layer was called with.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def first(self) -> Any:
        """The inputs of the layer, which come first."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def mask(self) -> tf.Tensor | None:
        """The mask of the timesteps of the inputs, if any."""
        given = self.kwargs.get("mask")
        return host.get_mask(self.first) if given is None else given

    @property
    def are_known(self) -> bool:
        """Whether the inputs have values, which they have not inside a ``tf.function``."""
        return all(hasattr(leaf, "numpy") for leaf in keras.tree.flatten(self.first))


class HiddenInputsError(ValueError):
    """The inputs of a layer cannot be seen, because it runs inside a ``tf.function``."""


class Inputs(NamedTuple):
    """The calls of one layer on one batch.

    Attributes:
        own: What the layer is called with in the model as it is.
        dense: What it was called with in the model before it was changed; the same object as `own`
            where both are equal.
    """

    own: list[Arguments]
    dense: list[Arguments]


class Walk:
    """The way of the calibration inputs through a model, call by call.

    Only what later calls read is kept. Before anything is changed, both models are one and run
    once. A model with a custom ``call()`` is one call, which is run again for each of its layers.

    Args:
        model: The model. Change its variables by `assign` alone while the walk goes on.
        batches: Batches of inputs, nested as the model takes them.
        memory_limit: Bytes of activations that are kept in memory; what is more goes to a
            temporary folder. None for no limit.

    Attributes:
        calls: The calls of the model.
        index: The number of the call that comes next.
        batches: The number of batches.
    """

    def __init__(
        self, model: keras.Model, batches: Sequence[Any], memory_limit: int | None = MEMORY_LIMIT
    ):
        network = unroll(model).bound_to(batches[0])
        self.calls: Sequence[Call] = network.calls
        self.index = 0
        self.batches = len(batches)
        self._last_reader = {slot: len(self.calls) for slot in network.outputs}
        for number, call in reversed(list(enumerate(self.calls))):
            for slot in call.inputs:
                self._last_reader.setdefault(slot, number)
        self._last_call = {
            id(layer): number
            for number, call in enumerate(self.calls)
            for layer in _layers_in(call.operation)
        }
        own = [dict(zip(network.inputs, network.prepare(batch), strict=True)) for batch in batches]
        # The inputs are the caller's, and in memory anyway.
        self._own: list[dict[int, Kept]] = [
            {slot: Kept(tensor, None, 0) for slot, tensor in slots.items()} for slots in own
        ]
        self._dense: list[dict[int, Kept]] = [dict(slots) for slots in self._own]
        self._activations = Activations(memory_limit)
        self._values: dict[int, tuple[Any, tf.Tensor]] = {}

    def assign(self, variable: keras.Variable, value: np.ndarray) -> None:
        """Change a variable of the model; its dense value is remembered.

        Args:
            variable: The variable.
            value: Its new value.
        """
        self._values.setdefault(id(variable), (variable, tf.identity(host.value_of(variable))))
        variable.assign(value)

    @property
    def has_changed(self) -> bool:
        """Whether any variable was changed."""
        return bool(self._values)

    def dense_value(self, variable: keras.Variable) -> np.ndarray:
        """Return the value that a variable had before it was changed, in float64."""
        _, value = self._values.get(id(variable), (None, None))
        return np.asarray(host.array_of(variable) if value is None else value, np.float64)

    def as_dense(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model computes as before it was changed."""
        return host.values_in_place(self._values)

    def reached(self, layers: Iterable[Any]) -> list[Any]:
        """Return which of some layers the next call uses, in the order in which it does.

        Args:
            layers: Layers of the model.

        Returns:
            Some of them.
        """
        call = self.calls[self.index]
        inside = {id(layer) for layer in _layers_in(call.operation)}
        found = [layer for layer in layers if id(layer) in inside]
        if found == [call.operation]:
            return found
        order: dict[int, Any] = {}
        if found:
            with _recorded(found, lambda layer, _: order.setdefault(id(layer), layer)):
                self._run(call, _values(self._own[0], call.inputs))
        return list(order.values())

    def inputs_of(self, layer: Any) -> Iterator[Inputs]:
        """Yield what a layer that the next call uses is called with, batch by batch.

        Calls of the same layer further on in the model are among them.

        Args:
            layer: The layer.

        Yields:
            The `Inputs` of each batch.

        Raises:
            HiddenInputsError: If the layer is called inside a ``tf.function``.
        """
        calls = self.calls[self.index : self._last_call[id(layer)] + 1]
        variables = [v for call in calls for v in getattr(call.operation, "variables", ())]
        unchanged = not any(id(v) in self._values for v in variables)
        for own, dense in zip(self._own, self._dense, strict=True):
            mine = self._arguments(layer, calls, own)
            read = {slot for call in calls for slot in call.inputs if slot in own}
            if unchanged and all(own[slot] is dense[slot] for slot in read):
                yield Inputs(mine, mine)
                continue
            with self.as_dense():
                theirs = self._arguments(layer, calls, dense)
            yield Inputs(mine, theirs)

    def advance(self) -> None:
        """Run the next call on all batches, and forget what no later call reads."""
        call = self.calls[self.index]
        variables = getattr(call.operation, "variables", ())
        unchanged = not any(id(v) in self._values for v in variables)
        for own, dense in zip(self._own, self._dense, strict=True):
            alike = unchanged and all(own[slot] is dense[slot] for slot in call.inputs)
            found = self._kept(call, own)
            if alike:
                dense.update(found)
            else:
                with self.as_dense():
                    dense.update(self._kept(call, dense))
            own.update(found)
            self._forget(own, dense)
        self.index += 1

    def readers_of_next(self) -> list[Any]:
        """Return what reads the outputs of the next call; None stands for the model's outputs."""
        written = set(self.calls[self.index].outputs)
        found = [call.operation for call in self.calls if written & set(call.inputs)]
        ends = [slot for slot in written if self._last_reader.get(slot) == len(self.calls)]
        return [*found, *(None for _ in ends)]

    def _kept(self, call: Call, slots: dict[int, Kept]) -> dict[int, Kept]:
        """Run a call, and return what later calls read of its outputs."""
        found = self._run(call, _values(slots, call.inputs))
        read = [self._last_reader.get(slot, -1) > self.index for slot in call.outputs]
        return {
            slot: self._activations.keep(tensor)
            for slot, tensor, later in zip(call.outputs, found, read, strict=True)
            if later
        }

    def _forget(self, own: dict[int, Kept], dense: dict[int, Kept]) -> None:
        """Drop what no later call reads."""
        for slot in [s for s in own if self._last_reader.get(s, -1) <= self.index]:
            mine, theirs = own.pop(slot), dense.pop(slot)
            self._activations.release(mine)
            if theirs is not mine:
                self._activations.release(theirs)

    def _arguments(
        self, layer: Any, calls: Sequence[Call], slots: dict[int, Kept]
    ) -> list[Arguments]:
        found: list[Arguments] = []
        read = {slot for call in calls for slot in call.inputs if slot in slots}
        values = _values(slots, read)
        if len(calls) == 1 and calls[0].operation is layer:
            return [Arguments(*calls[0].with_tensors([values[s] for s in calls[0].inputs]))]
        with _recorded([layer], lambda _, arguments: found.append(arguments)):
            for call in calls:
                values.update(zip(call.outputs, self._run(call, values), strict=True))
        if not found or not all(arguments.are_known for arguments in found):
            raise HiddenInputsError(
                f"The layer {layer.name!r} is called inside a tf.function, where its inputs have "
                "no values. Received: symbolic inputs"
            )
        return found

    @staticmethod
    def _run(call: Call, slots: dict[int, Any]) -> list[Any]:
        args, kwargs = call.with_tensors([slots[slot] for slot in call.inputs])
        return keras.tree.flatten(call.operation(*args, **kwargs))


def _values(slots: dict[int, Kept], read: Iterable[int]) -> dict[int, Any]:
    return {slot: slots[slot].value for slot in set(read)}


def _layers_in(operation: Any) -> list[Any]:
    return host.layers_of(operation) if isinstance(operation, keras.layers.Layer) else []


@contextlib.contextmanager
def _recorded(layers: Iterable[Any], note: Callable[[Any, Arguments], Any]) -> Iterator[None]:
    """Note what layers are called with while the context lasts."""
    layers = list(layers)
    before = [vars(layer).get("call") for layer in layers]

    def noting(layer: Any) -> Callable[..., Any]:
        true = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            note(layer, Arguments(args, kwargs))
            return true(*args, **kwargs)

        return call

    try:
        for layer in layers:
            vars(layer)["call"] = noting(layer)
        yield
    finally:
        for layer, call in zip(layers, before, strict=True):
            if call is None:
                vars(layer).pop("call", None)
            else:
                vars(layer)["call"] = call
