"""Whether the weights of a model are those that it began with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import keras
import numpy as np

from keras_ntt.core import host

_CONSTANTS = (keras.initializers.Constant, keras.initializers.Zeros, keras.initializers.Ones)
_SUFFIX = "_initializer"


class Trained(NamedTuple):
    """Signs that a model was trained, or was given the weights of one that was.

    Attributes:
        moved: Paths of weights that begin as a constant and are none, or another one: biases, and
            what normalizations have learnt.
        constants: How many weights begin as a constant.
        steps: Steps of the model's optimizer, if it is compiled.
    """

    moved: tuple[str, ...]
    constants: int
    steps: int

    def __bool__(self) -> bool:
        """Whether it was. Steps count only where no weight could have moved from a constant."""
        return bool(self.moved) or (self.constants == 0 and self.steps > 0)


def signs_of_training(model: keras.Model) -> Trained:
    """Look whether a model has other weights than it begins with, frozen layers left out.

    Random first weights cannot be told from others. Biases, and the statistics and factors of
    normalizations, begin as constants, and no training leaves them there.

    Args:
        model: A built model.
    """
    pairs = list(_constants(model))
    moved = tuple(v.path for v, first in pairs if not np.all(host.array_of(v) == first))
    optimizer = getattr(model, "optimizer", None)
    steps = 0 if optimizer is None else int(optimizer.iterations)
    return Trained(moved, len(pairs), steps)


def _constants(model: keras.Model) -> Iterator[tuple[keras.Variable, float]]:
    """Yield the weights that begin as a constant, and that."""
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
