"""Run by test_distribution in processes of its own: replicas and workers of tf.distribute.

    python distributed_child.py mirrored
    TF_CONFIG=... python distributed_child.py worker
    TF_CONFIG=... python distributed_child.py lasting FOLDER

Each check prints its name when it has passed.
"""

import os
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
import tensorflow as tf

if sys.argv[1] == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategy = tf.distribute.MirroredStrategy(devices)
else:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

import hashlib

import keras
import numpy as np
import pytest

import keras_ntt
from keras_ntt.pruning.scheduled_mask import scheduled_masks

X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
NEVER = keras_ntt.NTTSchedule(0.5, frequency=1000)


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)]
    )


def transfer_of(optimizer, schedule=NEVER, **options):
    options = {"seed": 1, **options}
    transfer = keras_ntt.NeuralTangentTransfer(network(), pruning_schedule=schedule, **options)
    transfer.compile(optimizer)
    return transfer


def on_all(make):
    with strategy.scope():
        return make()


def values_of(transfer):
    return [keras.ops.convert_to_numpy(v) for v in transfer.student.weights]


def step_without_a_strategy(part):
    """Return the weights after a step on a part of a batch: the first ones minus a gradient."""
    transfer = transfer_of(keras.optimizers.SGD(1.0))
    transfer.fit(part, batch_size=len(part), shuffle=False, verbose=0)
    return values_of(transfer)


def check_gradient(parts):
    x = np.concatenate(parts)
    transfer = on_all(lambda: transfer_of(keras.optimizers.SGD(1.0)))
    history = transfer.fit(x, batch_size=len(x), shuffle=False, verbose=0).history
    alone = [step_without_a_strategy(part) for part in parts if len(part)]
    for value, *own in zip(values_of(transfer), *alone, strict=True):
        np.testing.assert_allclose(value, np.mean(own, axis=0), rtol=0, atol=2e-7)
        if len(own) > 1:
            assert np.abs(own[0] - own[1]).max() > 1e-2  # the parts do differ
    assert np.isfinite(history["loss"]).all()
    assert transfer.step == 1


class Replicas(keras.callbacks.Callback):
    """Compares all copies of all variables whenever a batch ends."""

    def on_train_begin(self, logs=None):
        self.faults, self.masks, self.changes = [], self.model.masks, 0

    def on_train_batch_end(self, batch, logs=None):
        means = {id(v) for v in self.model.metrics_variables}
        for v in [*self.model.variables, *self.model.optimizer.variables]:
            copies = [np.asarray(c) for c in strategy.experimental_local_results(v.value)]
            assert len(copies) == len(strategy.extended.worker_devices)
            same = all(np.array_equal(copies[0], copy) for copy in copies)
            if id(v) not in means and not same:
                self.faults.append(v.path)
        masks = self.model.masks
        self.changes += any((masks[key] != self.masks[key]).any() for key in masks)
        self.masks = masks


def check_all_copies():
    schedule = keras_ntt.NTTSchedule(0.5, frequency=2)
    adam = keras.optimizers.Adam
    transfer = on_all(lambda: transfer_of(adam(0.1), schedule))
    watch = Replicas()
    # Batches of 5, 5, 5 and 1: parts of 3 and 2, and one replica that gets nothing.
    losses = transfer.fit(X, batch_size=5, epochs=4, verbose=0, callbacks=[watch]).history["loss"]
    assert watch.faults == []
    assert watch.changes >= 3
    assert transfer.step == 16
    assert np.isfinite(losses).all()
    zeros = {v.path: keras.ops.convert_to_numpy(v) != 0 for v in transfer.student.weights}
    for path, mask in keras_ntt.get_masks(transfer.student).items():
        np.testing.assert_array_equal(zeros[path], mask)
        assert mask.sum() == round(mask.size * 0.5)


def mirrored():
    check_gradient([X[:8], X[8:]])
    print("gradient of halves")
    check_gradient([X[:3], X[3:5]])
    print("gradient of parts of other sizes")
    check_gradient([X[:1], X[:0]])
    print("gradient where a replica gets nothing")
    check_all_copies()
    print("copies")
    averages()
    print("averages of the weights")
    divergence()
    print("divergence")
    loss_scale()
    print("loss scale")
    scopes()
    print("scopes")
    loss_of_callbacks()
    print("loss of callbacks")
    whole_job()
    print("whole job")


def averages():
    """With use_ema=True the optimizer writes the averages to each copy when training ends."""
    y = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
    for pruned in (False, True):
        with strategy.scope():
            model = network()
            adam = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.5)
            model.compile(adam, "mse", jit_compile=False)
        if pruned:  # zeros come while training goes on, when averages are not zero
            keras_ntt.prune_low_magnitude(
                model, keras_ntt.PolynomialDecay(0.2, 0.6, 2, 7, frequency=1)
            )
        else:
            model.fit(X, y, batch_size=4, verbose=0)
            halves = {v.path: np.ones(v.shape, bool) for v in model.weights if v.name == "kernel"}
            for mask in halves.values():
                mask[::2] = False
            keras_ntt.apply_masks(model, halves)
        model.fit(X, y, batch_size=4, epochs=2, verbose=0)
        for path, mask in keras_ntt.get_masks(model).items():
            (variable,) = [v for v in model.weights if v.path == path]
            for copy in strategy.experimental_local_results(variable.value):
                np.testing.assert_array_equal(copy.numpy() != 0, mask)
            assert 0.3 < mask.mean() < 0.6
        assert [m.step for m in scheduled_masks(model)] == [8, 8] * pruned
        keras_ntt.strip_pruning(model)
        held = [variable.value for variable in model.weights]
        assert not any("assign" in vars(copy) for v in held for copy in (v, *v.values))


def divergence():
    bad = X.copy()
    bad[15] = np.nan  # in the last batch, on the second replica
    transfer = on_all(lambda: transfer_of(keras.optimizers.Adam(0.01)))
    transfer.fit(X[:12], batch_size=4, shuffle=False, verbose=0)
    before = [*values_of(transfer), *map(keras.ops.convert_to_numpy, transfer.optimizer.variables)]
    dataset = tf.data.Dataset.from_tensor_slices(bad[12:]).batch(4)
    with pytest.raises(FloatingPointError, match="after step 3"):
        transfer.fit(dataset, verbose=0)
    after = [*values_of(transfer), *map(keras.ops.convert_to_numpy, transfer.optimizer.variables)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    for variable in transfer.student.weights:
        first, second = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)


def loss_scale():
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.optimizers.Adam

    def make():
        optimizer = keras.optimizers.LossScaleOptimizer(inner(1e-3), initial_scale=2.0**30)
        return transfer_of(optimizer)

    transfer, watch = on_all(make), Replicas()
    x = X.copy()
    x[8:] *= 4  # overflows on the second replica first
    transfer.fit(x, batch_size=16, epochs=24, shuffle=False, verbose=0, callbacks=[watch])
    assert watch.faults == []
    applied = int(keras.ops.convert_to_numpy(transfer.optimizer.iterations))
    assert 0 < applied < 24 == transfer.step
    scale = keras.ops.convert_to_numpy(transfer.optimizer.dynamic_scale)
    assert scale == 2.0 ** (30 - (24 - applied))
    assert all(np.isfinite(value).all() for value in values_of(transfer))
    keras.config.set_dtype_policy("float32")


def scopes():
    inside, outside = on_all(network), network()
    prune = keras_ntt.NeuralTangentTransfer
    with pytest.raises(ValueError, match=r"with strategy\.scope\(\).*in no scope"):
        prune(inside, pruning_schedule=0.5)
    with pytest.raises(ValueError, match=r"outside of it.*strategy=MirroredStrategy"):
        on_all(lambda: prune(outside, pruning_schedule=0.5))
    assert not keras_ntt.get_masks(inside)


def loss_of_callbacks():
    """In the scope of two replicas, where Keras halves losses, and out of it."""
    labels = np.arange(16) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain = network()
    plain.compile("sgd", loss)
    wanted = keras_ntt.effective_gradient_flow(plain, X, labels)
    with strategy.scope():
        model = network()
        model.compile("sgd", loss)
        for given in (None, loss):
            found = keras_ntt.effective_gradient_flow(model, X, labels, loss=given)
            np.testing.assert_allclose(found, wanted, rtol=1e-5)
        granet = keras_ntt.GraNet(0.5, (X, labels), end_step=1, frequency=1)
        watch = keras_ntt.TrainingDynamics(network(), X[:4], labels[:4])
        model.fit(X, labels, batch_size=16, verbose=0, callbacks=[granet, watch])
    assert keras_ntt.sparsity_report(model).sparsity == pytest.approx(0.5, abs=0.01)
    np.testing.assert_allclose(
        watch.start["gradient_flow"],
        keras_ntt.effective_gradient_flow(plain, X[:4], labels[:4]),
        rtol=1e-5,
    )


def whole_job():
    model = on_all(network)
    sparse = on_all(
        lambda: keras_ntt.prune_neural_tangent(
            model, X, sparsity=0.7, epochs=2, batch_size=8, seed=0, verbose=0,
            memory_limit=2**24, output_projections=2,
        )
    )  # fmt: skip
    with strategy.scope():
        sparse.compile("adam", "mse", jit_compile=False)
    sparse.fit(X, np.zeros((16, 3)), batch_size=4, verbose=0)
    for path, mask in keras_ntt.get_masks(sparse).items():
        (variable,) = [v for v in sparse.weights if v.path == path]
        for copy in strategy.experimental_local_results(variable.value):
            assert not copy.numpy()[~mask].any()
        assert mask.sum() == round(mask.size * 0.3)


def worker():
    assert strategy.num_replicas_in_sync == 2
    check_gradient([X[:8], X[8:]])
    print("gradient of halves")
    np.random.seed(strategy.cluster_resolver.task_id)  # for a seed that the workers must share
    transfer = on_all(
        lambda: transfer_of(keras.optimizers.Adam(0.1), keras_ntt.NTTSchedule(0.5, 2), seed=None)
    )
    watch = Replicas()
    history = transfer.fit(
        X, batch_size=5, epochs=3, verbose=0, callbacks=[watch], validation_data=X
    ).history
    assert watch.faults == []
    assert watch.changes >= 2
    assert np.isfinite(history["loss"] + history["val_loss"]).all()
    print("transfer", digest(values_of(transfer)), digest(transfer.masks.values()))
    print("scheduled", digest(train_scheduled()))


def train_scheduled():
    """Train a model pruned by magnitude in a loop of its own: Keras's fit is for one worker."""
    y = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
    with strategy.scope():
        model = network()
        optimizer = keras.optimizers.Adam(0.05)
        optimizer.build(model.trainable_variables)
        keras_ntt.prune_low_magnitude(model, keras_ntt.PolynomialDecay(0.2, 0.6, 2, 6, frequency=1))

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) / 2
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    run = tf.function(lambda *batch: strategy.run(step, args=batch))
    data = tf.data.Dataset.from_tensor_slices((X, y)).batch(4, drop_remainder=True).repeat(2)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    for batch in strategy.experimental_distribute_dataset(data.with_options(options)):
        run(*batch)
    masks = keras_ntt.get_masks(model)
    for variable in model.weights:
        if variable.path in masks:
            value = keras.ops.convert_to_numpy(variable)
            np.testing.assert_array_equal(value != 0, masks[variable.path])
            assert masks[variable.path].sum() == round(value.size * 0.4)
    return [keras.ops.convert_to_numpy(v) for v in model.weights]


def lasting():
    """A transfer of some time that saves its state, to be killed at."""
    folder = os.path.join(sys.argv[2], str(strategy.cluster_resolver.task_id))

    class Slow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            print("epoch", epoch, flush=True)
            time.sleep(0.2)

    transfer = on_all(
        lambda: transfer_of(keras.optimizers.Adam(0.1), keras_ntt.NTTSchedule(0.5, frequency=2))
    )
    backup = keras_ntt.BackupAndRestore(folder)
    transfer.fit(X, batch_size=8, epochs=12, verbose=0, callbacks=[backup, Slow()])
    print("ended", digest(values_of(transfer)), digest(transfer.masks.values()))


def digest(arrays):
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()[:16]


if __name__ == "__main__":
    globals()[sys.argv[1]]()
