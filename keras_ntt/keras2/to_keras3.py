"""Convert a tf_keras model to Keras 3.

This module does not import tf_keras: it recognizes its objects by their attributes.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_ntt.core import host, input_kinds
from keras_ntt.core.kinds import kind_of
from keras_ntt.keras2.configs import RENAMED, arguments_of
from keras_ntt.keras2.twins import check_unwrapped, copy_weights, some_input

# Operations that are layers in a tf_keras graph, `x + 1` or tf.nn.relu(x), by their last name.
_OPERATIONS = {"abs", "add", "divide", "elu", "exp", "matmul", "maximum", "minimum", "multiply"}
_OPERATIONS |= {"relu", "relu6", "reshape", "sigmoid", "silu", "softmax", "sqrt", "square"}
_OPERATIONS |= {"subtract", "tanh", "transpose"}
_OPERATOR_NAMES = {"sub": "subtract", "mul": "multiply", "truediv": "divide"}
# The second argument of operations in TensorFlow; tf_keras always passes the first by position.
_SECOND = ("y", "b", "perm", "shape")


def to_keras3(model: Any) -> keras.Model:
    """Return the Keras 3 twin of a tf_keras model: the same layers, names, weights and outputs.

    Args:
        model: A built Sequential or functional model of tf_keras, with layers that Keras 3 also
            has.

    Returns:
        The twin, whose outputs were compared with the model's on random inputs.

    Raises:
        TypeError: If `model` is not a tf_keras model.
        ValueError: If it is not built, has wrappers of tfmot, or cannot be rebuilt; the message
            says why.
    """
    if not host.is_legacy_keras(model) or not hasattr(model, "layers"):
        raise TypeError(
            "to_keras3 takes a model of tf_keras; one of Keras 3 needs no twin. "
            f"Received: a {type(model).__module__}.{type(model).__name__}"
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(
            "The model has no inputs to follow: it is not built, or is subclassed. Begin a "
            "Sequential model with InputLayer, or write its class with `import keras`, copy the "
            "weights by keras_ntt.tfmot.copy_weights and pass it as twin=. "
            f"Received: {model.name!r} of class {type(model).__name__}"
        )
    check_unwrapped(model)
    twin = _made_again(model, {})
    copy_weights(model, twin)
    rng = np.random.default_rng(0)
    looked_up = input_kinds.are_indices(twin.inputs, twin)
    inputs = [some_input(rng, t, i) for t, i in zip(model.inputs, looked_up, strict=True)]
    # Functional models take a single array, not a list.
    x = inputs[0] if len(inputs) == 1 else inputs
    theirs, ours = (_flat(m(x, training=False)) for m in (model, twin))
    for a, b in zip(theirs, ours, strict=True):
        alike = a.shape == b.shape
        if not alike or not np.allclose(a, b, rtol=1e-3, atol=1e-4):
            apart = f"in shape, {a.shape} and {b.shape}"
            if alike:
                apart = f"by up to {np.abs(a - b).max():.2g}"
            raise ValueError(
                "The twin computes something else than the tf_keras model, so a layer means "
                "different things in the two. Write the model with `import keras` and pass it as "
                f"twin=. Received: {model.name!r}, whose outputs differ {apart}"
            )
    return twin


def _flat(outputs: Any) -> list[np.ndarray]:
    return [np.asarray(t, "float32") for t in keras.tree.flatten(outputs)]


def _made_again(model: Any, made: dict[int, Any]) -> keras.Model:
    """Return a Keras 3 model of the same graph, before its weights are copied."""
    symbols = {
        id(t): keras.Input(tuple(t.shape[1:]), dtype=t.dtype.name, name=_input_name(t))
        for t in model.inputs
    }
    inputs = list(symbols.values())
    for node in host.legacy_nodes_in_order(model):
        given = keras.tree.flatten(node.keras_inputs)
        if node.is_input or any(id(t) not in symbols for t in given):
            continue
        if id(node.layer) not in made:
            made[id(node.layer)] = _layer_again(node.layer, made)
        args, kwargs = keras.tree.map_structure(
            lambda leaf: symbols.get(id(leaf), leaf), (node.call_args, dict(node.call_kwargs))
        )
        kwargs = {k: v for k, v in kwargs.items() if v is not None}
        with _named(node.layer):
            outputs = keras.tree.flatten(made[id(node.layer)](*args, **kwargs))
        theirs = keras.tree.flatten(node.outputs)
        symbols.update({id(t): s for t, s in zip(theirs, outputs, strict=True)})
    outputs = [symbols[id(t)] for t in model.outputs]
    return keras.Model(
        inputs[0] if len(inputs) == 1 else inputs,
        outputs[0] if len(outputs) == 1 else outputs,
        name=model.name,
        trainable=model.trainable,
    )


def _input_name(tensor: Any) -> str:
    return host.legacy_layer_of(tensor).name


def _layer_again(layer: Any, made: dict[int, Any]) -> Any:
    """Return the Keras 3 layer, model or function for one of tf_keras."""
    if host.is_legacy_graph(layer):
        return _made_again(layer, made)
    cls = kind_of(layer) or type(layer)
    kind, of_library = cls.__name__, cls.__module__.split(".")[0] == "tf_keras"
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        name = str(layer.get_config()["function"]).split(".")[-1]
        name = _OPERATOR_NAMES.get(name, name)
        if kind == "TFOpLambda" and name in _OPERATIONS:
            return _operation(name)
        raise _no_twin(layer, f"the function {name!r}")
    ours: Any = getattr(keras.layers, kind, None)
    if ours is None or not of_library or kind == "Lambda":
        raise _no_twin(layer, "a custom layer")
    config = dict(layer.get_config())
    lambdas = [k for k in config if getattr(getattr(layer, k, 0), "__name__", "") == "<lambda>"]
    if lambdas:
        raise _no_twin(layer, f"whose {lambdas[0]} is a lambda")
    if config.get("time_major"):
        raise _no_twin(layer, "with time_major=True")
    if hasattr(layer, "forward_layer"):
        inner = _layer_again(layer.forward_layer, made)
        with _named(layer):
            return ours(inner, layer.merge_mode, name=layer.name)
    if isinstance(config.get("layer"), Mapping):
        inner = _layer_again(layer.layer, made)
        with _named(layer):
            return ours(inner, name=layer.name)
    for old, new in RENAMED.get(kind, {}).items():
        if old in config:
            config[new] = config.pop(old)
    if isinstance(config.get("axis"), list | tuple) and len(config["axis"]) == 1:
        config["axis"] = config["axis"][0]
    config["dtype"] = layer.dtype_policy.name if hasattr(layer, "dtype_policy") else layer.dtype
    known = arguments_of(ours)
    with _named(layer):
        return ours.from_config({key: value for key, value in config.items() if key in known})


def _operation(name: str) -> Callable[..., Any]:
    """Return an operation of Keras 3 that takes the arguments of TensorFlow's."""
    function = getattr(keras.ops, name, None) or getattr(keras.activations, name)
    if name == "matmul":
        function = _matmul

    def call(*args: Any, **kwargs: Any) -> Any:
        second = [kwargs.pop(key) for key in _SECOND if key in kwargs]
        rest = {k: v for k, v in kwargs.items() if k not in ("name", "conjugate")}
        return function(*args, *second, **rest)

    return call


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a = keras.ops.swapaxes(a, -1, -2) if transpose_a else a
    b = keras.ops.swapaxes(b, -1, -2) if transpose_b else b
    return keras.ops.matmul(a, b)


@contextlib.contextmanager
def _named(layer: Any) -> Iterator[None]:
    """Turn errors of Keras 3, while a layer is rebuilt, into a ValueError that names the layer."""
    try:
        yield
    except Exception as error:
        # Keras writes the cause after these words, or below a line of them, in bold.
        text = str(error).split("Exception encountered: ")[-1].replace("\x1b[1m", "")
        lines = [line for line in text.splitlines() if line and "encountered when" not in line]
        cause = textwrap.shorten("".join(lines[:1]), 200)
        raise _no_twin(layer, f"{type(error).__name__}: {cause}") from error


def _no_twin(layer: Any, what: str) -> ValueError:
    return ValueError(
        "A part of the tf_keras model has no counterpart in Keras 3. Write the model with `import "
        "keras`, copy the weights by keras_ntt.tfmot.copy_weights, and pass it as twin=. "
        f"Received: {layer.name!r} of class {type(layer).__name__}, {what}"
    )
