"""For users of tf_keras and tensorflow-model-optimization: their models, wrappers, schedules.

Importing this package imports tensorflow-model-optimization, which turns TensorFlow's own Keras
into tf_keras for the whole process; nothing else in keras_ntt does. A tf_keras model goes through
the same core as any: by a Keras 3 twin with its weights, whose result is copied back.
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
