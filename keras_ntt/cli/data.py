"""Models and data from files. Nothing is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

TFDS = "tfds:"


class Labelled(NamedTuple):
    """Samples and class numbers, to train on and to test on."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_model(path: pathlib.Path) -> Any:
    """Read a Keras model.

    Args:
        path: A ``.keras`` file.

    Returns:
        The model, not compiled.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no Keras model, or needs classes that are not registered.
    """
    import keras

    if not path.exists():
        raise FileNotFoundError(f"There is no such model file. Received: {path}")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # bytes of any origin: whatever fails, it cannot be used
        raise ValueError(
            "This is no model that Keras can read by itself. Take models with classes of your own "
            "from Python, where prune_neural_tangent, sparsity_report and export_tflite do the "
            f"same. Received: {path} ({type(error).__name__}: {_cause(str(error))})"
        ) from error


def _cause(message: str) -> str:
    """Return the part of a message of Keras that is not the configuration it could not read."""
    cause = message.rpartition("Exception encountered:")[2].partition("Full object config:")[0]
    return cause.strip()[:300]


def read_inputs(source: str, model: Any, divide_by: float | None = None) -> Any:
    """Read unlabelled inputs.

    Args:
        source: A folder of images, also in folders of their own; a ``.npy`` file; an ``.npz`` file
            with the inputs as ``x`` or ``x_train``, as its only array, or by the names of the
            model's inputs; or ``tfds:NAME``.
        model: The model that takes them.
        divide_by: What to divide them by; None leaves them as they are.

    Returns:
        Arrays, nested as the model takes them.

    Raises:
        ValueError: If there are no inputs in it, or they are whole numbers of unknown scale.
    """
    import keras

    x = keras.tree.map_structure(lambda a: _scaled(a, divide_by), _inputs(source, model))
    return _of_known_scale(x, model)


def _inputs(source: str, model: Any) -> Any:
    import keras

    from keras_ntt.core import host

    if source.startswith(TFDS):
        return _from_tfds(source, "train")[0]
    if pathlib.Path(source).is_dir():
        return _images(source, model)
    found = _read(source)
    if isinstance(found, np.ndarray):
        return found
    names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if len(names) > 1 and set(names) <= set(found):
        graph = host.functional_of(model)
        if graph is not None:
            structure = host.input_structure(graph)
            return keras.tree.map_structure(lambda tensor: found[tensor.name], structure)
    for key in ("x", "x_train", *(found if len(found) == 1 else ())):
        if key in found:
            return found[key]
    wanted = f", or one array for each input, named {', '.join(names)}" if len(names) > 1 else ""
    raise ValueError(
        f"An .npz file of inputs must hold them as x or x_train{wanted}. "
        f"Received: {source} with the arrays {', '.join(sorted(found))}"
    )


def _images(source: str, model: Any) -> np.ndarray:
    """Return the images of a folder, as whole numbers from 0 to 255, resized as a model wants."""
    import keras

    from keras_ntt.core import input_checks

    inputs = input_checks.signature_of(model).inputs or []
    shape = inputs[0].shape if len(inputs) == 1 else ()
    colours = {1: "grayscale", 3: "rgb", 4: "rgba"}
    if len(shape) != 4 or None in shape[1:3] or shape[3] not in colours:
        raise ValueError(
            "A folder of images is for models with one input [height, width, channels] of a known "
            f"size. Save the inputs as a .npy file instead. Received: inputs of shape {shape}"
        )
    with contextlib.redirect_stdout(sys.stderr):  # how many files were found
        dataset = keras.utils.image_dataset_from_directory(
            source,
            labels=None,
            color_mode=colours[shape[3]],
            image_size=shape[1:3],
            batch_size=None,
            shuffle=False,
        )
    return np.stack([np.rint(np.asarray(image)).astype("uint8") for image in dataset])


def read_labelled(source: str, model: Any, divide_by: float | None = None) -> Labelled:
    """Read samples with labels, in two parts.

    Args:
        source: An ``.npz`` file with the arrays ``x``, ``y`` (or ``x_train``, ``y_train``),
            ``x_test`` and ``y_test``; or ``tfds:NAME`` with the splits train and test.
        model: The model that takes them.
        divide_by: What to divide the inputs by; None leaves them as they are.

    Returns:
        The data.

    Raises:
        ValueError: If an array is missing or does not fit the others.
    """
    from keras_ntt.core import input_checks

    x, y, x_test, y_test = _labelled(source)
    x, x_test = (_of_known_scale(_scaled(part, divide_by), model) for part in (x, x_test))
    data = Labelled(x, _classes("y", y), x_test, _classes("y_test", y_test))
    for name, samples, labels in (("x", x, data.y), ("x_test", x_test, data.y_test)):
        if not samples.ndim or not len(samples) or len(samples) != len(labels):
            raise ValueError(
                "There must be samples, and one label for each. "
                f"Received: {source} with {name} of shape {samples.shape} and {len(labels)} labels"
            )
        input_checks.check_arrays(samples, model, name)
    return data


def _labelled(source: str) -> tuple[np.ndarray, ...]:
    if source.startswith(TFDS):
        return *_from_tfds(source, "train"), *_from_tfds(source, "test")
    found = _read(source)
    arrays = {"x": found} if isinstance(found, np.ndarray) else found
    parts = {key: arrays.get(key, arrays.get(f"{key}_train")) for key in "xy"}
    parts |= {key: arrays.get(key) for key in ("x_test", "y_test")}
    missing = [name for name, value in parts.items() if value is None]
    if missing:
        raise ValueError(
            "Labelled data are an .npz file with the arrays x, y, x_test and y_test. Make it by "
            "numpy.savez(path, x=x, y=y, x_test=x_test, y_test=y_test). "
            f"Received: {source} without {', '.join(missing)}"
        )
    return tuple(map(np.asarray, parts.values()))


def fingerprint(source: str | pathlib.Path) -> str:
    """Return a digest of a file's content; names of data sets stand for themselves."""
    if str(source).startswith(TFDS):
        return str(source)
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read(source: str) -> Any:
    """Return an array, or ``name -> array``."""
    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no such file of arrays. Received: {path}")
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            return {key: found[key] for key in found.files}
    except Exception as error:  # bytes of any origin: whatever fails, they are no arrays
        raise ValueError(
            "Arrays are read from .npy and .npz files of numbers; pickled objects are refused. "
            f"Received: {path} ({type(error).__name__}: {error})"
        ) from error


def _from_tfds(source: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a whole split of a data set that has inputs and labels."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "Data sets by name come with another package: pip install 'keras-ntt[tfds]'. "
            f"Received: {source}"
        ) from error
    name = source.removeprefix(TFDS)
    x, y = tfds.as_numpy(tfds.load(name, split=split, batch_size=-1, as_supervised=True))
    return x, y


def _scaled(x: np.ndarray, divide_by: float | None) -> np.ndarray:
    if divide_by is not None and x.dtype.kind in "biuf":
        return (x / divide_by).astype("float32")
    return x.astype("float32") if x.dtype == np.float64 else x


def _of_known_scale(x: Any, model: Any) -> Any:
    """Return inputs, or raise if they are whole numbers and the model takes real ones."""
    import keras

    from keras_ntt.core import input_checks

    inputs = input_checks.signature_of(model).inputs or []
    for array, wanted in zip(keras.tree.flatten(x), inputs, strict=False):
        if wanted.scaled and np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                "The inputs are whole numbers and the model takes real ones, whose scale matters. "
                "Scale them as the model is trained: --divide-by 255 brings pixels to [0, 1], "
                f"--divide-by 1 takes them as they are. Received: inputs of type {array.dtype}"
            )
    return x


def _classes(name: str, y: np.ndarray) -> np.ndarray:
    """Return class numbers, from rows of weights too, or raise a ValueError."""
    y = np.asarray(y)
    if y.dtype.kind not in "biuf" or y.ndim not in (1, 2):
        raise ValueError(
            f"{name} must hold the number of each sample's class, from 0, or a row with a weight "
            f"for each class. Received: {name} of shape {y.shape} and dtype {y.dtype}"
        )
    rows = y.ndim == 2 and y.shape[1] > 1
    wrong = y[~np.isfinite(y) if rows else y != np.rint(y)]  # NaN is not equal to itself
    if len(wrong):
        kind = "finite weights of the classes" if rows else "whole numbers of classes, from 0"
        raise ValueError(
            f"{name} must hold {kind}. Remove or correct those samples. "
            f"Received: {name} with {wrong[0]}"
        )
    return y.argmax(axis=1) if rows else y.reshape(len(y))
