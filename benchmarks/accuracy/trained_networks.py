"""Trained networks and their data, for the benchmark of pruning without labels.

ResNet-8 comes trained; the others are trained here with labels, once, and kept in a folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from benchmarks.accuracy.datasets import has_idx, load_idx

CIFAR, RESNET, DIGITS = "cifar10_jpeg.npz", "ic_resnet8_jpeg.keras", "spoken_digits_8khz.npz"
VALIDATION = 5_000  # images of CIFAR-10 to choose settings on
RATE = 8_000  # of samples a second
_FRAME, _HOP, _BANDS, _FRAMES = 320, 160, 40, 49


class Part(NamedTuple):
    """Inputs by number, and their labels.

    Attributes:
        x: Some numbers -> inputs ``[n, ...]``.
        y: Labels of all.
    """

    x: Callable[[np.ndarray], np.ndarray]
    y: np.ndarray


class Task(NamedTuple):
    """A network's data, and the network before or after training."""

    train: Part
    test: Part
    make: Callable[[], keras.Model]


@dataclass(frozen=True)
class Network:
    """A network of the benchmark.

    Attributes:
        task: Folders of the data -> the task; None if something is missing.
        needs: What is needed, for a message.
        epochs: Passes over the training data to train it in; 0 for one that comes trained.
        validation: Training samples that are set apart to choose settings on.
    """

    task: Callable[[Path | None, Path | None], Task | None]
    needs: str
    epochs: int
    validation: int


def decoded(file: Any, part: str, indices: np.ndarray) -> np.ndarray:
    """Return some images of a part as floats from 0 to 255."""
    data, ends = file[f"{part}_jpeg"], file[f"{part}_offsets"]
    images = [tf.io.decode_jpeg(data[ends[i] : ends[i + 1]].tobytes()).numpy() for i in indices]
    return np.stack(images).astype("float32")


def _cifar(folder: Path, make: Callable[[], keras.Model]) -> Task:
    with np.load(folder / CIFAR) as archive:
        file = {name: archive[name] for name in archive.files}
    train, test = (
        Part(lambda i, p=part: decoded(file, p, i), file[f"{part}_labels"].ravel())
        for part in ("train", "test")
    )
    return Task(train, test, make)


def resnet8(data: Path | None, idx: Path | None) -> Task | None:
    """Return the ResNet-8 of MLPerf Tiny, trained."""
    if data is None or not (data / CIFAR).exists() or not (data / RESNET).exists():
        return None
    return _cifar(data, lambda: keras.models.load_model(data / RESNET, compile=False))


def mobilenet(data: Path | None, idx: Path | None) -> Task | None:
    """Return a MobileNetV1 of a quarter of the width, for images of 32 x 32 pixels."""
    if data is None or not (data / CIFAR).exists():
        return None

    def make() -> keras.Model:
        layers = keras.layers
        parts: list[Any] = [keras.Input((32, 32, 3)), layers.Rescaling(1 / 127.5, offset=-1)]
        parts += _block(layers.Conv2D, 8, 1)
        pairs = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5]
        for width, stride in [*pairs, (256, 2), (256, 1)]:
            parts += _block(layers.DepthwiseConv2D, None, stride)
            parts += _block(layers.Conv2D, width, 1, size=1)
        parts += [layers.GlobalAveragePooling2D(), layers.Dense(10, "softmax")]
        return keras.Sequential(parts)

    return _cifar(data, make)


def _block(
    kind: Any, width: int | None, stride: int, size: Any = 3, padding: str = "same"
) -> list[Any]:
    given = () if width is None else (width,)
    convolution = kind(*given, size, strides=stride, padding=padding, use_bias=False)
    return [convolution, keras.layers.BatchNormalization(), keras.layers.ReLU()]


def ds_cnn(data: Path | None, idx: Path | None) -> Task | None:
    """Return a depthwise separable network for spoken digits, as MLPerf Tiny's for words."""
    if data is None or not (data / DIGITS).exists():
        return None
    with np.load(data / DIGITS) as file:
        ends, signal = file["offsets"], file["signal"]
        takes = [signal[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]
        x, y, is_test = bands_of(takes), file["digit"].astype("int64"), file["take"] < 5

    def make() -> keras.Model:
        layers = keras.layers
        parts: list[Any] = [keras.Input((_FRAMES, _BANDS, 1))]
        parts += _block(layers.Conv2D, 64, 2, size=(10, 4))
        for _ in range(4):
            parts += _block(layers.DepthwiseConv2D, None, 1)
            parts += _block(layers.Conv2D, 64, 1, size=1)
        parts += [layers.Dropout(0.3), layers.GlobalAveragePooling2D()]
        return keras.Sequential([*parts, layers.Dense(10, "softmax")])

    train, test = (
        Part(lambda i, part=x[chosen]: part[i], y[chosen]) for chosen in (~is_test, is_test)
    )
    return Task(train, test, make)


def bands_of(takes: list[np.ndarray]) -> np.ndarray:
    """Return logarithms of the energies of 40 mel bands in 49 frames, ``[n, 49, 40, 1]``.

    A frame is 40 ms long, the next begins 20 ms later; longer takes are cut, shorter ones filled
    with silence.
    """
    length = (_FRAMES - 1) * _HOP + _FRAME
    wave = np.stack([np.pad(t[:length], (0, length - len(t[:length]))) for t in takes]) / 2**15
    mel = tf.signal.linear_to_mel_weight_matrix(_BANDS, 257, RATE, 20, RATE / 2)
    parts = []
    for start in range(0, len(wave), 256):
        some = tf.constant(wave[start : start + 256], tf.float32)
        power = tf.abs(tf.signal.stft(some, _FRAME, _HOP, fft_length=512)) ** 2
        parts.append(tf.math.log(power @ mel + 1e-6).numpy())
    found = np.concatenate(parts)
    return ((found - found.mean()) / found.std())[..., None].astype("float32")


def lenet(data: Path | None, idx: Path | None) -> Task | None:
    """Return LeNet-300-100 for Fashion-MNIST."""
    if not has_idx(idx):
        return None
    assert idx is not None
    loaded = load_idx(idx)

    def make() -> keras.Model:
        dense = keras.layers.Dense
        parts: list[Any] = [keras.Input((28, 28, 1)), keras.layers.Flatten()]
        parts += [dense(300, "relu"), dense(100, "relu"), dense(10, "softmax")]
        return keras.Sequential(parts)

    train, test = (
        Part(lambda i, x=x: x[i].astype("float32") / 255, y.astype("int64"))
        for x, y in (loaded["train"], loaded["test"])
    )
    return Task(train, test, make)


NETWORKS = {
    "resnet8": Network(resnet8, f"--data-dir with {CIFAR} and {RESNET}", 0, VALIDATION),
    "mobilenet": Network(mobilenet, f"--data-dir with {CIFAR}", 20, VALIDATION),
    "ds_cnn": Network(ds_cnn, f"--data-dir with {DIGITS}", 30, 300),
    "lenet": Network(lenet, "--idx-dir with the files of Fashion-MNIST", 20, 5_000),
}


def dense_of(name: str, task: Task, chosen: np.ndarray, cache: Path) -> keras.Model:
    """Return a trained network; one that must be trained is kept in a folder.

    Args:
        name: One of `NETWORKS`.
        task: Its task.
        chosen: Numbers of the training samples that it may see.
        cache: The folder.

    Returns:
        The network.
    """
    epochs = NETWORKS[name].epochs
    if not epochs:
        return task.make()
    file = cache / f"{name}_{len(chosen)}.keras"
    if file.exists():
        return keras.models.load_model(file, compile=False)
    keras.utils.set_random_seed(0)
    model, batch = task.make(), 64
    steps = epochs * -(-len(chosen) // batch)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=1e-3), "sparse_categorical_crossentropy"
    )
    model.fit(
        task.train.x(chosen), task.train.y[chosen], batch_size=batch, epochs=epochs, verbose=2
    )
    cache.mkdir(parents=True, exist_ok=True)
    model.save(file)
    return model
