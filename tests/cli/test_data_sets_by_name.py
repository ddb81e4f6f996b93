"""tfds:NAME, on small data sets that the tests make; skipped without tensorflow-datasets."""

from __future__ import annotations

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ntt
from keras_ntt.cli import data
from keras_ntt.cli.program import main

tfds = pytest.importorskip("tensorflow_datasets")
pytestmark = pytest.mark.long


def picture(number, height=6, width=5, colours=3):
    """A picture whose class is its number, modulo two: the brightest colour."""
    pixels = np.random.default_rng(number).integers(0, 90, (height, width, colours))
    pixels[..., number % 2 % colours] += 100
    return pixels.astype("uint8")


# name -> split -> pictures
SIZES = {
    "equal_sizes": {"train": [(6, 5)] * 12, "test": [(6, 5)] * 8},
    "other_sizes": {"train": [(6 + i, 5 + i) for i in range(6)], "validation": [(6, 9)] * 4},
}


class _Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pictures and their classes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        shape = (6, 5, 3) if self.name == "equal_sizes" else (None, None, 3)
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, _):
        return {part: self._generate_examples(part) for part in SIZES[self.name]}

    def _generate_examples(self, part):
        for number, size in enumerate(SIZES[self.name][part]):
            yield number, {"image": picture(number, *size), "label": number % 2}


class EqualSizes(_Pictures):
    """Pictures of one size."""


class OtherSizes(_Pictures):
    """Pictures of several sizes."""


def unlabelled(name, features, rows, split="whole"):
    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: tf.data.Dataset.from_tensor_slices(rows)},
        data_dir=str(pathlib.Path("sets")),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for builder in (EqualSizes, OtherSizes):
            builder(data_dir="sets").download_and_prepare()
        image = {"image": tfds.features.Image(shape=(6, 5, 3))}
        unlabelled("no_labels", image, {"image": np.stack([picture(i) for i in range(6)])})
        tensors = {
            "one": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "two": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        }
        rows = {"one": np.ones((5, 4), "float32"), "two": np.zeros((5, 3), "float32")}
        unlabelled("two_inputs", tensors, rows, "train")
        seeing().save("model.keras")
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setenv("TFDS_DATA_DIR", str(made / "sets"))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(made / "sets"), raising=False)
    for module in (tfds.core.load, tfds.core.read_only_builder):
        if hasattr(module, "constants"):
            monkeypatch.setattr(module.constants, "DATA_DIR", str(made / "sets"), raising=False)
    return made


def seeing(colours=3, size=(6, 5)):
    """A network that tells the first colour from the others."""
    colour = layers.Conv2D(2, 1, name="colour")
    inputs = keras.Input((*size, colours))
    model = keras.Sequential([inputs, colour, layers.GlobalAveragePooling2D()])
    model.add(layers.Dense(2))
    if colours == 3:
        colour.set_weights([np.array([[[[4.0, -4], [-4, 4], [0, 0]]]]), np.zeros(2)])
        model.layers[-1].set_weights([np.eye(2), np.zeros(2)])
    return model


def run(words):
    return main(words.split())


def test_pictures_and_their_labels(folder):
    found = data.read_labelled("tfds:equal_sizes", seeing(), 255.0)
    order = np.argsort([np.flatnonzero(_same(x)).item() for x in found.x * 255])
    assert found.x.shape == (12, 6, 5, 3)
    np.testing.assert_array_equal(found.y[order], np.arange(12) % 2)
    assert found.x_test.shape == (8, 6, 5, 3)
    with pytest.raises(ValueError, match="whole numbers"):
        data.read_inputs("tfds:equal_sizes", seeing())


def _same(x):
    return [np.array_equal(np.rint(x), picture(number)) for number in range(12)]


@pytest.mark.parametrize(("colours", "size"), [(3, (6, 5)), (1, (4, 4)), (3, (12, 10))])
def test_pictures_are_made_as_the_model_wants(folder, colours, size):
    for name, count in (("equal_sizes", 12), ("other_sizes", 6)):
        x = data.read_inputs(f"tfds:{name}", seeing(colours, size), 1.0)
        assert x.shape == (count, *size, colours)
    # Of a picture that is twice as large, the means stay.
    twice = data.read_inputs("tfds:equal_sizes", seeing(3, (12, 10)), 1.0)
    means = np.sort(twice.mean(axis=(1, 2))[:, 0])
    wanted = np.sort([picture(number)[..., 0].mean() for number in range(12)])
    np.testing.assert_allclose(means, wanted, atol=2)


def test_the_part_to_test_on_has_several_names(folder):
    assert len(data.read_samples("tfds:other_sizes", seeing(), 255.0).y) == 4
    assert len(data.read_inputs("tfds:no_labels", seeing(), 255.0)) == 6
    with pytest.raises(ValueError, match=r"without y\b|without .*y"):
        data.read_samples("tfds:no_labels", seeing(), 255.0)


def test_features_by_the_names_of_the_inputs(folder):
    one, two = keras.Input((4,), name="one"), keras.Input((3,), name="two")
    model = keras.Model({"two": two, "one": one}, layers.Concatenate()([one, two]))
    found = data.read_inputs("tfds:two_inputs", model)
    assert {key: value.shape for key, value in found.items()} == {"one": (5, 4), "two": (5, 3)}
    with pytest.raises(ValueError, match=r"does not say which of its features.*one, two"):
        data.read_inputs("tfds:two_inputs", seeing())
    with pytest.raises(ValueError, match=r"has no such data set.*tfds:nowhere_at_all"):
        data.read_inputs("tfds:nowhere_at_all", seeing())


def test_commands_take_data_sets_by_name(folder, capsys):
    """evaluate, prune, export and compress, with what --inputs, --calibration and --data name."""
    scaled = "--divide-by 255 --json"
    assert run(f"evaluate model.keras --data tfds:equal_sizes {scaled}") == 0
    assert json.loads(capsys.readouterr().out)["measured"]["accuracy"] == 1.0
    prune = "prune model.keras --epochs 1 -s 0.5 -o sparse.keras --inputs"
    assert run(f"{prune} tfds:other_sizes {scaled}") == 0
    capsys.readouterr()
    export = "export model.keras int8.tflite --target int8 --calibration tfds:equal_sizes"
    assert run(f"{export} --data tfds:other_sizes {scaled}") == 0
    capsys.readouterr()
    compress = "compress model.keras --inputs tfds:equal_sizes -s 0.5 -o small.tflite --quiet"
    assert run(f"{compress} --max-drop 60% {scaled}") == 0
    assert json.loads(capsys.readouterr().out)
    assert run(f"evaluate model.keras --data tfds:nowhere_at_all {scaled}") == 1
    assert "has no such data set" in capsys.readouterr().err


def test_data_sets_for_functions(folder, tmp_path):
    """tfds.load gives pairs with as_supervised=True; a map takes the pictures of the others."""
    pairs = tfds.load("equal_sizes", split="train", as_supervised=True, data_dir="sets")
    pairs = pairs.map(lambda image, label: (tf.cast(image, tf.float32) / 255, label)).batch(4)
    report = keras_ntt.export_tflite(
        seeing(), tmp_path / "m.tflite", target="int8", representative_data=pairs
    )
    assert report.rounding.agreement == 1
    only = pairs.map(lambda image, label: image)
    for inputs in (pairs, only):
        pruned = keras_ntt.prune_post_training(seeing(), inputs, sparsity=0.5)
        assert keras_ntt.sparsity_report(pruned).sparsity == 0.5
    found = keras_ntt.compress(seeing(), pairs, sparsity=0.5, max_drop=0.6, verbose=0)
    assert found.rows
