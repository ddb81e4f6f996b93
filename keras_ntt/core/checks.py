"""Checks of arguments and models. Their errors say what is wrong, why, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, host


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}"
        )


def is_number(value: Any) -> bool:
    """Tell whether `value` is a Python or NumPy number, not a boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def whole(value: Any) -> int | None:
    """Return an integer that fits into 64 bits, or None for anything else.

    >>> whole(3.0), whole(2.5), whole(float("nan")), whole(True), whole(10**30)
    (3, None, None, None, None)
    """
    if not is_number(value):
        return None
    if not isinstance(value, int) and not (np.isfinite(value) and int(value) == value):
        return None
    return int(value) if abs(int(value)) < 2**63 else None


def check_number(name: str, value: Any) -> float:
    """Return a finite, non-negative number as a float, or raise a ValueError."""
    number = -1.0
    if is_number(value):
        with contextlib.suppress(OverflowError):  # of integers beyond all floats
            number = float(value)
    if not np.isfinite(number) or number < 0:
        raise ValueError(
            f"{name} must be a finite number of at least 0. Received: {name}={value!r}"
        )
    return number


def check_fraction(name: str, value: Any) -> float:
    """Return a number in [0, 1] as a float, or raise a ValueError."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in [0, 1]. Received: {name}={value!r}")
    return float(value)


def check_count(name: str, value: Any) -> int:
    """Return a positive integer, or raise a ValueError."""
    number = whole(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive integer. Received: {name}={value!r}")
    return number


def as_floats(name: str, value: Any) -> np.ndarray:
    """Return numbers as a finite float64 array, or raise a ValueError."""
    try:
        found = np.asarray(value, "float64")
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:
        raise ValueError(
            f"{name} must be an array of numbers. Received: {name} of type {type(value).__name__} "
            f"({error})"
        ) from error
    if not np.isfinite(found).all():
        raise ValueError(
            f"{name} must be an array of finite numbers. Received: {name} with NaN or infinity"
        )
    return found


def check_projections(value: Any) -> int:
    """Return a number of combinations of outputs, or raise a ValueError."""
    number = check_count("output_projections", value)
    if number > 10_000:
        raise ValueError(
            "output_projections must be at most 10,000: the cost grows with its square. "
            f"Received: output_projections={value!r}"
        )
    return number


def check_seed(seed: Any) -> int:
    """Return a seed as an integer of at least 0, or raise a ValueError."""
    number = whole(seed)
    if number is None or number < 0:
        raise ValueError(f"seed must be an integer of at least 0. Received: seed={seed!r}")
    return number


def check_truth(what: str, answer: Any) -> bool:
    """Return the answer of a user's function as a boolean, or raise a ValueError."""
    try:
        return bool(answer)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must return True or False. Received: {answer!r} of type "
            f"{type(answer).__name__}"
        ) from error


def check_variables(what: str, found: Any) -> list[keras.Variable]:
    """Return the variables that a user's function returned, as a list, or raise a ValueError."""
    variables = list(found) if isinstance(found, list | tuple | set) else [None]
    # By attributes: in older versions keras.Variable is not the class of layers' variables.
    if not all(hasattr(v, "path") and hasattr(v, "trainable") for v in variables):
        raise ValueError(
            f"{what} must return a list of the layer's variables. "
            f"Received: {type(found).__name__} {found!r}"
        )
    return variables


def check_built(model: Any, name: str = "model") -> None:
    """Raise unless `model` is a built Keras 3 model.

    Raises:
        RuntimeError: If Keras runs on another backend than TensorFlow.
        TypeError: If it is not a Keras 3 model.
        ValueError: If it is not built.
    """
    host.require_tensorflow_backend()
    if host.is_legacy_keras(model):
        raise TypeError(
            f"{name} is a tf_keras (Keras 2) model, and keras_ntt works on Keras 3 models. Build "
            "it with `import keras`, convert it by keras_ntt.tfmot.to_keras3(model) after pip "
            "install 'keras-ntt[tfmot]', or save it as .h5 and call keras_ntt.load_model(path). "
            f"Received: {name} of type {type(model).__module__}.{type(model).__name__}"
        )
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"{name} must be a keras.Model. Received: {name} of type {type(model).__name__}"
        )
    if not model.built or (host.functional_of(model) is None and not model.weights):
        raise ValueError(
            f"{name} has no weights yet because its input shape is not known. Call it once on a "
            "batch, or begin it with keras.Input(shape). "
            f"Received: {name}={model.name!r}, not built"
        )


def check_model(model: Any, name: str = "model") -> None:
    """Raise unless `model` is a built Keras 3 model with finite weights.

    Raises:
        RuntimeError: If Keras runs on another backend than TensorFlow.
        TypeError: If it is not a Keras 3 model.
        ValueError: If it is not built, or a weight is NaN or infinite.
    """
    check_built(model, name)
    for variable in model.weights:
        if not keras.backend.is_float_dtype(variable.dtype):
            continue
        value = host.array_of(variable).astype("float64")
        if not np.isfinite(value).all():
            raise ValueError(
                f"The weight {variable.path!r} of {name} holds NaN or infinity, from which no "
                "derivative can be taken. Initialize or load the weights again. "
                f"Received: {int((~np.isfinite(value)).sum())} such entries of {value.size}"
            )


def check_trainable(model: keras.Model, name: str = "model") -> None:
    """Raise a ValueError if a model has no trainable weights to differentiate with respect to."""
    if not model.trainable_variables:
        raise ValueError(
            f"{name} has no trainable weights, so its tangent kernel is empty. Set "
            f"`layer.trainable = True` where it was frozen. Received: {name}={model.name!r}"
        )


def check_differentiable(model: Any, name: str = "model") -> None:
    """Raise unless the tangent kernel of a model can be computed."""
    check_model(model, name)
    check_trainable(model, name)
    layers = host.layers_of(model)
    if stateful := [layer.name for layer in layers if getattr(layer, "stateful", False)]:
        raise ValueError(
            "The outputs of stateful layers depend on earlier batches, so a tangent kernel between "
            f"samples has no meaning. Build {name} again without stateful=True, and copy the "
            f"weights by set_weights. Received: {name}={model.name!r} with {stateful}"
        )


def check_sparsity(sparsity: Any, name: str = "sparsity") -> float:
    """Return `sparsity` as a float in [0, 1).

    Raises:
        ValueError: If it is out of range.
    """
    if not checks.is_number(sparsity) or not 0 <= sparsity < 1:
        raise ValueError(
            f"{name} is the fraction of zeros and must be a number in [0, 1): 0.97 leaves 3 % "
            f"of the weights. Received: {name}={sparsity!r}"
        )
    return float(sparsity)
