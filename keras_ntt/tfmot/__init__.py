"""Models of tf_keras, and wrappers and schedules of tensorflow-model-optimization.

Importing this package imports tensorflow-model-optimization, which replaces TensorFlow's Keras by
tf_keras in the whole process. Nothing else in keras_ntt does this. A tf_keras model is pruned by
the same code as any other: a Keras 3 twin with its weights is pruned, and the result is copied
back.
"""

from keras_ntt.keras2.to_keras3 import to_keras3
from keras_ntt.keras2.twins import copy_weights, translate_masks
from keras_ntt.tfmot.wrappers import (
    NTTSchedule,
    PruneSupportedLayers,
    as_tfmot_schedule,
    get_masks,
    prune_neural_tangent,
    prune_scope,
    wrap_with_masks,
)

__all__ = [
    "NTTSchedule",
    "PruneSupportedLayers",
    "as_tfmot_schedule",
    "copy_weights",
    "get_masks",
    "prune_neural_tangent",
    "prune_scope",
    "to_keras3",
    "translate_masks",
    "wrap_with_masks",
]
