"""Checks at the border: what came in, why it will not do, and what to do about it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ntt import _host


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
    """Return a whole number that 64 bits hold as an integer, None for anything else.

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


def check_projections(value: Any) -> int:
    """Return a number of combinations of outputs, or raise a ValueError."""
    number = check_count("output_projections", value)
    if number > 10_000:
        raise ValueError(
            "output_projections must be at most 10,000: more cost more than all outputs. "
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
    """Return the variables that a user's function named as a list, or raise a ValueError."""
    variables = list(found) if isinstance(found, list | tuple | set) else [None]
    # By what they have: in older versions keras.Variable is not the class of layers' variables.
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
    _host.require_tensorflow_backend()
    if _host.is_legacy_keras(model):
        raise TypeError(
            f"{name} is a tf_keras (Keras 2) model, and keras_ntt works on Keras 3 models. Build "
            "it with `import keras`, or call the functions of keras_ntt.tfmot, which take models "
            "of tf_keras (pip install 'keras-ntt[tfmot]'). "
            f"Received: {name} of type {type(model).__module__}.{type(model).__name__}"
        )
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"{name} must be a keras.Model. Received: {name} of type {type(model).__name__}"
        )
    if not model.built or (_host.functional_of(model) is None and not model.weights):
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
        value = _host.array_of(variable).astype("float64")
        if not np.isfinite(value).all():
            raise ValueError(
                f"The weight {variable.path!r} of {name} holds NaN or infinity, from which no "
                "derivative can be taken. Initialize or load the weights again. "
                f"Received: {int((~np.isfinite(value)).sum())} such entries of {value.size}"
            )


def check_trainable(model: keras.Model, name: str = "model") -> None:
    """Raise a ValueError if a model has no trainable weights to differentiate by."""
    if not model.trainable_variables:
        raise ValueError(
            f"{name} has no trainable weights, so its tangent kernel is empty. Set "
            f"`layer.trainable = True` where it was frozen. Received: {name}={model.name!r}"
        )


def check_differentiable(model: Any, name: str = "model") -> None:
    """Raise unless a model has a tangent kernel that can be taken."""
    check_model(model, name)
    check_trainable(model, name)


def check_pair(student: keras.Model, teacher: keras.Model | None) -> None:
    """Raise a ValueError if the outputs or inputs of two models cannot be compared."""
    if teacher is None:
        return
    if teacher is student:
        raise ValueError(
            "teacher and student are the same model, which cannot both stay dense and become "
            "sparse. Leave the teacher out to use the student as it is now. "
            f"Received: {student.name!r} twice"
        )
    shared = {id(v) for v in student.weights} & {id(v) for v in teacher.weights}
    if shared:
        raise ValueError(
            "teacher and student share weights, which cannot both stay dense and become sparse. "
            "Copy the teacher: keras.models.clone_model and set_weights. "
            f"Received: {len(shared)} shared weights of {len(student.weights)}"
        )
    check_shapes(student, teacher)


def check_shapes(student: keras.Model, teacher: keras.Model) -> None:
    """Raise a ValueError if two models have inputs or outputs of different shapes."""
    ours, theirs = _host.functional_of(student), _host.functional_of(teacher)
    if ours is None or theirs is None:
        return
    for what in ("inputs", "outputs"):
        shapes = [[tuple(t.shape) for t in getattr(f, what)] for f in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"student and teacher must have {what} of the same shape, because their outputs "
                f"on the same inputs are compared. Received: {what} {shapes[0]} of the student "
                f"and {shapes[1]} of the teacher"
            )


def is_numeric(dtype: Any) -> bool:
    """Tell whether Keras knows a type, and it is one of real numbers or booleans."""
    try:
        name = keras.backend.standardize_dtype(dtype)
    except (TypeError, ValueError):
        return False
    return name != "string" and "complex" not in name


def check_structure(x: Any, model: keras.Model, name: str = "inputs") -> None:
    """Raise a ValueError if tensors or their specs do not fit what a model takes.

    Args:
        x: Arrays, tensors or ``tf.TensorSpec``, nested as the model takes them.
        model: The model.
        name: What to call them in the message.
    """
    check_fits(x, signature_of(model), name)


class Signature(NamedTuple):
    """What a model takes, apart from the model.

    Attributes:
        model: Its name.
        inputs: Name, dtype and shape of each input; None if they cannot be told.
    """

    model: str
    inputs: list[tuple[str, str, tuple[int | None, ...]]] | None


def signature_of(model: keras.Model) -> Signature:
    """Return what a model takes."""
    functional = _host.functional_of(model)
    if functional is None:
        return Signature(model.name, None)
    return Signature(model.name, [(i.name, i.dtype, tuple(i.shape)) for i in functional.inputs])


def check_fits(x: Any, signature: Signature, name: str = "inputs") -> None:
    """Raise a ValueError if tensors or their specs do not fit, see `check_structure`."""
    leaves = keras.tree.flatten(x)
    if not leaves:
        raise ValueError(f"{name} hold no arrays. Received: {name}={x!r}")
    for leaf in leaves:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise ValueError(
                f"{name} must be NumPy arrays or tensors with a batch axis, nested as the model "
                f"takes them. Received: {name} with a {type(leaf).__name__}"
            )
        if not is_numeric(leaf.dtype):
            raise ValueError(
                f"{name} must hold numbers. Convert them to the dtype that the model takes. "
                f"Received: {name} of dtype {leaf.dtype}"
            )
    if signature.inputs is None:
        return
    if len(leaves) != len(signature.inputs):
        raise ValueError(
            f"The model {signature.model!r} takes {len(signature.inputs)} input(s). "
            f"Received: {name} with {len(leaves)} array(s)"
        )
    for leaf, (symbol, wanted_dtype, wanted) in zip(leaves, signature.inputs, strict=True):
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        if "float" in wanted_dtype and "float" not in dtype:
            raise ValueError(
                f"{name} hold whole numbers, but the input {symbol!r} is {wanted_dtype} and "
                "the scale matters to the tangent kernel. Scale them as you do for training, "
                f"for example x.astype('float32') / 255. Received: {name} of dtype {dtype}"
            )
        if leaf.shape is None or getattr(leaf.shape, "rank", 0) is None:
            continue
        given = tuple(leaf.shape)
        fits = len(given) == len(wanted) and all(
            g is None or w is None or g == w for g, w in zip(given[1:], wanted[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"{name} do not have the shape that the model {signature.model!r} takes, "
                f"{('batch', *wanted[1:])}. Received: {name} of shape {given}"
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
    check_structure(x, model, name)
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
    """Tell whether `x` has tensors of a graph, whose values cannot be looked at."""
    leaves = keras.tree.flatten(x)
    return any(isinstance(t, tf.Tensor) and not hasattr(t, "numpy") for t in leaves)


def is_array(x: Any) -> bool:
    """Tell whether `x` is an array, a tensor, or a nest of them (not a dataset)."""
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(isinstance(t, np.ndarray | tf.Tensor) for t in leaves)


def check_callbacks(callbacks: Any) -> None:
    """Raise a ValueError at what is no callback; warn of those of tf_keras, which do nothing."""
    for callback in keras.tree.flatten([] if callbacks is None else callbacks):
        if not hasattr(callback, "set_model"):
            raise ValueError(
                "callbacks must be a keras.callbacks.Callback or a list of them. "
                f"Received: {callback!r} of type {type(callback).__name__}"
            )
        if _host.is_legacy_keras(callback):
            warnings.warn(
                "This is a callback of tf_keras, which does nothing in Keras 3. Leave tfmot's "
                "UpdatePruningStep out, nothing here needs it, or take the one of keras_ntt. "
                f"Received: {type(callback).__module__}.{type(callback).__name__}",
                stacklevel=3,
            )
