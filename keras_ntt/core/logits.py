"""The logits of a model: the inputs of its last softmax or sigmoid.

Probabilities are close to each other, and their derivatives are small, whatever a network has
learnt. Code that compares two networks, or differentiates one, therefore uses the logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.kinds import computes_as, kind_of

# Functions that return probabilities. Users take them from any of these places.
_FUNCTIONS = {
    id(function): name
    for name, functions in {
        "softmax": (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax),
        "sigmoid": (keras.activations.sigmoid, keras.ops.sigmoid, tf.nn.sigmoid, tf.sigmoid),
    }.items()
    for function in functions
}
_SOFTMAX, _SIGMOID = host.ops_named("nn.Softmax"), host.ops_named("nn.Sigmoid")
# Layers that apply their activation last.
_ACTIVATE_LAST = (
    *(layers.Dense, layers.EinsumDense, layers.Activation),
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D),
    *(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)
# Layers that only move numbers in inference mode.
_MOVE = (
    *(layers.Reshape, layers.Flatten, layers.Permute, layers.Identity, layers.Concatenate),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianNoise, layers.GaussianDropout, layers.RepeatVector),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling3D),
    *host.ops_named(
        *("numpy.Reshape", "numpy.Squeeze", "numpy.ExpandDims", "numpy.Transpose"),
        *("numpy.Concatenate", "numpy.GetItem", "core.Cast", "core.Identity"),
    ),
)
# By chance each entry lies between 0 and 1 about as often as a coin shows heads.
_FEWEST = 16


class Logits(NamedTuple):
    """A model that returns logits.

    Attributes:
        model: The model without its last activations: another model with the same variables, inputs
            and name. It is the model itself if there are none.
        activations: The activation of each output tensor, in order: ``"softmax"``, ``"sigmoid"`` or
            None. For an output that is composed of several parts, the last of them.
        certain: Whether there is no other activation. It is False if a model ends in custom code.
    """

    model: keras.Model
    activations: tuple[str | None, ...] = ()
    certain: bool = False

    @property
    def names(self) -> str:
        """The activations, for a message: ``"softmax and sigmoid"``."""
        return " and ".join(sorted({name for name in self.activations if name}))


def logits_of(model: keras.Model) -> Logits:
    """Return a model that computes the inputs of the last activation of a model.

    Softmax and sigmoid are found in Sequential, functional and nested models: as the activation
    of a layer, also inside of TimeDistributed; as a layer, a Lambda or an operation; and before
    layers that only move numbers, such as Reshape and Concatenate. Both models share their
    variables, so training one trains the other. The model is not changed.

    Args:
        model: A built model.

    Returns:
        The `Logits`.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> found = logits_of(model)
        >>> x = np.ones((1, 4), "float32")
        >>> found.activations, bool(np.allclose(keras.ops.softmax(found.model(x)), model(x)))
        (('softmax',), True)
    """
    functional = host.functional_of(model)
    if functional is None:
        return Logits(model)
    search = _Search([layer.name for layer in host.layers_of(model)])
    with host.unknown_to_readers(
        t
        for node in host.nodes_in_order(functional)
        for t in (*node.input_tensors, *node.output_tensors)
    ):
        ends = [search.before(tensor) for tensor in functional.outputs]
        names = tuple(end.activation for end in ends)
        certain = all(end.certain for end in ends)
        if not any(names):
            return Logits(model, names, certain)
        outputs = keras.tree.pack_sequence_as(
            host.output_structure(functional), [end.tensor for end in ends]
        )
        inputs = host.input_structure(functional)
        return Logits(keras.Model(inputs, outputs, name=model.name), names, certain)


class _End(NamedTuple):
    """The input of the last activation of a tensor, and its name."""

    tensor: Any
    activation: str | None = None
    certain: bool = True


class _Search:
    """Finds the last activations of one graph.

    Args:
        taken: Names that new layers must not have.
    """

    def __init__(self, taken: Sequence[str]):
        self._taken = set(taken)
        self._made: dict[int, Any] = {}

    def before(self, tensor: Any) -> _End:
        """Return the logits of a symbolic tensor; the tensor itself if there is no activation."""
        node = host.node_of(tensor)
        operation = node.operation
        if node.is_input:
            return _End(tensor)
        if computes_as(operation, *_MOVE) or _is_linear(operation):
            return self._moved(tensor, node)
        name = _own_activation(operation)
        if name is not None:
            masked = len(node.input_tensors) != 1
            return _End(tensor, None, certain=False) if masked else self._read(tensor, node, name)
        instead = self._without(operation)
        if instead is None:
            return _End(tensor, None, _is_known(operation))
        other, names, certain = instead
        position = host.position_of(tensor)
        if names[position] is None:
            return _End(tensor, None, certain)
        outputs = keras.tree.flatten(other(*node.arguments.args, **node.arguments.kwargs))
        return _End(outputs[position], names[position], certain)

    def _moved(self, tensor: Any, node: Any) -> _End:
        """Return the logits of a moved tensor, moved in the same way."""
        ends = {id(t): self.before(t) for t in node.input_tensors}
        names = [end.activation for end in ends.values() if end.activation]
        certain = all(end.certain for end in ends.values())
        if not names:
            return _End(tensor, None, certain)
        args, kwargs = keras.tree.map_structure(
            lambda leaf: ends[id(leaf)].tensor if id(leaf) in ends else leaf,
            (tuple(node.arguments.args), dict(node.arguments.kwargs)),
        )
        outputs = keras.tree.flatten(self._twin(node.operation)(*args, **kwargs))
        return _End(outputs[host.position_of(tensor)], names[-1], certain)

    def _read(self, tensor: Any, node: Any, name: str) -> _End:
        """Return the input of an activation, in the dtype of its output."""
        (source,) = node.input_tensors
        if source.dtype != tensor.dtype:
            source = layers.Activation("linear", dtype=tensor.dtype)(source)
        return _End(source, name)

    def _without(self, operation: Any) -> tuple[Any, tuple[str | None, ...], bool] | None:
        """Return a layer without its activation, the activation of each output, and `certain`."""
        if host.functional_of(operation) is not None:
            found = logits_of(operation)
            return self._once(operation, found.model), found.activations, found.certain
        if kind_of(operation) is layers.TimeDistributed:
            inner = self._without(operation.layer)
            if inner is None:
                return None
            other, names, certain = inner
            twin = self._twin(operation, layer=other, _layers=[other])
            return twin, names, certain
        name = _FUNCTIONS.get(id(getattr(operation, "activation", None)))
        if name is None or not _activates_last(operation):
            return None
        return self._twin(operation, activation=keras.activations.linear), (name,), True

    def _twin(self, operation: Any, **attributes: Any) -> Any:
        if id(operation) not in self._made:
            name = f"{operation.name}_logits"
            while name in self._taken:
                name += "_"
            self._taken.add(name)
            self._made[id(operation)] = host.twin_of(operation, name, **attributes)
        return self._made[id(operation)]

    def _once(self, operation: Any, other: Any) -> Any:
        return self._made.setdefault(id(operation), other)


def _own_activation(operation: Any) -> str | None:
    """Return the name of the activation that an operation is, or None."""
    if computes_as(operation, layers.Softmax, *_SOFTMAX):
        return "softmax"
    if computes_as(operation, *_SIGMOID):
        return "sigmoid"
    if kind_of(operation) is layers.Lambda and not operation.arguments:
        return _FUNCTIONS.get(id(operation.function))
    if isinstance(operation, layers.Activation) and _activates_last(operation):
        return _FUNCTIONS.get(id(operation.activation))
    return None


def _is_linear(operation: Any) -> bool:
    """Tell whether a layer changes the dtype alone, as at the end of mixed-precision networks."""
    own = isinstance(operation, layers.Activation) and _activates_last(operation)
    return own and operation.activation is keras.activations.linear


def _activates_last(operation: Any) -> bool:
    """Tell whether a layer, or a subclass with the same computation, applies its activation."""
    for base in _ACTIVATE_LAST:
        if isinstance(operation, base):
            return type(operation).call is base.call
    return False


def _is_known(operation: Any) -> bool:
    """Tell whether an operation cannot end in an unknown activation."""
    if isinstance(operation, layers.TimeDistributed):
        return _is_known(operation.layer)
    # Custom functions may be another softmax.
    function = getattr(operation, "activation", None)
    own = getattr(function, "__module__", "").startswith(keras.activations.linear.__module__)
    return own and _activates_last(operation)


def looks_like_probabilities(outputs: Any) -> bool:
    """Tell whether each row of outputs ``[n, c]``, c > 1, is non-negative and sums to 1."""
    outputs = np.asarray(tf.cast(outputs, "float64"))
    if outputs.shape[1] < 2:
        return False
    return bool((outputs >= 0).all()) and bool((abs(outputs.sum(axis=1) - 1) < 1e-3).all())


def look_like_probabilities(outputs: Any) -> bool:
    """Tell whether a model's outputs look like those of a softmax or a sigmoid.

    Args:
        outputs: Tensors ``[n, ..., c]``, nested as the model returns them.

    Returns:
        Whether for one of the tensors all rows along the last axis are probabilities that sum to 1,
        or all entries, of which there must be enough, are above 0 and below 1.
    """
    for tensor in keras.tree.flatten(outputs):
        values = np.asarray(tf.cast(tensor, "float64"))
        if not values.size or values.ndim < 2:
            continue
        inside = values.size >= _FEWEST and bool(((values > 0) & (values < 1)).all())
        if inside or looks_like_probabilities(values.reshape(-1, values.shape[-1])):
            return True
    return False


def warn_of_logits(found: Logits, what: str, *, stacklevel: int = 2) -> None:
    """Warn that logits are used, if a model has an activation at its end.

    Args:
        found: The logits of the model.
        what: The code that uses them, such as ``"the transfer"``.
        stacklevel: As in `warnings.warn`, counted from the caller.
    """
    if found.names:
        warnings.warn(
            f"The model {found.model.name!r} ends in {found.names}. {what} looks at what goes into "
            "it, the logits, because probabilities and their derivatives are too small to be "
            f"compared. The model keeps its {found.names}.",
            stacklevel=stacklevel + 1,
        )


def warn_of_probabilities(
    found: Iterable[Logits], x: Any, what: str, *, stacklevel: int = 2
) -> None:
    """Warn if the custom code of a model seems to return probabilities.

    Args:
        found: The logits of a model and of its teacher, if there is one, as far as they were found.
            The warning names the first that seems to be probabilities.
        x: Some inputs, nested as the models take them; None if there are none.
        what: The code that uses the outputs, such as ``"the transfer"``.
        stacklevel: As in `warnings.warn`, counted from the caller.
    """
    uncertain = [] if x is None else [logits for logits in found if not logits.certain]
    if not uncertain or not tf.executing_eagerly():
        return
    some = keras.tree.map_structure(lambda leaf: leaf[:32], x)
    for logits in uncertain:
        if look_like_probabilities(logits.model(some, training=False)):
            warnings.warn(
                f"The outputs of the model {logits.model.name!r} look like probabilities, and the "
                "activation that makes them was not found, because it is in your own code. "
                f"{what} should look at logits: the derivatives of probabilities are so small that "
                "hardly anything is left to compare. Return what goes into the softmax or sigmoid, "
                "and apply it afterwards, in a separate layer or by a loss with "
                "from_logits=True.",
                stacklevel=stacklevel + 1,
            )
            return
