"""The kernels that layers compute with, if not the weights: LoRA, standardized weights, gates."""

from __future__ import annotations

import keras
import numpy as np

from keras_ntt.core import host
from keras_ntt.masks.natural_zeros import kernels_with_layers

_LORA = "LoRA adds a dense product to it"
_COMPUTED = "its layer computes with something else, which has other zeros"


def computed_kernels(model: keras.Model) -> dict[int, tuple[np.ndarray, str]]:
    """Return the kernels that layers compute with, if their zeros differ from the weights'.

    With LoRA the kernel is the sum of the weight and a dense product. A custom layer may
    standardize its weight, multiply it by gates or change it otherwise, in a property ``kernel`` or
    before it passes it to an operation of ``keras.ops``. Changes by TensorFlow's operations alone
    are not detected.

    Args:
        model: A built model.

    Returns:
        ``id(variable) -> (the kernel, why it has other zeros)``.
    """
    found = {}
    for layer, variable in kernels_with_layers(model):
        if getattr(layer, "quantization_mode", None) is not None:
            continue
        lora = getattr(layer, "lora_enabled", False)
        if not lora and host.is_of_keras(layer):
            continue
        value = host.array_of(variable)
        used = host.kernel_used(layer, variable)
        if used is not None and not np.array_equal(used == 0, value == 0):
            found[id(variable)] = (used, _LORA if lora else _COMPUTED)
    return found
