import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures
from keras import layers

import keras_ntt

pytestmark = pytest.mark.oldest

SPARSITY = 0.8


def small(seed=0):
    keras.utils.set_random_seed(seed)
    return architectures.randomize(
        architectures.sequential((6,), layers.Dense(16, "relu"), layers.Dense(3)), seed
    )


def transfer_of(student, **options):
    schedule = options.pop("pruning_schedule", keras_ntt.NTTSchedule(SPARSITY, frequency=4))
    compiled = options.pop("compiled", {})
    transfer = keras_ntt.NeuralTangentTransfer(
        student, pruning_schedule=schedule, seed=7, **options
    )
    transfer.compile(keras.optimizers.Adam(1e-2), **compiled)
    return transfer


def samples(n=64, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 6)).astype("float32")


class Outcome:
    """What a run has led to, in arrays that later tests may compare theirs with."""

    def __init__(self, transfer):
        self.step, self.masks = transfer.step, list(transfer.masks.values())
        self.weights = transfer.student.get_weights()

    def compare(self, transfer, exactly=True):
        assert self.step == transfer.step
        for mask, other in zip(self.masks, transfer.masks.values(), strict=True):
            np.testing.assert_array_equal(mask, other)
        for a, b in zip(self.weights, transfer.student.get_weights(), strict=True):
            if exactly:
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, atol=1e-5)


def assert_same(first, second):
    Outcome(first).compare(second)


def test_fit_lowers_the_loss_and_reports_it():
    transfer = transfer_of(small())
    history = transfer.fit(
        samples(), batch_size=16, epochs=30, verbose=0, validation_data=samples(32, seed=1)
    ).history
    names = {"loss", "ntk_distance", "output_distance", "sparsity"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert history["sparsity"] == pytest.approx([SPARSITY] * 30, abs=0.01)


def test_student_is_exactly_sparse_and_stays_so():
    student = small()
    transfer = transfer_of(student)
    transfer.fit(samples(), batch_size=16, epochs=3, verbose=0)
    assert set(keras_ntt.get_masks(student)) == set(transfer.masks)
    student.compile("adam", "mse")
    student.fit(samples(), np.zeros((64, 3)), epochs=2, verbose=0)
    for variable in student.weights:
        if variable.name == "kernel":
            value = keras.ops.convert_to_numpy(variable)
            assert np.count_nonzero(value) == transfer.masks[variable.path].sum()
            assert transfer.masks[variable.path].sum() == round(value.size * (1 - SPARSITY))


def test_biases_are_trained_and_never_masked():
    student = small()
    before = keras.ops.convert_to_numpy(student.layers[0].bias).copy()
    transfer = transfer_of(student)
    transfer.fit(samples(), batch_size=16, verbose=0)
    assert not any("bias" in key for key in transfer.masks)
    assert not np.array_equal(student.layers[0].bias, before)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, labelled):
        super().__init__()
        self.x, self.labelled = x, labelled

    def __len__(self):
        return len(self.x) // 16

    def __getitem__(self, i):
        x = self.x[16 * i : 16 * (i + 1)]
        return (x, np.full(len(x), np.nan)) if self.labelled else (x,)


def kinds_of_data():
    x = samples()
    y = np.full(len(x), np.nan, "float32")
    dataset = tf.data.Dataset.from_tensor_slices
    return {
        "dataset": lambda: dataset(x).batch(16),
        "labelled dataset": lambda: dataset((x, y)).batch(16),
        "weighted dataset": lambda: dataset((x, y, y)).batch(16),
        "PyDataset": lambda: Batches(x, labelled=False),
        "labelled PyDataset": lambda: Batches(x, labelled=True),
        "generator": lambda: (x[i : i + 16] for i in range(0, 64, 16)),
        "labelled generator": lambda: ((x[i : i + 16], y) for i in range(0, 64, 16)),
        "unknown length": lambda: dataset(x).filter(lambda row: True).batch(16),
        "array": lambda: x,
        "tensor": lambda: tf.constant(x),
    }


@functools.cache
def on_a_dataset():
    schedule = keras_ntt.NTTSchedule(SPARSITY, frequency=2, end_step=4)
    transfer = transfer_of(small(), pruning_schedule=schedule)
    transfer.fit(kinds_of_data()["dataset"](), verbose=0)
    return Outcome(transfer)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", [kind for kind in kinds_of_data() if kind != "dataset"])
@pytest.mark.few(1)
def test_every_kind_of_data_gives_the_same_run(kind):
    schedule = keras_ntt.NTTSchedule(SPARSITY, frequency=2, end_step=4)
    found = transfer_of(small(), pruning_schedule=schedule)
    options = {"batch_size": 16, "shuffle": False} if kind in ("array", "tensor") else {}
    if "PyDataset" in kind:
        options = {"shuffle": False}
    found.fit(kinds_of_data()[kind](), verbose=0, **options)
    on_a_dataset().compare(found, exactly=False)


@functools.cache
def step_by_step():
    transfer = transfer_of(small())
    transfer.fit(samples(), batch_size=8, epochs=2, verbose=0)
    return Outcome(transfer)


@pytest.mark.parametrize(
    "compiled",
    [{"steps_per_execution": 4}, {"run_eagerly": True}, {"jit_compile": True}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.few(1)
def test_ways_of_running_agree(compiled):
    found = transfer_of(small(), compiled=compiled)
    found.fit(samples(), batch_size=8, epochs=2, verbose=0)
    assert found.step == 16
    step_by_step().compare(found, exactly=False)


@pytest.mark.parametrize("n", [17, 19, 1])
@pytest.mark.few(1)
def test_odd_last_batches(n):
    transfer = transfer_of(small())
    history = transfer.fit(samples(n), batch_size=16, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert transfer.step == -(-n // 16)


def test_masks_are_refreshed_on_schedule_and_not_in_the_last_interval():
    transfer = transfer_of(small())
    changes = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.before = transfer.masks

        def on_train_batch_end(self, batch, logs=None):
            after = transfer.masks
            if any((after[key] != self.before[key]).any() for key in after):
                changes.append(transfer.step)
            self.before = after

    transfer.optimizer.learning_rate = 0.1
    transfer.fit(samples(), batch_size=4, epochs=2, verbose=0, callbacks=[Watch()])
    assert transfer.step == 32
    assert set(changes) <= {4, 8, 12, 16, 20, 24}
    assert len(changes) >= 3


@pytest.mark.long
def test_masks_are_those_of_the_latent_magnitudes():
    for allocation in ("layerwise", "global"):
        transfer = transfer_of(
            small(),
            allocation=allocation,
            pruning_schedule=keras_ntt.NTTSchedule(SPARSITY, frequency=4, end_step=100),
        )
        transfer.fit(samples(), batch_size=16, verbose=0)  # 4 steps: refreshed after the last
        latent = [keras.ops.convert_to_numpy(v) for v in transfer._weights.latent]
        masks = list(transfer.masks.values())
        if allocation == "global":
            latent = [np.concatenate([v.ravel() for v in latent])]
            masks = [np.concatenate([m.ravel() for m in masks])]
        for value, mask in zip(latent, masks, strict=True):
            kept = round(value.size * (1 - SPARSITY))
            assert mask.sum() == kept
            threshold = np.sort(np.abs(value).ravel())[-kept]
            np.testing.assert_array_equal(mask, np.abs(value) >= threshold)


def test_pruned_latent_weights_rest():
    transfer = transfer_of(
        small(), pruning_schedule=keras_ntt.NTTSchedule(SPARSITY, frequency=1000)
    )
    before = [keras.ops.convert_to_numpy(v).copy() for v in transfer._weights.latent]
    transfer.fit(samples(), batch_size=16, verbose=0)
    rows = zip(before, transfer._weights.latent, transfer.masks.values(), strict=True)
    for old, latent, mask in rows:
        new = keras.ops.convert_to_numpy(latent)
        np.testing.assert_array_equal(new[~mask], old[~mask])
        assert (new[mask] != old[mask]).all()


def test_gradual_sparsity_by_a_plain_function():
    steps = {4: 0.5, 8: 0.8}
    transfer = transfer_of(
        small(), pruning_schedule=lambda step: (step in steps, steps.get(step, 0.0))
    )
    seen = {}

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen[transfer.step] = logs["sparsity"]

    assert all(mask.all() for mask in transfer.masks.values())
    transfer.fit(samples(), batch_size=4, verbose=0, callbacks=[Watch()])
    assert [round(seen[s], 2) for s in (3, 4, 7, 8, 16)] == [0.0, 0.5, 0.5, 0.8, 0.8]


@pytest.mark.long
def test_another_teacher_is_matched_and_left_alone():
    teacher, student = small(seed=1), small(seed=2)
    before = teacher.get_weights()
    transfer = transfer_of(student, teacher=teacher, pruning_schedule=0.0)
    x = samples()
    start = np.abs(student(x) - teacher(x)).mean()
    transfer.fit(x, batch_size=16, epochs=60, verbose=0)
    assert np.abs(student(x) - teacher(x)).mean() < 0.5 * start
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_weights_can_be_saved_and_loaded(tmp_path):
    first = transfer_of(small())
    first.fit(samples(), batch_size=16, epochs=2, verbose=0)
    first.save_weights(tmp_path / "transfer.weights.h5")
    second = transfer_of(small(seed=3))
    second.load_weights(tmp_path / "transfer.weights.h5")
    assert_same(first, second)
    x = samples(16, seed=4)
    assert first.evaluate(x, verbose=0) == second.evaluate(x, verbose=0)
    for transfer in (first, second):
        transfer.fit(samples(), batch_size=16, epochs=1, verbose=0)
    assert_same(first, second)


class KilledError(Exception):
    pass


class Kill(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if self.model.step == self.step:
            raise KilledError


@functools.cache
def five_epochs():
    transfer = transfer_of(small())
    transfer.fit(samples(), batch_size=16, epochs=5, verbose=0)
    return Outcome(transfer)


@pytest.mark.parametrize("step", [6, 13])
@pytest.mark.long
def test_a_run_that_was_killed_ends_where_another_ends(tmp_path, step):
    backup = tmp_path / "backup"
    killed = transfer_of(small())
    with pytest.raises(KilledError):
        killed.fit(
            samples(),
            batch_size=16,
            epochs=5,
            verbose=0,
            callbacks=[keras.callbacks.BackupAndRestore(backup), Kill(step)],
        )
    # Another process: other initial weights, another seed, all of it overwritten.
    resumed = keras_ntt.NeuralTangentTransfer(
        small(seed=5), pruning_schedule=keras_ntt.NTTSchedule(SPARSITY, frequency=4)
    )
    resumed.compile(keras.optimizers.Adam(1e-2))
    resumed.fit(
        samples(),
        batch_size=16,
        epochs=5,
        verbose=0,
        callbacks=[keras.callbacks.BackupAndRestore(backup)],
    )
    assert resumed.step == 20
    five_epochs().compare(resumed)


def test_same_seed_same_run():
    runs = [transfer_of(small()) for _ in range(2)]
    for run in runs:
        run.fit(samples(), batch_size=16, epochs=2, verbose=0)
    assert_same(*runs)


def test_arrays_are_drawn_in_a_new_order_each_epoch():
    from keras_ntt.core import inputs

    transfer = transfer_of(small())
    x = np.arange(10.0)
    orders = []
    for step in (0, 3, 3):
        transfer._state.step.assign(step)
        transfer._state.begin_epoch()
        data = inputs.batches(x, 4, key=transfer._state.order, shuffle=True)
        orders.append(np.concatenate([b.numpy() for b in data]))
    assert all(sorted(order) == list(x) for order in orders)
    assert list(orders[0]) != list(orders[1])
    assert list(orders[1]) == list(orders[2])


def test_a_run_that_blows_up_says_so():
    transfer = transfer_of(small())
    transfer.optimizer.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match="learning rate is too high"):
        transfer.fit(samples(), batch_size=16, epochs=3, verbose=0)


def test_a_bad_batch_before_the_first_step_leaves_the_student_dense():
    student = small()
    before = student.get_weights()
    transfer = transfer_of(student)
    with pytest.raises(ValueError, match="do not have the shape"):
        transfer.fit((np.zeros((4, 5), "float32") for _ in range(3)), verbose=0)
    for a, b in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_prune_neural_tangent_leaves_the_model_and_returns_a_sparse_copy():
    model = small()
    before = model.get_weights()
    sparse = keras_ntt.prune_neural_tangent(
        model, samples(), sparsity=SPARSITY, epochs=2, batch_size=16, verbose=0
    )
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sparse is not model
    assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(SPARSITY, abs=0.01)
    assert not keras_ntt.get_masks(model)


def test_prune_neural_tangent_copies_a_model_with_code_of_its_own():
    model = architectures.OwnCode()
    x = np.random.default_rng(0).standard_normal((32, 5)).astype("float32")
    model(x[:1])
    sparse = keras_ntt.prune_neural_tangent(
        model, x, sparsity=0.5, epochs=1, batch_size=16, verbose=0
    )
    assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.05)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The model .* ends in")
@pytest.mark.parametrize("make", architectures.ALL, ids=lambda make: make.__name__)
def test_a_transfer_runs_on_every_architecture(make):
    model = architectures.randomize(make(), scale=0.3)
    if not any(v.name == "kernel" for v in model.trainable_variables):
        with pytest.raises(ValueError, match="nothing to prune"):
            transfer_of(model)
        return
    transfer = transfer_of(model, pruning_schedule=0.5)
    x = architectures.inputs_for(model, 8).astype("float32")
    losses = transfer.fit(x, batch_size=4, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert all(0.3 < 1 - m.mean() < 0.7 for m in transfer.masks.values())


class KeepBest(keras.callbacks.Callback):
    """Saves the state after an epoch, and what the student was then."""

    def __init__(self, file, epoch):
        super().__init__()
        self.file, self.epoch = file, epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.save_weights(self.file)
            self.saved = self.model.student.get_weights()
            self.masks = self.model.masks


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.few(1)
def test_an_earlier_state_that_is_loaded_is_that_of_the_student(tmp_path, fresh):
    schedule = keras_ntt.NTTSchedule(SPARSITY, frequency=1)
    best = KeepBest(tmp_path / "best.weights.h5", 0)
    transfer = transfer_of(small(), pruning_schedule=schedule)
    transfer.fit(samples(), batch_size=8, epochs=5, verbose=0, callbacks=[best])
    last = list(transfer.masks.values())
    assert any((a != b).any() for a, b in zip(last, best.masks.values(), strict=True))
    if fresh:
        transfer = transfer_of(small(seed=3), pruning_schedule=schedule)
    transfer.load_weights(best.file)
    for a, b in zip(transfer.student.get_weights(), best.saved, strict=True):
        np.testing.assert_array_equal(a, b)
    held = keras_ntt.get_masks(transfer.student).values()
    for mask, right in zip(held, best.masks.values(), strict=True):
        np.testing.assert_array_equal(mask, right)
    state = transfer.get_weights()
    transfer.set_weights(state)
    for a, b in zip(transfer.student.get_weights(), best.saved, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_file_that_does_not_fit_leaves_the_student_its_masks(tmp_path):
    transfer = transfer_of(small())
    transfer.fit(samples(), batch_size=16, verbose=0)
    before = keras_ntt.get_masks(transfer.student)
    (tmp_path / "other.weights.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(Exception, match=r"signature|open file"):
        transfer.load_weights(tmp_path / "other.weights.h5")
    for mask, right in zip(
        keras_ntt.get_masks(transfer.student).values(), before.values(), strict=True
    ):
        np.testing.assert_array_equal(mask, right)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


def test_a_run_that_is_interrupted_leaves_the_student_with_its_masks():
    transfer = transfer_of(small())
    with pytest.raises(KeyboardInterrupt):
        transfer.fit(samples(), epochs=3, verbose=0, callbacks=[Interrupt()])
    held = keras_ntt.get_masks(transfer.student)
    for mask, right in zip(held.values(), transfer.masks.values(), strict=True):
        np.testing.assert_array_equal(mask, right)
    zeros = [np.count_nonzero(w == 0) for w in transfer.student.get_weights()]
    student = transfer.student
    student.compile("adam", "mse", jit_compile=False)
    student.fit(samples(), np.ones((64, 3)), epochs=2, verbose=0)
    assert [np.count_nonzero(w == 0) for w in student.get_weights()] == zeros


@pytest.mark.parametrize("run_before", [False, True])
def test_kernels_that_were_changed_since_are_refused_and_left_alone(run_before):
    transfer = transfer_of(small())
    if run_before:
        transfer.fit(samples(), epochs=1, verbose=0)
    student = transfer.student
    student.set_weights([2 * w for w in student.get_weights()])
    before, masks = student.get_weights(), keras_ntt.get_masks(student)
    with pytest.raises(ValueError, match=r"were changed since.*new NeuralTangentTransfer"):
        transfer.fit(samples(), epochs=1, verbose=0)
    for a, b in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(keras_ntt.get_masks(student)) == list(masks)


@pytest.mark.long
def test_averages_of_the_optimizer_are_those_of_the_student():
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.5)
    transfer = transfer_of(small(), pruning_schedule=keras_ntt.NTTSchedule(SPARSITY, None))
    transfer.compile(optimizer)
    path = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            path.append(self.model.student.get_weights())

    transfer.fit(samples(), batch_size=16, epochs=1, verbose=0, callbacks=[Note()])
    # Keras begins the average with the weights after the first step.
    average = path[0]
    for weights in path[1:]:
        average = [0.5 * a + 0.5 * w for a, w in zip(average, weights, strict=True)]
    assert len(path) == 4
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(average, path[-1], strict=True))
    transfer.compile(keras.optimizers.SGD(0.0))  # another run goes on from them
    transfer.fit(samples(), batch_size=16, epochs=1, verbose=0)
    for found, right in zip(transfer.student.get_weights(), average, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
