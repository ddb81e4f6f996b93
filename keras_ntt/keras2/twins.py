"""Match the weights of twins: models with the same weights in Keras 3 and tf_keras.

This module does not import tf_keras: it recognizes its objects by their attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ntt.core.kinds import kind_of
from keras_ntt.masks.names import names_by_id


def check_unwrapped(model: Any) -> None:
    """Raise a ValueError if a tf_keras model has pruning wrappers of tfmot."""
    wrappers = [layer.name for layer in leaves_of(model) if unwrapped(layer) is not layer]
    if wrappers:
        raise ValueError(
            "The model has pruning wrappers of tfmot. Take them off first by "
            "tfmot.sparsity.keras.strip_pruning(model); keras_ntt.tfmot.get_masks(model) returns "
            f"the masks in them. Received: {model.name!r} with the layers {wrappers}"
        )


def named_weights(model: Any) -> dict[str, Any]:
    """Return the weights of a model of either Keras, by names that are the same in both.

    Args:
        model: A model of Keras 3 or tf_keras; pruning wrappers of tfmot are ignored.

    Returns:
        ``"inner_model/layer/kernel" -> variable``, without the name of the model; numbered if a
        name repeats in a layer.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(parent: Any, prefix: str) -> None:
        for layer in parent.layers:
            layer = unwrapped(layer)
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            path = f"{prefix}{layer.name}/"
            if hasattr(layer, "layers"):
                visit(layer, path)
                continue
            for variable in layer.weights:
                name = variable.name.split("/")[-1].split(":")[0]
                key, number = path + name, 1
                while key in found:
                    number += 1
                    key = f"{path}{name}#{number}"
                found[key] = variable

    visit(model, "")
    return found


def unwrapped(layer: Any) -> Any:
    """Return the layer in a pruning wrapper of tfmot, or the layer itself."""
    return layer.layer if type(layer).__name__ == "PruneLowMagnitude" else layer


def paired(source: Any, target: Any) -> list[tuple[str, Any, str, Any]]:
    """Match the weights of two models, by name, or by order if the names differ.

    Args:
        source: A model of either Keras.
        target: A model of either Keras.

    Returns:
        ``(name, variable, name, variable)`` for each weight.

    Raises:
        ValueError: If their weights do not correspond.
    """
    ours, theirs = named_weights(source), named_weights(target)
    names = list(ours) if ours.keys() == theirs.keys() else list(theirs)
    pairs = list(zip(ours, names, strict=False))
    same = len(ours) == len(theirs) and all(
        tuple(ours[a].shape) == tuple(theirs[b].shape) and _kind(a) == _kind(b) for a, b in pairs
    )
    if not same:
        raise ValueError(
            "The models are no twins: their weights have other names or shapes. Received: "
            f"{ {k: tuple(v.shape) for k, v in ours.items()} } and "
            f"{ {k: tuple(v.shape) for k, v in theirs.items()} }"
        )
    return [(a, ours[a], b, theirs[b]) for a, b in pairs]


def _kind(name: str) -> str:
    """Return the last word of a weight's name: a depthwise_kernel is a kernel in Keras 3."""
    return name.split("/")[-1].split("#")[0].split("_")[-1]


def copy_weights(source: Any, target: Any) -> None:
    """Copy the weights of a model to its twin, from either Keras to either.

    Args:
        source: The model to copy from.
        target: The model to copy to; it is changed in place.

    Raises:
        ValueError: If the models are no twins.
    """
    for _, theirs, _, mine in paired(source, target):
        mine.assign(value_of(theirs))
    for layer in leaves_of(target):
        if (
            getattr(kind_of(layer), "__name__", "") == "Normalization"
        ):  # it keeps what it computes of its weights
            layer.finalize_state()


def leaves_of(model: Any) -> list[Any]:
    """Return the layers of a model and of those nested in it, wrappers as they are."""
    return [
        part
        for layer in model.layers
        for part in (leaves_of(layer) if hasattr(layer, "layers") else [layer])
    ]


def translate_masks(masks: Mapping[str, Any], source: Any, target: Any) -> dict[str, np.ndarray]:
    """Give the masks of one model the names that its twin's weights have.

    Masks of a Keras 3 model go by variable path, as `keras_ntt.get_masks` returns them and
    `keras_ntt.apply_masks` takes them; those of a tf_keras model by ``layer/weight``, as
    `keras_ntt.tfmot` has and takes them.

    Args:
        masks: Masks of `source`.
        source: A model of Keras 3 or tf_keras.
        target: A twin of either.

    Returns:
        The masks by the names of `target`.

    Raises:
        ValueError: If the models are no twins, or a name is not one of the source's.
    """
    names = {
        _key(source, a, theirs): _key(target, b, mine)
        for a, theirs, b, mine in paired(source, target)
    }
    unknown = [key for key in masks if key not in names]
    if unknown:
        raise ValueError(
            "masks are for other weights than the source has. "
            f"Received: masks for {unknown}, weights {list(names)}"
        )
    return {names[key]: np.asarray(mask).astype(bool) for key, mask in masks.items()}


def _key(model: Any, name: str, variable: Any) -> str:
    """Return what a mask of a variable is called: by path in Keras 3."""
    if not isinstance(model, keras.Model):
        return name
    return names_by_id(model.weights)[id(variable)]


def value_of(variable: Any) -> np.ndarray:
    """Return the value of a variable of either Keras."""
    return variable.numpy() if hasattr(variable, "numpy") else np.asarray(variable)


def some_input(rng: np.random.Generator, tensor: Any, indices: bool) -> np.ndarray:
    """Return two samples: random numbers, or zeros where they may be indices.

    Args:
        rng: Where numbers are drawn from.
        tensor: The symbolic input, of either Keras.
        indices: Whether it may take indices.
    """
    shape = (tensor.shape[0] or 2, *(side or 4 for side in tensor.shape[1:]))
    drawn = np.zeros(shape) if indices else rng.normal(size=shape)
    return drawn.astype(keras.backend.standardize_dtype(tensor.dtype))
