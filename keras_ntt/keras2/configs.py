"""Build models from the configurations in files of Keras 2."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import keras

MODELS = ("Sequential", "Functional", "Model")
# Names that differ between tf_keras and Keras 3.
RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
# Arguments that only Keras 2 has, with their defaults.
_WITHOUT_MEANING = {
    "groups": (1,),
    "time_major": (False,),
    "implementation": (0, 1, 2),
    "ragged": (False,),
    "sparse": (False,),
    "noise_shape": (None,),
}
_SHAPE = "batch_input_shape"
# Arguments that do not affect the outputs once there are weights.
_OF_TRAINING = ("_initializer", "_regularizer", "_constraint", "input_length")


class NotKnownError(ValueError):
    """A part of a model that Keras 3 does not have."""


def model_of(config: Mapping[str, Any], custom_objects: Mapping[str, Any]) -> keras.Model:
    """Return the model of a configuration, with new weights.

    Args:
        config: ``{"class_name": ..., "config": ...}``, as Keras 2 wrote it.
        custom_objects: Custom classes by name.

    Returns:
        The model.

    Raises:
        NotKnownError: If a layer, or an argument of one, is not in Keras 3.
    """
    kind = config["class_name"]
    if kind not in MODELS:
        raise NotKnownError(
            f"the model is of the class {kind}, whose code is not in the file. Make the model by "
            "its code, and read the weights by model.load_weights(path)"
        )
    cls = keras.Sequential if kind == "Sequential" else keras.Model
    with keras.saving.custom_object_scope(dict(custom_objects)):
        inner = _model(config, custom_objects, lists=False)["config"]
        try:
            return cls.from_config(inner)
        except TypeError:  # older releases accept only lists of inputs and outputs
            return cls.from_config(_model(config, custom_objects, lists=True)["config"])


def arguments_of(cls: type) -> set[str]:
    """Return the names that the constructors of a class and its bases take."""
    return {
        name
        for base in cls.__mro__
        if "__init__" in vars(base)
        for name in inspect.signature(vars(base)["__init__"]).parameters
    } - {"self", "args", "kwargs"}


def _model(config: Mapping[str, Any], custom: Mapping[str, Any], *, lists: bool) -> dict[str, Any]:
    """Return the configuration of a model with layers in the form of Keras 3.

    Args:
        config: The configuration.
        custom: Custom classes by name.
        lists: Whether one input or output is in a list.
    """
    inner = copy.deepcopy(dict(config["config"]))
    parts = [{**part, **_part(part, custom, lists=lists)} for part in inner["layers"]]
    if config["class_name"] == "Sequential":
        first = parts[0]["class_name"]
        shape = inner["layers"][0]["config"].get(_SHAPE) or inner.get("build_input_shape")
        if first not in (*MODELS, "InputLayer") and shape:
            parts.insert(0, {"class_name": "InputLayer", "config": {"batch_shape": shape}})
    known = {"name", "layers", "input_layers", "output_layers", "trainable"}
    inner = {key: value for key, value in inner.items() if key in known} | {"layers": parts}
    _count_calls_from_zero(inner)
    for ends in ("input_layers", "output_layers"):
        if len(inner.get(ends, ())) == 1 and not lists:
            (inner[ends],) = inner[ends]
    kind = "Functional" if config["class_name"] == "Model" else config["class_name"]
    return {"class_name": kind, "config": inner}


def _count_calls_from_zero(config: dict[str, Any]) -> None:
    """Number the calls of models within a model as Keras 3 does.

    In Keras 2 the call number 0 of a model is its construction.

    Args:
        config: The arguments of a functional model, whose references are changed.
    """
    models = {part.get("name") for part in config["layers"] if part["class_name"] in MODELS}
    calls = [call for part in config["layers"] for call in part.get("inbound_nodes", ())]
    found = [
        reference
        for reference in _references([calls, config.get("output_layers", ())])
        if reference[0] in models
    ]
    first = {name for name, number, *_ in found if number == 0}
    for reference in found:
        if reference[0] not in first:
            reference[1] -= 1


def _references(calls: Any) -> list[list[Any]]:
    """Return the references to outputs of layers, ``[name, call, output, ...]``, at any depth."""
    if isinstance(calls, Mapping):
        calls = list(calls.values())
    if not isinstance(calls, list):
        return []
    if len(calls) >= 3 and isinstance(calls[0], str) and isinstance(calls[1], int):
        rest = [found for part in calls[3:] for found in _references(part)]
        return [calls, *rest]
    return [found for part in calls for found in _references(part)]


def _part(
    part: Mapping[str, Any], custom: Mapping[str, Any], *, lists: bool = False
) -> dict[str, Any]:
    """Return the configuration of a layer, cell or model in the form of Keras 3."""
    kind, config = part["class_name"], part["config"]
    if kind in MODELS:
        return _model(part, custom, lists=lists)
    plain = kind.rpartition(">")[2]  # registered classes are "package>name"
    if plain in custom or kind in custom:
        return {"class_name": plain if plain in custom else kind, "config": config}
    name = config.get("name", kind)
    for end in ("V1", "V2"):
        if not hasattr(keras.layers, plain):
            plain = plain.removesuffix(end)
    cls = getattr(keras.layers, plain, None)
    if plain in ("TFOpLambda", "SlicingOpLambda"):
        function = config.get("function", "a slice")
        raise NotKnownError(f"{name!r} is a function of TensorFlow in the model, {function}")
    if plain == "Lambda":
        raise NotKnownError(f"{name!r} is a Lambda, whose code is pickled")
    if cls is None:
        raise NotKnownError(
            f"{name!r} is of the class {plain}, which Keras 3 does not have. If it is yours, pass "
            f"custom_objects={{{plain!r}: {plain}}}"
        )
    return {"class_name": plain, "config": _arguments(cls, plain, config, custom)}


def _arguments(
    cls: type, kind: str, config: Mapping[str, Any], custom: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a layer that Keras 3 knows."""
    renamed = RENAMED.get(kind, {})
    known, found = arguments_of(cls), {}
    for key, value in config.items():
        key = renamed.get(key, key)
        if key == _SHAPE:
            if kind == "InputLayer":
                found["batch_shape"] = value
            continue
        if key in known and not (key in _WITHOUT_MEANING and value in _WITHOUT_MEANING[key]):
            found[key] = _value(key, value, custom)
        elif key.endswith(_OF_TRAINING):
            continue
        elif key not in known and value not in (None, False, *_WITHOUT_MEANING.get(key, ())):
            raise NotKnownError(
                f"{config.get('name', kind)!r} is a {kind} with {key}={value!r}, which Keras 3 "
                "does not have"
            )
    return found


def _value(key: str, value: Any, custom: Mapping[str, Any]) -> Any:
    """Return an argument: a layer in a layer, a policy by its name, an axis out of a list."""
    if key == "axis" and isinstance(value, list) and len(value) == 1:
        return value[0]
    if key == "cells" and isinstance(value, list):
        return [_inner(cell, custom) for cell in value]
    if isinstance(value, Mapping) and "class_name" in value:
        if key in ("layer", "backward_layer", "cell"):
            return _inner(value, custom)
        if key == "dtype":
            return value["config"]["name"]
    return value


def _inner(part: Mapping[str, Any], custom: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an inner layer, which Keras 3 looks for in a module."""
    return {**_part(part, custom), "module": "keras.layers", "registered_name": None}
