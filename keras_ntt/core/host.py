"""Everything that depends on how Keras 3 stores models and variables.

The numerical code works only with TensorFlow tensors. What it needs from Keras is here: raw
variables, the nodes of a functional graph, values that replace variables. So private names of
Keras, and some of TensorFlow, are used in this file only.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import keras.src.ops
import numpy as np
import tensorflow as tf
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.backend.common.variables import AutocastScope
from keras.src.backend.tensorflow.core import Variable
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell
from keras.src.models.functional import Functional
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.saving import serialization_lib
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.framework import convert_to_constants
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
from tensorflow.python.util import _pywrap_util_port

# The class of all weights, of which keras.Variable is a subclass in older versions.
VARIABLE = Variable

# The cell of ConvLSTM1D to ConvLSTM3D, which has no public name in Keras.
CONV_LSTM_CELL = ConvLSTMCell

# Layers of keras.applications.ConvNeXt*, which have no public names either.
LAYER_SCALE = LayerScale
STOCHASTIC_DEPTH = StochasticDepth


def require_tensorflow_backend() -> None:
    """Raise if Keras does not compute with TensorFlow.

    Raises:
        RuntimeError: If ``keras.backend.backend()`` is not ``"tensorflow"``.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            "keras_ntt differentiates with tf.GradientTape and needs Keras on the TensorFlow "
            "backend. Set the environment variable KERAS_BACKEND=tensorflow before Keras is "
            f"imported. Received: backend={backend!r}"
        )


def is_legacy_keras(obj: Any) -> bool:
    """Tell whether `obj` belongs to tf_keras (Keras 2) rather than Keras 3."""
    return any(
        cls.__module__.split(".")[0] == "tf_keras"
        or cls.__module__.startswith("tensorflow.python.keras")
        for cls in type(obj).__mro__
    )


def raw(variable: keras.Variable) -> tf.Variable:
    """Return the ``tf.Variable`` behind a Keras variable, for a tape to watch."""
    return variable._value


def when_initialized(variable: keras.Variable, act: Callable[[], None]) -> None:
    """Call `act` as soon as a variable has a value.

    When Keras infers the shapes of a model's layers by running its code on shapes only, it creates
    their variables first and gives them values later.
    """
    if variable._value is not None:
        act()
        return
    initialize = variable._deferred_initialize

    def initialize_and_act() -> None:
        del variable._deferred_initialize
        with tf.init_scope():
            initialize()
            act()

    variable._deferred_initialize = initialize_and_act


def set_path(variable: keras.Variable, path: str) -> None:
    """Give a variable the path of another one."""
    name = "_path" if hasattr(variable, "_path") else "path"
    setattr(variable, name, path)


def copies(variable: keras.Variable) -> list[tf.Variable]:
    """Return the ``tf.Variable`` behind a Keras variable, and its copies on replicas if any."""
    held = raw(variable)
    parts = getattr(held, "values", ()) if hasattr(held, "distribute_strategy") else ()
    return [held, *(part for part in parts if part is not held)]


def first_copy(variable: keras.Variable) -> tf.Variable:
    """Return the ``tf.Variable`` that is read outside of any replica, for a tape to watch."""
    return copies(variable)[:2][-1]


def value_of(variable: keras.Variable) -> tf.Tensor:
    """Return the value a variable has here, which `values_in_place` may have replaced."""
    return tf.convert_to_tensor(variable.value)


def array_of(variable: keras.Variable | tf.Variable) -> np.ndarray:
    """Return the present value as an array, also while a graph is being traced."""
    held = variable if isinstance(variable, tf.Variable) else raw(variable)
    with tf.init_scope():
        return held.numpy()


@contextlib.contextmanager
def values_in_place(
    values: Mapping[int, tuple[Any, tf.Tensor]], *, losses: bool = False
) -> Iterator[None]:
    """Compute with given values in place of those of the variables, without assigning to them.

    Assignments of layers and metrics to their variables meanwhile are discarded as well.

    Args:
        values: For each variable to replace, ``id(variable) -> (variable, tensor)``.
        losses: Whether a model's `losses` are collected meanwhile. Then all its trainable variables
            must be replaced.
    """
    if not values:
        yield
        return
    with keras.StatelessScope(state_mapping=list(values.values()), collect_losses=losses):
        yield


@contextlib.contextmanager
def one_replica() -> Iterator[None]:
    """Compute as if there were no strategy of tf.distribute, also within its scope.

    Inside a scope Keras always divides losses by the number of replicas.
    """
    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    try:
        yield
    finally:
        distribute_lib._pop_per_thread_mode()


def functional_of(model: Any) -> Any | None:
    """Return the functional graph that `model.call` runs, or None if it runs other code.

    Sequential models and functional models have one. A subclass that overrides ``call`` has custom
    code, whatever its base class.
    """
    if isinstance(model, keras.Sequential):
        same = type(model).call is keras.Sequential.call
        return model._functional if same else None
    if isinstance(model, Functional) and type(model).call is Functional.call:
        return model
    return None


def input_structure(functional: Any) -> Any:
    """Return the symbolic inputs of a functional graph, nested as its model takes them."""
    return functional._inputs_struct


def output_structure(functional: Any) -> Any:
    """Return the symbolic outputs of a functional graph, nested as its model returns them."""
    return functional._outputs_struct


def names_of_inputs(functional: Any) -> list[str] | None:
    """Return the names by which a graph takes a dict of inputs; None if it was made with a dict.

    If a model was made with a list of inputs, Keras accepts a dict with the names of the inputs.
    """
    if isinstance(input_structure(functional), dict):
        return None
    return [tensor.name for tensor in functional.inputs]


def flat_inputs(x: Any, names: list[str] | None) -> list[Any]:
    """Return inputs as a flat list in the model's own order.

    Args:
        x: Inputs, nested as a model takes them.
        names: The result of `names_of_inputs` for the model.
    """
    if isinstance(x, dict) and names and set(names) <= set(x):
        return [x[name] for name in names]
    return keras.tree.flatten(x)


def nodes_in_order(functional: Any) -> list[Any]:
    """Return the nodes of a functional graph, each after the nodes that it reads."""
    by_depth = functional._nodes_by_depth
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if node.operation is not None and not node.is_input
    ]


def node_of(tensor: Any) -> Any:
    """Return the node of a functional graph that a symbolic tensor is an output of."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def position_of(tensor: Any) -> int:
    """Return which of the flat outputs of its node a symbolic tensor is."""
    return int(tensor._keras_history.tensor_index)


def twin_of(operation: Any, name: str, **attributes: Any) -> Any:
    """Return a layer or operation that shares all state of another one, also its variables.

    The twin is called in separate graphs: the other one does not know of it.

    Args:
        operation: A Keras layer, built if it has variables, or an operation.
        name: The twin's name.
        **attributes: Attributes of the twin that differ.
    """
    cls: Any = type(operation)
    twin = cls.__new__(cls)
    # Keras wraps these for each object. The others are set without the layer's tracking, which is
    # shared.
    wrapped = {key: value for key, value in vars(twin).items() if key in ("build", "quantize")}
    vars(twin).update(vars(operation))
    vars(twin).update(wrapped)
    vars(twin).update(name=name, _inbound_nodes=[], _outbound_nodes=[], **attributes)
    return twin


@contextlib.contextmanager
def unknown_to_readers(tensors: Any) -> Iterator[None]:
    """Extend a functional graph without leaving nodes in the layers that made its tensors.

    Args:
        tensors: The symbolic tensors of the graph that may be read.
    """
    operations = {id(t._keras_history.operation): t._keras_history.operation for t in tensors}
    counts = [(op, len(op._outbound_nodes)) for op in operations.values()]
    try:
        yield
    finally:
        for operation, count in counts:
            del operation._outbound_nodes[count:]


def ops_named(*names: str) -> tuple[type, ...]:
    """Return the classes behind functions of ``keras.ops`` that this version of Keras has.

    Args:
        *names: Module and class, such as ``"nn.Softmax"``.
    """
    found = []
    for name in names:
        module, cls = name.split(".")
        place = getattr(keras.src.ops, module)
        found += [getattr(place, cls)] if hasattr(place, cls) else []
    return tuple(found)


def is_comparison(operation: Any) -> bool:
    """Tell whether an operation compares numbers, as ``Embedding(mask_zero=True)`` does."""
    return isinstance(operation, keras.src.ops.numpy.Equal | keras.src.ops.numpy.NotEqual)


@contextlib.contextmanager
def products_through(multiply: Callable[[Callable, Any, Any], Any]) -> Iterator[None]:
    """Pass each ``keras.ops.matmul`` of a layer's code to a function inside this context.

    Args:
        multiply: A function of the original matmul and its two operands that returns the product.
    """
    # Layers of Keras and users' code call it by these two names.
    places = (keras.src.ops, keras.ops)
    true = [place.matmul for place in places]

    def replaced(x1: Any, x2: Any) -> Any:
        return multiply(true[0], x1, x2)

    for place in places:
        place.matmul = replaced
    try:
        yield
    finally:
        for place, function in zip(places, true, strict=True):
            place.matmul = function


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Compute means and variances with correct second derivatives.

    Keras normalizes layers and groups with ``tf.nn.moments``, which stops the gradient through the
    mean inside the variance. First derivatives are then exact. Second derivatives, which the
    gradient of a tangent kernel needs, are wrong.
    """
    moments = tf.nn.moments
    tf.nn.moments = _moments
    try:
        yield
    finally:
        tf.nn.moments = moments


def _moments(
    x: tf.Tensor, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    long = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    mean = tf.reduce_mean(long, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(long - mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def has_onednn() -> bool:
    """Tell whether TensorFlow uses oneDNN for products and convolutions."""
    return bool(_pywrap_util_port.IsMklEnabled())


def is_in_xla() -> bool:
    """Tell whether the function being traced will be compiled by XLA, which needs known shapes."""
    return bool(GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def with_constants(function: Any) -> Any:
    """Return a concrete function with its variables replaced by their values.

    Args:
        function: A ``tf.types.experimental.ConcreteFunction``.

    Returns:
        A concrete function of the same inputs that returns the list of its outputs.

    Raises:
        Exception: If a value that it needs cannot be a constant.
    """
    return convert_to_constants.convert_variables_to_constants_v2(
        function, lower_control_flow=False
    )


def layers_of(
    part: Any, *, include_itself: bool = True, recursive: bool = True
) -> list[keras.Layer]:
    """Return the layers of a model or layer, parents before what is inside them.

    Args:
        part: The model or layer.
        include_itself: Whether it is the first of the list.
        recursive: Whether layers inside layers are listed as well.
    """
    return list(part._flatten_layers(include_self=include_itself, recursive=recursive))


def initial_epoch(model: keras.Model) -> int | None:
    """Return the epoch at which a callback has told ``fit`` to resume, or None."""
    return model._initial_epoch


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Tell ``fit`` the epoch to resume at; None cancels it."""
    model._initial_epoch = epoch


def operation_of(tensor: Any) -> Any:
    """Return the operation that a symbolic tensor of a functional graph is an output of."""
    return tensor._keras_history.operation


def embeddings_of(layer: keras.layers.Embedding) -> keras.Variable:
    """Return the table of an Embedding itself, without what LoRA adds to it."""
    return layer._embeddings


def kernel_of(layer: Any) -> keras.Variable | None:
    """Return the kernel of a layer itself, without what LoRA adds to it."""
    return getattr(layer, "_kernel", layer.kernel)


def is_of_keras(thing: Any, module: str = "") -> bool:
    """Tell whether the class of an object is part of Keras.

    Args:
        thing: The object.
        module: The part of Keras that the class must be defined in, such as ``"ops"``.
    """
    inside = f"keras.src.{module}." if module else "keras.src."
    return type(thing).__module__.startswith(inside)


def is_called_as_in_keras(layer: Any) -> bool:
    """Tell whether the code of a layer's ``call`` is Keras's, also in a custom subclass."""
    return getattr(type(layer).call, "__module__", "").startswith("keras.src.layers.")


def strategy_of(variable: keras.Variable) -> Any | None:
    """Return the strategy of tf.distribute that a variable was made under, None for the default."""
    held = raw(variable)
    strategy = getattr(held, "distribute_strategy", None)
    # With a strategy of one device, the variable is a plain one that only records the strategy.
    return getattr(held, "_distribute_strategy", None) if strategy is None else strategy


def is_among_workers() -> bool:
    """Tell whether this process is one of several workers of tf.distribute."""
    strategy = tf.distribute.get_strategy()
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return several and bool(strategy.extended._in_multi_worker_mode())


def is_legacy_graph(layer: Any) -> bool:
    """Tell whether a layer of tf_keras is a functional model."""
    return hasattr(layer, "_nodes_by_depth")


def legacy_nodes_in_order(model: Any) -> list[Any]:
    """Return the nodes of a functional model of tf_keras, each after the nodes that it reads."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def legacy_layer_of(tensor: Any) -> Any:
    """Return the layer of tf_keras that a symbolic tensor is an output of."""
    return tensor._keras_history.layer


def loss_weights_of(model: Any) -> Any:
    """Return the weights of the losses that a model is compiled with, None if there are none."""
    return getattr(getattr(model, "_compile_loss", None), "_user_loss_weights", None)


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Return the trainable variables of a layer itself, not of layers inside it."""
    return list(layer._trainable_variables)


def get_mask(tensor: Any) -> tf.Tensor | None:
    """Return the Keras timestep mask that is attached to `tensor`, if any."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: tf.Tensor | None) -> None:
    """Attach `mask` to `tensor`, as Keras layers expect it."""
    if mask is not None:
        tensor._keras_mask = mask


@contextlib.contextmanager
def in_float64(model: Any, values: Mapping[int, tuple[Any, tf.Tensor]]) -> Iterator[None]:
    """Compute in float64, whatever the dtype policies of a model's layers.

    The layers' policies are replaced and restored afterwards. No variable is changed.

    Args:
        model: The model.
        values: Values of its variables in float64, ``id(variable) -> (variable, tensor)``.
    """
    layers = [layer for layer in model._flatten_layers() if layer.compute_dtype != "float64"]
    policies = [layer._dtype_policy for layer in layers]
    scope = keras.StatelessScope(
        state_mapping=[(v, tf.cast(t, v.dtype)) for v, t in values.values()]
    )
    scope.state_mapping.update({key: t for key, (_, t) in values.items()})
    try:
        for layer in layers:
            layer._dtype_policy = keras.dtype_policies.DTypePolicy("float64")
        # Variables then report float64, which the layers' products follow.
        with scope, AutocastScope("float64"):
            yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer._dtype_policy = policy


def initializer_of(layer: Any, variable: Any) -> Any | None:
    """Return the initializer that a layer has for one of its weights, None if it has none.

    The initializer of ``recurrent_kernel`` is ``recurrent_initializer``, and that of the ``kernel``
    of a depthwise convolution is ``depthwise_initializer``.
    """
    names = [variable.name, variable.name.removesuffix("_kernel")]
    if variable.name == "kernel":
        names.append("depthwise")
    for name in names:
        found = getattr(layer, f"{name}_initializer", None)
        if found is not None:
            return found
    return None


class CompleteModel(keras.Model):
    """A model whose parts are all built: Keras need not infer shapes before its first step."""

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        """Build nothing: Keras would use a symbolic batch with parts of equal size for it."""


_before_steps: list[Callable[[Any, list[Any]], None]] = []


def before_each_step(act: Callable[[Any, list[Any]], None]) -> None:
    """Call a function whenever a Keras optimizer is about to take a step, also while it is traced.

    Args:
        act: Called with the optimizer and the variables that it has gradients for, in the order in
            which it clips them. A function that is passed twice is called once.
    """
    if act in _before_steps:
        return
    if not _before_steps:
        apply = BaseOptimizer.apply

        @functools.wraps(apply)
        def watched_apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
            grads = list(grads)
            if trainable_variables is not None:
                trainable_variables = list(trainable_variables)
            variables = trainable_variables or getattr(self, "_trainable_variables", ())
            given = [
                v
                for gradient, v in zip(grads, variables, strict=False)
                if gradient is not None and not getattr(v, "overwrite_with_gradient", False)
            ]
            for before in _before_steps:
                before(self, given)
            return apply(self, grads, trainable_variables)

        BaseOptimizer.apply = watched_apply
    _before_steps.append(act)


def set_clipping(optimizer: Any, clip: Callable[[Any, list[Any]], list[Any]] | None) -> None:
    """Clip the gradients of one optimizer with a function of both; None restores Keras's."""
    _set_method(optimizer, "_clip_gradients", clip)


def set_update_step(optimizer: Any, step: Callable[..., None] | None) -> None:
    """Replace the update step of one optimizer; None restores that of its class.

    Args:
        optimizer: The optimizer.
        step: Called with the optimizer, a gradient, a ``tf.Variable`` and the learning rate.
    """
    _set_method(optimizer, "update_step", step)


def set_root_mean_square(optimizer: Any, rms: Callable[[Any, Any], Any] | None) -> None:
    """Replace how Adafactor computes the root mean square of a tensor; None restores its own."""
    if hasattr(type(optimizer), "_rms"):
        _set_method(optimizer, "_rms", rms)


def _set_method(thing: Any, name: str, function: Callable[..., Any] | None) -> None:
    # Not with Keras's __setattr__, which would treat it as a part of the state.
    if function is not None:
        object.__setattr__(thing, name, types.MethodType(function, thing))
    elif name in vars(thing):
        object.__delattr__(thing, name)


def slots_of(optimizer: Any, held: tf.Variable) -> list[tf.Variable]:
    """Return the variables of an optimizer that have the shape of a weight and belong to it."""
    place = optimizer._get_variable_index(held)
    lists = [x for x in vars(optimizer).values() if isinstance(x, list) and len(x) > place]
    found = [x[place] for x in lists if x is not optimizer._trainable_variables]
    slots = [raw(slot) for slot in found if isinstance(slot, VARIABLE)]
    return [slot for slot in slots if slot.shape == held.shape and slot is not held]


def ends_accumulation(optimizer: Any) -> Any:
    """Return whether the present step of an optimizer updates the weights.

    With ``gradient_accumulation_steps`` most steps only accumulate gradients. The result is True or
    a boolean tensor.
    """
    number = getattr(optimizer, "gradient_accumulation_steps", None)
    if not number:
        return True
    return tf.equal((tf.convert_to_tensor(optimizer._iterations) + 1) % number, 0)


_OPERATIONS = (
    *("conv", "conv_transpose", "depthwise_conv", "separable_conv"),
    *("matmul", "dot", "tensordot", "einsum", "take"),
)


def kernel_used(layer: Any, variable: keras.Variable) -> np.ndarray | None:
    """Return the kernel that a layer computes with in place of a weight, if it can be found.

    Args:
        layer: A built layer.
        variable: Its weight.

    Returns:
        The value of its property ``kernel`` or ``embeddings``, if that is not a variable. Otherwise
        the last operand of the weight's shape that its code passes to an operation of ``keras.ops``
        when it is called on zeros. None if there is none, or the layer is not in a graph.
    """
    for name in ("kernel", "embeddings"):
        kernel: Any = getattr(layer, name, None) if hasattr(type(layer), name) else None
        computed = tf.is_tensor(kernel) and not isinstance(kernel, VARIABLE)
        if computed and kernel.shape == variable.shape:
            return np.asarray(kernel)
    seen: list[np.ndarray] = []
    places = (keras.src.ops, keras.ops)
    true = {(place, name): getattr(place, name) for place in places for name in _OPERATIONS}

    def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            for given in (*args, *kwargs.values()):
                if getattr(given, "shape", None) == tuple(variable.shape):
                    seen.append(np.asarray(keras.ops.convert_to_numpy(given)))
            return operation(*args, **kwargs)

        return run

    try:
        shapes = [[size or 8 for size in x.shape] for x in keras.tree.flatten(layer.input)]
        dtypes = [x.dtype for x in keras.tree.flatten(layer.input)]
        zeros = [tf.zeros([1, *s[1:]], d) for s, d in zip(shapes, dtypes, strict=True)]
        for (place, name), operation in true.items():
            setattr(place, name, watched(operation))
        layer.call(*zeros)
    except Exception:  # custom code may fail on such inputs: then nothing is known
        return None
    finally:
        for (place, name), operation in true.items():
            setattr(place, name, operation)
    return seen[-1] if seen else None


_WRITE_FUNCTION = "_serialize_function_to_config"


@contextlib.contextmanager
def configurations(
    write: Callable[[Callable[..., Any], Any], Any], read: Callable[..., Any]
) -> Iterator[None]:
    """Replace how this thread writes objects into configurations and reads them.

    Args:
        write: Called with ``serialize_keras_object`` and its argument.
        read: Called with ``deserialize_keras_object`` and its arguments.
    """
    acts = {"serialize_keras_object": write, "deserialize_keras_object": read}
    own = threading.get_ident()
    with contextlib.ExitStack() as stack:
        for name, act in acts.items():
            keras_own = getattr(serialization_lib, name)

            def call(*args: Any, keras_own: Any = keras_own, act: Any = act, **kwargs: Any) -> Any:
                if threading.get_ident() != own:
                    return keras_own(*args, **kwargs)
                return act(keras_own, *args, **kwargs)

            # All modules that have imported it by name, also the user's.
            for module in list(sys.modules.values()):
                if getattr(module, "__dict__", {}).get(name) is keras_own:
                    stack.callback(setattr, module, name, keras_own)
                    setattr(module, name, call)
        # It writes lambdas without calling the replacement.
        lambdas = keras.layers.Lambda
        stack.callback(setattr, lambdas, _WRITE_FUNCTION, getattr(lambdas, _WRITE_FUNCTION))
        setattr(
            lambdas,
            _WRITE_FUNCTION,
            lambda _, function: keras.saving.serialize_keras_object(function),
        )
        yield


@contextlib.contextmanager
def zero_weights() -> Iterator[None]:
    """Initialize new weights of this thread with zeros: they are assigned right afterwards."""
    keras_own, own = keras.layers.Layer.add_weight, threading.get_ident()

    @functools.wraps(keras_own)
    def add_weight(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == own and len(args) < 2:
            kwargs["initializer"] = "zeros"
        return keras_own(self, *args, **kwargs)

    keras.layers.Layer.add_weight = add_weight
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = keras_own
