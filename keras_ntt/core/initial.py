"""Find out whether the weights of a model are still its initial weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import keras
import numpy as np

from keras_ntt.core import host

_CONSTANTS = (keras.initializers.Constant, keras.initializers.Zeros, keras.initializers.Ones)
_SUFFIX = "_initializer"


class Trained(NamedTuple):
    """Signs that a model was trained, or has the weights of a trained one.

    Attributes:
        moved: Paths of weights that begin as a constant and now have other values: biases, and the
            weights of normalizations.
        constants: The number of weights that begin as a constant.
        steps: Steps of the model's optimizer, if it is compiled.
    """

    moved: tuple[str, ...]
    constants: int
    steps: int

    def __bool__(self) -> bool:
        """Whether it was trained. Steps count only if no weight begins as a constant."""
        return bool(self.moved) or (self.constants == 0 and self.steps > 0)


def signs_of_training(model: keras.Model) -> Trained:
    """Look for changes from the initial weights of a model, except in frozen layers.

    Random initial weights look like trained ones. But biases, and the statistics and factors of
    normalizations, begin as constants, and training always changes them.

    Args:
        model: A built model.
    """
    pairs = list(_constants(model))
    moved = tuple(v.path for v, first in pairs if not np.all(host.array_of(v) == first))
    optimizer = getattr(model, "optimizer", None)
    steps = 0 if optimizer is None else int(optimizer.iterations)
    return Trained(moved, len(pairs), steps)


def _constants(model: keras.Model) -> Iterator[tuple[keras.Variable, float]]:
    """Yield each weight that begins as a constant, with the constant."""
    for layer in host.layers_of(model):
        if not layer.trainable or getattr(layer, "unit_forget_bias", False):
            continue
        for name, initializer in vars(layer).items():
            if not name.endswith(_SUFFIX) or not isinstance(initializer, _CONSTANTS):
                continue
            variable = getattr(layer, name.removesuffix(_SUFFIX), None)
            if isinstance(variable, host.VARIABLE):
                first = initializer((1,), "float32")
                yield variable, float(np.asarray(keras.ops.convert_to_numpy(first)).ravel()[0])
