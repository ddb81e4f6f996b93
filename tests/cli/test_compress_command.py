"""keras-ntt compress: from files to a file."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_ntt
from keras_ntt.cli.program import main
from keras_ntt.compression.candidates import Candidate


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model, inputs, labelled data and images; the tests run in it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(40, "relu"), layers.Dense(3)])
    model.save("model.keras")
    x = rng.normal(size=(80, 8)).astype("float32")
    np.save("x.npy", x)
    y = model.predict(x, verbose=0).argmax(axis=1)
    np.savez("data.npz", x=x, y=y, x_test=x, y_test=y)
    seeing = keras.Sequential([keras.Input((6, 5, 3)), layers.Rescaling(1 / 255)])
    seeing.add(layers.Conv2D(4, 3))
    seeing.add(layers.GlobalAveragePooling2D())
    seeing.add(layers.Dense(2, "softmax"))
    seeing.save("seeing.keras")
    pathlib.Path("images/some").mkdir(parents=True)
    for number in range(12):
        image = rng.integers(0, 256, size=(9, 9, 3)).astype("uint8")
        keras.utils.save_img(f"images/some/{number}.png", image)
    return tmp_path


@pytest.mark.long
def test_compress_does_what_python_does(folder, capsys):
    words = "compress model.keras --inputs x.npy -s 0.5 -o a.tflite --max-drop 40% --json --quiet"
    assert main([*words.split(), "--keras", "a.keras"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = keras.models.load_model("model.keras")
    report = keras_ntt.compress(
        model, np.load("x.npy"), sparsity=0.5, max_drop=0.4, path="b.tflite", verbose=0
    )
    best = report.to_dict()["best"]
    assert found["best"].pop("seconds") > 0 < best.pop("seconds")
    assert found["best"] == best
    assert not pathlib.Path("a.tflite.unfinished").exists()
    assert pathlib.Path("a.tflite").read_bytes() == pathlib.Path("b.tflite").read_bytes()
    saved = keras.models.load_model("a.keras")
    for one, other in zip(saved.weights, report.model.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_labelled_data_are_measured_on(folder, capsys):
    words = "compress model.keras --inputs x.npy --data data.npz -s 0.3 -o a.tflite --quiet"
    assert main(words.split()) == 0
    assert "accuracy %" in capsys.readouterr().out


@pytest.mark.long
def test_what_was_stopped_goes_on(folder, capsys, monkeypatch):
    words = "compress model.keras --inputs x.npy -s 0.3 -s 0.5 -o a.tflite --max-drop 1 --quiet"
    before = Candidate.make

    def stop(self, *args, **options):
        if self.amount == 0.5:
            raise KeyboardInterrupt
        return before(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Candidate, "make", stop)
        assert main(words.split()) == 130
    shown = capsys.readouterr()
    assert "The search was stopped" in shown.out
    assert "30 % zeros" in shown.out
    assert "--restart" in shown.err
    assert pathlib.Path("a.tflite").exists()
    assert main([*words.split(), "--picture", "a.png"]) == 0
    assert "50 % zeros" in capsys.readouterr().out
    assert pathlib.Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert not pathlib.Path("a.tflite.unfinished").exists()


def test_folders_of_images(folder, capsys):
    words = "compress seeing.keras --inputs images -s 0.5 -o a.tflite --max-drop 1 --quiet"
    assert main(words.split()) == 0
    assert "held-out" in capsys.readouterr().out
    assert main(["compress", "model.keras", "--inputs", "images", "-o", "b.tflite"]) == 1
    assert "A folder of images is for models" in capsys.readouterr().err


@pytest.mark.parametrize("drop", ["5 percent", "101%", "-1", ""])
def test_drops_that_are_none(drop, folder, capsys):
    words = ["compress", "model.keras", "--inputs", "x.npy", "-o", "a.tflite", "--max-drop", drop]
    assert main(words) == 2
    assert "not a fraction" in capsys.readouterr().err
