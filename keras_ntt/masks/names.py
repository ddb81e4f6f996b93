"""Masks by the names of weights: what a weight is called, and which mask is whose."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

MaskDict = Mapping[str, Any]
"""``variable path -> array of the variable's shape``, true where an entry is kept."""


def keys_of(variables: Iterable[keras.Variable]) -> list[str]:
    """Return one name a variable: its path, numbered where paths repeat.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a")], name="m")
    >>> keys_of(model.weights)
    ['m/a/kernel', 'm/a/bias']
    """
    seen: dict[str, int] = {}
    keys = []
    for variable in variables:
        path = variable.path
        seen[path] = seen.get(path, 0) + 1
        keys.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return keys


def names_by_id(variables: Sequence[keras.Variable]) -> dict[int, str]:
    """Return ``id(variable) -> name``, by the names of `keys_of`."""
    return dict(zip(map(id, variables), keys_of(variables), strict=True))


def weights_by_name(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the weights of a model by the names of `keys_of`."""
    return dict(zip(keys_of(model.weights), model.weights, strict=True))


def masks_by_variable(
    model: keras.Model, masks: MaskDict | None
) -> dict[int, tuple[keras.Variable, np.ndarray]]:
    """Match masks with the variables of a model, checking names, shapes and values.

    Args:
        model: The model.
        masks: Masks by variable path.

    Returns:
        ``id(variable) -> (variable, boolean mask)``.

    Raises:
        TypeError: If `masks` is no mapping.
        ValueError: If a name is not one of the model's weights, or a mask has the wrong shape
            or entries other than 0 and 1.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(
            "masks must map paths of variables to arrays, as keras_ntt.get_masks returns them. "
            f"Received: masks of type {type(masks).__name__}"
        )
    named = weights_by_name(model)
    masks = renamed(masks, named)
    unknown = [key for key in masks if key not in named]
    if unknown:
        raise ValueError(
            f"masks are for other weights than the model {model.name!r} has. Build the model as "
            "it was when the masks were made, with the same layer names. "
            f"Received: masks for {unknown}, weights {list(named)}"
        )
    matched = {}
    for key, mask in masks.items():
        variable, array = named[key], _as_array(key, mask)
        if array.shape != tuple(variable.shape):
            raise ValueError(
                f"The mask of {key!r} must have the weight's shape {tuple(variable.shape)}. "
                f"Received: a mask of shape {array.shape}"
            )
        if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"The mask of {key!r} must be boolean or hold only 0 and 1. "
                f"Received: dtype {array.dtype} with other entries"
            )
        matched[id(variable)] = (variable, array.astype(bool))
    return matched


def _as_array(key: str, mask: Any) -> np.ndarray:
    try:
        return np.asarray(mask)
    except ValueError as error:
        raise ValueError(
            f"The mask of {key!r} must be an array. Received: {type(mask).__name__} ({error})"
        ) from error


def renamed(masks: MaskDict, names: Iterable[str]) -> dict[str, Any]:
    """Give masks the names that a model's weights have now.

    Keras drops the model's name, and those of some layers around others, from the paths of a model
    that is loaded or rebuilt from its configuration. A mask whose path is not among the names goes
    to the weight whose path ends most like it, at least in the same ``layer/weight``, if there is
    exactly one.

    Args:
        masks: Masks by path.
        names: Paths of the model's weights.

    Returns:
        The masks by the model's paths; those that fit none keep their own.

    >>> renamed({"sequential/dense/kernel": 1}, ["dense/kernel", "dense_1/kernel"])
    {'dense/kernel': 1}
    """
    names = list(names)
    ends: dict[str, list[str]] = {}
    for name in names:
        ends.setdefault(_end(name), []).append(name)
    found = {key: mask for key, mask in masks.items() if key in names}
    for key, mask in masks.items():
        if key not in names:
            ending = ends.get(_end(key), []) if isinstance(key, str) else []
            alike = {name: _alike(key, name) for name in ending if name not in found}
            most = max(alike.values(), default=0)
            candidates = [name for name, number in alike.items() if number == most]
            found[candidates[0] if len(candidates) == 1 else key] = mask
    return found


def _end(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def _alike(path: str, other: str) -> int:
    """Return in how many of their last parts two paths are the same."""
    pairs = zip(reversed(path.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
