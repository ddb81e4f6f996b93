"""Files that are whole or as they were: full disks, folders that cannot be written, states."""

import contextlib
import functools
import resource
import signal

import keras
import numpy as np
import pytest
from helpers import architectures
from keras import layers

import keras_ntt
from keras_ntt.core.atomic_files import leftovers, replacing


def model_of(seed=0, width=300):
    keras.utils.set_random_seed(seed)
    dense = architectures.sequential((64,), layers.Dense(width, "relu"), layers.Dense(10))
    return keras_ntt.prune_at_init(dense, sparsity=0.5, saliency="random", seed=seed)


def write_masks(model, path):
    keras_ntt.save_masks(model, path)


def write_model(model, path):
    keras_ntt.save_model(model, path)


def write_export(model, path):
    keras_ntt.export_tflite(model, path)


def write_state(model, path):
    callback = keras_ntt.BackupAndRestore(path.parent)
    callback.set_model(model)
    callback.on_epoch_end(0)


WRITERS = {
    "masks.npz": write_masks,
    "model.keras": write_model,
    "model.tflite": write_export,
    "epoch-1.weights.h5": write_state,
}


@contextlib.contextmanager
def files_of_at_most(size):
    """Let no file grow larger, as a disk that is full lets it not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("older", [True, False], ids=["older_file", "no_file"])
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "model.tflite"])
@pytest.mark.few(2)
def test_a_disk_that_is_full_is_a_clear_error_and_changes_nothing(tmp_path, name, older):
    path = tmp_path / name
    if older:
        WRITERS[name](model_of(), path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == ({path} if older else set())
    kept = "The file that was there is as it was" if older else "Nothing was written"
    with files_of_at_most(2_000), pytest.raises(OSError, match=f"{name}.*{kept}") as error:
        WRITERS[name](model_of(seed=1), path)
    assert "Received:" in str(error.value)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    WRITERS[name](model_of(seed=1), path)  # with room again, all is well
    assert path.read_bytes() != before.get(path)


def test_an_export_that_finds_the_disk_full_leaves_the_older_file(tmp_path):
    path = tmp_path / "model.tflite"
    write_export(model_of(), path)
    before = path.read_bytes()
    # The converter's own files may not fit, either.
    errors = (keras_ntt.ExportError, OSError)
    with files_of_at_most(2_000), pytest.raises(errors, match=r"File too large|as it was"):
        write_export(model_of(seed=1), path)
    full = files_of_at_most(len(before) // 2)
    with full, pytest.raises(OSError, match="as it was"), replacing(path) as temporary:
        temporary.write_bytes(before)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path, name):
    # Below a file there can be no file, not even for root, whom permissions do not stop.
    (tmp_path / "file").write_text("whole")
    with pytest.raises(OSError, match="file"):
        WRITERS[name](model_of(), tmp_path / "file" / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


def test_files_and_errors_of_replacing(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("a.txt")
        assert leftovers(path) == [temporary]
        assert not path.exists()
    assert path.read_text() == "one"
    assert leftovers(path) == []
    with pytest.raises(TypeError), replacing(path) as temporary:
        temporary.write_text(("half",))
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "one"
    with (
        pytest.raises(FileNotFoundError, match="no such folder"),
        replacing(tmp_path / "missing" / "a.txt") as temporary,
    ):
        temporary.write_text("two")


def test_save_model_saves_what_keras_saves(tmp_path):
    model = model_of()
    keras_ntt.save_model(model, tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"suffix \.keras.*model\.h5"):
        keras_ntt.save_model(model, tmp_path / "model.h5")
    with pytest.raises(TypeError, match=r"keras\.Model"):
        keras_ntt.save_model("model", tmp_path / "model.keras")
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


# --- states of training -----------------------------------------------------------------------


def data(n=64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 6)).astype("float32")
    return x, rng.standard_normal((n, 3)).astype("float32")


def small(seed=0):
    keras.utils.set_random_seed(seed)
    return architectures.randomize(
        architectures.sequential((6,), layers.Dense(16, "relu"), layers.Dense(3)), seed
    )


class StoppedError(Exception):
    pass


class Stop(keras.callbacks.Callback):
    """Ends a run after a batch, or when an epoch has ended and its state is saved."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at = epoch, batch
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise StoppedError

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.at:
            raise StoppedError


def run_transfer(seed, callbacks):
    transfer = keras_ntt.NeuralTangentTransfer(
        small(seed), pruning_schedule=keras_ntt.NTTSchedule(0.8, frequency=3), seed=0
    )
    transfer.compile(keras.optimizers.Adam(1e-2))
    transfer.fit(data()[0], batch_size=16, epochs=4, verbose=0, callbacks=callbacks)
    return transfer.student


def run_scheduled(seed, callbacks):
    model = small(seed)
    keras_ntt.prune_low_magnitude(model, keras_ntt.PolynomialDecay(0.2, 0.8, 2, 14, frequency=2))
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
    model.fit(*data(), batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
    return model


@functools.cache
def whole_run(run):
    return run(0, [])


@pytest.mark.parametrize(
    ("run", "stop"),
    [(run_transfer, (0, 2)), (run_transfer, (1, None)), (run_transfer, (3, None)),
     (run_scheduled, (2, 1))],
    ids=["no_epoch", "transfer", "all_epochs", "scheduled"],
)  # fmt: skip
@pytest.mark.long
def test_a_run_that_is_ended_goes_on_to_the_same_weights(run, stop, tmp_path):
    folder = tmp_path / "state"
    whole = whole_run(run)
    with pytest.raises(StoppedError):
        run(0, [keras_ntt.BackupAndRestore(folder), Stop(*stop)])
    epochs = stop[0] + (stop[1] is None)
    states = [f"epoch-{epochs}.weights.h5"] if epochs else []
    assert [p.name for p in folder.glob("*")] == states
    resumed = run(5 if epochs else 0, [keras_ntt.BackupAndRestore(folder)])
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert resumed._initial_epoch is None
    found, expected = keras_ntt.get_masks(resumed), keras_ntt.get_masks(whole)
    for mask, right in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(mask, right)
    assert not folder.exists()


def test_the_latest_state_counts_and_what_a_kill_left_is_removed(tmp_path):
    model = run_scheduled(0, [keras_ntt.BackupAndRestore(tmp_path, delete_checkpoint=False)])
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-4.weights.h5"]
    assert model._initial_epoch is None
    # Killed between the new state and the removal of the one before, and while it wrote one.
    (tmp_path / "epoch-3.weights.h5").write_bytes(b"older")
    (tmp_path / ".0123.unfinished.epoch-4.weights.h5").write_bytes(b"half")
    again = run_scheduled(5, [keras_ntt.BackupAndRestore(tmp_path)])
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not tmp_path.exists()


def run_masked(seed, callbacks, masks=None):
    model = small(seed)
    if masks is not None:
        keras_ntt.apply_masks(model, {model.layers[0].kernel.path: masks})
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
    model.fit(*data(), batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def random_mask():
    return np.random.default_rng(0).random((6, 16)) < 0.4


def run_with_masks(seed, callbacks):
    return run_masked(seed, callbacks, random_mask())


@pytest.mark.parametrize("others", ["none", "other"])
@pytest.mark.long
def test_masks_of_a_model_are_in_the_state(tmp_path, others):
    masks = random_mask()
    whole = whole_run(run_with_masks)
    with pytest.raises(StoppedError):
        run_masked(0, [keras_ntt.BackupAndRestore(tmp_path), Stop(1)], masks)
    other = None if others == "none" else ~masks
    resumed = run_masked(5, [keras_ntt.BackupAndRestore(tmp_path)], other)
    (found,) = keras_ntt.get_masks(resumed).values()
    np.testing.assert_array_equal(found, masks)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_after_one_that_was_resumed_and_ended_begins_at_the_first_epoch(tmp_path):
    for epoch in (1, 2):
        model = small()
        model.compile("sgd", "mse", jit_compile=False)
        callbacks = [keras_ntt.BackupAndRestore(tmp_path), Stop(epoch)]
        with pytest.raises(StoppedError):
            model.fit(*data(), epochs=4, verbose=0, callbacks=callbacks)
    assert model.fit(*data(), epochs=2, verbose=0).epoch == [0, 1]


def test_a_run_after_one_that_had_no_epoch_left_begins_at_the_first_epoch(tmp_path):
    model = small()
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(StoppedError):
        model.fit(
            *data(), epochs=2, verbose=0, callbacks=[keras_ntt.BackupAndRestore(tmp_path), Stop(1)]
        )
    model.fit(*data(), epochs=2, verbose=0, callbacks=[keras_ntt.BackupAndRestore(tmp_path)])
    assert model.fit(*data(), epochs=2, verbose=0).epoch == [0, 1]


def test_a_model_without_weights_cannot_take_up_a_state(tmp_path):
    model = keras.Sequential([layers.Dense(3)])
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match=r"Build it before\s+fit.*not built yet"):
        model.fit(*data(), verbose=0, callbacks=[keras_ntt.BackupAndRestore(tmp_path)])


def test_a_state_of_another_model_is_refused(tmp_path):
    run_scheduled(0, [keras_ntt.BackupAndRestore(tmp_path, delete_checkpoint=False)])
    other = architectures.sequential((6,), layers.Dense(5), layers.Dense(3))
    other.compile("adam", "mse", jit_compile=False)
    with pytest.raises(ValueError, match=r"does not fit this model.*backup_dir="):
        other.fit(*data(), verbose=0, callbacks=[keras_ntt.BackupAndRestore(tmp_path)])
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-4.weights.h5"]
    with pytest.raises(ValueError, match="backup_dir must be the path"):
        keras_ntt.BackupAndRestore("")
