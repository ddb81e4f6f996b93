"""Magnitude pruning while a model trains: against a loop in NumPy, and in every way of running."""

from __future__ import annotations

import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import run_python
from helpers.training import OPTIMIZERS, compile_, named
from keras import layers

import keras_ntt
from keras_ntt import ConstantSparsity, PolynomialDecay, get_masks, prune_low_magnitude
from keras_ntt.pruning.scheduled_mask import scheduled_masks

SAMPLES, BATCH, EPOCHS = 32, 4, 2
STEPS = EPOCHS * SAMPLES // BATCH


@pytest.fixture
def data(rng):
    x = rng.normal(size=(SAMPLES, 6)).astype("float32")
    return x, rng.normal(size=(SAMPLES, 3)).astype("float32")


def zeros(model):
    return {k: np.count_nonzero(v == 0) for k, v in named(model).items() if k in get_masks(model)}


def kept(size, sparsity):
    return max(round(size * (1 - sparsity)), 1)


# --- against a loop in NumPy ------------------------------------------------------------------


def by_numpy(kernel, x, y, schedule, rate, accumulate=1):
    """Return the kernel of a linear model after SGD, pruned as the schedule says."""
    w, mask, total = kernel.astype("float64"), np.ones(kernel.shape, bool), 0.0
    for step in range(1, STEPS + 1):
        due, sparsity = schedule(step)
        if due:
            order = np.argsort(-np.abs(w).ravel(), kind="stable")
            mask = np.zeros(w.size, bool)
            mask[order[: kept(w.size, sparsity)]] = True
            mask = mask.reshape(w.shape)
        w = np.where(mask, w, 0)
        rows = slice((step - 1) * BATCH % SAMPLES, (step - 1) * BATCH % SAMPLES + BATCH)
        total = total + 2 * x[rows].T @ (x[rows] @ w - y[rows]) / y[rows].size
        if step % accumulate == 0:
            w, total = w - rate * total / accumulate, 0.0
    return np.where(mask, w, 0), mask


DECAY, LATER_DECAY = (
    PolynomialDecay(0.1, 0.8, 0, 15, frequency=3),
    PolynomialDecay(0.0, 0.7, 1, 9, frequency=4),
)
CONSTANT = ConstantSparsity(0.6, 0, frequency=5)


# Each schedule in a graph, and each other way of running with one schedule.
@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (DECAY, {}),
        (LATER_DECAY, {}),
        (CONSTANT, {}),
        (DECAY, {"jit_compile": True}),
        (LATER_DECAY, {"run_eagerly": True}),
        (CONSTANT, {"steps_per_execution": 4}),
        (DECAY, {"steps_per_execution": 8, "jit_compile": True}),
    ],
)
@pytest.mark.few(2)
def test_training_is_that_of_a_loop_in_numpy(data, schedule, options):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, use_bias=False)])
    start = named(model)
    prune_low_magnitude(model, schedule)
    compile_(model, keras.optimizers.SGD(0.3), **options)
    model.fit(*data, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    [(path, value)] = named(model).items()
    wanted, mask = by_numpy(start[path], *data, schedule, 0.3)
    np.testing.assert_array_equal(get_masks(model)[path], mask)
    np.testing.assert_allclose(value, wanted, atol=2e-6)
    assert [m.step for m in scheduled_masks(model)] == [STEPS]


def test_accumulated_gradients_count_every_batch(data):
    schedule = PolynomialDecay(0.1, 0.8, 0, 15, frequency=3)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, use_bias=False)])
    start = named(model)
    prune_low_magnitude(model, schedule)
    compile_(model, keras.optimizers.SGD(0.3, gradient_accumulation_steps=2))
    model.fit(*data, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    [(path, value)] = named(model).items()
    wanted, mask = by_numpy(start[path], *data, schedule, 0.3, accumulate=2)
    np.testing.assert_array_equal(get_masks(model)[path], mask)
    np.testing.assert_allclose(value, wanted, atol=2e-6)


# --- counts at every batch, however a model is trained -----------------------------------------

SCHEDULE = PolynomialDecay(0.2, 0.8, 2, 12, frequency=2)


class Counts(keras.callbacks.Callback):
    """Writes down which counts of zeros are not those of the schedule when a batch ends."""

    def __init__(self, schedule=SCHEDULE):
        super().__init__()
        self.schedule, self.wrong, self.calls = schedule, [], 0

    def on_train_batch_end(self, batch, logs=None):
        self.calls += 1
        sparsity = 0.0
        for mask in scheduled_masks(self.model):
            # The mask of the next step is chosen when a batch ends.
            fired = [s for s in range(1, mask.step + 2) if self.schedule(s)[0]]
            sparsity = self.schedule(fired[-1])[1] if fired else 0.0
            value = keras.ops.convert_to_numpy(keras.ops.cast(mask.variable, "float32"))
            wanted = value.size - kept(value.size, sparsity) if sparsity else 0
            if np.count_nonzero(value == 0) != wanted or (value[~mask.mask] != 0).any():
                self.wrong.append((mask.variable.path, mask.step, np.sum(value == 0), wanted))


def train(model, x, y, calls=STEPS, schedule=SCHEDULE):
    counts = Counts(schedule)
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, callbacks=[counts], verbose=0)
    assert counts.wrong == []
    assert counts.calls == calls
    for mask in scheduled_masks(model):
        assert mask.step == STEPS
        assert mask.mask.sum() == kept(mask.mask.size, 0.8)
        value = keras.ops.convert_to_numpy(keras.ops.cast(mask.variable, "float32"))
        np.testing.assert_array_equal(value != 0, mask.mask)  # also of averaged weights


# Those that also write weights apart from their gradients; tests/masks/test_apply.py has all.
WRITING = ["sgd", "accumulation", "adamw_clipped", "adafactor", "ema", "ema_overwriting", "muon"]


@pytest.mark.parametrize("name", [name for name in WRITING if name in OPTIMIZERS])
@pytest.mark.few(2)
def test_counts_hold_with_every_optimizer(mlp, data, name):
    model = prune_low_magnitude(mlp(), SCHEDULE)
    compile_(model, OPTIMIZERS[name]())
    train(model, *data)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.few(1)
def test_counts_hold_under_every_dtype_policy(mlp, data, policy):
    keras.config.set_dtype_policy(policy)
    model = prune_low_magnitude(mlp(), SCHEDULE)
    compile_(model, keras.optimizers.SGD(0.1))
    train(model, *data)


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.blocks = layers.Dense(8, "tanh"), [layers.Dense(8), layers.Dense(3)]

        def call(self, x):
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return x

    model = Own()
    model(np.zeros((1, 6), "float32"))
    return model


def nested():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="tanh")])
    block = keras.Input((6,))
    block = keras.Model(block, layers.Dense(6)(inner(block)))
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(3)(block(x) + 1))


def recurrent():
    x = keras.Input((6,))
    y = layers.Reshape((3, 2))(x)
    y = layers.Bidirectional(layers.LSTM(4))(y)
    y = layers.Concatenate()([y, layers.GRU(3)(layers.Reshape((2, 3))(x))])
    return keras.Model(x, layers.Dense(3)(y))


def attention():
    x = keras.Input((6,))
    y = layers.Reshape((3, 2))(x)
    y = layers.MultiHeadAttention(2, 3)(y, y)
    y = layers.EinsumDense("abc,cd->abd", output_shape=(3, 4))(y)
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))


def images():
    x = keras.Input((6,))
    y = layers.Reshape((6, 6, 1))(layers.Dense(36)(x))
    y = layers.SeparableConv2D(4, 3)(layers.Conv2D(3, 2, activation="relu")(y))
    y = layers.DepthwiseConv2D(2)(layers.BatchNormalization()(y))
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))


class Scaled(layers.Layer):
    """A layer of one's own that says what may be pruned."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 5), name="matrix")
        self.other = self.add_weight(shape=(5,), name="other")

    def call(self, x):
        return keras.ops.matmul(x, self.matrix) + self.other

    def get_prunable_weights(self):
        return [self.matrix]


class Unnamed(layers.Layer):
    """A layer that does not say which of its weights may be pruned."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],))


class MyDense(layers.Dense):
    """A subclass of a layer of Keras."""


def own_layers():
    return keras.Sequential([keras.Input((6,)), Scaled(), MyDense(3)])


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (subclassed, ["kernel"] * 3),
        (nested, ["kernel"] * 3),
        (recurrent, ["kernel", "recurrent_kernel"] * 3 + ["kernel"]),
        (attention, ["kernel"] * 6),
        (images, ["kernel", "kernel", "pointwise_kernel", "kernel"]),
        (own_layers, ["matrix", "kernel"]),
    ],
    ids=lambda p: getattr(p, "__name__", ""),
)
@pytest.mark.few(2)
def test_every_kind_of_model_is_pruned(make, names, data):
    model = make()
    paths = [v.path for v in model.weights]
    assert prune_low_magnitude(model, SCHEDULE) is model
    assert [v.path for v in model.weights] == paths
    assert sorted(m.variable.name for m in scheduled_masks(model)) == sorted(names)
    compile_(model)
    train(model, *data)
    assert keras_ntt.sparsity_report(model).sparsity == pytest.approx(0.8, abs=0.05)
    assert keras_ntt.strip_pruning(model) is model
    assert get_masks(model) == {}
    assert all(v.constraint is None for v in model.weights)


def test_embeddings_are_pruned(rng):
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), layers.Embedding(10, 5), layers.Flatten()]
    )
    prune_low_magnitude(model, SCHEDULE)
    compile_(model)
    train(model, rng.integers(0, 10, size=(SAMPLES, 4)), rng.normal(size=(SAMPLES, 20)))


def test_zeros_hold_and_steps_count_in_a_loop_of_ones_own(mlp, data):
    model = prune_low_magnitude(mlp(), SCHEDULE)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    counts = Counts()
    counts.set_model(model)
    for _ in range(14):
        step(*map(tf.constant, data))
        counts.on_train_batch_end(0)
    assert counts.wrong == []
    assert set(zeros(model).values()) == {48 - kept(48, 0.8), 24 - kept(24, 0.8)}


MIRRORED = """
import numpy as np, tensorflow as tf, keras, keras_ntt
from keras_ntt.pruning.scheduled_mask import scheduled_masks
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices("CPU")])
assert strategy.num_replicas_in_sync == 2
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 6)).astype("float32"), rng.normal(size=(32, 3)).astype("float32")
found = []
for inside in (True, False, None):
    keras.utils.set_random_seed(0)
    def make():
        model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)]
        )
        model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
        return model
    schedule = keras_ntt.PolynomialDecay(0.2, 0.8, 2, 12, frequency=2)
    if inside is None:  # no strategy at all
        model = keras_ntt.prune_low_magnitude(make(), schedule)
    else:
        with strategy.scope():
            model = make()
            if inside:
                keras_ntt.prune_low_magnitude(model, schedule)
        if not inside:
            keras_ntt.prune_low_magnitude(model, schedule)
    model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert [m.step for m in scheduled_masks(model)] == [16, 16]
    for v in model.weights:
        if v.name == "kernel" and inside is not None:
            first, second = strategy.experimental_local_results(v.value)
            assert np.array_equal(first, second)
    found.append(([keras.ops.convert_to_numpy(v) for v in model.weights]))
    print("held", inside, [int((v == 0).sum()) for v in found[-1]])
for values in found[:2]:
    for value, right in zip(values, found[2]):
        np.testing.assert_allclose(value, right, atol=1e-6)
print("equal")
"""


@pytest.mark.long
@pytest.mark.skipif(
    keras.__version__.startswith("3.3."), reason="its replicas differ without pruning, too"
)
def test_a_mirrored_strategy_trains_as_one_device_does():
    result = run_python(MIRRORED)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split("\n")[:4] == [
        "held True [38, 0, 19, 0]",
        "held False [38, 0, 19, 0]",
        "held None [38, 0, 19, 0]",
        "equal",
    ]


# --- structure --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}], ids=["graph", "jit"])
@pytest.mark.parametrize("pooling", ["AVG", "MAX"])
@pytest.mark.few(1)
def test_blocks_become_zero_as_a_whole(data, pooling, options):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(4, name="last")])
    prune_low_magnitude(
        model, ConstantSparsity(0.5, 3, 3), (2, 4), pooling, filters=lambda x: x.name != "last"
    )
    compile_(model, keras.optimizers.SGD(0.05), **options)
    model.fit(data[0], data[1][:, [0, 1, 2, 2]], batch_size=BATCH, verbose=0)
    [mask] = get_masks(model).values()
    blocks = mask.reshape(3, 2, 2, 4).transpose(0, 2, 1, 3).reshape(6, 8)
    assert (blocks.all(axis=1) | ~blocks.any(axis=1)).all()
    assert blocks.any(axis=1).sum() == 3


def test_m_of_n_is_chosen_at_once_and_stays(data):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(3)])
    start = named(model)
    prune_low_magnitude(model, ConstantSparsity(0.9, 1), sparsity_m_by_n=(2, 4))
    masks = get_masks(model)
    for path, mask in masks.items():
        for column, kept_of in zip(np.abs(start[path]).T, mask.T, strict=True):
            for first in range(0, len(column), 4):
                group = column[first : first + 4]
                wanted = group >= np.sort(np.pad(group, (0, 4 - len(group))))[2]
                np.testing.assert_array_equal(kept_of[first : first + 4], wanted)
    compile_(model)
    model.fit(*data, batch_size=BATCH, verbose=0)
    for path, mask in get_masks(model).items():
        np.testing.assert_array_equal(mask, masks[path])
        assert not named(model)[path][~mask].any()


# --- layers -----------------------------------------------------------------------------------


def test_a_layer_that_is_not_built_is_pruned_when_it_is(data):
    layer = layers.Dense(8, "tanh")
    assert prune_low_magnitude(layer, SCHEDULE) is layer
    model = keras.Sequential([keras.Input((6,)), layer, layers.Dense(3)])
    assert list(get_masks(model)) == [layer.kernel.path]
    compile_(model)
    train(model, *data)
    clone = keras.models.clone_model(model)
    assert get_masks(clone) == {}


def test_a_list_of_layers(data):
    built = layers.Dense(8, "tanh")
    built.build((None, 6))
    parts = [built, layers.Dropout(0.1), layers.Flatten(), layers.Dense(3)]
    assert prune_low_magnitude(parts, SCHEDULE) is parts
    model = keras.Sequential([keras.Input((6,)), *parts])
    assert len(get_masks(model)) == 2
    compile_(model)
    train(model, *data)


def test_a_layer_around_others_is_pruned_when_it_is_built():
    layer = prune_low_magnitude(layers.Bidirectional(layers.LSTM(3)), ConstantSparsity(0.5, 1))
    model = keras.Sequential([keras.Input((4, 2)), layer])
    assert [m.sum() for m in get_masks(model).values()] == [12, 18, 12, 18]


def test_layers_that_are_pruned_already_are_left_as_they_are(mlp):
    model = mlp()
    prune_low_magnitude(model.layers[0], ConstantSparsity(0.25, 1))
    prune_low_magnitude(model, ConstantSparsity(0.75, 1))
    assert [m.sum() for m in get_masks(model).values()] == [36, 6]
    with pytest.raises(ValueError, match="pruned already"):
        prune_low_magnitude(model, 0.5)


# --- when -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "sparsity"),
    [
        (0.75, 0.75),
        (ConstantSparsity(0.75, 1), 0.75),
        (ConstantSparsity(0.75, 0), 0),
        (None, 0),
        (PolynomialDecay(0.25, 0.75, 1, 5), 0.25),
        (lambda step: (step == 0, 0.5), 0.5),
        (lambda step: (step < 2, 0.25 + step / 4), 0.5),
    ],
)
def test_the_first_masks_are_those_of_the_schedule_before_step_one(mlp, schedule, sparsity):
    model = mlp()
    start = named(model)
    prune_low_magnitude(model, schedule)
    for path, mask in get_masks(model).items():
        assert mask.sum() == kept(mask.size, sparsity)
        smallest = np.sort(np.abs(start[path]).ravel())[mask.size - mask.sum()]
        np.testing.assert_array_equal(mask, np.abs(start[path]) >= smallest)
        np.testing.assert_array_equal(named(model)[path], start[path] * mask)


def test_a_model_that_was_trained_needs_not_be_compiled_again(mlp, data):
    model = mlp()
    compile_(model)
    model.fit(*data, verbose=0)
    optimizer = model.optimizer
    prune_low_magnitude(model, SCHEDULE)
    train(model, *data)
    assert model.optimizer is optimizer


def test_settings_that_do_not_fit_change_nothing(cnn):
    model = cnn()
    before = model.get_weights()
    for settings, match in [
        ({"block_size": 2}, "block_size must be two positive"),
        ({"block_pooling_type": "SUM"}, "block_pooling_type must be one of 'AVG', 'MAX'"),
        ({"sparsity_m_by_n": (4, 2)}, "m must be less"),
        ({"sparsity_m_by_n": (1, 2), "block_size": (1, 2)}, "two structures"),
        ({"filters": "nothing"}, "There is nothing to prune"),
        ({"pruning_schedule": {"pruning_schedule": 0.5}}, r"\*\*pruning_params"),
        ({"pruning_schedule": 1.5}, "fraction of zeros"),
    ]:
        with pytest.raises(ValueError, match=match):
            prune_low_magnitude(model, **{"pruning_schedule": 0.5, **settings})
        assert get_masks(model) == {}
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("thing", [None, 3, "model", [1], [layers.Dense]])
def test_rejects_things_that_are_not_models_or_layers(thing):
    with pytest.raises(TypeError):
        prune_low_magnitude(thing, 0.5)


@pytest.mark.parametrize(
    "make", [lambda: layers.BatchNormalization(), lambda: layers.Dropout(0.1), layers.Flatten]
)
@pytest.mark.parametrize("built", [False, True])
def test_a_layer_without_kernels_is_passed_over(make, built):
    layer = make()
    if built:
        layer.build((None, 3))
    assert prune_low_magnitude(layer, 0.5) is layer
    assert prune_low_magnitude([layer], 0.5) == [layer]
    model = keras.Sequential([keras.Input((3,)), layer, layers.Dense(2)])
    assert get_masks(model) == {}


def test_a_layer_of_ones_own_that_does_not_name_its_weights():
    layer = Unnamed()
    layer.build((None, 3))
    with pytest.raises(ValueError, match="There is nothing to prune"):
        prune_low_magnitude(layer, 0.5)


def test_a_policy_is_asked_about_layers(mlp):
    class LastOnly(keras_ntt.PruningPolicy):
        def allow_pruning(self, layer):
            return layer.units == 3

    model = mlp()
    prune_low_magnitude(model, 0.5, pruning_policy=LastOnly())
    assert list(get_masks(model)) == [model.layers[-1].kernel.path]


# --- saving, loading, going on ----------------------------------------------------------------


def pruned(mlp):
    keras.utils.set_random_seed(1)
    model = prune_low_magnitude(mlp(), PolynomialDecay(0.2, 0.8, 2, 24, frequency=3))
    compile_(model)
    return model


@pytest.mark.parametrize("kind", ["weights", "keras"])
@pytest.mark.long
def test_training_goes_on_where_a_file_left_it(mlp, data, tmp_path, kind):
    straight = pruned(mlp)
    straight.fit(*data, batch_size=BATCH, epochs=4, shuffle=False, verbose=0)
    first = pruned(mlp)
    first.fit(*data, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    file = tmp_path / ("m.weights.h5" if kind == "weights" else "m.keras")
    first.save_weights(file) if kind == "weights" else first.save(file)
    second = pruned(mlp)
    second.optimizer.build(second.trainable_variables)
    second.load_weights(file)
    assert [m.step for m in scheduled_masks(second)] == [16, 16]
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(get_masks(first).values(), get_masks(second).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    second.fit(*data, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(straight.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_a_killed_run_is_resumed_to_the_same_masks(mlp, data, tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(model, *callbacks):
        model.fit(
            *data, batch_size=BATCH, epochs=4, shuffle=False, verbose=0, callbacks=list(callbacks)
        )
        return model

    straight = run(pruned(mlp))
    folder = str(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        run(pruned(mlp), keras.callbacks.BackupAndRestore(folder), Killed())
    resumed = run(pruned(mlp), keras.callbacks.BackupAndRestore(folder))
    for a, b in zip(straight.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_masks_that_were_chosen_at_once_give_way_to_those_of_a_file(mlp, data, tmp_path):
    def make(seed):
        keras.utils.set_random_seed(seed)
        return prune_low_magnitude(mlp(), ConstantSparsity(0.5, 1))

    first, second = make(1), make(2)
    first.save_weights(tmp_path / "m.weights.h5")
    second.load_weights(tmp_path / "m.weights.h5")
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_files_are_those_of_the_plain_model(mlp, data, tmp_path):
    model = prune_low_magnitude(mlp(), SCHEDULE)
    compile_(model)
    model.fit(*data, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:  # read without us in tests/masks
        assert b"keras_ntt" not in archive.read("config.json")
    assert sum(zeros(model).values()) == 57
    with keras_ntt.prune_scope():
        loaded = keras.models.load_model(tmp_path / "m.keras")
    keras_ntt.restore_masks(loaded)
    for a, b in zip(get_masks(model).values(), get_masks(loaded).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    # And the other way: weights of a plain model into one that is pruned.
    plain = mlp()
    plain.save_weights(tmp_path / "plain.weights.h5")
    again = prune_low_magnitude(mlp(), ConstantSparsity(0.5, 3))
    again.load_weights(tmp_path / "plain.weights.h5")
    for a, b in zip(plain.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_of_other_weights_is_refused(mlp, tmp_path):
    prune_low_magnitude(mlp(), 0.5, filters="dense").save_weights(tmp_path / "m.weights.h5")
    other = mlp()
    prune_low_magnitude(other, 0.5)
    before = get_masks(other)
    state = other.layers[0]._pruning_state
    with pytest.raises(ValueError, match="pruning state of other weights"):
        state.load_own_variables({"mask_0": np.zeros((2, 2)), "step_0": 1})
    for a, b in zip(before.values(), get_masks(other).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_recurrent_masks_are_restored_from_zeros(data):
    model = prune_low_magnitude(recurrent(), ConstantSparsity(0.5, 1))
    masks = get_masks(model)
    keras_ntt.strip_pruning(model)
    keras_ntt.restore_masks(model)
    assert get_masks(model).keys() == masks.keys()
    for path, mask in get_masks(model).items():
        np.testing.assert_array_equal(mask, masks[path])


# --- warnings ---------------------------------------------------------------------------------


def test_strip_warns_if_nothing_was_pruned(mlp, data):
    model = prune_low_magnitude(mlp())  # from step 100 on
    compile_(model)
    model.fit(*data, batch_size=BATCH, verbose=0)
    with pytest.warns(UserWarning, match="the schedule never fired"):
        keras_ntt.strip_pruning(model)


def test_strip_of_a_model_that_was_not_trained_is_silent(mlp):
    model = prune_low_magnitude(mlp())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keras_ntt.strip_pruning(model)


def test_a_pruned_model_that_lost_its_masks_is_noticed(mlp):
    model = prune_low_magnitude(mlp(), 0.5)
    keras_ntt.strip_pruning(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prune_low_magnitude(model, ConstantSparsity(0.8, 5))
    assert [w for w in caught if "restore_masks" in str(w.message)]


def test_a_model_that_is_not_stripped_is_exported(mlp, tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = prune_low_magnitude(mlp(), 0.5)
    report = keras_ntt.export_tflite(model, tmp_path / "m.tflite")
    assert str(report)
    assert keras_ntt.get_masks(model)


def test_steps_that_a_loss_scale_skips_are_not_counted(mlp, data):
    keras.config.set_dtype_policy("mixed_float16")
    model = prune_low_magnitude(mlp(), ConstantSparsity(0.5, 2, frequency=1))
    compile_(model, keras.optimizers.SGD(0.1))
    x, y = data
    for batch, steps in ((x, 1), (x * np.inf, 1), (x, 2)):
        model.train_on_batch(batch, y)
        assert [m.step for m in scheduled_masks(model)] == [steps, steps]
    assert keras_ntt.sparsity_report(model).sparsity == 0.5


def test_masks_that_are_applied_end_the_schedule(mlp, data):
    model = prune_low_magnitude(mlp(), ConstantSparsity(0.5, 1, frequency=1))
    rng = np.random.default_rng(1)
    masks = {v.path: rng.random(v.shape) < 0.1 for v in model.weights if v.name == "kernel"}
    first = next(iter(masks))
    keras_ntt.apply_masks(model, {first: masks[first]})
    compile_(model)
    model.fit(*data, batch_size=4, verbose=0)
    found = get_masks(model)
    np.testing.assert_array_equal(found[first], masks[first])
    # The others are still the schedule's.
    assert all(0.4 < 1 - m.mean() < 0.6 for path, m in found.items() if path != first)
    weights = dict(zip(found, (v for v in model.weights if v.path in masks), strict=True))
    assert not keras.ops.convert_to_numpy(weights[first])[~masks[first]].any()


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("way", ["fit", "train_on_batch"])
@pytest.mark.few(1)
def test_layers_that_training_builds_are_pruned(data, first, way):
    made = [layers.Dense(8, "relu"), layers.Dense(3)]
    model = keras.Sequential(prune_low_magnitude(made, ConstantSparsity(0.5, first, frequency=1)))
    model.compile("sgd", "mse", jit_compile=False)
    for _ in range(2):
        if way == "fit":
            model.fit(*data, batch_size=4, verbose=0)
        else:
            for _ in range(4):
                model.train_on_batch(*data)
    assert [round(float(1 - m.mean()), 1) for m in get_masks(model).values()] == [0.5, 0.5]
    for kernel, mask in zip((v.kernel for v in made), get_masks(model).values(), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel) != 0, mask)


class OwnCode(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = prune_low_magnitude(layers.Dense(8, "relu"), 0.5)
        self.last = layers.Dense(3)

    def call(self, x):
        return self.last(self.first(x))


class Around(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = prune_low_magnitude(layers.Dense(8, "relu"), 0.5)

    def call(self, x):
        return self.inner(x)


def around():
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(Around()(inputs)))


def without_inputs():
    return keras.Sequential([prune_low_magnitude(layers.Dense(8), 0.5), layers.Dense(3)])


@pytest.mark.parametrize(
    ("make", "way"),
    [
        *((OwnCode, way) for way in ("call", "fit", "predict")),
        (around, "fit"),
        (without_inputs, "predict"),
    ],
)
@pytest.mark.few(2)
def test_layers_that_the_code_of_a_model_builds_are_pruned(make, way, data):
    model = make()
    model.compile("sgd", "mse", jit_compile=False)
    if way == "call":
        model(data[0])
    elif way == "predict":
        model.predict(data[0], verbose=0)
    model.fit(*data, batch_size=4, verbose=0)
    (mask,) = get_masks(model).values()
    (kernel,) = (v for v in model.weights if v.shape == mask.shape)
    assert mask.mean() == 0.5
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel) != 0, mask)
