"""How far two results are apart, and the loss that gradients are checked on."""

import keras
import numpy as np

import keras_ntt


def error(found, expected):
    found, expected = (keras.ops.convert_to_numpy(a) for a in (found, expected))
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def loss_of(student, teacher, x, **options):
    return keras_ntt.ntt_loss(student, teacher, x, sparsity=0.5, ntk_weight=0.3, l2=1e-2, **options)
