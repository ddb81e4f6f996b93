"""Where samples come from: arrays in files, folders of images, data sets by name.

Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TFDS = "tfds:"
# The names of the test part in folders and data sets.
_TEST = ("test", "validation", "valid", "val")
IMAGES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png"))  # that Keras reads


class Samples(NamedTuple):
    """Samples of a source, unchanged.

    Attributes:
        x: Inputs, nested as the model takes them.
        y: Their labels, or None.
    """

    x: Any
    y: Any


class Wanted(NamedTuple):
    """What a model or a file takes.

    Attributes:
        signature: Its inputs, a `keras_ntt.core.input_checks.Signature`.
        names: The names of its inputs, nested as it takes them; None if they are not known.
    """

    signature: Any
    names: Any

    @property
    def inputs(self) -> list[Any]:
        """Shape and type of each input; none if they are not known."""
        return self.signature.inputs or []


Parts = dict[str, Callable[[], Samples]]


def parts_of(source: str, wanted: Wanted, *, labels: bool) -> Parts:
    """Return the parts of a source, each a function that reads it.

    Args:
        source: The value of an option: a folder, a file or ``tfds:NAME``.
        wanted: What the model takes.
        labels: Whether to read images with the numbers of their folders as labels.

    Returns:
        ``"train"`` and, if the source has a test part, ``"test"``.

    Raises:
        ImportError: If a data set by name is wanted and tensorflow-datasets is not installed.
        OSError: If there is no such file.
        ValueError: If the file holds no arrays, or not the wanted ones.
    """
    if source.startswith(TFDS):
        return _parts_of_data_set(source, wanted)
    path = pathlib.Path(source)
    if path.is_dir():
        return _parts_of_folder(path, wanted, labels)
    return _parts_of_arrays(path, wanted)


def fingerprint(source: str | pathlib.Path) -> str:
    """Return a digest of the contents of a file or folder, or the name of a data set itself."""
    if str(source).startswith(TFDS):
        return str(source)
    path = pathlib.Path(source)
    inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for part in inside:
        if part != path:
            digest.update(str(part.relative_to(path)).encode())
        with part.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
    return digest.hexdigest()


# --- arrays ----------------------------------------------------------------------------------


def _parts_of_arrays(path: pathlib.Path, wanted: Wanted) -> Parts:
    found = read_arrays(path)
    if isinstance(found, np.ndarray):
        return {"train": lambda: Samples(found, None)}
    x = _inputs_among(found, wanted, ("", "_train"))
    if x is None and len(found) == 1:
        (x,) = found.values()
    parts: Parts = {}
    if x is not None:
        y = found.get("y", found.get("y_train"))
        parts["train"] = lambda: Samples(x, y)
    test = _inputs_among(found, wanted, ("_test",))
    if test is not None:
        parts["test"] = lambda: Samples(test, found.get("y_test"))
    if not parts:
        import keras

        names = [] if wanted.names is None else keras.tree.flatten(wanted.names)
        several = f", or one array for each input, named {', '.join(names)}" * (len(names) > 1)
        raise ValueError(
            f"An .npz file of inputs must hold them as x or x_train{several}. "
            f"Received: {path} with the arrays {', '.join(sorted(found))}"
        )
    return parts


def _inputs_among(found: dict[str, np.ndarray], wanted: Wanted, ends: tuple[str, ...]) -> Any:
    """Return the inputs among named arrays, None if they are not there."""
    import keras

    names = [] if wanted.names is None else keras.tree.flatten(wanted.names)
    for end in ends:
        if len(names) > 1 and all(name + end in found for name in names):
            return keras.tree.map_structure(lambda name, end=end: found[name + end], wanted.names)
    return next((found[f"x{end}"] for end in ends if f"x{end}" in found), None)


def read_arrays(path: pathlib.Path) -> np.ndarray | dict[str, np.ndarray]:
    """Read a file of arrays.

    Args:
        path: A ``.npy`` or ``.npz`` file.

    Returns:
        An array, or ``name -> array``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no such file of arrays. Received: {path}")
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            return {key: found[key] for key in found.files}
    except Exception as error:  # the bytes may be anything: if reading fails, they are not arrays
        hint = " One image is no set of samples: name its folder." * (path.suffix.lower() in IMAGES)
        raise ValueError(
            "Arrays are read from .npy and .npz files of numbers; pickled objects are refused."
            f"{hint} Received: {path} ({type(error).__name__}: {error})"
        ) from error


# --- folders of images -----------------------------------------------------------------------


def _parts_of_folder(path: pathlib.Path, wanted: Wanted, labels: bool) -> Parts:
    """Return the parts of a folder: its subfolders ``train`` and ``test``, or the whole folder."""
    inside = {part.name for part in path.iterdir() if part.is_dir()}
    test = next((name for name in _TEST if name in inside), None)
    if test is None or "train" not in inside:
        return {"train": lambda: _images(path, wanted, labels)}
    return {
        "train": lambda: _images(path / "train", wanted, labels),
        "test": lambda: _images(path / test, wanted, labels),
    }


def _images(path: pathlib.Path, wanted: Wanted, labels: bool) -> Samples:
    """Return the images of a folder, as integers from 0 to 255, resized for a model.

    Labels are the numbers of the folders that the images are in, in the order of their names.
    """
    import keras

    inputs = wanted.inputs
    shape: tuple[Any, ...] = inputs[0].shape if len(inputs) == 1 else ()
    colours = {1: "grayscale", 3: "rgb", 4: "rgba"}
    if len(shape) != 4 or None in shape[1:3] or shape[3] not in colours:
        raise ValueError(
            "A folder of images is for models with one input [height, width, channels] of a known "
            f"size. Save the inputs as a .npy file instead. Received: inputs of shape {shape}"
        )
    if not any(file.suffix.lower() in IMAGES for file in path.rglob("*")):
        raise ValueError(
            f"There are no images in the folder ({', '.join(sorted(IMAGES))}). Received: {path}"
        )
    if labels and not any(part.is_dir() for part in path.iterdir()):
        raise ValueError(
            "Labelled images are sorted into folders, one for each class; the classes are numbered "
            f"in the order of the folders' names. Received: {path} without folders in it"
        )
    with contextlib.redirect_stdout(sys.stderr):  # how many files were found
        dataset = keras.utils.image_dataset_from_directory(
            path,
            labels="inferred" if labels else None,
            label_mode="int" if labels else None,
            color_mode=colours[shape[3]],
            image_size=shape[1:3],
            batch_size=None,
            shuffle=False,
        )
    rows = list(dataset)
    images = [row[0] if labels else row for row in rows]
    x = np.stack([np.rint(np.asarray(image)).astype("uint8") for image in images])
    return Samples(x, np.array([int(row[1]) for row in rows]) if labels else None)


# --- data sets by name -----------------------------------------------------------------------


def _parts_of_data_set(source: str, wanted: Wanted) -> Parts:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "Data sets by name come with another package: pip install 'keras-ntt[tfds]'. "
            f"Received: {source}"
        ) from error
    name = source.removeprefix(TFDS)
    try:
        builder = tfds.builder(name)
    except Exception as error:  # it raises whatever reading its files raises
        raise ValueError(
            "tensorflow-datasets has no such data set. Its list is tfds.list_builders(); those of "
            "your own are looked for in the folder TFDS_DATA_DIR. "
            f"Received: {source} ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    splits = list(builder.info.splits)
    test = next((part for part in _TEST if part in splits), None)
    train = "train" if "train" in splits else next((part for part in splits if part != test), None)
    read = functools.partial(_data_set, builder, wanted, source)
    named = {"train": train, "test": test}
    return {part: functools.partial(read, split) for part, split in named.items() if split}


def _data_set(builder: Any, wanted: Wanted, source: str, split: str) -> Samples:
    """Read one split of a data set, images resized as a model wants."""
    import keras
    import tensorflow as tf

    inputs, label = _features_of(builder.info, wanted, source)
    builder.download_and_prepare()
    features = builder.info.features
    whole = len(wanted.inputs) == 1

    def chosen(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        picked = {key: row[key] for key in keras.tree.flatten(inputs)}
        if whole and type(features[inputs]).__name__ == "Image":
            picked[inputs] = _as_wanted(row[inputs], wanted.inputs[0].shape)
        return picked | ({} if label is None else {label: row[label]})

    try:
        rows = list(builder.as_dataset(split=split).map(chosen).batch(256).as_numpy_iterator())
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            "The samples of the data set have different shapes, and the model takes one. Save the "
            f"inputs as a .npy file instead. Received: {source} ({str(error)[:200]})"
        ) from error
    joined = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    x = keras.tree.map_structure(joined.__getitem__, inputs)
    return Samples(x, None if label is None else joined[label])


def _features_of(info: Any, wanted: Wanted, source: str) -> tuple[Any, str | None]:
    """Return the features that are inputs, nested as a model takes them, and the one of labels."""
    import keras

    features, keys = dict(info.features), info.supervised_keys
    labels = [key for key, value in features.items() if type(value).__name__ == "ClassLabel"]
    names = [] if wanted.names is None else keras.tree.flatten(wanted.names)
    if len(names) > 1 and all(name in features for name in names):
        left = [key for key in labels if key not in names]
        return wanted.names, left[0] if len(left) == 1 else None
    if keys is not None and all(isinstance(key, str) for key in keys):
        return keys[0], keys[1]
    others = [key for key in features if key not in labels]
    if len(others) == 1 and len(labels) < 2:
        return others[0], next(iter(labels), None)
    raise ValueError(
        "The data set does not say which of its features are inputs. Name the inputs of the model "
        "as the features, or save the inputs as an .npz file. "
        f"Received: {source} with the features {', '.join(map(str, features))}"
    )


def _as_wanted(image: Any, shape: tuple[Any, ...]) -> Any:
    """Return an image of the size and the colours that a model wants, as whole numbers."""
    import tensorflow as tf

    if len(shape) != 4 or None in shape[1:3] or image.dtype != tf.uint8:
        return image
    colours = image.shape[-1]
    if (colours, shape[3]) == (3, 1):
        image = tf.image.rgb_to_grayscale(image)
    elif (colours, shape[3]) == (1, 3):
        image = tf.image.grayscale_to_rgb(image)
    if tuple(image.shape[:2]) == tuple(shape[1:3]):
        return image
    return tf.cast(tf.round(tf.image.resize(image, shape[1:3])), tf.uint8)
