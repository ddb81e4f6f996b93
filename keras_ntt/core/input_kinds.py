"""Kinds of inputs: indices, numbers that the model scales itself, or scaled numbers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from keras_ntt.core import host
from keras_ntt.core.kinds import kind_of
from keras_ntt.core.network import Network, unroll

# Layers that look something up by integers.
_LOOK_UP = (layers.Embedding, layers.CategoryEncoding, layers.Hashing, layers.IntegerLookup)
# Layers that bring numbers of any scale to the scale of the model.
_SCALE = (layers.Rescaling, layers.Normalization, layers.Discretization)
# Layers that move numbers without changing them.
_MOVE = (
    *(layers.Reshape, layers.Flatten, layers.Permute, layers.RepeatVector),
    *(layers.Cropping1D, layers.Cropping2D, layers.ZeroPadding1D, layers.ZeroPadding2D),
    *(layers.Resizing, layers.CenterCrop, layers.RandomCrop, layers.RandomFlip),
    *(layers.RandomRotation, layers.RandomTranslation, layers.RandomZoom),
)


def are_indices(x: Any, model: keras.Model) -> list[bool]:
    """Tell for each tensor whether it holds indices: all layers that read it look something up.

    Args:
        x: Inputs, nested as the model takes them.
        model: The model.

    Returns:
        A boolean for each leaf of `x`. For a model with a custom `call()` it says whether the leaf
        has integers.
    """
    leaves = keras.tree.flatten(x)
    found = ["float" not in keras.backend.standardize_dtype(leaf.dtype) for leaf in leaves]
    functional = host.functional_of(model)
    if functional is None:
        return found
    numbered = keras.tree.pack_sequence_as(x, list(range(len(leaves))))
    order = host.flat_inputs(numbered, host.names_of_inputs(functional))
    for position, indices in zip(order, _read_by(model, _looks_up), strict=True):
        found[position] |= indices
    return found


def accepts_unscaled(model: keras.Model) -> list[bool]:
    """Tell for each input whether the model accepts unscaled integers, whatever its dtype.

    This holds if all layers that read the input look something up or scale it. Keras makes the
    inputs of such models floats by default, and casts.

    Args:
        model: A built Sequential or functional model.

    Returns:
        A boolean for each input.
    """
    return _read_by(model, _looks_up_or_scales)


@contextlib.contextmanager
def taken_as_scaled(model: keras.Model) -> Iterator[None]:
    """Let artificial inputs pass unchanged through the layers that scale a model's inputs.

    Noise and ones stand for scaled inputs, not for pixels: Rescaling to [-1, 1] would make all of
    them nearly -1, and Normalization would shift them by the mean of the data.

    Args:
        model: A built model. It is restored afterwards.
    """
    scaling = _scaling_layers(model)
    try:
        for layer in scaling:
            vars(layer)["call"] = functools.partial(_cast, layer)
        yield
    finally:
        for layer in scaling:
            vars(layer).pop("call", None)


def _cast(layer: keras.Layer, inputs: tf.Tensor) -> tf.Tensor:
    return tf.cast(inputs, layer.compute_dtype)


def _scaling_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the layers that scale the inputs, after layers that only move them."""
    network, found = unroll(model), []
    raw = set(network.inputs)
    for call in network.calls:
        scales = kind_of(call.operation) in (layers.Rescaling, layers.Normalization)
        if raw.issuperset(call.inputs) and (scales or isinstance(call.operation, _MOVE)):
            raw.update(call.outputs)
            found += [call.operation] if scales else []
    return found


def _read_by(model: keras.Model, does: Callable[[Any], bool]) -> list[bool]:
    network = unroll(model)
    return [_is_read_by(network, slot, does) for slot in network.inputs]


def _is_read_by(network: Network, slot: int, does: Callable[[Any], bool]) -> bool:
    readers = [call for call in network.calls if slot in call.inputs]
    return bool(readers) and all(
        does(call.operation)
        or host.is_comparison(call.operation)
        or (
            isinstance(call.operation, _MOVE)
            and all(_is_read_by(network, output, does) for output in call.outputs)
        )
        for call in readers
    )


def _looks_up(operation: Any) -> bool:
    if isinstance(operation, _LOOK_UP):
        return True
    # A custom layer, such as one that adds positions to an embedding.
    own = isinstance(operation, layers.Layer) and not isinstance(operation, keras.Model)
    return own and any(isinstance(part, layers.Embedding) for part in host.layers_of(operation))


def _looks_up_or_scales(operation: Any) -> bool:
    return _looks_up(operation) or isinstance(operation, _SCALE)
