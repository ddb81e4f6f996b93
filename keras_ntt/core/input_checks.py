"""Checks of inputs: whether arrays, batches and their specs are what a model takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host, input_kinds


def is_numeric(dtype: Any) -> bool:
    """Tell whether a dtype is known to Keras and is real or boolean."""
    try:
        name = keras.backend.standardize_dtype(dtype)
    except (TypeError, ValueError):
        return False
    return name != "string" and "complex" not in name


def _is_text(dtype: Any) -> bool:
    """Tell whether a dtype of NumPy or TensorFlow is strings, or objects that may be strings."""
    return getattr(dtype, "name", "") == "string" or getattr(dtype, "kind", "f") in "SUO"


def check_structure(x: Any, model: keras.Model, name: str = "inputs") -> None:
    """Raise a ValueError if tensors or their specs do not fit what a model takes.

    Args:
        x: Arrays, tensors or ``tf.TensorSpec``, nested as the model takes them.
        model: The model.
        name: The name of the argument in the message.
    """
    check_fits(x, signature_of(model), name)


class InputSpec(NamedTuple):
    """An input of a model.

    Attributes:
        name: Its name.
        shape: Its shape, with the axis of the samples.
        dtype: The dtype to which it is cast.
        scaled: Whether numbers must have the scale of the training data.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scaled: bool


class Signature(NamedTuple):
    """The inputs that a model takes, without the model.

    Attributes:
        model: Its name.
        inputs: Its inputs; None if they are not known.
        names: The names by which it takes a dict, see `host.names_of_inputs`.
    """

    model: str
    inputs: list[InputSpec] | None
    names: list[str] | None = None


def signature_of(model: keras.Model) -> Signature:
    """Return the inputs that a model takes."""
    functional = host.functional_of(model)
    if functional is None:
        return Signature(model.name, None)
    free = input_kinds.accepts_unscaled(functional)
    inputs = [
        InputSpec(i.name, tuple(i.shape), i.dtype, "float" in i.dtype and not any_scale)
        for i, any_scale in zip(functional.inputs, free, strict=True)
    ]
    return Signature(model.name, inputs, host.names_of_inputs(functional))


def check_fits(x: Any, signature: Signature, name: str = "inputs") -> None:
    """Raise a ValueError if tensors or their specs do not fit, see `check_structure`."""
    leaves = host.flat_inputs(x, signature.names)
    if not leaves:
        raise ValueError(f"{name} hold no arrays. Received: {name}={x!r}")
    for leaf in leaves:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise ValueError(
                f"{name} must be NumPy arrays or tensors with a batch axis, nested as the model "
                f"takes them. Received: {name} with a {type(leaf).__name__}"
            )
        if not is_numeric(leaf.dtype):
            text = (
                "Text has no derivative: take the part of the model behind the layer that turns it "
                "into numbers, such as TextVectorization, and what that layer returns. "
            )
            raise ValueError(
                f"{name} must hold numbers. Convert them to the dtype that the model takes. "
                f"{text if _is_text(leaf.dtype) else ''}"
                f"Received: {name} of dtype {leaf.dtype}"
            )
    if signature.inputs is None:
        return
    if len(leaves) != len(signature.inputs):
        several = (
            "A tuple is read as inputs and labels: write the inputs as a list, [a, b], and let a "
            "data set yield them in another tuple, ((a, b),). "
        ) * (len(signature.inputs) > 1)
        raise ValueError(
            f"The model {signature.model!r} takes {len(signature.inputs)} input(s). {several}"
            f"Received: {name} with {len(leaves)} array(s)"
        )
    for leaf, wanted in zip(leaves, signature.inputs, strict=True):
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        if wanted.scaled and "float" not in dtype:
            raise ValueError(
                f"{name} hold whole numbers, but the input {wanted.name!r} is {wanted.dtype} and "
                "its scale matters. Scale them as you do for training, for example "
                "x.astype('float32') / 255, or x.astype('float32') if the model was trained on "
                f"whole numbers. Received: {name} of dtype {dtype}"
            )
        if leaf.shape is None or getattr(leaf.shape, "rank", 0) is None:
            continue
        given = tuple(leaf.shape)
        fits = len(given) == len(wanted.shape) and all(
            g is None or w is None or g == w
            for g, w in zip(given[1:], wanted.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"{name} do not have the shape that the model {signature.model!r} takes, "
                f"{('batch', *wanted.shape[1:])}. Received: {name} of shape {given}"
            )


def as_array(name: str, value: Any) -> np.ndarray:
    """Return a value as an array, or raise a ValueError."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"{name} must be arrays or tensors of which the values are known. "
            f"Received: {name} with a {type(value).__name__} ({error})"
        ) from error


def check_arrays(x: Any, model: keras.Model, name: str = "inputs") -> None:
    """Raise a ValueError if arrays do not fit a model, are empty, or are not finite."""
    check_arrays_fit(x, signature_of(model), name)


def check_arrays_fit(x: Any, signature: Signature, name: str = "inputs") -> None:
    """Raise a ValueError if arrays do not fit, are empty, or are not finite."""
    check_fits(x, signature, name)
    lengths = set()
    for leaf in keras.tree.flatten(x):
        value = as_array(name, leaf)
        if value.ndim == 0 or value.shape[0] == 0:
            raise ValueError(
                f"{name} hold no samples. Received: {name} of shape {tuple(value.shape)}"
            )
        lengths.add(value.shape[0])
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise ValueError(
                f"{name} hold NaN or infinity. Remove or fill in those samples. Received: "
                f"{int((~np.isfinite(value)).sum())} such entries of {value.size}"
            )
    if len(lengths) > 1:
        raise ValueError(
            f"{name} of a model with several inputs must all have as many samples. "
            f"Received: {sorted(lengths)} samples"
        )


def is_symbolic(x: Any) -> bool:
    """Tell whether `x` has tensors of a graph, whose values are not known."""
    leaves = keras.tree.flatten(x)
    return any(isinstance(t, tf.Tensor) and not hasattr(t, "numpy") for t in leaves)


def is_array(x: Any) -> bool:
    """Tell whether `x` is an array, a tensor, or a nest of them (not a dataset)."""
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(isinstance(t, np.ndarray | tf.Tensor) for t in leaves)
