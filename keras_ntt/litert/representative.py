"""Convert representative data of any usual form to arrays of a limited number of samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host, input_checks, inputs

_NAME = "representative_data"


def arrays_of(data: Any, model: keras.Model, *, limit: int) -> Any:
    """Return representative data as arrays, nested as the model takes them.

    Args:
        data: Arrays ``[n, ...]``, nested as the model takes them; or batches of them: a list, a
            ``tf.data.Dataset``, a ``keras.utils.PyDataset``, a generator, or a function that
            returns one, as in the guides of TensorFlow Lite. A batch is ``x``, ``(x, y)`` or
            a list or dict with one array for each input; it may also be one sample without a batch
            axis, if the model has a known input shape. Labels are ignored.
        model: The model.
        limit: The maximum number of samples to read.

    Returns:
        The arrays, at most `limit` samples of each.

    Raises:
        ValueError: If there are no samples in the data, or they do not fit the model.
    """
    batches = _batches_in(data, model)
    if batches is None:
        input_checks.check_arrays(data, model, _NAME)
        return keras.tree.map_structure(lambda array: np.asarray(array)[:limit], data)
    signature = input_checks.signature_of(model)
    parts: list[Any] = []
    count = 0
    for element in batches:
        part = _batched(_inputs_of(element, signature), signature)
        input_checks.check_arrays(part, model, _NAME)
        part = keras.tree.map_structure(np.asarray, part)
        if parts and _shapes(part) != _shapes(parts[0]):
            raise ValueError(
                f"All batches of {_NAME} must have the same inputs, of the same shapes except "
                f"for the number of samples. Received: {_shapes(part)} after {_shapes(parts[0])}"
            )
        parts.append(part)
        count += len(keras.tree.flatten(part)[0])
        if count >= limit:
            break
    if not parts:
        raise ValueError(
            f"{_NAME} hold no samples: a generator can be read only once; pass the function that "
            f"makes it. Received: {_NAME} of type {type(data).__name__} without batches"
        )
    joined = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    return keras.tree.map_structure(lambda array: array[:limit], joined)


def _batches_in(data: Any, model: keras.Model) -> Iterable[Any] | None:
    """Return an iterable of batches; None if the data are arrays, nested as the model takes them.

    Raises:
        ValueError: If they are neither.
    """
    if callable(data) and not hasattr(data, "shape") and not isinstance(data, Iterable):
        data = data()
    if isinstance(data, tf.data.Dataset):
        return data
    if isinstance(data, keras.utils.PyDataset):
        number = data.num_batches
        return map(data.__getitem__, itertools.count() if number is None else range(number))
    if isinstance(data, Sequence) and not isinstance(data, str | bytes) and len(data):
        return data if _is_list_of_batches(data, model) else None
    if isinstance(data, Iterator) or (
        isinstance(data, Iterable) and not hasattr(data, "shape") and not isinstance(data, dict)
    ):
        return data
    return None


def _is_list_of_batches(data: Sequence[Any], model: keras.Model) -> bool:
    """Tell a list of batches, or of samples, from a list with an array for each input."""
    leaves = keras.tree.flatten(data)
    if not all(hasattr(leaf, "shape") for leaf in leaves):
        return False
    wanted = input_checks.signature_of(model).inputs
    if wanted is not None:
        given = [len(leaf.shape) for leaf in leaves]
        return given != [len(spec.shape) for spec in wanted] and (
            len(wanted) == 1 or not hasattr(data[0], "shape")
        )
    return isinstance(data[0], dict | list | tuple) and len({_nest(part) for part in data}) == 1


def _nest(x: Any) -> str:
    return str(keras.tree.map_structure(lambda _: None, x))


def _inputs_of(element: Any, signature: input_checks.Signature) -> Any:
    """Return the inputs of a batch: x of ``(x, y)`` and of ``[x]``."""
    count = None if signature.inputs is None else len(signature.inputs)
    if isinstance(element, tuple) and len(element) > 1 and count == len(element):
        first = host.flat_inputs(element[0], signature.names)
        return list(element) if len(first) != count else element[0]
    x = inputs.without_labels(element)
    return x[0] if isinstance(x, list) and len(x) == 1 else x


def _batched(x: Any, signature: input_checks.Signature) -> Any:
    """Add a batch axis to a sample that has none."""
    leaves = host.flat_inputs(x, signature.names)
    wanted = signature.inputs
    if wanted is None or len(leaves) != len(wanted):
        return x
    ranks = [len(getattr(leaf, "shape", ())) for leaf in leaves]
    if all(rank + 1 == len(spec.shape) for rank, spec in zip(ranks, wanted, strict=True)):
        return keras.tree.map_structure(lambda leaf: np.asarray(leaf)[np.newaxis], x)
    return x


def _shapes(x: Any) -> Any:
    return [np.shape(leaf)[1:] for leaf in keras.tree.flatten(x)]
