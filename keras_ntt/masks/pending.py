"""Masks that wait for a layer to be built."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import host

_BEFORE = "_before_pruning"


def when_built(layer: keras.layers.Layer, act: Callable[[keras.layers.Layer], None]) -> None:
    """Call `act` on a layer right after it is built.

    Args:
        layer: A layer or a model that is not built.
        act: What to call.
    """
    build: Any = layer.build

    @functools.wraps(build)
    def build_and_act(*args: Any, **kwargs: Any) -> None:
        # A layer may be built while a training step is traced, where weights have no values yet.
        with tf.init_scope():
            build(*args, **kwargs)
            layer.build = build
            act(layer)

    setattr(build_and_act, _BEFORE, build)
    layer.build = build_and_act


def cancel(model: keras.layers.Layer) -> bool:
    """Forget what waits for a model or its layers to be built.

    Args:
        model: The model or layer.

    Returns:
        Whether anything did.
    """
    found = False
    for layer in [model, *host.layers_of(model)]:
        while hasattr(layer.build, _BEFORE):
            layer.build = getattr(layer.build, _BEFORE)
            found = True
    return found
