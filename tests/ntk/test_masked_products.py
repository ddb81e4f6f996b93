"""The kernel of kept entries against few samples, whose product TensorFlow 2.21 gets wrong."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_ntt


@pytest.mark.parametrize(("n1", "n2"), [(2, 1), (1, 2), (3, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("outputs", ["full", "trace"])
@pytest.mark.few(4)
def test_kernel_of_kept_entries_with_one_sample(n1, n2, outputs, rng):
    """As large as those that overran memory: 10 outputs of 300 units."""
    dense = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(300, "relu"), keras.layers.Dense(10)]
    )
    model = keras_ntt.prune_at_init(dense, sparsity=0.9, saliency="random")
    x1, x2 = (rng.normal(size=(n, 20)).astype("float32") for n in (n1, n2))
    options = {"wrt": "kept", "outputs": outputs}
    found = keras_ntt.empirical_ntk(model, x1, x2, **options)
    wanted = keras_ntt.empirical_ntk(model, x1, x2, **options, implementation="jacobian")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_transfer_by_kept_entries_ends_in_a_batch_of_three():
    x = np.random.default_rng(0).uniform(size=(11, 20)).astype("float32")
    dense = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(300, "relu"), keras.layers.Dense(10)]
    )
    history = keras.callbacks.History()
    keras_ntt.prune_neural_tangent(
        dense, x, sparsity=0.9, epochs=4, batch_size=8, wrt="kept", verbose=0, callbacks=[history]
    )
    assert np.isfinite(history.history["loss"]).all()
