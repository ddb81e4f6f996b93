"""Masks held in a model: exact zeros through every way of training, saving and copying."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import run_python, warned
from helpers.training import BATCH, OPTIMIZERS, SAMPLES, compile_, data_for, named

import keras_ntt
from keras_ntt import apply_masks, get_masks, load_masks, restore_masks, save_masks, strip_pruning


def random_masks(model, seed=0, names=("kernel",)):
    """Return a mask of about one half for every variable whose name ends as one of `names`."""
    rng = np.random.default_rng(seed)
    masks = {}
    for v in model.trainable_variables:
        if v.name.endswith(tuple(names)):
            mask = rng.random(v.shape) < 0.5
            mask.flat[0], mask.flat[1] = True, False
            masks[v.path] = mask
    assert masks
    return masks


def faults(model, masks):
    """Return the weights whose non-zeros are not exactly the entries of their mask."""
    values = named(model)
    return {
        key: f"{np.count_nonzero(values[key])} non-zeros, {mask.sum()} kept"
        for key, mask in masks.items()
        if not np.array_equal(values[key] != 0, mask)
    }


class Watch(keras.callbacks.Callback):
    """Compares the non-zeros of the weights with their masks whenever a batch ends."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(faults(self.model, self.masks))


def fit(model, masks, data=None, epochs=1, calls=SAMPLES // BATCH):
    """Fit, check the zeros at the end of every batch, of fit, and that training did happen."""
    x, y = data_for(model) if data is None else data
    before = named(model)
    watch = Watch(masks)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, callbacks=[watch], verbose=0)
    assert watch.found == [{}] * (calls * epochs)
    assert faults(model, masks) == {}
    after = named(model)
    for key, mask in masks.items():
        moved = before[key][mask] != after[key][mask]
        assert moved.any(), f"{key} was not trained"


# --- what apply_masks does at once ------------------------------------------------------------


def test_apply_masks_zeroes_the_masked_entries_and_nothing_else(mlp):
    model = mlp()
    before, masks = named(model), random_masks(model)
    assert apply_masks(model, masks) is model
    for key, value in named(model).items():
        np.testing.assert_array_equal(value, before[key] * masks.get(key, 1))


def test_apply_masks_adds_no_weight_and_renames_nothing(mlp):
    model = mlp()
    names = [v.path for v in model.weights], [layer.name for layer in model.layers]
    apply_masks(model, random_masks(model))
    assert ([v.path for v in model.weights], [layer.name for layer in model.layers]) == names


@pytest.mark.parametrize("dtype", [bool, int, "float32", "uint8", list])
def test_masks_may_be_any_zeros_and_ones(mlp, dtype):
    model = mlp()
    masks = random_masks(model)
    given = {k: m.tolist() if dtype is list else m.astype(dtype) for k, m in masks.items()}
    found = get_masks(apply_masks(model, given))
    assert found.keys() == masks.keys()
    for key, mask in masks.items():
        assert found[key].dtype == bool
        np.testing.assert_array_equal(found[key], mask)


@pytest.mark.parametrize("kept", [True, False])
def test_masks_of_one_value(mlp, kept):
    model = mlp()
    path = model.weights[0].path
    masks = {path: np.full(model.weights[0].shape, kept)}
    apply_masks(model, masks)
    assert faults(model, masks) == {}
    np.testing.assert_array_equal(get_masks(model)[path], masks[path])


def test_an_empty_mapping_of_masks_changes_nothing(mlp):
    model = mlp()
    before = model.get_weights()
    apply_masks(model, {})
    assert get_masks(model) == {}
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_get_masks_returns_copies(mlp):
    model = mlp()
    masks = random_masks(model)
    apply_masks(model, masks)
    for mask in get_masks(model).values():
        mask[...] = True
    for key, mask in get_masks(model).items():
        np.testing.assert_array_equal(mask, masks[key])


def test_apply_masks_keeps_no_hold_of_the_arrays_it_is_given(mlp):
    model = mlp()
    masks = random_masks(model)
    kept = {key: mask.copy() for key, mask in masks.items()}
    apply_masks(model, masks)
    for mask in masks.values():
        mask[...] = True
    compile_(model)
    fit(model, kept)


def test_masks_given_again_replace_those_held(mlp):
    model = mlp()
    first, second = random_masks(model, 1), random_masks(model, 2)
    apply_masks(model, first)
    apply_masks(model, second)
    for key, mask in get_masks(model).items():
        np.testing.assert_array_equal(mask, second[key])
        np.testing.assert_array_equal(named(model)[key] != 0, first[key] & second[key])


def test_paths_that_repeat_are_numbered():
    def branch(name):
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")], name=name)

    inputs = keras.Input((4,))
    twin = keras.Model(inputs, keras.layers.Dense(3, name="d")(inputs), name="twin")
    other = keras.Model(inputs, keras.layers.Dense(3, name="d")(inputs), name="other")
    model = keras.Model(inputs, twin(inputs) + other(inputs) + branch("third")(inputs))
    rng = np.random.default_rng(0)
    kernels = [v for v in model.weights if v.name == "kernel"]
    for v in kernels:
        v.assign(v * (rng.random(v.shape) < 0.5))
    wanted = [keras.ops.convert_to_numpy(v) != 0 for v in kernels]
    masks = get_masks(restore_masks(model))
    assert len(masks) == len(kernels) == 3
    strip_pruning(model)
    apply_masks(model, masks)
    found = [v.constraint.mask for v in kernels]
    for mask, right in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mask, right)


# --- training: ways to run and to optimize ---------------------------------------------------


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        pytest.param({}, 8, id="graph"),
        pytest.param({"jit_compile": True}, 8, id="jit"),
        pytest.param({"run_eagerly": True}, 8, id="eager"),
        pytest.param({"steps_per_execution": 4}, 2, id="steps_per_execution"),
        pytest.param({"steps_per_execution": 4, "jit_compile": True}, 2, id="steps_and_jit"),
    ],
)
@pytest.mark.few(2)
def test_zeros_hold_however_a_step_is_run(mlp, options, calls):
    model = mlp()
    masks = random_masks(model)
    apply_masks(model, masks)
    compile_(model, **options)
    fit(model, masks, calls=calls)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.few(2)
def test_zeros_hold_with_every_optimizer(mlp, name):
    model = mlp()
    masks = random_masks(model)
    apply_masks(model, masks)
    compile_(model, OPTIMIZERS[name]())
    fit(model, masks, epochs=2)


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}])
@pytest.mark.long
def test_zeros_hold_with_averaged_weights_however_a_step_is_run(mlp, options):
    model = mlp()
    masks = random_masks(model)
    apply_masks(model, masks)
    compile_(model, OPTIMIZERS["ema"](), **options)
    fit(model, masks)


def test_averaged_weights_are_those_of_masks_attached_after_a_first_fit(mlp):
    model = mlp()
    compile_(model, OPTIMIZERS["ema"]())
    model.fit(*data_for(model), verbose=0)
    masks = random_masks(model)
    apply_masks(model, masks)
    fit(model, masks)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        *((name, {}) for name in ("mixed_float16", "mixed_bfloat16", "float64", "bfloat16")),
        ("mixed_float16", {"jit_compile": True}),
        ("float64", {"jit_compile": True}),
    ],
)
@pytest.mark.few(2)
def test_zeros_hold_under_every_dtype_policy(mlp, policy, options):
    keras.config.set_dtype_policy(policy)
    model = mlp()
    masks = random_masks(model)
    apply_masks(model, masks)
    assert {v.dtype for v in model.weights} == {model.dtype_policy.variable_dtype}
    compile_(model, keras.optimizers.SGD(0.1), **options)
    fit(model, masks)


# --- training: architectures -----------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(5, activation="tanh")
        self.blocks = [keras.layers.Dense(5), keras.layers.Dense(2)]

    def call(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def nested():
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, activation="tanh")])
    inputs = keras.Input((6,))
    deeper = keras.Model(inputs, keras.layers.Dense(4)(inner(inputs)))
    outer = keras.Input((6,))
    return keras.Model(outer, keras.layers.Dense(2)(deeper(outer)))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 6), "float32"))
    return model


def recurrent():
    return keras.Sequential(
        [
            keras.Input((5, 3)),
            keras.layers.Bidirectional(keras.layers.LSTM(4)),
            keras.layers.Dense(2),
        ]
    )


def attention():
    inputs = keras.Input((4, 6))
    x = keras.layers.MultiHeadAttention(2, 3)(inputs, inputs)
    x = keras.layers.LayerNormalization()(x + inputs)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x)))


def separable():
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.SeparableConv2D(4, 3),
            keras.layers.Conv2DTranspose(3, 2),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )


def shared():
    inputs = keras.Input((6,))
    layer = keras.layers.Dense(6, activation="tanh")
    return keras.Model(inputs, keras.layers.Dense(2)(layer(layer(inputs))))


MASKED = {nested: 3, subclassed: 3, recurrent: 5, attention: 5, separable: 4, shared: 2}


@pytest.mark.parametrize(
    ("make", "run_eagerly"),
    [*((make, False) for make in MASKED), (nested, True), (recurrent, True)],
)
@pytest.mark.few(2)
def test_zeros_hold_in_every_architecture(make, run_eagerly):
    model = make()
    masks = random_masks(model)
    assert len(masks) == MASKED[make]
    apply_masks(model, masks)
    compile_(model, run_eagerly=run_eagerly)
    rng = np.random.default_rng(1)
    shape = (6,) if make is subclassed else model.input_shape[1:]
    x = rng.normal(size=(SAMPLES, *shape)).astype("float32")
    y = rng.normal(size=(SAMPLES, 2)).astype("float32")
    fit(model, masks, data=(x, y))


def test_zeros_of_biases_and_scales_hold_too(cnn):
    model = cnn()
    names = ("kernel", "bias", "gamma")
    masks = random_masks(model, names=names)
    for v in model.weights:
        if v.name == "bias":
            v.assign(keras.ops.ones_like(v))
    apply_masks(model, masks)
    compile_(model)
    fit(model, masks)


def test_masks_put_on_an_inner_model_hold_when_the_outer_one_is_trained():
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, activation="tanh")])
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
    masks = random_masks(inner)
    apply_masks(inner, masks)
    compile_(model)
    fit(model, masks)


# --- training: loops of one's own ------------------------------------------------------------


@pytest.mark.parametrize("method", ["apply_gradients", "apply"])
@pytest.mark.parametrize("wrap", [tf.function, lambda f: f], ids=["graph", "eager"])
def test_zeros_hold_in_custom_loops(mlp, method, wrap):
    model = mlp()
    masks = random_masks(model)
    apply_masks(model, masks)
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    x, y = map(tf.constant, data_for(model))

    @wrap
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        if method == "apply":
            optimizer.apply(gradients, variables)
        else:
            optimizer.apply_gradients(zip(gradients, variables, strict=True))

    before = named(model)
    for _ in range(4):
        step()
        assert faults(model, masks) == {}
    assert any((before[k] != v).any() for k, v in named(model).items())


def test_a_compiled_custom_loop_sees_masks_that_change(mlp):
    model = mlp()
    first, second = random_masks(model, 1), random_masks(model, 2)
    apply_masks(model, first)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    x, y = map(tf.constant, data_for(model))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    step()
    assert faults(model, first) == {}
    apply_masks(model, second)
    step()
    for key, value in named(model).items():
        if key in second:
            assert not value[~second[key]].any()
            assert value[second[key] & ~first[key]].any()  # kept anew, and trained again


def test_zeros_hold_with_a_train_step_of_ones_own():
    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    model = Own(inputs, keras.layers.Dense(3)(hidden))
    masks = random_masks(model)
    apply_masks(model, masks)
    compile_(model)
    fit(model, masks)


def test_zeros_hold_in_train_on_batch(mlp):
    model = mlp()
    masks = random_masks(model)
    apply_masks(model, masks)
    compile_(model)
    x, y = data_for(model)
    for _ in range(3):
        model.train_on_batch(x, y)
        assert faults(model, masks) == {}


MIRRORED = """
import numpy as np, tensorflow as tf, keras, keras_ntt
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
devices = [d.name for d in tf.config.list_logical_devices("CPU")]
strategy = tf.distribute.MirroredStrategy(devices)
assert strategy.num_replicas_in_sync == 2

def faults(model, masks):
    bad = []
    for v in model.weights:
        if v.path in masks:
            for replica in strategy.experimental_local_results(v.value):
                if not np.array_equal(replica.numpy() != 0, masks[v.path]):
                    bad.append(v.path)
    return bad

class Watch(keras.callbacks.Callback):
    def __init__(self, masks):
        super().__init__()
        self.masks, self.found = masks, []
    def on_train_batch_end(self, batch, logs=None):
        self.found.append(faults(self.model, self.masks))

rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 6)).astype("float32"), rng.normal(size=(32, 3)).astype("float32")
for where in ("inside", "outside", "after a fit", "anew"):
    if where != "anew":
        with strategy.scope():
            model = keras.Sequential(
                [keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)]
            )
            model.compile("adam", loss="mse", jit_compile=False)
    if where == "after a fit":
        model.fit(x, y, batch_size=4, verbose=0)
    masks = {v.path: rng.random(v.shape) < 0.5 for v in model.weights if v.name == "kernel"}
    if where == "anew":  # entries that come back must be able to be trained
        for v in model.weights:
            if v.path in masks:
                masks[v.path] &= v.numpy() != 0
    if where == "inside":
        with strategy.scope():
            keras_ntt.apply_masks(model, masks)
    else:
        keras_ntt.apply_masks(model, masks)
    watch = Watch(masks)
    model.fit(x, y, batch_size=4, epochs=2, callbacks=[watch], verbose=0)
    assert watch.found == [[]] * 16, (where, watch.found)
    assert faults(model, masks) == [], where
    held = keras_ntt.get_masks(model)
    assert all(np.array_equal(held[k], m) for k, m in masks.items()), where
    print("held", where)
"""


@pytest.mark.long
def test_zeros_hold_on_every_replica_of_a_mirrored_strategy():
    result = run_python(MIRRORED)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split("\n")[:4] == [
        "held inside",
        "held outside",
        "held after a fit",
        "held anew",
    ]


# --- masks that come late, change or go ------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}])
@pytest.mark.few(1)
def test_masks_attached_after_a_first_fit_hold_without_compiling_again(mlp, options):
    model = mlp()
    compile_(model, **options)
    model.fit(*data_for(model), batch_size=BATCH, verbose=0)
    masks = random_masks(model)
    apply_masks(model, masks)
    fit(model, masks)


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"steps_per_execution": 4}])
@pytest.mark.few(1)
def test_masks_changed_between_fits_hold_without_compiling_again(mlp, options):
    model = mlp()
    compile_(model, **options)
    calls = 2 if "steps_per_execution" in options else 8
    for seed in (1, 2, 3):
        masks = random_masks(model, seed)
        apply_masks(model, masks)
        optimizer = model.optimizer
        fit(model, masks, calls=calls)  # entries that are kept anew are trained again
        assert model.optimizer is optimizer


@pytest.mark.parametrize("first", [False, True], ids=["attached", "changed"])
def test_masks_may_be_applied_by_a_callback_while_a_model_is_fitted(mlp, first):
    model = mlp()
    masks = random_masks(model, 1)

    class Prune(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                apply_masks(self.model, masks)

    if first:
        apply_masks(model, random_masks(model, 2))
    compile_(model)
    x, y = data_for(model)
    watch = Watch(masks)
    model.fit(x, y, batch_size=BATCH, epochs=2, callbacks=[Prune(), watch], verbose=0)
    # Entries that are kept anew begin at zero, and so do the units they lead to: their gradient
    # may be zero for one step.
    assert watch.found[9:] == [{}] * 7


def test_strip_leaves_the_weights_and_lets_training_change_the_zeros(mlp):
    model = mlp()
    masks = random_masks(model)
    apply_masks(model, masks)
    compile_(model)
    fit(model, masks)
    before = named(model)
    assert strip_pruning(model) is model
    assert get_masks(model) == {}
    assert all(v.constraint is None for v in model.weights)
    for key, value in named(model).items():
        np.testing.assert_array_equal(value, before[key])
    model.fit(*data_for(model), batch_size=BATCH, verbose=0)
    for key, mask in masks.items():
        assert np.count_nonzero(named(model)[key]) > mask.sum()


def test_strip_of_a_model_without_masks_changes_nothing(mlp):
    model = mlp(kernel_constraint=keras.constraints.NonNeg())
    before = named(model), [v.constraint for v in model.weights]
    strip_pruning(model)
    assert [v.constraint for v in model.weights] == before[1]
    for key, value in named(model).items():
        np.testing.assert_array_equal(value, before[0][key])


def test_strip_brings_the_zeros_back_that_loaded_weights_had_filled(mlp):
    model = mlp()
    masks = random_masks(model)
    dense = model.get_weights()
    apply_masks(model, masks)
    model.set_weights(dense)
    strip_pruning(model)
    assert faults(model, masks) == {}


@pytest.mark.parametrize(
    "constraint",
    [
        keras.constraints.NonNeg(),
        keras.constraints.MaxNorm(0.5),
        keras.constraints.UnitNorm(),
        lambda w: keras.ops.clip(w, -0.1, 0.1),
    ],
    ids=["nonneg", "maxnorm", "unitnorm", "function"],
)
def test_a_constraint_of_ones_own_works_on_and_is_given_back(mlp, constraint):
    model = mlp(kernel_constraint=constraint)
    kernel = model.weights[0]
    masks = random_masks(model)
    apply_masks(model, masks)
    apply_masks(model, masks)  # twice, so that a mask must not become its own inner constraint
    compile_(model, keras.optimizers.SGD(0.1))
    model.fit(*data_for(model), batch_size=BATCH, verbose=0)
    value, mask = keras.ops.convert_to_numpy(kernel), masks[kernel.path]
    assert not value[~mask].any()
    assert value[mask].any()
    if isinstance(constraint, keras.constraints.NonNeg):
        assert (value >= 0).all()
    elif isinstance(constraint, keras.constraints.Constraint):
        limit = 0.5 if isinstance(constraint, keras.constraints.MaxNorm) else 1.0
        assert (np.linalg.norm(value, axis=0) <= limit + 1e-5).all()
    else:
        assert np.abs(value).max() <= np.float32(0.1)
    strip_pruning(model)
    assert kernel.constraint is constraint
    assert model.layers[0].kernel_constraint is constraint


# --- saving, loading, copying ----------------------------------------------------------------


def trained(make, masks_seed=0):
    model = make()
    masks = random_masks(model, masks_seed)
    apply_masks(model, masks)
    compile_(model)
    fit(model, masks)
    return model, masks


@pytest.mark.parametrize("make", [nested, attention])
@pytest.mark.few(1)
def test_keras_file_then_restore_masks(make, tmp_path):
    model, masks = trained(make)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert get_masks(loaded) == {}
    assert restore_masks(loaded) is loaded
    found = get_masks(loaded)
    # Keras may call an inner layer by another path after loading, but keeps the order.
    for mask, right in zip(found.values(), masks.values(), strict=True):
        np.testing.assert_array_equal(mask, right)
    fit(loaded, found)  # with the optimizer that was loaded


@pytest.mark.long
def test_keras_files_have_no_trace_of_the_package(mlp, tmp_path):
    model, _ = trained(lambda: mlp(kernel_constraint="max_norm"))
    model.save(tmp_path / "masked.keras")
    scheduled = keras_ntt.prune_low_magnitude(mlp(), keras_ntt.ConstantSparsity(0.5, 1))
    compile_(scheduled)
    scheduled.fit(*data_for(scheduled), batch_size=BATCH, verbose=0)
    scheduled.save(tmp_path / "scheduled.keras")
    result = run_python(
        "import sys, keras\n"
        f"load, folder = keras.models.load_model, {str(tmp_path)!r}\n"
        "masked, scheduled = (load(f'{folder}/{n}.keras') for n in ('masked', 'scheduled'))\n"
        "assert 'keras_ntt' not in sys.modules\n"
        "print(type(masked.weights[0].constraint).__name__)\n"
        "print(sum(int((v.numpy() == 0).sum()) for v in scheduled.weights if v.name == 'kernel'))"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["MaxNorm", "36"]


def test_weights_file_of_a_pruned_model_loads_into_a_plain_one_and_back(mlp, tmp_path):
    model, masks = trained(mlp)
    file = tmp_path / "model.weights.h5"
    model.save_weights(file)
    plain = mlp()
    plain.load_weights(file)
    for old, new in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert get_masks(plain) == {}
    restore_masks(plain)
    for mask, right in zip(get_masks(plain).values(), masks.values(), strict=True):
        np.testing.assert_array_equal(mask, right)
    model.load_weights(file)
    fit(model, masks)


def test_weights_loaded_into_a_model_with_masks_are_masked_by_training(mlp, tmp_path):
    model = mlp()
    model.save_weights(tmp_path / "dense.weights.h5")
    masks = random_masks(model)
    apply_masks(model, masks)
    model.load_weights(tmp_path / "dense.weights.h5")
    compile_(model)
    fit(model, masks)


def test_restore_masks_touches_kernels_only(cnn):
    model = cnn()
    kernels = [v for v in model.weights if v.name == "kernel"]
    first = keras.ops.convert_to_numpy(kernels[0]).copy()
    first[0] = 0
    kernels[0].assign(first)
    restore_masks(model)
    # The second kernel holds no zero and biases, all zero, are not pruned.
    assert list(get_masks(model)) == [kernels[0].path]
    np.testing.assert_array_equal(get_masks(model)[kernels[0].path], first != 0)


def test_clone_of_a_model_with_masks_is_free_of_them(mlp):
    model, masks = trained(lambda: mlp(kernel_constraint="max_norm"))
    clone = keras.models.clone_model(model)
    assert get_masks(clone) == {}
    assert isinstance(clone.weights[0].constraint, keras.constraints.MaxNorm)
    compile_(clone)
    clone.fit(*data_for(clone), batch_size=BATCH, verbose=0)
    assert faults(model, masks) == {}
    clone.set_weights(model.get_weights())
    restore_masks(clone)
    for mask, right in zip(get_masks(clone).values(), masks.values(), strict=True):
        np.testing.assert_array_equal(mask, right)


def functional(first=8, last=3):
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    hidden = keras.layers.Dense(first, activation="tanh")(hidden)
    return keras.Model(inputs, keras.layers.Dense(last)(hidden))


@pytest.mark.parametrize(
    ("make", "before"), [(functional, 1), (functional, 2), (functional, 3), (nested, 1), ("mlp", 3)]
)
def test_masks_load_into_a_model_rebuilt_with_other_layer_numbers(make, before, mlp, tmp_path):
    make = mlp if make == "mlp" else make
    for _ in range(before):
        keras.layers.Dense(1)  # takes a number of the automatic names
    model = make()
    masks = random_masks(model)
    apply_masks(model, masks)
    save_masks(model, tmp_path / "masks.npz")
    keras.backend.clear_session()  # as in a new process: numbers begin again
    rebuilt = make()
    assert [v.path for v in rebuilt.weights] != [v.path for v in model.weights]
    assert load_masks(rebuilt, tmp_path / "masks.npz") is rebuilt
    held = get_masks(rebuilt)
    assert list(held) == [v.path for v in rebuilt.weights if v.name == "kernel"]
    for mask, right in zip(held.values(), masks.values(), strict=True):
        np.testing.assert_array_equal(mask, right)
    if before == 3:
        compile_(rebuilt)
        fit(rebuilt, held)


@pytest.mark.parametrize("before", [1, 3], ids=lambda n: f"{n}_layers_earlier")
def test_masks_of_some_layers_never_land_on_others_of_a_rebuilt_model(before, tmp_path):
    for _ in range(before):
        keras.layers.Dense(1)
    model = functional()
    path = model.layers[1].kernel.path
    apply_masks(model, {path: random_masks(model)[path]})
    save_masks(model, tmp_path / "masks.npz")
    keras.backend.clear_session()
    rebuilt = functional()  # what was called dense_1 is the second layer now, of the same shape
    try:
        load_masks(rebuilt, tmp_path / "masks.npz")
    except ValueError:
        assert get_masks(rebuilt) == {}
    else:
        assert list(get_masks(rebuilt)) == [rebuilt.layers[1].kernel.path]


def test_masks_stay_with_a_model_that_is_compiled_again(mlp):
    model, masks = trained(mlp)
    compile_(model, keras.optimizers.SGD(0.1, momentum=0.9))
    fit(model, masks)


def test_zeros_of_frozen_layers_are_restored_too(mlp, tmp_path):
    model, _ = trained(mlp)
    held = get_masks(model)
    model.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    loaded.trainable = False
    found = get_masks(restore_masks(loaded))
    assert len(found) == len(held) > 1
    for mask, right in zip(found.values(), held.values(), strict=True):
        np.testing.assert_array_equal(mask, right)


def test_a_kernel_that_begins_with_zeros_is_not_taken_for_pruned(mlp):
    model, _ = trained(mlp)
    kernel = model.layers[-1].kernel
    model = strip_pruning(model)
    kernel.assign(np.zeros(kernel.shape))
    with warned("get no mask: kernels of zeros only.*load_masks.*Received: "):
        restore_masks(model)
    assert kernel.path not in get_masks(model)
    assert get_masks(model)


def test_a_kernel_beside_others_with_masks_is_noticed_too(mlp):
    model, masks = trained(mlp)
    strip_pruning(model)
    first, *_ = masks
    apply_masks(model, {first: masks[first]})
    compile_(model)
    with warned("looks pruned but nothing keeps its zeros"):
        model.fit(*data_for(model), verbose=0, callbacks=[keras_ntt.UpdatePruningStep()])
