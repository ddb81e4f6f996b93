"""Filters that are pruned as a whole leave no shift behind, where nothing else of them is left."""

from __future__ import annotations

import keras
import numpy as np
from helpers.architectures import sequential
from helpers.channel_removal import draw
from keras import layers

from keras_ntt import get_masks, prune_at_init, remove_dead_units, strip_pruning


def pruned(model, *names):
    return prune_at_init(
        model,
        sparsity=0.5,
        saliency="magnitude",
        allocation="layerwise",
        pattern="filters",
        filters=[f"^{name}$" for name in names],
    )


def network(activation="relu"):
    return draw(
        sequential(
            (6, 6, 2),
            layers.Conv2D(6, 3, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Activation(activation),
            layers.Conv2D(4, 3, padding="same", name="second"),
            layers.Flatten(),
            layers.Dense(2, name="head"),
        ),
        0,
    )


def vectors(model, *names):
    found = [model.get_layer(name).weights for name in names]
    return {w.name: np.asarray(w) for ws in found for w in ws if len(w.shape) == 1}


def test_all_that_is_pruned_can_be_removed():
    model = network()
    sparse = pruned(model, "first")
    (mask,) = get_masks(sparse).values()
    dead = ~mask.any(axis=(0, 1, 2))
    before, after = (vectors(m, "first", "norm") for m in (model, sparse))
    for name in ("bias", "beta", "moving_mean"):
        np.testing.assert_array_equal(after[name], np.where(dead, 0, before[name]))
    for name in ("gamma", "moving_variance"):
        np.testing.assert_array_equal(after[name], before[name])
    smaller, removed = remove_dead_units(strip_pruning(sparse))
    assert removed == (("first", 3),)
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(smaller(x), sparse(x), rtol=1e-5, atol=1e-5)


def test_shifts_stay_zero_in_training():
    sparse = pruned(network(), "first")
    sparse.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 6, 6, 2)), rng.normal(size=(32, 2))
    sparse.fit(x, y, epochs=2, batch_size=8, verbose=0)
    assert remove_dead_units(strip_pruning(sparse))[1] == (("first", 3),)


def test_shifts_that_are_not_all_stay():
    kept = network("sigmoid")  # sigmoid(0) is no zero: what the channel is stays what it was
    sparse = pruned(kept, "first")
    for name, value in vectors(kept, "first", "norm").items():
        np.testing.assert_array_equal(vectors(sparse, "first", "norm")[name], value)
    model = network()
    sparse = pruned(model, "head")  # an output stays an output
    np.testing.assert_array_equal(sparse.get_layer("head").bias, model.get_layer("head").bias)
    x = inputs = layers.Input((3,))
    y = layers.Dense(4, name="one")(x)
    y = layers.Add()([y, layers.Dense(4, name="other")(x)])
    model = draw(keras.Model(inputs, layers.Dense(2)(layers.ReLU()(y))), 0)
    sparse = pruned(model, "one")  # the other one makes these channels, too
    np.testing.assert_array_equal(sparse.get_layer("one").bias, model.get_layer("one").bias)


def test_filters_that_were_not_pruned_do_not_count():
    model = network()
    kernel = model.get_layer("second").get_weights()[0]
    kernel[..., 1] = 0
    model.get_layer("second").kernel.assign(kernel)
    sparse = pruned(model, "first")
    np.testing.assert_array_equal(sparse.get_layer("second").bias, model.get_layer("second").bias)
