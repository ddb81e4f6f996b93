"""A Keras model as the core sees it: a flat list of layer calls in inference mode.

Sequential and functional models, also nested ones, are unrolled into `Call`s that read and write
numbered slots. A model with a custom ``call()`` becomes a single `Call`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.loops import has_unknown_length, loops_of, unrolled


class _Slot:
    """The place of a tensor among the arguments of a call."""

    def __init__(self, index: int):
        self.index = index


@dataclass(frozen=True, eq=False)
class Call:
    """One application of a layer or operation.

    Attributes:
        operation: The Keras layer, model or operation that is called.
        arguments: Its ``(args, kwargs)``, with slots where tensors go.
        inputs: Numbers of the slots that it reads, in the order of the arguments.
        outputs: Numbers of the slots that it writes, in the order of the flat outputs.
    """

    operation: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self, *tensors: tf.Tensor, looped: Sequence[Any] = ()) -> list[tf.Tensor]:
        """Apply the operation to tensors in the order of `inputs`; return the flat outputs.

        Args:
            *tensors: The tensors.
            looped: Inner layers that are not differentiated twice, so that they may run in loops.

        Raises:
            ValueError: If other trainable recurrent layers would run over sequences of unknown
                length.
        """
        loops = self.weights and loops_of(self.operation, looped)
        if loops and has_unknown_length(tensors):
            raise ValueError(
                "Recurrent layers run step by step here, because they are differentiated twice. "
                "This needs sequences of a known length. The reason is that the layer has other "
                "settings than the defaults of LSTM, GRU and SimpleRNN, or that custom code around "
                "it uses weights in other ways than by keras.ops.matmul, or calls it with another "
                "number of rows than one per sample. Pad all batches to one length, and state it "
                "by keras.Input((length, ...)), or by an array instead of a data set of open "
                "shape. "
                f"Received: the layer {self.operation.name!r} on inputs "
                f"of shape {[tuple(t.shape) for t in tensors]}"
            )
        args, kwargs = self.with_tensors(tensors)
        with unrolled(self.operation, tensors, looped):
            return keras.tree.flatten(self.operation(*args, **kwargs))

    def with_tensors(self, tensors: Sequence[tf.Tensor]) -> tuple[Any, Any]:
        """Return the positional and the keyword arguments, with tensors in the slots."""
        at = dict(zip(self.inputs, tensors, strict=True))
        return keras.tree.map_structure(
            lambda leaf: at[leaf.index] if isinstance(leaf, _Slot) else leaf, self.arguments
        )

    @property
    def weights(self) -> list[keras.Variable]:
        """The trainable variables of the operation; none for plain operations."""
        if isinstance(self.operation, keras.layers.Layer):
            return self.operation.trainable_variables
        return []


def call_on(function: Any) -> Call:
    """Return the call of a function of one tensor."""
    return Call(function, ((_Slot(0),), {}), (0,), (1,))


def call_with(operation: Any, args: Any, kwargs: Any) -> tuple[Call, list[tf.Tensor]]:
    """Return a call with given arguments, and the tensors among these."""
    tensors: list[tf.Tensor] = []

    def to_slot(leaf: Any) -> Any:
        if not tf.is_tensor(leaf):
            return leaf
        tensors.append(leaf)
        return _Slot(len(tensors) - 1)

    arguments = keras.tree.map_structure(to_slot, (tuple(args), dict(kwargs)))
    slots = tuple(range(len(tensors)))
    return Call(operation, arguments, slots, (len(slots),)), tensors


@dataclass(frozen=True, eq=False)
class Network:
    """An unrolled model.

    Attributes:
        model: The Keras model.
        calls: Its calls, each after those whose slots it reads; none for a model with a custom
            `call()`, before it is bound to inputs.
        inputs: Slots of the model's inputs.
        outputs: Slots of the model's outputs.
        input_dtypes: The dtype to which each input is cast; None does not cast.
        output_shapes: Shapes of the outputs, without the axis of the samples.
        shapes: Shapes of all slots of an unrolled model, with None for unknown sizes.
    """

    model: Any
    calls: tuple[Call, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    input_dtypes: tuple[str | None, ...] = ()
    output_shapes: tuple[tuple[int | None, ...], ...] = ()
    shapes: dict[int, tuple[int | None, ...]] = field(default_factory=dict)
    _bound: dict[Any, Network] = field(default_factory=dict)

    def bound_to(self, x: Any) -> Network:
        """Return the network for given inputs; for a model with a custom call(), its one call."""
        if self.calls:
            return self
        leaves = [tf.convert_to_tensor(t) for t in keras.tree.flatten(x)]
        key = (str(keras.tree.map_structure(type, x)), *((t.shape[1:], t.dtype) for t in leaves))
        if key not in self._bound:
            slots = tuple(range(len(leaves)))
            arguments = (keras.tree.pack_sequence_as(x, [_Slot(i) for i in slots]),)
            symbols = [keras.KerasTensor((None, *t.shape[1:]), t.dtype.name) for t in leaves]
            symbolic = keras.tree.pack_sequence_as(x, symbols)
            found = self.model.compute_output_spec(symbolic)
            shapes = tuple(tuple(t.shape[1:]) for t in keras.tree.flatten(found))
            ends = tuple(len(slots) + i for i, _ in enumerate(shapes))
            call = Call(self.model, _call_arguments(arguments, {}, self.model), slots, ends)
            dtypes = (None,) * len(slots)
            self._bound[key] = Network(self.model, (call,), slots, ends, dtypes, shapes)
        return self._bound[key]

    @property
    def output_size(self) -> int:
        """The number of outputs of a sample.

        Raises:
            ValueError: If it is unknown.
        """
        sizes = [tf.TensorShape(shape).num_elements() for shape in self.output_shapes]
        if not sizes or None in sizes:
            raise ValueError(
                "The outputs of the model must be of a size that is known, because each is "
                "differentiated. Fix the length of sequences in keras.Input. "
                f"Received: model={self.model.name!r} with outputs {self.output_shapes}"
            )
        return sum(sizes)

    def prepare(self, x: Any) -> list[tf.Tensor]:
        """Return the model's inputs as a flat list of tensors of the right dtypes."""
        functional = host.functional_of(self.model)
        names = None if functional is None else host.names_of_inputs(functional)
        tensors = [tf.convert_to_tensor(t) for t in host.flat_inputs(x, names)]
        if len(tensors) != len(self.inputs):
            raise ValueError(
                f"The model {self.model.name!r} has {len(self.inputs)} input(s), so it needs as "
                f"many arrays. Received: {len(tensors)} array(s)"
            )
        return [
            t if dtype is None else tf.cast(t, dtype)
            for t, dtype in zip(tensors, self.input_dtypes, strict=True)
        ]


def _call_arguments(node_args: Any, node_kwargs: Any, operation: Any) -> Any:
    """Add ``training=False`` where the operation takes it."""
    kwargs = dict(node_kwargs)
    if isinstance(operation, keras.layers.Layer):
        parameters = inspect.signature(operation.call).parameters
        if "training" in parameters:
            kwargs["training"] = False
    return tuple(node_args), kwargs


def unroll(model: Any) -> Network:
    """Unroll a built Keras model into its calls.

    Args:
        model: A built Keras 3 model.

    Returns:
        The `Network`. Nested Sequential and functional models are unrolled too; layers and models
        with a custom `call()` stay whole.
    """
    calls: list[Call] = []
    slot_shapes: dict[int, tuple[int | None, ...]] = {}

    def new_slot(tensor: Any) -> int:
        slot_shapes[len(slot_shapes)] = tuple(tensor.shape)
        return len(slot_shapes) - 1

    def add(functional: Any, inputs: list[int]) -> list[int]:
        slot_of = {id(t): s for t, s in zip(functional.inputs, inputs, strict=True)}
        for node in host.nodes_in_order(functional):
            symbols = node.input_tensors
            if any(id(t) not in slot_of for t in symbols):
                continue
            operation = node.operation
            nested = host.functional_of(operation)
            given_kwargs = node.arguments.kwargs.items()
            extra = {key for key, value in given_kwargs if value is not None} - {"training"}
            if nested is not None and not extra:
                given = keras.tree.flatten(node.arguments.args)
                if len(given) == len(nested.inputs) and all(id(t) in slot_of for t in given):
                    outputs = add(nested, [slot_of[id(t)] for t in given])
                    slot_of.update({id(t): s for t, s in zip(node.outputs, outputs, strict=True)})
                    continue
            reads: dict[int, None] = {}

            def to_slot(leaf: Any, reads: dict[int, None] = reads) -> Any:
                if isinstance(leaf, keras.KerasTensor):
                    index = slot_of[id(leaf)]
                    reads[index] = None
                    return _Slot(index)
                return leaf

            args, kwargs = keras.tree.map_structure(
                to_slot, (tuple(node.arguments.args), dict(node.arguments.kwargs))
            )
            writes = tuple(new_slot(t) for t in node.outputs)
            slot_of.update({id(t): s for t, s in zip(node.outputs, writes, strict=True)})
            arguments = _call_arguments(args, kwargs, operation)
            calls.append(Call(operation, arguments, tuple(reads), writes))
        return [slot_of[id(t)] for t in functional.outputs]

    functional = host.functional_of(model)
    if functional is not None:
        inputs = [new_slot(t) for t in functional.inputs]
        outputs = add(functional, inputs)
        dtypes = tuple(keras.backend.standardize_dtype(t.dtype) for t in functional.inputs)
        shapes = tuple(tuple(t.shape[1:]) for t in functional.outputs)
        return Network(
            model, tuple(calls), tuple(inputs), tuple(outputs), dtypes, shapes, slot_shapes
        )
    return Network(model)
