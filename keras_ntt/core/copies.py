"""Copies of models, with everything that their layers have learnt."""

from __future__ import annotations

import contextlib
import random
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.core.configurations import configuration_of, configurations_share

_LONGEST = 400


def copy_of(model: keras.Model, inputs: Any = None, *, instead: str = "") -> keras.Model:
    """Return a copy of a model with the same weights.

    Nothing has to be registered: the copy uses the functions and custom classes of the model.

    Args:
        model: A built model.
        inputs: Inputs to build the copy on, if its class does not know its input shape.
        instead: A sentence for the error message: what to do if no copy can be made.

    Returns:
        The copy, whose variables have the paths of the model's.

    Raises:
        ValueError: If the class of the model cannot be rebuilt from its configuration.
    """
    try:
        with undisturbed(), configurations_share(model), host.zero_weights():
            copy = rebuilt(model, configuration_of(model), inputs)
        hand_over(model, copy)
        # Parents come first and copy the state of their layers; subclassed models have no state.
        for new, old in zip(host.layers_of(copy), host.layers_of(model), strict=False):
            if new.trainable != old.trainable:
                new.trainable = old.trainable
        for mine, theirs in zip(copy.variables, model.variables, strict=True):
            mine.trainable = theirs.trainable
            # Keras omits the names of some layers from the paths of a rebuilt model.
            host.set_path(mine, theirs.path)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be copied: {cause_of(error)}. Each of its layers, "
            "and its class, needs a get_config() from which from_config() can rebuild it, "
            f"and a build() by shapes or a call on an array (inputs= or data=). {instead}"
            f"Received: a {type(model).__name__}"
        ) from error
    return copy


def rebuilt(model: keras.Model, config: dict[str, Any], inputs: Any = None) -> keras.Model:
    """Return a model that is rebuilt from a configuration, with new weights.

    Args:
        model: A built model.
        config: Its configuration, or another one with the same shapes.
        inputs: Inputs to build it on if its class does not know its input shape.
    """
    copy = type(model).from_config(config)
    if not copy.built or len(copy.weights) != len(model.weights):
        with contextlib.suppress(Exception):  # the shapes that Keras noted when it was built
            copy.build_from_config(model.get_build_config())
        copy.built = bool(copy.weights)
    if len(copy.weights) != len(model.weights):
        if inputs is None:
            raise ValueError(
                f"its configuration makes {len(copy.weights)} weights of {len(model.weights)}: a "
                "layer that several nested models share is made for each of them, and a model that "
                "does not know its shapes is built on inputs"
            )
        try:
            copy(keras.tree.map_structure(lambda a: np.asarray(a[:1]), inputs))
        except Exception:
            # Normalization is built in its call, which fails before it has its state.
            if len(copy.weights) != len(model.weights):
                raise
    return copy


def cause_of(error: BaseException) -> str:
    """Return the first cause of an error, without the configurations that Keras adds to it."""
    inner = error.__cause__ or error.__context__
    while inner is not None and str(inner) and str(inner) in str(error):
        error, inner = inner, inner.__cause__ or inner.__context__
    text = re.split(r"\s*(?:Full object config|config=\{|\n\n)", str(error))[0]
    text = " ".join(text.split())
    return f"{type(error).__name__}: {text[:_LONGEST].rstrip('. ')}"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restore the state of Python's random numbers, from which Keras draws initializer seeds."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def redrawn(model: keras.Model) -> keras.Model:
    """Return a copy of a model with new initial weights, but with the adapted state of layers.

    Args:
        model: A built Sequential or functional model.

    Returns:
        The copy.
    """
    with undisturbed(), configurations_share(model):
        copy = rebuilt(model, configuration_of(model))
    adapted = [
        [part for part in host.layers_of(m) if hasattr(part, "adapt")] for m in (model, copy)
    ]
    for old, new in zip(*adapted, strict=True):
        hand_over(old, new)
    return copy


def hand_over(source: keras.Layer, target: keras.Layer) -> None:
    """Copy weights and state to a layer or model from another one of the same configuration.

    ``set_weights`` alone leaves out what layers keep in addition to their weights, or compute from
    them when they are loaded: the statistics that Normalization has adapted, and vocabularies.

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
    # Last, because layers may store less than they hold: with LoRA they store only the sum.
    target.set_weights(source.get_weights())


def _has_more(layer: keras.Layer) -> bool:
    """Tell whether a layer does more than assign its weights when it is loaded."""
    own = type(layer).load_own_variables is not keras.Layer.load_own_variables
    return own or hasattr(layer, "load_assets")
