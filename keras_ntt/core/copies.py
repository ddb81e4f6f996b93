"""Copies of models, with all that their layers know."""

from __future__ import annotations

import collections
import contextlib
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_ntt.core import host


def copy_of(model: keras.Model, inputs: Any = None) -> keras.Model:
    """Return a copy of a model with the same weights.

    Args:
        model: A built model.
        inputs: Inputs to build a copy on whose class does not know its input shape.

    Returns:
        The copy, whose variables have the paths of the model's.

    Raises:
        ValueError: If the class of the model cannot be rebuilt from its configuration.
    """
    with undisturbed(), keras.saving.custom_object_scope(classes_in(model)):
        copy = _copied(model, inputs)
    # Parents come first, and hand their state down; configurations of subclassed models have none.
    for new, old in zip(host.layers_of(copy), host.layers_of(model), strict=False):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for mine, theirs in zip(copy.variables, model.variables, strict=True):
        mine.trainable = theirs.trainable
        # Keras leaves some layers' names out of the paths of a model that it makes again.
        host.set_path(mine, theirs.path)
    return copy


def _copied(model: keras.Model, inputs: Any) -> keras.Model:
    try:
        copy = type(model).from_config(model.get_config())
        if not copy.built or len(copy.weights) != len(model.weights):
            with contextlib.suppress(Exception):  # the shapes that Keras noted when it was built
                copy.build_from_config(model.get_build_config())
            copy.built = bool(copy.weights)
        if len(copy.weights) != len(model.weights):
            try:
                copy(keras.tree.map_structure(lambda a: np.asarray(a[:1]), inputs))
            except Exception:
                # Normalization is built by the call, but fails in it before it has its state.
                if len(copy.weights) != len(model.weights):
                    raise
        hand_over(model, copy)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be copied: its class needs get_config() and "
            "from_config(), and a build() by shapes or a call on an array (inputs= or data=) to "
            "build it. Or prune it in place: "
            "NeuralTangentTransfer(student=model, pruning_schedule=sparsity). "
            f"Received: a {type(model).__name__}, and {type(error).__name__}: {error}"
        ) from error
    return copy


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave Python's random numbers, of which Keras takes seeds for initializers, as they are."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def classes_in(model: keras.Model) -> dict[str, type]:
    """Return the classes of a model's layers by name, so that none has to be registered."""
    classes = {type(layer) for layer in host.layers_of(model, include_itself=False)}
    count = collections.Counter(cls.__name__ for cls in classes)
    return {cls.__name__: cls for cls in classes if count[cls.__name__] == 1}


def redrawn(model: keras.Model) -> keras.Model:
    """Return a copy of a model with new first weights; what layers have adapted to stays.

    Args:
        model: A built Sequential or functional model.

    Returns:
        The copy.
    """
    with undisturbed():
        copy = keras.models.clone_model(model)
    adapted = [
        [part for part in host.layers_of(m) if hasattr(part, "adapt")] for m in (model, copy)
    ]
    for old, new in zip(*adapted, strict=True):
        hand_over(old, new)
    return copy


def hand_over(source: keras.Layer, target: keras.Layer) -> None:
    """Give a layer, or a model, what another one of the same configuration has learnt.

    ``set_weights`` alone leaves out what layers keep beside their weights or compute of them when
    they are loaded: the statistics that Normalization has adapted to, vocabularies.

    Args:
        source: The layer to copy from.
        target: The built layer to copy to; it is changed in place.
    """
    parts = [[p for p in host.layers_of(whole) if _has_more(p)] for whole in (source, target)]
    for old, new in zip(*parts, strict=True):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables(store)
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)
    # Last, because layers may store less than they hold: those with LoRA store what it amounts to.
    target.set_weights(source.get_weights())


def _has_more(layer: keras.Layer) -> bool:
    """Tell whether a layer does more on loading than to assign its weights."""
    own = type(layer).load_own_variables is not keras.Layer.load_own_variables
    return own or hasattr(layer, "load_assets")
