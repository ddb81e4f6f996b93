"""tfmot and tf_keras for the tests against them; whoever imports this is skipped without them."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    tf_keras = pytest.importorskip("tf_keras")
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

    import keras_ntt.tfmot.wrappers as bridge

sparsity = tfmot.sparsity.keras
layers = tf_keras.layers

__all__ = ["bridge", "layers", "pruning_impl", "seeded", "sparsity", "tf_keras", "tfmot"]


@pytest.fixture(autouse=True)
def seeded():
    """Give each test of the importing module a clean, seeded tf_keras."""
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(0)
