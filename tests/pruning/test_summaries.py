"""The optional callbacks: what they warn of, what they write."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.training import compile_, data_for

import keras_ntt
from keras_ntt import ConstantSparsity, PolynomialDecay, PruningSummaries, UpdatePruningStep


def fit(model, *callbacks, **options):
    """Fit for 8 batches an epoch; return what was warned of by this package."""
    compile_(model)
    x, y = data_for(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"epochs": 2, "batch_size": 4, **options}
        model.fit(x, y, callbacks=list(callbacks), verbose=0, **options)
    return [str(w.message) for w in caught if "pruned" in str(w.message) or "run" in str(w.message)]


@pytest.mark.parametrize(
    ("schedule", "epochs", "match"),
    [
        (ConstantSparsity(0.5, 0), 2, "from step 0 to step 17"),
        (ConstantSparsity(0.5, 18, frequency=1), 2, "Nothing will be pruned"),
        (ConstantSparsity(0.5, 17, frequency=1), 2, None),
        (ConstantSparsity(0.5, 0, frequency=16), 2, None),
        (PolynomialDecay(0, 0.5, 0, 20, frequency=4), 2, "before the schedule's end_step"),
        (PolynomialDecay(0, 0.5, 0, 16, frequency=4), 2, None),
        (lambda step: (step == 30, 0.5), 2, "Nothing will be pruned"),
    ],
)
@pytest.mark.few(3)
def test_a_schedule_that_does_not_fit_the_run_is_warned_of(mlp, schedule, epochs, match):
    model = keras_ntt.prune_low_magnitude(mlp(), schedule)
    found = fit(model, UpdatePruningStep(), epochs=epochs)
    if match is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.search(match, found[0])


def test_a_second_fit_counts_on(mlp):
    model = keras_ntt.prune_low_magnitude(mlp(), ConstantSparsity(0.5, 12, 12))
    assert len(fit(model, UpdatePruningStep(), epochs=1)) == 1
    assert fit(model, UpdatePruningStep(), epochs=1) == []
    assert keras_ntt.sparsity_report(model).sparsity == 0.5


def test_epochs_that_are_skipped_do_not_count(mlp):
    """Eight steps an epoch: two epochs reach step 16, three step 24."""
    schedule = PolynomialDecay(0, 0.5, 0, 20, frequency=4)
    model = keras_ntt.prune_low_magnitude(mlp(), schedule)
    [message] = fit(model, UpdatePruningStep(), initial_epoch=3, epochs=5)
    assert "before the schedule's end_step" in message
    model = keras_ntt.prune_low_magnitude(mlp(), schedule)
    assert fit(model, UpdatePruningStep(), initial_epoch=3, epochs=6) == []
    assert keras_ntt.sparsity_report(model).sparsity == 0.5


def test_zeros_without_masks_are_warned_of(mlp, tmp_path):
    model = keras_ntt.prune_low_magnitude(mlp(), 0.5)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    [message] = fit(loaded, UpdatePruningStep(), epochs=1)
    assert "restore_masks" in message
    stripped = keras_ntt.strip_pruning(model)
    [message] = fit(stripped, UpdatePruningStep(), epochs=1)
    assert "restore_masks" in message
    held = keras.models.load_model(tmp_path / "m.keras")
    assert fit(keras_ntt.restore_masks(held), UpdatePruningStep(), epochs=1) == []
    assert fit(mlp(), UpdatePruningStep(), epochs=1) == []


def events(folder):
    """Return ``tag -> [(step, array)]`` of the event files in a folder."""
    found = {}
    for file in folder.iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                if value.HasField("tensor"):
                    entry = (event.step, tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, []).append(entry)
    return found


def scalars(folder):
    """Return ``tag -> [(step, value)]`` of the event files in a folder."""
    return {tag: [(s, float(v)) for s, v in rows] for tag, rows in events(folder).items()}


def count_of(histogram):
    """Return how many numbers a histogram has been made of: rows are left, right, count."""
    return int(histogram[:, 2].sum())


def test_callbacks_serve_a_transfer_too(mlp, tmp_path):
    pytest.importorskip("tensorboard")
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    transfer = keras_ntt.NeuralTangentTransfer(
        mlp(), pruning_schedule=PolynomialDecay(0, 0.5, 0, 8, 1, 4), seed=0
    )
    transfer.compile("adam", run_eagerly=True)
    callbacks = [UpdatePruningStep(), PruningSummaries(log_dir=str(tmp_path))]
    transfer.fit(x, batch_size=4, epochs=2, callbacks=callbacks, verbose=0)
    found = scalars(tmp_path / "pruning")["sparsity"]
    assert [step for step, _ in found] == [0, 4, 8]
    np.testing.assert_allclose([v for _, v in found], [0, 0.25, 0.5], atol=1e-6)


def test_summaries_hold_the_sparsity_of_each_weight(mlp, tmp_path):
    pytest.importorskip("tensorboard")
    model = keras_ntt.prune_low_magnitude(mlp(), PolynomialDecay(0, 0.5, 4, 12, 1, 4))
    fit(model, PruningSummaries(log_dir=str(tmp_path)), epochs=3)
    found = scalars(tmp_path / "pruning")
    first, second = (v.path for v in model.weights if v.name == "kernel")
    assert set(found) == {f"{first}/sparsity", f"{second}/sparsity", "sparsity"}
    # The mask of step 4 + 4 k is chosen after one step less; 16 is after the end.
    wanted = [(0, 0.0), (8, 0.25), (16, 0.5), (24, 0.5)]
    steps = [step for step, _ in found["sparsity"]]
    assert steps == [0, 8, 16, 24]
    for tag, values in found.items():
        assert tag
        np.testing.assert_allclose([v for _, v in values], [w for _, w in wanted], atol=1e-6)


def test_the_tensorboard_of_keras_shows_a_transfer(mlp, tmp_path):
    pytest.importorskip("tensorboard")
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    student, teacher = mlp(), mlp()
    transfer = keras_ntt.NeuralTangentTransfer(student, teacher, pruning_schedule=0.75, seed=0)
    transfer.compile("adam", run_eagerly=True)
    board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1, write_images=True)
    history = transfer.fit(x, batch_size=8, epochs=2, callbacks=[board], verbose=0).history
    found = events(tmp_path / "train")
    for name in ("loss", "ntk_distance", "output_distance", "sparsity"):
        assert [float(v) for _, v in found[f"epoch_{name}"]] == pytest.approx(history[name])
    assert history["sparsity"] == pytest.approx([0.75, 0.75])
    histograms = {tag: rows for tag, rows in found.items() if tag.endswith("/histogram")}
    assert set(histograms) == {f"{v.path}/histogram" for v in student.weights}
    for variable in student.weights:
        values = keras.ops.convert_to_numpy(variable)
        step, last = histograms[f"{variable.path}/histogram"][-1]
        assert (step, count_of(last)) == (1, values.size)
        assert last[0, 0] == pytest.approx(values.min(), abs=1e-6)
        assert last[-1, 1] == pytest.approx(values.max(), abs=1e-6)


@pytest.mark.parametrize("kind", ["transfer", "model"])
def test_summaries_hold_what_is_kept(kind, mlp, tmp_path):
    pytest.importorskip("tensorboard")
    board = PruningSummaries(tmp_path, histogram_freq=2, write_images=True)
    model = mlp()
    if kind == "transfer":
        x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
        transfer = keras_ntt.NeuralTangentTransfer(model, pruning_schedule=0.75, seed=0)
        transfer.compile("adam", run_eagerly=True)
        transfer.fit(x, batch_size=8, epochs=3, callbacks=[board], verbose=0)
    else:
        model = keras_ntt.prune_at_init(model, sparsity=0.75, saliency="magnitude")
        fit(model, board, epochs=3)
    found = events(tmp_path / "pruning")
    for path, mask in keras_ntt.get_masks(model).items():
        (variable,) = [v for v in model.weights if v.path == path]
        kept = keras.ops.convert_to_numpy(variable)[mask]
        rows = found[f"{path}/kept/histogram"]
        assert [(step, count_of(h)) for step, h in rows] == [(0, kept.size), (2, kept.size)]
        assert rows[-1][1][0, 0] == pytest.approx(kept.min(), abs=1e-6)
        assert rows[-1][1][-1, 1] == pytest.approx(kept.max(), abs=1e-6)
        _, (width, height, png) = found[f"{path}/mask/image"][-1]
        picture = tf.io.decode_png(png).numpy()[:, :, 0] > 0
        np.testing.assert_array_equal(picture, mask if mask.shape[0] <= mask.shape[1] else mask.T)
        assert (int(height), int(width)) == picture.shape


def test_summaries_need_a_folder():
    for wrong in ("", None, 3):
        with pytest.raises(ValueError, match="log_dir must be the path"):
            PruningSummaries(log_dir=wrong)


def test_summaries_say_that_tensorboard_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        PruningSummaries(log_dir=tmp_path)
