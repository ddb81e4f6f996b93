"""SET and RigL: what is dropped, what grows, when, and that nothing else changes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import run_python

import keras_ntt
from keras_ntt import SET, ConstantSparsity, RigL, apply_masks, get_masks, prune_at_init
from keras_ntt.pruning.exchange import drop_nearest_zero

# The example of Evci et al. (2020) by hand: six entries, four of them kept.
VALUE = np.array([[0.5, -0.1, 0.9, 0.0, 0.0, 0.3]])
MASK = np.array([[1, 1, 1, 0, 0, 1]], bool)
GRADIENT = np.array([[0.1, 0.8, 0.0, -0.7, 0.2, 0.05]])


def one_layer(value=VALUE, mask=MASK, **layer):
    """Return a model whose kernel has some value and mask, and whose gradient is its inputs'."""
    dense = keras.layers.Dense(value.shape[1], use_bias=False, **layer)
    model = keras.Sequential([keras.Input((value.shape[0],)), dense])
    model.set_weights([value])
    return apply_masks(model, {dense.kernel.path: mask})


class Linear(keras.losses.Loss):
    """The inner product of the outputs with some numbers: its gradient is these."""

    def call(self, y_true, y_pred):
        return keras.ops.sum(y_true * y_pred, axis=-1)


def fit(model, callback, *, steps=1, gradient=GRADIENT, optimizer=None, **compile_):
    model.compile(optimizer or keras.optimizers.SGD(0.5), Linear(reduction="sum"), **compile_)
    x, y = np.ones((steps, 1), "float32"), np.repeat(gradient, steps, 0).astype("float32")
    model.fit(x, y, batch_size=1, epochs=1, shuffle=False, verbose=0, callbacks=[callback])
    (mask,) = get_masks(model).values()
    return np.asarray(model.weights[0]), mask


@pytest.mark.parametrize(
    ("fraction", "mask", "value"),
    [
        (0.3, [1, 1, 1, 0, 0, 1], [0.5, -0.1, 0.9, 0, 0, 0.3]),  # drops and grows the same entry
        (0.5, [1, 1, 1, 1, 0, 0], [0.5, -0.1, 0.9, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.few(2)
def test_rigl_by_hand(fraction, mask, value, jit_compile):
    callback = RigL(drop_fraction=fraction, end_step=10)
    found, kept = fit(one_layer(), callback, jit_compile=jit_compile)
    np.testing.assert_array_equal(kept[0], np.array(mask, bool))
    np.testing.assert_allclose(found[0], value, rtol=1e-6)


def test_a_step_is_taken_before_the_exchange_if_it_is_not_replaced():
    callback = RigL(drop_fraction=0.5, end_step=10, replace_step=False)
    found, kept = fit(one_layer(), callback, optimizer=keras.optimizers.SGD(1.0))
    stepped = np.where(MASK, VALUE - GRADIENT, 0)  # .4 -.9 .9 0 0 .25: 0 and 5 are the smallest
    expected = np.array([[0, 1, 1, 1, 1, 0]], bool)  # of 0, 3, 4, 5 the gradients of 3 and 4
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_allclose(found, np.where(expected & MASK, stepped, 0), rtol=1e-6)


def test_fractions_and_times_are_those_of_the_formula():
    callback = RigL(end_step=24_000)
    found = [float(callback.fraction_at(t)) for t in (0, 6000, 12_000, 18_000, 24_000)]
    np.testing.assert_allclose(found, [0.3, 0.25606602, 0.15, 0.04393398, 0], atol=1e-8)
    times = RigL(end_step=400, begin_step=50)
    assert [t for t in range(500) if bool(times.due_at(t))] == [50, 150, 250, 350]
    by_schedule = RigL(end_step=400, schedule=ConstantSparsity(0.5, 30, 90, frequency=20))
    assert [t for t in range(500) if bool(by_schedule.due_at(t))] == [30, 50, 70, 90]
    assert float(SET(end_step=9).fraction_at(8)) == 0.3


def rigl_in_numpy(value, mask, gradient, fraction):
    """Return the mask after an exchange, entry by entry."""
    value, flat, steepness = value.ravel(), mask.ravel().copy(), np.abs(gradient).ravel()
    count = int(flat.sum() * fraction)
    for _ in range(count):
        kept = np.flatnonzero(flat)
        flat[kept[np.argmin(np.abs(value[kept]))]] = False
    for _ in range(count):
        free = np.flatnonzero(~flat)
        flat[free[np.argmax(steepness[free])]] = True
    return flat.reshape(mask.shape)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.few(2)
def test_rigl_is_that_of_a_loop_in_numpy(seed):
    rng = np.random.default_rng(seed)
    value, mask = rng.normal(size=(1, 40)), rng.random((1, 40)) < 0.4
    gradient = rng.normal(size=(1, 40))
    model = one_layer(np.where(mask, value, 0), mask)
    fraction = rng.uniform(0.1, 0.9)
    found, kept = fit(
        model, RigL(drop_fraction=fraction, end_step=9, anneal="constant"), gradient=gradient
    )
    expected = rigl_in_numpy(value, mask, gradient, fraction)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_allclose(found, np.where(expected & mask, value, 0), rtol=1e-6)


def test_set_drops_a_part_of_each_sign_and_grows_as_many_elsewhere():
    value = np.array([[0.1, 0.2, 0.3, 0.4, -1.0, -2.0, -3.0, -4.0, 0, 0, 0, 0, 0, 0]])
    mask = value != 0
    stays = drop_nearest_zero(tf.constant(value), tf.constant(mask), 0.5)
    np.testing.assert_array_equal(stays[0, :8], [0, 0, 1, 1, 0, 0, 1, 1])
    found, kept = fit(
        one_layer(value, mask),
        SET(drop_fraction=0.5, end_step=9, seed=3),
        gradient=np.zeros((1, 14)),
    )
    assert kept.sum() == 8
    np.testing.assert_array_equal(kept[0, :8], [0, 0, 1, 1, 0, 0, 1, 1])
    np.testing.assert_allclose(found, np.where(kept & mask, value, 0), rtol=1e-6)


@pytest.mark.long
def test_set_grows_every_free_entry_alike():
    value = np.zeros((1, 40))
    value[0, :10] = np.linspace(1, 2, 10)
    mask, drawn = tf.constant(value != 0), np.zeros(40)
    callback = SET(end_step=9, seed=2)
    for step in range(60):
        at = tf.constant(step, tf.int64)
        kept = callback._masks(tf.constant(value), tf.zeros((1, 40)), mask, at, 0)
        drawn += np.asarray(kept)[0]
    assert drawn[:3].sum() == 0
    assert (drawn[3:10] == 60).all()
    # 180 draws over 30 entries: 6 each, variance of some 5.4.
    assert drawn[10:].sum() == 180
    assert drawn[10:].min() >= 1
    assert drawn[10:].max() <= 15


def branches(values, masks):
    """Return a model of several kernels of one input, whose outputs stand side by side."""
    x = keras.Input((1,))
    layers = [keras.layers.Dense(v.size, use_bias=False) for v in values]
    model = keras.Model(x, keras.layers.Concatenate()([layer(x) for layer in layers]))
    model.set_weights([v.reshape(1, -1) for v in values])
    paths = [layer.kernel.path for layer in layers]
    return apply_masks(model, {p: m.reshape(1, -1) for p, m in zip(paths, masks, strict=True)})


def fit_branches(model, callback, gradient, optimizer=None, **compile_):
    optimizer = optimizer or keras.optimizers.SGD(0.5)
    model.compile(optimizer, Linear(reduction="sum"), **compile_)
    gradient = gradient.reshape(1, -1).astype("float32")
    model.fit(np.ones((1, 1), "float32"), gradient, verbose=0, callbacks=[callback])
    masks = np.concatenate([m.ravel() for m in get_masks(model).values()])
    return np.concatenate([w.ravel() for w in model.get_weights()]), masks


@pytest.mark.parametrize(
    ("scope", "mask", "value"),
    [
        # Each kernel of three: the first drops and grows entry 1, the second keeps its one entry.
        ("layerwise", [1, 1, 1, 0, 0, 1], [0.5, -0.1, 0.9, 0, 0, 0.3]),
        # Entries 1 and 5 are the smallest of all; 1 and 3 have the largest gradients.
        ("global", [1, 1, 1, 1, 0, 0], [0.5, -0.1, 0.9, 0, 0, 0]),
    ],
)
def test_scopes_by_hand(scope, mask, value):
    halves = [np.split(a.ravel(), 2) for a in (VALUE, MASK)]
    callback = RigL(drop_fraction=0.5, end_step=10, scope=scope)
    found, kept = fit_branches(branches(*halves), callback, GRADIENT)
    np.testing.assert_array_equal(kept, np.array(mask, bool))
    np.testing.assert_allclose(found, value, rtol=1e-6)


@pytest.mark.parametrize(("replace_step", "jit_compile"), [(True, False), (False, True)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.few(2)
def test_one_threshold_for_all_is_that_of_a_loop_in_numpy(seed, replace_step, jit_compile):
    rng = np.random.default_rng(seed)
    ends, size = [7, 27], 33
    mask, gradient = rng.random(size) < 0.4, rng.normal(size=size)
    value = np.where(mask, rng.normal(size=size), 0)
    model = branches(np.split(value, ends), np.split(mask, ends))
    fraction = rng.uniform(0.3, 0.9)
    callback = RigL(
        **{"drop_fraction": fraction, "end_step": 9, "anneal": "constant"},
        **{"replace_step": replace_step, "scope": "global"},
    )
    momentum = keras.optimizers.SGD(0.5, momentum=0.5)
    found, kept = fit_branches(model, callback, gradient, momentum, jit_compile=jit_compile)
    before = value if replace_step else np.where(mask, value - 0.5 * gradient, 0)
    expected = rigl_in_numpy(before, mask, gradient, fraction)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_allclose(found, np.where(expected & mask, before, 0), rtol=1e-5)
    slots = [v.numpy().ravel() for v in model.optimizer.variables if "momentum" in v.path]
    stepped = np.zeros(size) if replace_step else -0.5 * gradient
    expected_slots = np.where(expected & ~mask, 0, stepped)
    np.testing.assert_allclose(np.concatenate(slots), expected_slots, rtol=1e-5)


def test_weights_without_a_gradient_take_no_part_in_an_exchange():
    halves = [np.split(a.ravel(), 2) for a in (VALUE, MASK)]
    model = branches(*halves)
    model.layers[2].trainable = False
    found, kept = fit_branches(model, RigL(drop_fraction=0.7, end_step=9, scope="global"), GRADIENT)
    np.testing.assert_array_equal(kept, MASK[0])  # three are kept of three: two go and come back
    np.testing.assert_allclose(found, VALUE[0], rtol=1e-6)


def test_set_exchanges_over_all_weights(rng):
    model = network()
    start = get_masks(model)
    model.compile("adam", "mse")
    x, y = data(rng)
    callback = SET(end_step=99, frequency=3, scope="global", drop_fraction=0.5)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[callback])
    after = get_masks(model)
    assert sum(m.sum() for m in after.values()) == sum(m.sum() for m in start.values())
    assert [m.sum() for m in after.values()] != [m.sum() for m in start.values()]


def network(sparsity=0.8):
    keras.utils.set_random_seed(1)
    parts = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((12,)), *parts])
    return prune_at_init(model, sparsity=sparsity, saliency="random", allocation="erk")


class Counts(keras.callbacks.Callback):
    """Checks after every batch that counts and zeros are exact."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        masks = get_masks(self.model)
        self.masks.append(masks)
        for variable in self.model.trainable_variables:
            if variable.path in masks:
                assert not np.asarray(variable)[~masks[variable.path]].any()


def data(rng, count=96):
    x = rng.normal(size=(count, 12)).astype("float32")
    return x, np.tanh(x[:, :4])


@pytest.mark.parametrize(("method", "optimizer"), [(RigL, "adam"), (SET, "adam"), (RigL, "lamb")])
@pytest.mark.few(1)
def test_counts_are_exact_after_every_update_and_masks_move(method, optimizer, rng):
    if optimizer == "lamb":
        if not hasattr(keras.optimizers, "Lamb"):
            pytest.skip("this Keras has no LAMB")
        optimizer = keras.optimizers.Lamb()
    model = network()
    start = get_masks(model)
    model.compile(optimizer, "mse")
    counts = Counts()
    x, y = data(rng)
    callbacks = [method(end_step=20, frequency=4, anneal="constant"), counts]
    model.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks)
    totals = {path: mask.sum() for path, mask in start.items()}
    for masks in counts.masks:
        assert {path: mask.sum() for path, mask in masks.items()} == totals
    changes = [
        i
        for i, (a, b) in enumerate(zip([start, *counts.masks], counts.masks, strict=False))
        if any((a[path] != b[path]).any() for path in a)
    ]
    assert changes == [0, 4, 8, 12, 16]
    model.fit(x, y, batch_size=4, verbose=0)  # without the callback masks are held
    assert all((counts.masks[-1][p] == m).all() for p, m in get_masks(model).items())


def test_grown_entries_begin_with_clean_slots_and_others_keep_theirs(rng):
    model = network()
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True), "mse")
    x, y = data(rng, 32)
    model.fit(x, y, batch_size=4, verbose=0)
    before = get_masks(model)
    slots = {v.path: np.asarray(v) for v in model.optimizer.variables}
    model.fit(
        x[:4],
        y[:4],
        batch_size=4,
        verbose=0,
        callbacks=[RigL(end_step=9, frequency=1, anneal="constant")],
    )
    iterations = int(model.optimizer.iterations)
    assert iterations == 9
    moved = 0
    for variable in model.optimizer.variables:
        owner = next((p for p in before if p.replace("/", "_") in variable.path), None)
        if owner is None or variable.shape != before[owner].shape:
            continue
        grown = get_masks(model)[owner] & ~before[owner]
        moved += grown.sum()
        assert not np.asarray(variable)[grown].any()
        if "average" not in variable.path:  # averages of weights move with these
            np.testing.assert_array_equal(
                np.asarray(variable)[~grown], slots[variable.path][~grown]
            )
    assert moved > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("compile_", "scope"),
    [
        ({"steps_per_execution": 4}, "global"),
        ({"jit_compile": True}, "layerwise"),
        ({"run_eagerly": True}, "global"),
        pytest.param(
            {"jit_compile": True, "steps_per_execution": 3}, "global", marks=pytest.mark.long
        ),
    ],
)
@pytest.mark.few(1)
def test_every_way_to_compile_a_step_gives_the_same_run(compile_, scope, rng):
    x, y = data(rng)

    def run(**options):
        model = network()
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", **options)
        callback = RigL(end_step=20, frequency=5, scope=scope)
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[callback])
        return model

    plain, other = run(jit_compile=False), run(**compile_)
    for mask, same in zip(get_masks(plain).values(), get_masks(other).values(), strict=True):
        np.testing.assert_array_equal(mask, same)
    for value, same in zip(plain.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(value, same, atol=1e-5)


@pytest.mark.long
def test_updates_are_counted_where_gradients_are_accumulated(rng):
    x, y = data(rng, 64)

    def run(batch, **options):
        model = network()
        model.compile(keras.optimizers.SGD(0.05, **options), "mse", jit_compile=False)
        callback = RigL(end_step=6, frequency=2, scope="global")
        model.fit(x, y, batch_size=batch, shuffle=False, verbose=0, callbacks=[callback])
        return model

    whole, parts = run(8), run(4, gradient_accumulation_steps=2)
    for mask, same in zip(get_masks(whole).values(), get_masks(parts).values(), strict=True):
        np.testing.assert_array_equal(mask, same)
    for value, same in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(value, same, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("scope", ["layerwise", "global"])
@pytest.mark.few(1)
def test_mixed_precision_with_a_scaled_loss(rng, scope):
    keras.config.set_dtype_policy("mixed_float16")
    model = network()
    start = get_masks(model)
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    x, y = data(rng, 32)
    callback = RigL(end_step=8, frequency=2, scope=scope)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[callback])
    after = get_masks(model)
    assert any((after[path] != mask).any() for path, mask in start.items())
    assert sum(m.sum() for m in after.values()) == sum(m.sum() for m in start.values())
    if scope == "layerwise":
        assert {p: m.sum() for p, m in after.items()} == {p: m.sum() for p, m in start.items()}


def test_a_model_without_masks_gets_random_ones_by_erk(rng):
    parts = [keras.layers.Dense(16), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((12,)), *parts])
    model.compile("sgd", "mse")
    x, y = data(rng, 8)
    model.fit(x, y, verbose=0, callbacks=[SET(0.75, end_step=5)])
    expected = keras_ntt.erdos_renyi([(12, 16), (16, 4)], 0.25)
    assert [int(m.sum()) for m in get_masks(model).values()] == [
        round(f * n) for f, n in zip(expected, (192, 64), strict=True)
    ]


@pytest.mark.long
def test_a_run_that_is_resumed_ends_as_one_that_is_not(rng, tmp_path):
    x, y = data(rng, 48)

    def run(epochs, folder=None):
        model = network()
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
        callbacks = [RigL(end_step=30, frequency=5)]
        if folder is not None:
            callbacks.append(keras_ntt.BackupAndRestore(folder, delete_checkpoint=False))
        model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
        return model

    whole = run(3)
    run(2, tmp_path / "state")
    resumed = run(3, tmp_path / "state")
    for mask, same in zip(get_masks(whole).values(), get_masks(resumed).values(), strict=True):
        np.testing.assert_array_equal(mask, same)
    for value, same in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(value, same, atol=1e-6)


class Interrupt(keras.callbacks.Callback):
    """Ends training as Ctrl-C does."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def test_masks_are_held_after_a_run_that_was_interrupted(rng):
    model = network()
    model.compile("sgd", "mse", jit_compile=False)
    x, y = data(rng)
    callbacks = [RigL(end_step=100, frequency=1, anneal="constant"), Interrupt()]
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks)
    held = get_masks(model)
    model.fit(x, y, batch_size=4, verbose=0)
    for path, mask in get_masks(model).items():
        np.testing.assert_array_equal(mask, held[path])
    model.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks[:1])
    assert any((mask != held[path]).any() for path, mask in get_masks(model).items())


TWO_REPLICAS = """
import os, sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras_ntt
two = tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices("CPU")])
x = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
found = []
plain = tf.distribute.get_strategy()
for scope, strategy in [(s, t) for s in ("layerwise", "global") for t in (plain, two)]:
    with strategy.scope():
        keras.utils.set_random_seed(1)
        parts = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)]
        model = keras.Sequential([keras.Input((12,)), *parts])
        model = keras_ntt.prune_at_init(model, sparsity=0.8, saliency="random", seed=0)
        start = keras_ntt.get_masks(model)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
    callback = keras_ntt.RigL(end_step=8, frequency=2, scope=scope)
    model.fit(x, np.tanh(x[:, :4]), batch_size=8, shuffle=False, verbose=0, callbacks=[callback])
    found.append((list(keras_ntt.get_masks(model).values()), model.get_weights()))
    assert any((m != s).any() for m, s in zip(found[-1][0], start.values()))
    for variable in model.trainable_variables:
        copies = getattr(variable.value, "values", [variable.value])
        assert all(np.array_equal(copies[0], copy) for copy in copies)
for one, other in [*zip(*found[:2]), *zip(*found[2:])]:
    for a, b in zip(one, other):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=1e-5)
print("same")
"""


@pytest.mark.long
@pytest.mark.skipif(
    keras.__version__.startswith("3.3."), reason="its replicas differ without pruning, too"
)
def test_two_replicas_take_the_steps_of_one():
    found = run_python(TWO_REPLICAS)
    assert "same" in found.stdout, found.stderr[-3000:]


def test_a_model_without_masks_needs_a_sparsity(rng):
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    x, y = data(rng, 8)
    with pytest.raises(ValueError, match="holds no masks"):
        model.fit(x, y, verbose=0, callbacks=[RigL(end_step=5)])
    assert get_masks(model) == {}


def test_a_schedule_that_moves_the_masks_is_refused(rng):
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    model = keras_ntt.prune_low_magnitude(model, 0.5)
    model.compile("sgd", "mse")
    x, y = data(rng, 8)
    with pytest.raises(ValueError, match="strip_pruning"):
        model.fit(x, y, verbose=0, callbacks=[RigL(end_step=5)])


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"sparsity": 1.5}, ValueError),
        ({"drop_fraction": 0}, ValueError),
        ({"drop_fraction": "much"}, ValueError),
        ({"anneal": "linear"}, ValueError),
        ({"scope": "model"}, ValueError),
        ({"begin_step": -1}, ValueError),
        ({"begin_step": 10}, ValueError),
        ({"frequency": 0}, ValueError),
        ({"schedule": 0.5}, TypeError),
        ({"replace_step": "yes"}, TypeError),
        ({"seed": -1}, ValueError),
    ],
)
def test_settings_out_of_range_are_refused(setting, error):
    for method in (RigL, SET):
        with pytest.raises(error, match="Received"):
            method(**{"end_step": 10, **setting})
