"""Frozen entries: they stay to the bit, and the others are trained as if they were constants."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.errors import refused, small
from keras import optimizers
from test_kept_updates import (
    KEPT_COLUMNS,
    KEPT_ROWS,
    OPTIMIZERS,
    dense,
    rows_and_columns,
    train,
)

import keras_ntt
from keras_ntt import freeze_entries, trained_entries


def frozen(model, mask):
    return freeze_entries(model, {model.weights[0].path: mask})


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.few(2)
def test_training_is_that_of_the_entries_alone(rng, name):
    """Against a small network of the trained block; the rest is taken off its targets."""
    kernel, mask, x, y = rows_and_columns(rng)
    found = train(frozen(dense(kernel), mask), OPTIMIZERS[name](), x, y)
    fixed = y - x @ np.where(mask, 0, kernel)  # what is left for the trained entries to fit
    model = dense(kernel[np.ix_(KEPT_ROWS, KEPT_COLUMNS)])
    wanted = train(model, OPTIMIZERS[name](), x[:, KEPT_ROWS], fixed[:, KEPT_COLUMNS])
    np.testing.assert_allclose(found[np.ix_(KEPT_ROWS, KEPT_COLUMNS)], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[~mask], kernel[~mask])


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.SGD(0.3, weight_decay=0.1),
        lambda: optimizers.AdamW(0.1, weight_decay=0.1),
        lambda: optimizers.Adam(0.1, use_ema=True, ema_overwrite_frequency=2),
    ],
    ids=["decay", "adamw", "averages"],
)
@pytest.mark.few(2)
def test_decay_and_averages_do_not_reach_frozen_entries(rng, make):
    kernel, mask, x, y = rows_and_columns(rng)
    model = frozen(dense(kernel), mask)
    model.compile(make(), "mse")
    model.fit(x, y, epochs=3, verbose=0)
    found = model.get_weights()[0]
    np.testing.assert_array_equal(found[~mask], kernel[~mask])
    assert (found[mask] != kernel[mask]).all()


def test_another_constraint_holds_beside(rng):
    layer = keras.layers.Dense(3, use_bias=False, kernel_constraint="non_neg")
    model = keras.Sequential([keras.Input((4,)), layer])
    kernel = np.abs(rng.normal(size=(4, 3))).astype("float32")
    mask = np.eye(4, 3, dtype=bool)
    model.set_weights([kernel])
    frozen(model, mask)
    train(model, optimizers.SGD(0.5), np.ones((2, 4)), -9 * np.ones((2, 3)))
    assert (layer.kernel.numpy()[mask] == 0).all()
    np.testing.assert_array_equal(layer.kernel.numpy()[~mask], kernel[~mask])


def test_what_is_pruned_is_frozen_at_zero(rng):
    kernel, mask, x, y = rows_and_columns(rng)
    model = keras_ntt.apply_masks(dense(kernel), {"dense/kernel": kernel > 0})
    frozen(model, mask)
    assert keras_ntt.get_masks(model) == {}
    found = train(model, optimizers.Adam(0.1), x, y)
    np.testing.assert_array_equal(found[~mask], np.where(kernel > 0, kernel, 0)[~mask])
    assert not found[kernel <= 0].any()
    (trained,) = trained_entries(model).values()
    np.testing.assert_array_equal(trained, mask & (kernel > 0))


def test_freezing_anew_and_letting_go(rng):
    kernel, mask, x, y = rows_and_columns(rng)
    model = frozen(frozen(dense(kernel), mask), ~mask)
    first = train(model, optimizers.SGD(0.1), x, y)
    np.testing.assert_array_equal(first[mask], kernel[mask])
    keras_ntt.strip_pruning(model)
    assert trained_entries(model) == {}
    second = train(model, optimizers.SGD(0.1), x, y)
    assert (second != first).all()
    assert model.weights[0].constraint is None


@pytest.mark.parametrize(
    "prune",
    [
        lambda m: keras_ntt.apply_masks(m, {m.weights[0].path: np.ones((6, 4))}),
        lambda m: keras_ntt.prune_low_magnitude(m, 0.5),
        lambda m: keras_ntt.prune_at_init(m, sparsity=0.5, saliency="magnitude"),
        lambda m: keras_ntt.freeze_at_init(m, frozen=0.5, saliency="magnitude"),
    ],
)
def test_weights_with_frozen_entries_are_not_pruned(prune):
    model = frozen(small(), np.eye(6, 4))
    with refused(ValueError, "frozen entries cannot be pruned.*Received: frozen", model):
        prune(model)


def test_masks_of_a_schedule_are_not_frozen():
    model = keras_ntt.prune_low_magnitude(small(), 0.5)
    with refused(ValueError, "A schedule moves the masks.*Received", model):
        frozen(model, np.eye(6, 4))


def test_a_resumed_run_has_the_frozen_values_of_the_first(tmp_path, rng):
    kernel, mask, x, y = rows_and_columns(rng)

    def run(model, epochs):
        model.compile(optimizers.Adam(0.1), "mse")
        backup = keras_ntt.BackupAndRestore(tmp_path / "state", delete_checkpoint=False)
        model.fit(x, y, epochs=epochs, shuffle=False, verbose=0, callbacks=[backup])
        return model

    first = run(frozen(dense(kernel), mask), 1).get_weights()[0]
    other = run(frozen(dense(kernel + 1), ~mask), 2)  # set up with other values
    found = other.get_weights()[0]
    np.testing.assert_array_equal(found[~mask], kernel[~mask])
    assert (found[mask] != first[mask]).all()
    np.testing.assert_array_equal(next(iter(trained_entries(other).values())), mask)


def test_a_state_that_does_not_fit_changes_nothing(tmp_path):
    states = tmp_path / "state"
    states.mkdir()
    (states / "epoch-1.weights.h5").write_bytes(b"none")
    model = frozen(small(), np.eye(6, 4))
    model.compile("sgd", "mse")
    backup = keras_ntt.BackupAndRestore(states)
    with refused(ValueError, "does not fit this model", model):
        model.fit(np.ones((4, 6)), np.ones((4, 3)), verbose=0, callbacks=[backup])
    assert next(iter(trained_entries(model).values())).sum() == 4


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 2}])
@pytest.mark.long
def test_compiled_steps(rng, options):
    kernel, mask, x, y = rows_and_columns(rng)
    model = frozen(dense(kernel), mask)
    model.compile(optimizers.AdamW(0.1), "mse", **options)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0][~mask], kernel[~mask])


def test_the_kernel_of_what_is_trained(rng):
    """The tangent kernel of the kept entries is that of the trained ones: x times mask."""
    kernel, mask, x, _ = rows_and_columns(rng)
    model = frozen(dense(kernel), mask)
    found = keras_ntt.empirical_ntk(model, x, wrt="kept", outputs="full")
    wanted = np.einsum("ni,mi,ik,kl->nmkl", x, x, mask, np.eye(8))
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-4, atol=1e-5)
