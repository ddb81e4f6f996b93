"""Steps of optimizers, against the network that has only the entries that are kept."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import keras_ntt

ROWS, COLUMNS = 12, 8
KEPT_ROWS, KEPT_COLUMNS = [0, 3, 4, 7, 10], [1, 2, 6]


def dense(kernel):
    layer = layers.Dense(kernel.shape[1], use_bias=False)
    model = keras.Sequential([keras.Input((len(kernel),)), layer])
    model.set_weights([kernel])
    return model


def rows_and_columns(rng):
    """Return a matrix, its mask of some rows and columns, and the data of a regression."""
    kernel = rng.normal(size=(ROWS, COLUMNS)).astype("float32")
    mask = np.zeros(kernel.shape, bool)
    mask[np.ix_(KEPT_ROWS, KEPT_COLUMNS)] = True
    x = rng.normal(size=(16, ROWS)).astype("float32")
    return kernel, mask, x, 5 * rng.normal(size=(16, COLUMNS)).astype("float32")


def train(model, optimizer, x, y, steps=5, **options):
    model.compile(optimizer, lambda y, z: keras.ops.sum(keras.ops.square(y - z)), **options)
    for _ in range(steps):
        model.train_on_batch(x, y)
    return model.get_weights()[0]


class Lars(optimizers.SGD):
    """An optimizer of one's own: the step has the length of the weight."""

    def update_step(self, gradient, variable, learning_rate):
        length = keras.ops.norm(variable) / (keras.ops.norm(gradient) + 1e-9)
        super().update_step(gradient * length, variable, learning_rate)


OPTIMIZERS = {
    "clipnorm": lambda: optimizers.SGD(0.3, momentum=0.9, clipnorm=0.5),
    "global_clipnorm": lambda: optimizers.SGD(0.3, global_clipnorm=0.5),
    "adam": lambda: optimizers.Adam(0.1, clipnorm=0.5),
    "accumulated": lambda: optimizers.SGD(0.3, clipnorm=0.5, gradient_accumulation_steps=2),
    "lamb": lambda: optimizers.Lamb(0.1),
    "adafactor": lambda: optimizers.Adafactor(0.1),
    "adafactor-short": lambda: optimizers.Adafactor(0.1, clip_threshold=0.3),
    "own": lambda: Lars(0.1),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in OPTIMIZERS), ("adafactor", {"jit_compile": True})],
    ids=[*OPTIMIZERS, "jit"],
)
@pytest.mark.few(3)
def test_training_is_that_of_the_network_that_is_kept(rng, name, options):
    kernel, mask, x, y = rows_and_columns(rng)
    pruned = masked(dense(kernel), mask)
    small = dense(kernel[np.ix_(KEPT_ROWS, KEPT_COLUMNS)])
    # The columns that are pruned away have a loss, and so their entries a gradient, all the same.
    found = train(pruned, OPTIMIZERS[name](), x, y, **options)
    wanted = train(small, OPTIMIZERS[name](), x[:, KEPT_ROWS], y[:, KEPT_COLUMNS], **options)
    np.testing.assert_allclose(found[np.ix_(KEPT_ROWS, KEPT_COLUMNS)], wanted, rtol=2e-5, atol=1e-6)
    assert not found[~mask].any()


def masked(model, mask):
    return keras_ntt.apply_masks(model, {model.weights[0].path: mask})


@pytest.mark.skipif(not hasattr(optimizers, "Muon"), reason="a newer Keras has it")
def test_muon_is_that_of_the_network_that_is_kept(rng):
    kernel, mask, x, y = rows_and_columns(rng)
    found = train(masked(dense(kernel), mask), optimizers.Muon(0.1, rms_rate=None), x, y)
    small = dense(kernel[np.ix_(KEPT_ROWS, KEPT_COLUMNS)])
    x, y = x[:, KEPT_ROWS], y[:, KEPT_COLUMNS]
    wanted = train(small, optimizers.Muon(0.1, rms_rate=None), x, y)
    np.testing.assert_allclose(found[np.ix_(KEPT_ROWS, KEPT_COLUMNS)], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("setting", ["clipnorm", "global_clipnorm"])
def test_a_clipped_step_is_as_long_as_the_limit(rng, sparsity, setting):
    model = dense(rng.normal(size=(40, 30)).astype("float32"))
    if sparsity:
        keras_ntt.prune_low_magnitude(model, sparsity)
    before = model.get_weights()[0]
    x, y = rng.normal(size=(16, 40)), 9 * rng.normal(size=(16, 30))
    after = train(model, optimizers.SGD(1.0, **{setting: 0.1}), x, y, steps=1)
    assert np.linalg.norm(after - before) == pytest.approx(0.1, rel=1e-4)


def test_one_norm_of_several_weights_leaves_out_what_is_pruned(rng):
    """Of recurrent and convolution kernels and an embedding, whose gradient is of rows."""
    model = keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            layers.Embedding(20, 6),
            layers.Conv1D(8, 3),
            layers.LSTM(5),
            layers.Dense(2),
        ]
    )
    keras_ntt.prune_low_magnitude(model, 0.8)
    before = model.get_weights()
    x, y = rng.integers(0, 20, size=(8, 7)), 100 * rng.normal(size=(8, 2))
    model.compile(optimizers.SGD(1.0, global_clipnorm=0.1), "mse")
    model.train_on_batch(x, y)
    moved = [after - b for after, b in zip(model.get_weights(), before, strict=True)]
    # Rows that a batch reads twice count in parts, in Keras too.
    total = np.sqrt(sum(np.sum(np.square(m)) for m in moved))
    assert 0.09 < total < 0.11


def test_masks_that_grow_take_the_state_of_the_optimizer_along(rng):
    kernel, mask, x, y = rows_and_columns(rng)
    model = masked(dense(kernel), np.ones_like(mask))
    optimizer = optimizers.Lamb(0.1)
    train(model, optimizer, x, y, steps=3)
    masked(model, mask)
    model.train_on_batch(x, y)
    momentum = next(v for v in optimizer.variables if "momentum" in v.path)
    assert not np.asarray(momentum)[~mask].any()
    assert np.asarray(momentum)[mask].all()


def test_a_model_without_masks_is_trained_as_keras_does_it(rng):
    kernel, mask, x, y = rows_and_columns(rng)
    optimizer = optimizers.Adafactor(0.1, clipnorm=0.3)
    model = masked(dense(kernel), mask)
    train(model, optimizer, x, y, steps=2)
    keras_ntt.strip_pruning(model)
    model.train_on_batch(x, y)
    assert not {"update_step", "_clip_gradients", "_rms"} & set(vars(optimizer))
    assert model.get_weights()[0].all()


def test_a_loop_that_clips_by_itself(rng):
    kernel, mask, x, _ = rows_and_columns(rng)
    model = masked(dense(kernel), mask)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    (found,) = keras_ntt.kept_gradients(gradients, model.trainable_variables)
    np.testing.assert_array_equal(found, np.where(mask, gradients[0], 0))
    rows = tf.IndexedSlices(tf.ones((2, COLUMNS)), tf.constant([3, 1]), (ROWS, COLUMNS))
    (found,) = keras_ntt.kept_gradients([rows], model.trainable_variables)
    np.testing.assert_array_equal(found.values, mask[[3, 1]])
    assert keras_ntt.kept_gradients([None], model.trainable_variables) == [None]
    with pytest.raises(ValueError, match="Received: 2 gradients for 1 variables"):
        keras_ntt.kept_gradients([None, None], model.trainable_variables)


# --- the mask and a constraint of the user's own ---------------------------------------------


class ZeroSum(keras.constraints.Constraint):
    """Makes the entries of each column sum to 0, which fills zeros."""

    def __call__(self, w):
        return w - keras.ops.mean(w, axis=0, keepdims=True)


def lengths(value):
    return np.linalg.norm(value, axis=0)


BOTH = {
    "unit": (keras.constraints.UnitNorm(axis=0), lambda w: np.abs(lengths(w) - 1).max()),
    "between": (
        keras.constraints.MinMaxNorm(0.9, 1.1, axis=0),
        lambda w: np.maximum(np.abs(lengths(w) - 1) - 0.1, 0).max(),
    ),
    "longest": (
        keras.constraints.MaxNorm(0.2, axis=0),
        lambda w: np.maximum(lengths(w) - 0.2, 0).max(),
    ),
    "signs": (keras.constraints.NonNeg(), lambda w: np.maximum(-w, 0).max()),
    "sums": (ZeroSum(), lambda w: np.abs(w.sum(0)).max() / np.abs(w).max()),
}


@pytest.mark.parametrize("way", ["schedule", "fixed"])
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in BOTH), ("sums", {"jit_compile": True})],
    ids=[*BOTH, "jit"],
)
@pytest.mark.few(4)
def test_the_mask_and_another_constraint_both_hold(rng, name, way, options):
    constraint, violation = BOTH[name]
    layer = layers.Dense(8, kernel_constraint=constraint)
    model = keras.Sequential([keras.Input((20,)), layer])
    if way == "schedule":
        schedule = keras_ntt.PolynomialDecay(0.2, 0.7, 0, 6, frequency=2)
        keras_ntt.prune_low_magnitude(model, schedule)
    else:
        keras_ntt.apply_masks(model, {layer.kernel.path: rng.uniform(size=(20, 8)) < 0.3})
    model.compile(optimizers.SGD(0.5), "mse", **options)
    x, y = rng.normal(size=(8, 20)), rng.normal(size=(8, 8))
    for _ in range(8):
        model.train_on_batch(x, y)
        value = np.asarray(layer.kernel)
        (mask,) = keras_ntt.get_masks(model).values()
        assert violation(value) < 1e-4
        assert not value[~mask].any()
    assert mask.mean() == pytest.approx(0.3, abs=0.12)


def test_a_constraint_that_contradicts_the_mask_loses(rng):
    layer = layers.Dense(8, kernel_constraint=lambda w: keras.ops.maximum(w, 0.1))
    model = masked(keras.Sequential([keras.Input((20,)), layer]), rng.uniform(size=(20, 8)) < 0.3)
    train(model, "sgd", rng.normal(size=(8, 20)), rng.normal(size=(8, 8)), steps=1)
    (mask,) = keras_ntt.get_masks(model).values()
    value = np.asarray(layer.kernel)
    assert not value[~mask].any()
    assert (value[mask] >= np.float32(0.1)).all()
