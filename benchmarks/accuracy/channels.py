"""Channel pruning: accuracy without labels on CIFAR-10, and which networks go through.

    python -m benchmarks.accuracy.channels accuracy --data-dir DATA --json results.json
    python -m benchmarks.accuracy.channels networks --json networks.json

*accuracy* removes 25, 50 and 75 % of the multiply-adds of a trained ResNet-8 of MLPerf Tiny, and
compares on the test images: magnitude without repair, the same channels repaired, the default,
the default and a few epochs on the dense model's outputs, and the labelled training of as many
steps. It needs ``cifar10_jpeg.npz`` and ``ic_resnet8_jpeg.keras`` in the folder of data, and says
"not run" without them. *networks* removes half of the channels (rounded to 8) of networks of
keras.applications with random weights, a U-Net and, with data, those of MLPerf Tiny.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import applications, layers

import keras_ntt
from keras_ntt.core.channels.graph import channel_graph
from keras_ntt.pruning.channels.plan import cost_of

Row = dict[str, Any]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("accuracy", "networks"))
    options.add_argument("--data-dir", type=pathlib.Path)
    options.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    options.add_argument("--networks", nargs="*", help="those to try, all by default")
    options.add_argument("--flops", nargs="*", type=float, default=[0.25, 0.5, 0.75])
    options.add_argument("--images", type=int, default=10_000, help="unlabelled images")
    options.add_argument("--epochs", type=int, default=10)
    given = options.parse_args()
    rows = []
    for row in accuracy(given) if given.what == "accuracy" else networks(given):
        rows.append(row)
        print("  ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def accuracy(given: argparse.Namespace) -> Iterator[Row]:
    """Yield rows of what is left of the accuracy."""
    data = given.data_dir
    if data is None or not (data / "ic_resnet8_jpeg.keras").exists():
        print("not run: --data-dir has no ic_resnet8_jpeg.keras")
        return
    x, y = images(data, "train", given.images)
    test, labels = images(data, "test", 10_000)

    def percent(model: keras.Model) -> float:
        found = model.predict(test, batch_size=500, verbose=0).argmax(axis=1)
        return round(100 * float(np.mean(found == labels)), 2)

    model = keras.models.load_model(data / "ic_resnet8_jpeg.keras", compile=False)
    yield {"network": "resnet-8", "method": "dense", **size(model), "accuracy": percent(model)}
    original = keras.models.load_model(data / "mlperf_tiny" / "ic_resnet8.h5", compile=False)
    name = {"network": "ic_resnet8.h5"}
    yield {**name, "method": "dense", **size(original), "accuracy": percent(original)}
    start = time.time()
    smaller = keras_ntt.prune_channels(original, x[:256], ratio=1 - 50858 / 78666, round_to=1)
    took = round(time.time() - start, 1)
    method = "one shot, 256 images, at most 50,858 parameters"
    yield {**name, "method": method, **size(smaller), "accuracy": percent(smaller), "seconds": took}
    for flops in given.flops:
        for method, run in methods(model, x, y, flops, given.epochs).items():
            keras.utils.set_random_seed(0)
            start = time.time()
            smaller = run()
            took = round(time.time() - start, 1)
            row = {"network": "resnet-8", "flops removed": flops, "method": method}
            yield {**row, **size(smaller), "accuracy": percent(smaller), "seconds": took}


def methods(
    model: keras.Model, x: np.ndarray, y: np.ndarray, flops: float, epochs: int
) -> dict[str, Callable[[], keras.Model]]:
    """Return the ways to prune that are compared."""

    def pruned(*inputs: Any, **options: Any) -> keras.Model:
        return keras_ntt.prune_channels(model, *inputs, flops=flops, round_to=1, **options)

    def with_labels() -> keras.Model:
        smaller = pruned(x)
        steps = epochs * -(-len(x) // 128)
        rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
        smaller.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
        smaller.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
        return smaller

    return {
        "random, repaired": lambda: pruned(x, importance="random"),
        "magnitude, no repair": lambda: pruned(importance="magnitude"),
        "magnitude, repaired": lambda: pruned(x, importance="magnitude"),
        "default": lambda: pruned(x),
        "default, global": lambda: pruned(x, allocation="global"),
        f"default, {epochs} epochs": lambda: pruned(x, epochs=epochs, verbose=0),
        f"default, {epochs} epochs with labels instead": with_labels,
    }


def size(model: keras.Model) -> Row:
    """Return the parameters and multiply-adds of a model."""
    cost = cost_of(channel_graph(model), set())
    return {"parameters": cost.parameters, "multiply-adds": cost.multiply_adds}


def images(data: pathlib.Path, part: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first images and labels of a part of CIFAR-10."""
    with np.load(data / "cifar10_jpeg.npz") as archive:
        raw, ends = archive[f"{part}_jpeg"].tobytes(), archive[f"{part}_offsets"]
        labels = archive[f"{part}_labels"][:n].ravel()
    found = [tf.io.decode_jpeg(raw[a:b]).numpy() for a, b in itertools.pairwise(ends[: n + 1])]
    return np.stack(found).astype("float32"), labels


def networks(given: argparse.Namespace) -> Iterator[Row]:
    """Yield rows of what networks lose with half of their channels."""
    for name, make in every_network(given.data_dir).items():
        if given.networks and name not in given.networks:
            continue
        model = make()
        start = time.time()
        try:
            smaller = keras_ntt.prune_channels(model, channels=0.5)
        except Exception as error:
            yield {"network": name, "refused": f"{type(error).__name__}: {error}"}
            continue
        took = round(time.time() - start, 1)
        before, after = size(model), size(smaller)
        shares = {f"{key} left": round(after[key] / before[key], 3) for key in before}
        yield {"network": name, **before, **shares, "seconds": took}
        keras.backend.clear_session()


def every_network(data: pathlib.Path | None) -> dict[str, Callable[[], keras.Model]]:
    """Return the networks by name."""
    names = """
        MobileNet MobileNetV2 MobileNetV3Small MobileNetV3Large EfficientNetB0 EfficientNetV2B0
        ResNet50 DenseNet121 NASNetMobile ConvNeXtTiny Xception InceptionV3 VGG16
    """
    found: dict[str, Callable[[], keras.Model]] = {
        name: lambda name=name: getattr(applications, name)(weights=None, input_shape=(224, 224, 3))
        for name in names.split()
    }
    found["U-Net"] = unet
    if data is not None:
        for file in sorted((data / "mlperf_tiny").glob("*.h5")):
            found[file.name] = lambda file=file: load(file)
    return found


def load(file: pathlib.Path) -> keras.Model:
    """Return a model that Keras 2 has saved."""

    class DepthwiseConv2D(layers.DepthwiseConv2D):
        def __init__(self, *args: Any, groups: int = 1, **kwargs: Any):
            super().__init__(*args, **kwargs)

    known = {"DepthwiseConv2D": DepthwiseConv2D}
    return keras.models.load_model(file, compile=False, custom_objects=known)


def unet() -> keras.Model:
    """Return a U-Net of three levels."""
    x = inputs = layers.Input((128, 128, 3))
    skips = []
    for width in (32, 64, 128):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(256, 3, padding="same", activation="relu")(x)
    for width in (128, 64, 32):
        x = layers.Conv2DTranspose(width, 2, strides=2)(x)
        x = layers.Concatenate()([x, skips.pop()])
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(x))


if __name__ == "__main__":
    sys.exit(main())
