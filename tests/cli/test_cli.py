"""The command line: pruning, going on after Ctrl-C, reports, comparisons and what it refuses."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import click
import keras
import numpy as np
import pytest
from helpers.paths import ROOT

import keras_ntt
from keras_ntt.cli import data, methods, options
from keras_ntt.cli.jobs import compare as compare_job
from keras_ntt.cli.jobs import prune as prune_job
from keras_ntt.cli.jobs.interruption import StopBetweenSteps
from keras_ntt.cli.program import main
from keras_ntt.saliency.names import SALIENCIES, as_saliency


def network():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(20, "relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def classes(n, seed):
    """Three classes, told apart by the largest of the first three inputs."""
    x = np.random.default_rng(seed).normal(size=(n, 8)).astype("float32")
    return x, x[:, :3].argmax(axis=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model, inputs, and labelled data; the tests run in it."""
    monkeypatch.chdir(tmp_path)
    network().save("model.keras")
    (x, y), (x_test, y_test) = classes(96, 0), classes(60, 1)
    np.save("x.npy", x)
    np.savez("data.npz", x=x, y=y, x_test=x_test, y_test=y_test)
    return tmp_path


def run(*words):
    return main([str(word) for word in words])


def weights_of(path):
    return keras.models.load_model(path, compile=False).get_weights()


# --- prune -----------------------------------------------------------------------------------


@pytest.mark.long
def test_prune_does_what_python_does(folder, capsys):
    command = "prune model.keras --inputs x.npy -s 0.8 -o out.keras --epochs 3 --batch-size 16"
    more = "--learning-rate 0.01 --ntk-weight 0.1 --l2 1e-4 --wrt kept --seed 5 --masks m.npz"
    assert run(*command.split(), *more.split()) == 0
    shown = capsys.readouterr().out
    assert "Written: out.keras, m.npz" in shown
    assert "80.00%" in shown
    wanted = keras_ntt.prune_neural_tangent(
        network(),
        np.load("x.npy"),
        sparsity=0.8,
        epochs=3,
        batch_size=16,
        optimizer=keras.optimizers.Adam(0.01),
        ntk_weight=0.1,
        l2=1e-4,
        wrt="kept",
        seed=5,
        verbose=0,
    )
    for found, value in zip(weights_of("out.keras"), wanted.get_weights(), strict=True):
        np.testing.assert_allclose(found, value, atol=1e-6)
    loaded = keras_ntt.load_masks(keras.models.load_model("out.keras"), "m.npz")
    for found, mask in zip(
        keras_ntt.get_masks(loaded).values(), keras_ntt.get_masks(wanted).values(), strict=True
    ):
        np.testing.assert_array_equal(found, mask)
    assert sorted(p.name for p in folder.iterdir()) == [
        *("data.npz", "m.npz", "model.keras", "out.keras", "x.npy"),
    ]


def test_the_scores_are_those_without_labels():
    needs = {name: as_saliency(name) for name in SALIENCIES}
    assert set(methods.LABEL_FREE) == {
        name for name, score in needs.items() if not score.needs_labels
    }
    on_inputs = {name for name in methods.LABEL_FREE if needs[name].needs_data}
    assert set(methods.ON_INPUTS) == {"ntt", *on_inputs}


@pytest.mark.parametrize("method", ["magnitude", "logit_snip", "ntk_trace"])
def test_prune_by_scores(method, folder, capsys):
    given = ["--inputs", "x.npy"] if method in methods.ON_INPUTS else []
    command = ["prune", "model.keras", *given, "-s", 0.75, "-o", "o.keras", "--method", method]
    assert run(*command, "--allocation", "global", "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    zeros = sum(int((w == 0).sum()) for w in weights_of("o.keras") if w.ndim == 2)
    assert zeros == round(0.75 * (8 * 20 + 20 * 3))
    assert found["sparsity"] == pytest.approx(0.75)


def test_random_masks_follow_from_the_seed(folder):
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        command = f"prune model.keras -s 0.5 --method random -o {name}.keras --seed {seed}"
        assert run(*command.split()) == 0
    first, same, other = (weights_of(f"{name}.keras")[0] for name in "abc")
    np.testing.assert_array_equal(first, same)
    assert ((first == 0) != (other == 0)).any()


def test_json_is_all_there_is_on_standard_output(folder, capsys):
    command = "prune model.keras --inputs x.npy -s 0.8 -o out.keras --steps 9 --batch-size 32"
    assert run(*command.split(), "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["epochs"] == 3  # of 3 batches each, 9 steps
    assert found["settings"]["method"] == "ntt"
    assert set(found["last"]) == {"loss", "ntk_distance", "output_distance", "sparsity"}
    assert [w["nonzeros"] for w in found["weights"] if "kernel" in w["path"]] == [32, 12]
    assert "Epoch 3/3" in captured.err  # Keras's progress
    assert "Written: out.keras" in captured.err


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (6, 1), (7, 2), (12, 2), (13, 3)])
def test_steps_are_whole_passes(steps, epochs, folder):
    settings = prune_job.Settings(
        *(
            "ntt",
            0.5,
            "layerwise",
            None,
            (),
            None,
            steps,
            16,
            1e-3,
            0.0,
            0.0,
            "all",
            None,
            None,
            0,
            None,
        )
    )
    assert prune_job.epochs_of(np.load("x.npy"), settings) == epochs


def test_filters_leave_layers_dense(folder):
    command = "prune model.keras --method magnitude -s 0.5 -o o.keras --filter hidden"
    assert run(*command.split()) == 0
    kernels = [w for w in weights_of("o.keras") if w.ndim == 2]
    assert [int((w == 0).sum()) for w in kernels] == [80, 0]


@pytest.mark.parametrize(
    ("pattern", "axis", "wanted"),
    [("1:4", 0, [2] * 20), ("8x1", 0, [0] * 15 + [8] * 5), ("filters", 0, [0] * 15 + [8] * 5)],
)
def test_patterns(pattern, axis, wanted, folder):
    command = f"prune model.keras --method magnitude -s 0.75 -o o.keras --pattern {pattern}"
    assert run(*command.split(), "--filter", "hidden") == 0
    kernel = weights_of("o.keras")[0]
    assert sorted(np.count_nonzero(kernel, axis=axis)) == wanted


# --- stopping and going on -------------------------------------------------------------------

LONG = "prune model.keras --inputs x.npy -s 0.8 --epochs 16 --batch-size 16 --learning-rate 0.01"


def saved_epochs(state):
    """Return how many epochs a running process has saved."""
    files = (state / "backup").glob("epoch-*.weights.h5")
    return max(
        (int(file.name.removeprefix("epoch-").partition(".")[0]) for file in files), default=0
    )


@pytest.mark.long
def test_ctrl_c_leaves_a_state_to_go_on_from(folder, capfd):
    assert run(*LONG.split(), "-o", "whole.keras", "-q") == 0
    command = [sys.executable, "-c", "import sys; from keras_ntt.cli import main; sys.exit(main())"]
    command += [*LONG.split(), "-o", "out.keras"]
    state = folder / "out.keras.unfinished"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        limit = time.monotonic() + 300
        while saved_epochs(state) < 2 and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said.decode()
    assert "the same command continues from there" in said.decode()
    assert not (folder / "out.keras").exists()
    done = saved_epochs(state)
    assert 2 <= done < 16

    capfd.readouterr()
    assert run(*LONG.split(), "-o", "out.keras", "--json", "-q") == 0
    captured = capfd.readouterr()
    assert f"Going on after epoch {done} of 16" in captured.err
    assert json.loads(captured.out)["resumed_after_epoch"] == done
    assert not state.exists()
    for found, value in zip(weights_of("out.keras"), weights_of("whole.keras"), strict=True):
        np.testing.assert_array_equal(found == 0, value == 0)
        np.testing.assert_allclose(found, value, atol=1e-6)


@pytest.fixture
def python_listens():
    """Have Ctrl-C raise, which it does not in what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_listens")
def test_ctrl_c_waits_for_the_step_and_a_second_one_does_not(capsys):
    before = signal.getsignal(signal.SIGINT)
    stop = StopBetweenSteps()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert "Ctrl-C again stops at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            stop.on_train_batch_end(0)
    assert signal.getsignal(signal.SIGINT) is before
    with StopBetweenSteps().listening():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def leave_state(monkeypatch, epochs):
    """Do all of a run but write its result, as on a full disk."""

    def fail(model, path):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save", fail)
        assert run(*LONG.split(), "--epochs", epochs, "-o", "out.keras", "-q") == 1


@pytest.mark.long
def test_a_result_that_could_not_be_written_is_not_lost(folder, capsys, monkeypatch):
    command = [*LONG.split(), "--epochs", 2, "-o", "out.keras", "-q"]
    leave_state(monkeypatch, 2)
    assert "disk full" in capsys.readouterr().err
    # Another run is not mixed in.
    assert run(*command, "--seed", 1) == 1
    said = capsys.readouterr().err
    assert "seed 0 then, 1 now" in said
    assert "--restart" in said
    x = np.load("x.npy")
    np.save("x.npy", x + 1)
    assert run(*command) == 1
    assert "inputs" in capsys.readouterr().err
    np.save("x.npy", x)
    assert run(*command, "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_after_epoch"] == 2
    assert not (folder / "out.keras.unfinished").exists()
    found = weights_of("out.keras")
    leave_state(monkeypatch, 2)
    capsys.readouterr()
    assert run(*command, "--restart", "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_after_epoch"] == 0
    for value, again in zip(found, weights_of("out.keras"), strict=True):
        np.testing.assert_allclose(value, again, atol=1e-6)


# --- report and compare ----------------------------------------------------------------------


def test_report_counts_what_is_in_the_file(folder, capsys):
    assert run("prune", "model.keras", "-s", 0.5, "--method", "magnitude", "-o", "o.keras") == 0
    capsys.readouterr()
    assert run("report", "o.keras", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    values = weights_of("o.keras")
    assert found["nonzeros"] == sum(int(np.count_nonzero(w)) for w in values)
    assert [row["size"] for row in found["weights"]] == [w.size for w in values]
    assert run("report", "o.keras") == 0
    assert "50.00%" in capsys.readouterr().out


@pytest.mark.long
def test_compare_trains_every_method(folder, capsys):
    command = "compare model.keras --data data.npz -s 0.6 --epochs 20 --transfer-epochs 1"
    methods = ("dense", "ntt", "snip", "rigl")
    words = [*command.split(), *(word for m in methods for word in ("-m", m))]
    assert run(*words, "--learning-rate", 0.03, "--batch-size", 96, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found["methods"]) == set(methods)
    biases = 20 + 3
    counts = {m: row["nonzeros"] for m, row in found["methods"].items()}
    assert counts["dense"] >= 220  # biases may end at zero
    assert all(88 <= counts[m] <= 88 + biases for m in ("ntt", "snip"))
    assert 80 <= counts["rigl"] <= 88 + biases  # what has grown may be zero still
    assert found["methods"]["dense"]["accuracy"][0] > 0.6  # a third by chance
    assert {m for m, row in found["methods"].items() if row["labels"]} == {"snip"}
    assert compare_job.table(found) in captured.err


def test_the_table_ranks_by_mean_accuracy():
    rows = {
        "erk": {"accuracy": [0.5, 0.7], "nonzeros": 1234, "labels": False, "seconds": [1, 2]},
        "snip": {"accuracy": [0.8, 0.9], "nonzeros": 99, "labels": True, "seconds": [3, 3]},
    }
    settings = {"epochs": 5, "sparsity": 0.975, "allocation": "global", "seeds": 2}
    title, _, _, *lines = compare_job.table({"methods": rows, "settings": settings}).splitlines()
    assert title == "Test accuracy in per cent after 5 epochs, sparsity 97.50%, global, 2 seeds"
    assert [line.split() for line in lines] == [
        ["snip", "85.0", "±", "7.1", "99", "yes", "3.0"],
        ["erk", "60.0", "±", "14.1", "1,234", "no", "1.5"],
    ]


def test_compare_has_rows_of_masks_that_move():
    settings = {"sparsity": 0.6, "allocation": "layerwise", "epochs": 3, "batch_size": 64}
    settings |= {"transfer_epochs": 1, "learning_rate": 1e-3, "transfer_rate": 1e-3, "l2": 0.0}
    chosen = compare_job.Settings(
        **settings, methods=(), seeds=1, redraw=False, ntk_weight=0.0, divide_by=None, seed=0
    )
    (rigl,) = compare_job.moving("rigl", 100, chosen, 0)  # two steps an epoch, six in all
    assert [t for t in range(6) if bool(rigl.due_at(t))] == [0, 1, 2, 3]
    (by_epoch,) = compare_job.moving("set", 100, chosen, 0)
    assert [t for t in range(6) if bool(by_epoch.due_at(t))] == [1, 3, 5]
    assert compare_job.moving("erk", 100, chosen, 0) == []


def test_compare_names_methods_that_do_not_fit(folder, capsys):
    model = network()
    model.layers[-1].trainable = False
    model.layers[0].set_weights([np.zeros_like(w) for w in model.layers[0].get_weights()])
    model.save("dead.keras")
    command = "compare dead.keras --data data.npz -s 0.6 --epochs 1 -m random -m snip"
    assert run(*command.split()) == 1
    captured = capsys.readouterr()
    assert "Not run: snip: All scores are zero" in captured.err
    assert "random" in captured.out


@pytest.mark.long
def test_compare_with_weights_drawn_anew(folder):
    settings = {"methods": ("dense",), "sparsity": 0.5, "allocation": "layerwise", "seed": 0}
    settings |= {"transfer_epochs": 1, "epochs": 1, "batch_size": 96, "learning_rate": 1e-9}
    settings |= {"transfer_rate": 1e-3, "ntk_weight": 0.0, "l2": 0.0, "divide_by": None}
    found = [
        compare_job.run(
            pathlib.Path("model.keras"),
            "data.npz",
            compare_job.Settings(redraw=redraw, seeds=seeds, **settings),
        )["methods"]["dense"]["accuracy"]
        for redraw, seeds in ((False, 1), (True, 2))
    ]
    x_test, y_test = classes(60, 1)
    untrained = (keras.ops.convert_to_numpy(network()(x_test)).argmax(axis=1) == y_test).mean()
    assert found[0] == pytest.approx([untrained])
    assert len({*found[0], *found[1]}) == 3


# --- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "x_train", "anything"])
def test_inputs_by_name(name, folder):
    x = np.load("x.npy")
    np.savez("some.npz", **{name: x})
    np.testing.assert_array_equal(data.read_inputs("some.npz", network()), x)


def test_inputs_of_a_model_with_several(folder):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([b, a], keras.layers.Dense(1)(keras.layers.Concatenate()([a, b])))
    arrays = {"a": np.ones((5, 2), "float32"), "b": np.zeros((5, 3), "float32")}
    np.savez("two.npz", **arrays)
    found = data.read_inputs("two.npz", model)
    assert [part.shape for part in found] == [(5, 3), (5, 2)]
    np.savez("one.npz", a=arrays["a"], c=arrays["b"])
    with pytest.raises(ValueError, match="named b, a"):
        data.read_inputs("one.npz", model)


def test_pixels_in_bytes_need_a_scale(folder, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    np.save("bytes.npy", pixels)
    for divide_by in (255.0, 1.0):
        scaled = data.read_inputs("bytes.npy", network(), divide_by)
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, pixels / divide_by, rtol=1e-6)
    command = "prune model.keras --inputs bytes.npy -s 0.5 --method logit_snip -o o.keras"
    assert run(*command.split()) == 1
    assert "--divide-by 255" in capsys.readouterr().err
    assert run(*command.split(), "--divide-by", 255) == 0


def test_numbers_of_words_stay_whole(folder):
    words = np.arange(12).reshape(3, 4)
    np.save("words.npy", words)
    model = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(12, 3)])
    assert data.read_inputs("words.npy", model).dtype == words.dtype


def test_labels_in_rows_are_class_numbers(folder):
    (x, y), (x_test, y_test) = classes(6, 0), classes(4, 1)
    np.savez("rows.npz", x_train=x, y_train=np.eye(3)[y], x_test=x_test, y_test=y_test[:, None])
    found = data.read_labelled("rows.npz", network())
    np.testing.assert_array_equal(found.y, y)
    np.testing.assert_array_equal(found.y_test, y_test)


def test_data_sets_by_name_need_another_package(folder, capsys):
    if importlib.util.find_spec("tensorflow_datasets") is not None:
        pytest.skip("it is there: see test_data_sets_by_name.py")
    words = ["prune", "model.keras", "--inputs", "tfds:mnist", "-s", "0.5", "-o", "o.keras"]
    assert run(*words) == 1
    assert "pip install 'keras-ntt[tfds]'" in capsys.readouterr().err


# --- what is refused -------------------------------------------------------------------------


def test_a_model_with_a_class_of_its_own_is_named(tmp_path):
    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input([4]), keras.layers.Dense(3), Twice()]).save(path)
    with pytest.raises(ValueError, match=r"\(TypeError: Could not locate class 'Twice'\. Make"):
        data.load_model(path)


LABELLED = {
    "NaN in x": ("x", lambda x: np.where(x == x[1, 2], np.nan, x), "x hold NaN or infinity"),
    "NaN in x_test": ("x_test", lambda x: x * np.inf, "x_test hold NaN or infinity"),
    "another shape": ("x_test", lambda x: x[:, :4], "x_test of shape (4, 4)"),
    "words in x": ("x", lambda x: x.astype(str), "x must hold numbers"),
    "no axis": ("x", lambda x: x[0, 0], "x of shape ()"),
    "halves": ("y", lambda y: y + 0.5, "y must hold whole numbers of classes, from 0."),
    "words": ("y_test", lambda y: np.array(list("abc"))[y], "y_test must hold the number of each"),
    "NaN": ("y", lambda y: np.where(y == y[0], np.nan, y), "Received: y with nan"),
    "infinity": ("y", lambda y: np.where(y == y[0], np.inf, y), "to inf"),
    "NaN in rows": ("y_test", lambda y: np.eye(3)[y] * np.nan, "finite weights of the classes"),
    "three axes": ("y", lambda y: np.zeros((6, 2, 2)), "Received: y of shape (6, 2, 2)"),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_data_that_would_give_nonsense(name, folder, capsys):
    key, change, words = LABELLED[name]
    (x, y), (x_test, y_test) = classes(6, 0), classes(4, 1)
    arrays = {"x": x, "y": y, "x_test": x_test, "y_test": y_test}
    np.savez("wrong.npz", **{**arrays, key: change(arrays[key])})
    command = "compare model.keras --data wrong.npz -s 0.5 --epochs 1 -m dense"
    assert run(*command.split()) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Received: " in captured.err
    assert captured.out == ""


def test_labels_of_floats_and_booleans_are_numbers(folder):
    (x, y), (x_test, y_test) = classes(6, 0), classes(4, 1)
    np.savez("some.npz", x=x > 0, y=y.astype(float), x_test=x_test > 0, y_test=y_test > 0)
    found = data.read_labelled("some.npz", network(), 1.0)
    np.testing.assert_array_equal(found.x, (x > 0).astype("float32"))
    np.testing.assert_array_equal(found.y, y)
    np.testing.assert_array_equal(found.y_test, y_test > 0)


@pytest.mark.parametrize("name", ["packed.npz", "head.npy"])
def test_damaged_arrays_are_named(name, folder, capsys):
    np.savez_compressed("packed.npz", x=np.load("x.npy"))
    packed = bytearray((folder / "packed.npz").read_bytes())
    begin = 30 + packed[26] + packed[28]  # after the names in the head of the first entry
    packed[begin] = 0xFF  # no kind of block that zlib knows
    (folder / "packed.npz").write_bytes(packed)
    plain = bytearray((folder / "x.npy").read_bytes())
    plain[10], plain[20] = 0xFF, 0  # in the head, which is a text
    (folder / "head.npy").write_bytes(plain)
    command = f"prune model.keras --inputs {name} -s 0.5 -o o.keras"
    assert run(*command.split()) == 1
    captured = capsys.readouterr()
    assert f"Received: {name} (" in captured.err


@pytest.mark.parametrize("content", [b'{"seed": 0', b"", b"\xff\xfe{", b"[1]"])
def test_damaged_settings_of_a_stopped_run_are_named(content, folder, capsys):
    file = folder / "out.keras.unfinished" / "settings.json"
    file.parent.mkdir()
    file.write_bytes(content)
    assert run(*LONG.split(), "-o", "out.keras", "-q") == 1
    said = capsys.readouterr().err
    assert "--restart" in said
    assert f"Received: {pathlib.Path('out.keras.unfinished', 'settings.json')} (" in said
    assert file.read_bytes() == content
    assert not (folder / "out.keras").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("report missing.keras", "no such model file"),
        ("report x.npy", "Keras cannot read this as a model"),
        ("prune missing.keras --inputs x.npy -s 0.5 -o o.keras", "no such model file"),
        ("prune model.keras --inputs missing.npy -s 0.5 -o o.keras", "no such file of arrays"),
        ("prune model.keras --inputs pickled.npy -s 0.5 -o o.keras", "pickled objects are refused"),
        ("prune model.keras --inputs broken.npz -s 0.5 -o o.keras", ".npy and .npz files"),
        ("prune model.keras --inputs wide.npy -s 0.5 -o o.keras", "do not have the shape"),
        ("prune model.keras --inputs other.npz -s 0.5 -o o.keras", "with the arrays a, b"),
        ("prune model.keras --inputs x.npy -s 0.5 -o no/o.keras", "no folder for this file"),
        (
            "prune model.keras --method random -s 0.5 -o o.keras --filter none",
            "left out by filters",
        ),
        ("compare model.keras --data x.npy -s 0.5", "without y, x_test, y_test"),
        ("compare model.keras --data short.npz -s 0.5", "one label for each"),
        ("compare model.keras --data far.npz -s 0.5", "labels from 0 to 9"),
    ],
)
def test_errors_are_reported(command, words, folder, capsys):
    (x, y), (x_test, y_test) = classes(6, 0), classes(4, 1)
    np.save("pickled.npy", np.array([{}], dtype=object))
    np.savez("other.npz", a=x, b=x)
    np.save("wide.npy", np.zeros((4, 9), "float32"))
    np.savez("short.npz", x=x, y=y[:-1], x_test=x_test, y_test=y_test)
    np.savez("far.npz", x=x, y=y, x_test=x_test, y_test=[0, 1, 2, 9])
    (folder / "broken.npz").write_bytes((folder / "data.npz").read_bytes()[:200])
    before = {p.name for p in folder.iterdir()}
    assert main(command.split()) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("keras-ntt: ") or "\nkeras-ntt: " in captured.err
    assert {p.name for p in folder.iterdir()} == before


def test_models_with_pickled_code_are_refused(folder, capsys):
    layer = keras.layers.Lambda(lambda x: x + 1)
    keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(1)]).save("lambda.keras")
    assert run("report", "lambda.keras") == 1
    assert "Lambda" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("prune model.keras -s 0.5 -o o.keras", "needs --inputs"),
        ("prune model.keras --inputs x.npy -s 1.0 -o o.keras", "0<=x<1"),
        ("prune model.keras --inputs x.npy -s 0.5 -o o.h5", ".keras"),
        ("prune model.keras --inputs x.npy -s 0.5", "--output"),
        ("prune model.keras --inputs x.npy -s 0.5 -o o.keras --steps 1 --epochs 1", "exclude"),
        ("prune model.keras --inputs x.npy -s 0.5 -o o.keras --memory-limit many", "2GiB"),
        ("prune model.keras -s 0.5 -o o.keras --method snip", "magnitude"),
        ("prune model.keras -s 0.5 -o o.keras --method random --pattern 4:2", "not a pattern"),
        ("compare model.keras --data data.npz -s 0.5 -m none", "dense"),
        ("prine model.keras", "No such command"),
    ],
)
def test_wrong_usage_is_code_two(command, words, folder, capsys):
    assert main(command.split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("export model.keras model.keras", "MODEL and PATH"),
        ("export model.keras ./again/../model.keras", "MODEL and PATH"),
        ("export model.keras link.tflite", "MODEL and PATH"),
        ("export model.keras x.npy --data x.npy", "--data and PATH"),
        ("prune model.keras -s 0.5 --method random -o model.keras", "MODEL and --output"),
        ("prune model.keras -s 0.5 --method random -o o.keras --masks o.keras", "--output and"),
        ("prune model.keras -s 0.5 --method random -o o.keras --masks hard.npz", "MODEL and"),
        ("prune model.keras -s 0.5 --inputs x.npy -o o.keras --masks x.npy", "--inputs and --m"),
        ("prune model.keras -s 0.5 --inputs in.keras -o in.keras", "--inputs and --output"),
    ],
)
def test_no_file_of_a_command_takes_the_place_of_another(command, names, folder, capsys):
    (folder / "again").mkdir()
    (folder / "link.tflite").symlink_to("model.keras")
    os.link("model.keras", "hard.npz")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main(command.split()) == 2
    assert names in capsys.readouterr().err.replace("\n", " ")
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_every_command_shows_examples(capsys):
    for command in ("demo", "prune", "report", "compare", "export", "inspect"):
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"keras-ntt {command}" in shown.partition("Examples:")[2]


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("2GiB", 2**31), ("1.5 kb", 1500), ("3M", 3_000_000)]
)
def test_sizes_in_words(text, size):
    assert options.Bytes().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "1 parsec"])
def test_sizes_that_are_none(text):
    with pytest.raises(click.BadParameter, match="not a size"):
        options.Bytes().convert(text, None, None)
