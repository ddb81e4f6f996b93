"""Labelled images for the reproduction: from the original files, or by tensorflow-datasets."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TFDS_NAMES = {
    "fashion_mnist": "fashion_mnist",
    "mnist": "mnist",
    "cifar10": "cifar10",
    "svhn": "svhn_cropped",
}
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
VALIDATION = 10_000


class Data(NamedTuple):
    """Images ``[n, height, width, channels]`` and labels ``[n]``, in two parts."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def read_idx(path: Path) -> np.ndarray:
    """Return the array in an IDX file of bytes, plain or gzipped."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"This is no IDX file of bytes. Received: {path}")
    rank = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def find_idx(folder: Path, stem: str) -> Path | None:
    """Return the IDX file of a name in a folder, plain or gzipped, or None."""
    for path in (folder / stem, folder / f"{stem}.gz"):
        if path.exists():
            return path
    return None


def has_idx(folder: Path | None) -> bool:
    """Tell whether a folder holds the four IDX files of MNIST or Fashion-MNIST."""
    stems = [stem for pair in IDX_FILES.values() for stem in pair]
    return folder is not None and all(find_idx(folder, stem) for stem in stems)


def load_idx(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return ``part -> (images, labels)`` of the four IDX files, as bytes."""
    found = {}
    for part, stems in IDX_FILES.items():
        images, labels = (read_idx(find_idx(folder, stem)) for stem in stems)
        found[part] = images[..., None], labels
    return found


def prepare_tfds(name: str, idx_dir: Path, tfds_dir: Path) -> None:
    """Write IDX files as a tensorflow-datasets folder, for ``tfds.load`` to read offline."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder(TFDS_NAMES[name], data_dir=tfds_dir)
    if Path(builder.data_dir).exists():
        return
    examples = {
        part: tf.data.Dataset.from_tensor_slices({"image": images, "label": labels.astype("int64")})
        for part, (images, labels) in load_idx(idx_dir).items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name=builder.name,
        version=builder.version,
        features=builder.info.features,
        split_datasets=examples,
        data_dir=tfds_dir,
    )


def load_tfds(name: str, tfds_dir: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return ``part -> (images, labels)`` by ``tfds.load``, which downloads what is missing."""
    import tensorflow_datasets as tfds

    found = {}
    for part in ("train", "test"):
        dataset: Any = tfds.load(
            TFDS_NAMES[name], split=part, data_dir=tfds_dir, as_supervised=True, batch_size=-1
        )
        found[part] = tuple(array.numpy() for array in dataset)
    return found


def load(name: str, *, idx_dir: Path | None, tfds_dir: Path | None, split: str) -> Data:
    """Return a data set.

    Args:
        name: One of `TFDS_NAMES`.
        idx_dir: Folder of IDX files, for MNIST and Fashion-MNIST.
        tfds_dir: Folder of tensorflow-datasets. With both, it is prepared from the IDX files.
        split: ``"test"``: train on the training images, test on the test images.
            ``"validation"``: on all but the last 10,000 training images, test on those.

    Returns:
        The images, of each channel less the mean of the pixels to train on and over their
        standard deviation, as in the original implementation, and the labels.
    """
    if tfds_dir is not None and has_idx(idx_dir):
        prepare_tfds(name, idx_dir, tfds_dir)
    if tfds_dir is None and has_idx(idx_dir):
        parts = load_idx(idx_dir)
    else:
        parts = load_tfds(name, tfds_dir)
    (x, y), (x_test, y_test) = parts["train"], parts["test"]
    if split == "validation":
        x, y, x_test, y_test = x[:-VALIDATION], y[:-VALIDATION], x[-VALIDATION:], y[-VALIDATION:]
    mean, deviation = np.mean(x, (0, 1, 2)), np.std(x, (0, 1, 2))
    x, x_test = (((part - mean) / deviation).astype("float32") for part in (x, x_test))
    return Data(x, y.astype("int64"), x_test, y_test.astype("int64"))
