"""Configurations of layers, for copies in the same process, that hold the objects themselves.

Keras writes a custom function, initializer or class into a configuration as a name, and finds it by
that name if it is registered. Within one process no name is needed: the copy of a layer can have
the same function and the same class.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host

_PARTS = (
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
)
_PLACE = "__as_it_is__"


class _AsItIs:
    """An object that a configuration holds itself, also in copies of the configuration."""

    def __init__(self, value: Any):
        self.value = value

    def __deepcopy__(self, memo: Any) -> _AsItIs:
        return self


@contextlib.contextmanager
def configurations_share(model: keras.Model) -> Iterator[None]:
    """Let configurations of layers hold functions, classes and arrays instead of their names.

    Call `configuration_of` inside this context, and make the layers there too.

    Args:
        model: The model that is copied. A function that reads its weights directly, such as a
            ``Lambda`` with a tied kernel, is refused: the copy would compute with the weights of
            the model.
    """
    owners = {id(v): layer for layer in host.layers_of(model) for v in layer.variables}
    classes: dict[str, type] = {}

    def write(keras_own: Callable[[Any], Any], thing: Any) -> Any:
        if isinstance(thing, _AsItIs):
            return thing
        if _is_shared(thing):
            _refuse_weights(thing, owners)
            return {"class_name": _PLACE, "config": _AsItIs(thing)}
        try:
            config = keras_own(thing)
        except TypeError:
            if hasattr(thing, "get_config"):
                raise
            _refuse_weights(thing, owners)
            return {"class_name": _PLACE, "config": _AsItIs(thing)}
        if isinstance(config, dict) and hasattr(type(thing), "get_config"):
            if config.get("registered_name"):
                name = f"{type(thing).__name__}@{id(type(thing))}"
                classes[name] = type(thing)
                config["registered_name"] = name
            config.pop("compile_config", None)
        return config

    def read(
        keras_own: Callable[..., Any], config: Any, custom_objects: Any = None, *args: Any, **k: Any
    ) -> Any:
        config = _in_place(config)
        if config is not None and not isinstance(config, str | int | float | dict | list | tuple):
            return config
        return keras_own(config, {**(custom_objects or {}), **classes}, *args, **k)

    with host.configurations(write, read):
        yield


def configuration_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return a configuration for ``from_config`` of a layer's class, see `configurations_share`."""
    return _in_place(layer.get_config())


def _in_place(config: Any) -> Any:
    if isinstance(config, _AsItIs):
        return config.value
    if isinstance(config, dict):
        if isinstance(config.get("config"), _AsItIs):
            return config["config"].value
        return {key: _in_place(value) for key, value in config.items()}
    if type(config) in (list, tuple):
        return type(config)(_in_place(value) for value in config)
    return config


def _is_shared(thing: Any) -> bool:
    """Tell whether a copy has the same object as its model, not another one like it."""
    if isinstance(thing, np.ndarray):
        return thing.ndim > 0
    if isinstance(thing, tf.Tensor):
        return hasattr(thing, "numpy")
    if isinstance(thing, keras.KerasTensor | host.VARIABLE | keras.Layer):
        return False
    if isinstance(thing, type | types.FunctionType):
        return True
    if isinstance(thing, _PARTS):
        return not host.is_of_keras(thing)
    return callable(thing) and not hasattr(thing, "get_config")


def _refuse_weights(thing: Any, owners: dict[int, keras.layers.Layer]) -> None:
    """Raise a ValueError if an object reads a weight of the model that is copied."""
    for read in _read_by(thing, depth=3):
        found = [read] if isinstance(read, host.VARIABLE) else read.variables
        layer = next((owners[id(v)] for v in found if id(v) in owners), None)
        if layer is not None:
            name = getattr(thing, "__name__", type(thing).__name__)
            raise ValueError(
                f"{name!r} reads weights of the layer {layer.name!r} past the layers of the model; "
                "a copy would compute with the weights of the model. Write a layer that has them "
                "in an attribute, or calls that layer"
            )


def _read_by(thing: Any, depth: int) -> Iterator[Any]:
    """Yield the layers and variables that a function or an object refers to."""
    if isinstance(thing, host.VARIABLE | keras.Layer):
        yield thing
        return
    if depth == 0 or isinstance(thing, type | types.ModuleType):
        return
    inner: list[Any] = []
    if isinstance(thing, types.FunctionType):
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # of a closure cell that is still empty
                inner.append(cell.cell_contents)
        inner += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        names = [name for name in thing.__code__.co_names if name in thing.__globals__]
        inner += [thing.__globals__[name] for name in names]
    elif isinstance(thing, types.MethodType):
        inner = [thing.__self__, thing.__func__]
    elif isinstance(thing, functools.partial):
        inner = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, list | tuple):
        inner = list(thing)
    elif isinstance(thing, dict):
        inner = list(thing.values())
    elif not isinstance(thing, np.ndarray | tf.Tensor):
        inner = list(getattr(thing, "__dict__", {}).values())
    for part in inner:
        yield from _read_by(part, depth - 1)
