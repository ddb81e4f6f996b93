"""keras-ntt evaluate, and what --inputs, --calibration and --data take in all commands."""

from __future__ import annotations

import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
from helpers import keras2_files
from keras import layers

import keras_ntt
from keras_ntt.cli import data, sources
from keras_ntt.cli.jobs import evaluate
from keras_ntt.cli.program import main, program


def run(words):
    return main(words.split())


def seeing(**options):
    """A network that tells the first colour of a 6 x 5 picture from the others."""
    colour = layers.Conv2D(2, 1, name="colour")
    parts = [keras.Input((6, 5, 3)), colour, layers.GlobalAveragePooling2D()]
    head = layers.Dense(2, name="head", **options)
    model = keras.Sequential([*parts, head])
    colour.set_weights([np.array([[[[4.0, -4], [-4, 4], [0, 0]]]]), np.zeros(2)])
    head.set_weights([3 * np.eye(2), np.zeros(2)])
    return model


def picture(number, kind):
    pixels = np.random.default_rng(number).integers(0, 90, (6, 5, 3)).astype("uint8")
    pixels[..., kind] += 100
    return pixels


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures sorted into a folder for each class, the same as arrays, and a network."""
    monkeypatch.chdir(tmp_path)
    x, y = [], []
    for kind, name in enumerate(("first", "second")):
        pathlib.Path("images", name).mkdir(parents=True)
        for number in range(6):
            # The last picture of each class is of the other one.
            pixels = picture(10 * kind + number, kind if number < 5 else 1 - kind)
            keras.utils.save_img(f"images/{name}/{number}.png", pixels, scale=False)
            x.append(pixels)
            y.append(kind)
    np.savez("data.npz", x=np.stack(x), y=np.array(y))
    np.save("x.npy", np.stack(x))
    seeing().save("model.keras")
    return tmp_path


def evaluated(words, capsys):
    assert run(f"evaluate {words} --json") == 0
    return json.loads(capsys.readouterr().out)


# --- evaluate --------------------------------------------------------------------------------


def cross_entropy(model, x, y):
    """The same from logits, sample by sample, in float64."""
    logits = np.asarray(model(x / 255.0), "float64")
    chosen = logits[np.arange(len(y)), y]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen))


@pytest.mark.parametrize("source", ["images", "data.npz"])
def test_a_model_is_measured_on_labelled_data(source, folder, capsys):
    found = evaluated(f"model.keras --data {source} --divide-by 255", capsys)
    arrays = np.load("data.npz")
    assert found["samples"] == 12
    assert found["measured"]["accuracy"] == 10 / 12
    wanted = cross_entropy(seeing(), arrays["x"].astype("float32"), arrays["y"])
    assert found["measured"]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["size"] == pathlib.Path("model.keras").stat().st_size
    assert found["sparsity"] == pytest.approx(1 - (4 + 2) / (6 + 4))
    assert found["nonzeros"] == 6


@pytest.mark.parametrize("options", [{}, {"activation": "softmax"}], ids=["logits", "softmax"])
def test_a_file_is_measured_as_its_model_is(options, folder, capsys):
    seeing(**options).save("model.keras")
    assert run("export model.keras model.tflite --target dense") == 0
    capsys.readouterr()
    words = "--data images --divide-by 255"
    of_model = evaluated(f"model.keras {words}", capsys)
    of_file = evaluated(f"model.tflite {words}", capsys)
    assert of_file["measured"]["accuracy"] == of_model["measured"]["accuracy"] == 10 / 12
    assert of_file["measured"]["loss"] == pytest.approx(of_model["measured"]["loss"], rel=1e-4)
    assert of_file["size"] == pathlib.Path("model.tflite").stat().st_size


@pytest.mark.long
def test_files_of_integers_take_real_numbers(folder, capsys):
    for kind in ("int8", "float32"):
        command = "export model.keras model.tflite --target int8 --calibration images "
        assert run(f"{command} --divide-by 255 --input-type {kind} --tolerance 1") == 0
        capsys.readouterr()
        assert run("evaluate model.tflite --data images") == 1
        assert "--divide-by 255" in capsys.readouterr().err
        found = evaluated("model.tflite --data images --divide-by 255", capsys)
        assert found["measured"]["accuracy"] == 10 / 12
        assert found["measured"]["loss"] == pytest.approx(
            evaluated("model.keras --data images --divide-by 255", capsys)["measured"]["loss"],
            abs=0.05,
        )


def test_export_measures_the_file_on_labelled_data(folder, capsys):
    words = "export model.keras model.tflite --target int8 --tolerance 1 --divide-by 255"
    assert run(f"{words} --data images --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["evaluation"]["measured"]["accuracy"] == 10 / 12
    assert run(f"{words} --data x.npy") == 0  # the inputs alone do for calibration
    captured = capsys.readouterr()
    assert "x.npy has no labels" in captured.err
    assert "accuracy" not in captured.out


def test_the_part_to_test_on_is_measured(folder, capsys):
    arrays = dict(np.load("data.npz"))
    np.savez("parts.npz", **arrays, x_test=arrays["x"][:6], y_test=arrays["y"][:6])
    words = "--divide-by 255"
    assert evaluated(f"model.keras --data parts.npz {words}", capsys)["samples"] == 6
    for part in ("train", "validation"):
        shutil.copytree("images", f"parts/{part}")
    shutil.rmtree("parts/validation/second")
    pathlib.Path("parts/validation/second").mkdir()
    found = evaluated(f"model.keras --data parts {words}", capsys)
    assert (found["samples"], found["measured"]["accuracy"]) == (6, 5 / 6)


def test_an_autoencoder_is_measured_by_squares(folder, capsys, rng):
    x = rng.normal(size=(20, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    model.save("auto.keras")
    np.savez("auto.npz", x=x, y=x)
    found = evaluated("auto.keras --data auto.npz", capsys)
    assert found["measured"]["accuracy"] is None
    wanted = np.mean((np.asarray(model(x), "float64") - x) ** 2)
    assert found["measured"]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert run("evaluate auto.keras --data auto.npz") == 0
    assert "mean squared error" in capsys.readouterr().out


def test_two_inputs_go_by_name(folder, capsys, rng):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([b, a], layers.Dense(2)(layers.Concatenate()([a, b])))
    model.save("two.keras")
    arrays = {"a": rng.normal(size=(9, 3)), "b": rng.normal(size=(9, 2))}
    y = np.asarray(model([arrays["b"], arrays["a"]])).argmax(axis=1)
    np.savez("two.npz", **arrays, y=y)
    assert run("export two.keras two.tflite --target dense") == 0
    capsys.readouterr()
    for name in ("two.keras", "two.tflite"):
        assert evaluated(f"{name} --data two.npz", capsys)["measured"]["accuracy"] == 1


OUTPUTS = {
    "one number, a probability": ([[0.9], [0.2], [0.6]], [1, 0, 0], 2 / 3),
    "one number, a logit": ([[3.0], [-2.0], [0.6]], [[1], [0], [0]], 2 / 3),
    "no axis of classes": ([0.9, 0.2, 0.6], [1, 0, 0], 2 / 3),
    "rows of weights": ([[0.2, 0.8], [0.7, 0.3]], [[0, 1.0], [0, 1]], 1 / 2),
    "positions": ([[[5.0, 1], [0, 2]], [[1, 0], [3, 4]]], [[0, 0], [0, 1]], 3 / 4),
    "several labels at once": ([[0.9, 0.8], [0.1, 0.7]], [[1, 1], [1, 1]], 3 / 4),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_accuracies_by_hand(name):
    outputs, labels, wanted = OUTPUTS[name]
    found = evaluate.measure([np.array(outputs)], np.array(labels))
    assert found.accuracy == pytest.approx(wanted)
    assert found.loss_name == "cross-entropy"


def test_losses_by_hand():
    found = evaluate.measure([np.array([[0.25, 0.75], [0.5, 0.5]])], np.array([1, 0]))
    assert found.loss == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)
    found = evaluate.measure([np.array([[2.0], [-1.0]])], np.array([0, 0]))
    assert found.loss == pytest.approx((np.log1p(np.exp(2)) + np.log1p(np.exp(-1))) / 2)
    far = evaluate.measure([np.array([[2000.0, 0.0]])], np.array([1]))
    assert far.loss == pytest.approx(2000)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate model.keras --data x.npy", "--divide-by 255"),
        ("evaluate model.keras --divide-by 255 --data x.npy", "without y, x_test, y_test"),
        ("evaluate model.keras --divide-by 255 --data flat", "one for each class"),
        ("evaluate model.keras --divide-by 255 --data empty", "no images in the folder"),
        ("evaluate model.keras --divide-by 255 --data far.npz", "number the classes from 0 to 1"),
        ("evaluate model.keras --divide-by 255 --data wide.npz", "labels of shape (12, 3)"),
        ("evaluate model.keras --divide-by 255 --data flat/0.png", "name its folder"),
        ("evaluate x.npy --data data.npz", "Keras cannot read this as a model"),
        ("evaluate gone.tflite --data data.npz", "gone.tflite"),
        ("evaluate two.keras --divide-by 255 --data data.npz", "keras.Model(model.inputs"),
        ("prune model.keras --inputs empty -s 0.5 -o o.keras", "no images in the folder"),
    ],
)
def test_what_cannot_be_measured_is_named(command, words, folder, capsys):
    shutil.copytree("images/first", "flat")
    pathlib.Path("empty").mkdir()
    arrays = dict(np.load("data.npz"))
    np.savez("far.npz", x=arrays["x"], y=arrays["y"] + 1)
    np.savez("wide.npz", x=arrays["x"], y=np.zeros((12, 3)))
    model = seeing()
    keras.Model(model.inputs, [model.outputs[0], model.outputs[0] + 1]).save("two.keras")
    assert run(command) == 1
    assert words in capsys.readouterr().err.replace("\n", " ")


# --- the same sources everywhere -------------------------------------------------------------

COMMANDS = {
    "prune": "prune {model} --inputs {source} -s 0.5 -o o.keras --method random --divide-by 255",
    "compress": "compress {model} --inputs {source} -s 0.3 -o o.tflite --max-drop 1 "
    "--divide-by 255 -q",
    "export": "export {model} o.tflite --target int8 --calibration {source} --divide-by 255 "
    "--tolerance 1",
}


@pytest.mark.parametrize("source", ["images", "x.npy", "data.npz"])
@pytest.mark.parametrize(
    "name", ["prune", "export", pytest.param("compress", marks=pytest.mark.long)]
)
@pytest.mark.few(2)
def test_unlabelled_inputs(name, source, folder):
    assert run(COMMANDS[name].format(model="model.keras", source=source)) == 0


LABELLED = {
    "compare": "compare model.keras --data {source} -s 0.5 -m random --epochs 1 --divide-by 255",
    "compress": "compress model.keras --inputs {source} --data {source} -s 0.3 -o o.tflite "
    "--max-drop 1 --divide-by 255 -q",
    "export": "export model.keras o.tflite --target int8 --data {source} --divide-by 255 "
    "--tolerance 1",
    "evaluate": "evaluate model.keras --data {source} --divide-by 255",
}


@pytest.mark.parametrize("source", ["images", "data.npz"])
@pytest.mark.parametrize(
    "name", ["compare", "export", "evaluate", pytest.param("compress", marks=pytest.mark.long)]
)
@pytest.mark.few(2)
def test_labelled_data(name, source, folder, capsys):
    assert run(LABELLED[name].format(source=source)) == 0
    assert "accuracy" in capsys.readouterr().out.lower()


def test_each_option_means_one_thing():
    helps = {}
    for command in program.commands.values():
        for param in command.params:
            for option in {"--inputs", "--calibration", "--data"} & set(param.opts):
                helps.setdefault(option, {})[command.name] = (param.help, param.metavar)
    assert set(helps["--data"]) == {"compare", "compress", "evaluate", "export"}
    assert all(text.startswith("Labelled data") for text, _ in helps["--data"].values())
    assert set(helps["--inputs"]) == {"prune", "compress", "export"}
    unlabelled = [*helps["--inputs"].values(), *helps["--calibration"].values()]
    assert all(text.startswith("Unlabelled inputs") for text, _ in unlabelled)
    assert {m for found in helps.values() for _, m in found.values()} == {"FOLDER|FILE|tfds:NAME"}


MODELS = {
    "report": "report {model}",
    "evaluate": "evaluate {model} --data data.npz --divide-by 255",
    **COMMANDS,
}


@pytest.mark.parametrize("name", ["report", "evaluate", "prune"])
def test_models_of_keras_2(name, folder, capsys):
    parts = [keras.Input((6, 5, 3)), layers.DepthwiseConv2D(3), layers.Flatten()]
    model = keras.Sequential([*parts, layers.Dense(2)])
    keras2_files.save_h5(model, "old.h5")
    assert run(MODELS[name].format(model="old.h5", source="x.npy")) == 0


def test_a_run_on_a_folder_that_changes_is_another_run(folder):
    before = sources.fingerprint("images")
    assert before == sources.fingerprint("images")
    pathlib.Path("images/first/0.png").rename("images/first/7.png")
    assert sources.fingerprint("images") != before


def test_held_out_samples_are_every_fifth(folder, capsys):
    found = data.read_labelled("data.npz", seeing(), 255.0)
    arrays = np.load("data.npz")
    np.testing.assert_allclose(found.x_test * 255, arrays["x"][[4, 9]], rtol=1e-6)
    np.testing.assert_array_equal(found.y_test, arrays["y"][[4, 9]])
    assert len(found.x) == len(found.y) == 10
    assert "every fifth sample is held out" in capsys.readouterr().err


# --- messages in words of the command line ---------------------------------------------------


def test_messages_name_options(folder, capsys):
    assert run("export model.keras o.tflite --target int8") == 1
    said = capsys.readouterr().err
    assert "Pass --calibration or --data" in said
    assert "representative_data" not in said
    words = "prune model.keras --inputs x.npy --divide-by 255 -s 0.5 -o o.keras"
    assert run(f"{words} --memory-limit 10 --batch-size 2") == 1
    said = capsys.readouterr().err
    assert "--memory-limit=10 (" in said
    assert "--output-projections to a small number" in said


TRANSLATED = {
    "Set output_projections to 8. Received: memory_limit=3": "Set --output-projections to 8. "
    "Received: --memory-limit=3",
    "Received: sparsity=2, allocation='no'": "Received: --sparsity=2, --allocation='no'",
    "See prune_at_init(model, sparsity=0.5).": "See prune_at_init(model, sparsity=0.5).",
    "Pass saliency_data=x.": "Pass --inputs=x.",
    "model.output_projections is 3": "model.output_projections is 3",
}


@pytest.mark.parametrize("text", TRANSLATED)
def test_arguments_become_options(text):
    assert program.commands["prune"].in_options(text) == TRANSLATED[text]


@pytest.mark.filterwarnings("default::UserWarning")
def test_warnings_are_lines(folder, capsys):
    seeing(activation="softmax").save("model.keras")
    words = "prune model.keras --inputs images --divide-by 255 -s 0.5 -o o.keras --epochs 1 -q"
    assert run(words) == 0
    said = capsys.readouterr().err
    assert "keras-ntt: warning: The model 'sequential" in said
    assert "UserWarning" not in said
    assert keras_ntt.load_model("o.keras").count_params() == seeing().count_params()
