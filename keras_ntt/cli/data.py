"""Read the models and samples that the options of a command name.

The options mean the same in every command:

- ``--inputs``: samples to learn from without labels;
- ``--calibration``: samples for the ranges of a quantized file, and for the comparison of the file
  with its model;
- ``--data``: samples with labels.

Each takes a folder of images, a ``.npy`` or ``.npz`` file, or ``tfds:NAME``.
"""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.cli import printing, sources
from keras_ntt.cli.sources import Samples, Wanted

# Where a source has no test part, one sample of so many is held out.
HELD_OUT = 5


class Labelled(NamedTuple):
    """Samples and class numbers, in a training part and a test part."""

    x: Any
    y: np.ndarray
    x_test: Any
    y_test: np.ndarray


def load_model(path: pathlib.Path) -> Any:
    """Read a Keras model, see `keras_ntt.load_model`."""
    import keras_ntt

    return keras_ntt.load_model(path)


def wanted_by(model: Any) -> Wanted:
    """Return what inputs a Keras model takes."""
    import keras

    from keras_ntt.core import host, input_checks

    graph = host.functional_of(model)
    names = None
    if graph is not None:
        names = keras.tree.map_structure(lambda t: t.name, host.input_structure(graph))
    return Wanted(input_checks.signature_of(model), names)


def read_inputs(source: str, model: Any, divide_by: float | None = None) -> Any:
    """Read samples without labels; labels are ignored.

    Args:
        source: A folder of images, also in subfolders; a ``.npy`` file; an ``.npz`` file
            with the inputs as ``x`` or ``x_train``, as its only array, or by the names of the
            model's inputs; or ``tfds:NAME``. If a source has two parts, the training part is read.
        model: The model, or what inputs it takes.
        divide_by: The number to divide them by; None does not change them.

    Returns:
        Arrays, nested as the model takes them.

    Raises:
        ValueError: If the source has no inputs, or they are integers of unknown scale.
    """
    wanted = model if isinstance(model, Wanted) else wanted_by(model)
    parts = sources.parts_of(source, wanted, labels=False)
    return _scaled(parts["train" if "train" in parts else "test"](), wanted, divide_by).x


def read_samples(source: str, model: Any, divide_by: float | None = None) -> Samples:
    """Read labelled samples to evaluate on: the test part, or all samples if there is none.

    Args:
        source: A folder with a folder of images for each class, or with ``train`` and ``test`` of
            such; an ``.npz`` file with ``x_test`` and ``y_test``, or ``x`` and ``y``; or
            ``tfds:NAME``.
        model: The model, or what inputs it takes.
        divide_by: The number to divide the inputs by; None does not change them.

    Returns:
        Arrays, nested as the model takes them, and labels ``[n, ...]``.

    Raises:
        ValueError: If an array is missing or does not fit the others.
    """
    wanted = model if isinstance(model, Wanted) else wanted_by(model)
    parts = sources.parts_of(source, wanted, labels=True)
    found = _scaled(parts["test" if "test" in parts else "train"](), wanted, divide_by)
    if found.y is None:
        raise _unlabelled(source, parts)
    _check(source, wanted, "x", found)
    return found


def read_labelled(source: str, model: Any, divide_by: float | None = None) -> Labelled:
    """Read samples with class numbers, in a training part and a test part.

    Args:
        source: As for `read_samples`. If there is no test part, every fifth sample is held out.
        model: The model.
        divide_by: The number to divide the inputs by; None does not change them.

    Returns:
        The data.

    Raises:
        ValueError: If an array is missing or does not fit the others.
    """
    import keras

    wanted = wanted_by(model)
    parts = sources.parts_of(source, wanted, labels=True)
    if "train" not in parts:
        raise _unlabelled(source, parts)
    train = _scaled(parts["train"](), wanted, divide_by)
    test = _scaled(parts["test"](), wanted, divide_by) if "test" in parts else None
    if train.y is None or (test is not None and test.y is None):
        raise _unlabelled(source, parts)
    train = train._replace(y=class_numbers("y", train.y))
    _check(source, wanted, "x", train)
    if test is None:
        held = np.arange(len(train.y)) % HELD_OUT == HELD_OUT - 1
        test = Samples(keras.tree.map_structure(lambda a: a[held], train.x), train.y[held])
        train = Samples(keras.tree.map_structure(lambda a: a[~held], train.x), train.y[~held])
        printing.note(f"{source} has no part to test on: every fifth sample is held out for it.")
    test = test._replace(y=class_numbers("y_test", test.y))
    _check(source, wanted, "x_test", test)
    return Labelled(train.x, train.y, test.x, test.y)


def has_labels(source: str, model: Any) -> bool:
    """Tell whether a source has labels: whether its images are in folders, for example."""
    path = pathlib.Path(source)
    if path.is_dir():
        return any(part.is_dir() for part in path.iterdir())
    parts = sources.parts_of(source, wanted_by(model), labels=True)
    return parts["test" if "test" in parts else "train"]().y is not None


def _unlabelled(source: str, parts: sources.Parts) -> ValueError:
    given = {"x": "train" in parts, "y": False, "x_test": "test" in parts, "y_test": False}
    for part, (x, y) in {"train": ("x", "y"), "test": ("x_test", "y_test")}.items():
        given[y] = given[x] and parts[part]().y is not None
    missing = ", ".join(name for name, there in given.items() if not there)
    return ValueError(
        "Labelled data are a folder with a folder of images for each class, a data set tfds:NAME, "
        "or an .npz file with the arrays x and y, and x_test and y_test to test on. Write it by "
        "numpy.savez(path, x=x, y=y, x_test=x_test, y_test=y_test). "
        f"Received: {source} without {missing}"
    )


def _check(source: str, wanted: Wanted, name: str, found: Samples) -> None:
    """Raise a ValueError unless there are samples that fit, and a label for each."""
    import keras

    from keras_ntt.core import input_checks

    labels = np.asarray(found.y)
    for part in keras.tree.flatten(found.x):
        if not part.ndim or not len(part) or not labels.ndim or len(part) != len(labels):
            count = len(labels) if labels.ndim else "no"
            raise ValueError(
                "There must be samples, and one label for each. "
                f"Received: {source} with {name} of shape {part.shape} and {count} labels"
            )
    input_checks.check_arrays_fit(found.x, wanted.signature, name)


def _scaled(found: Samples, wanted: Wanted, divide_by: float | None) -> Samples:
    """Return samples with scaled inputs, or raise if their scale is not known."""
    import keras

    x = keras.tree.map_structure(lambda a: _divided(a, divide_by), found.x)
    for array, taken in zip(keras.tree.flatten(x), wanted.inputs, strict=False):
        if taken.scaled and np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                "The inputs are whole numbers, and the model takes real ones, whose scale matters. "
                "Scale them as in training: --divide-by 255 brings pixels to [0, 1], "
                f"--divide-by 1 does not change them. Received: inputs of type {array.dtype}"
            )
    return found._replace(x=x)


def _divided(x: np.ndarray, divide_by: float | None) -> np.ndarray:
    if divide_by is not None and x.dtype.kind in "biuf":
        return (x / divide_by).astype("float32")
    return x.astype("float32") if x.dtype == np.float64 else x


def class_numbers(name: str, y: Any) -> np.ndarray:
    """Return class numbers, also from rows of weights.

    Args:
        name: What to call them in the message.
        y: Numbers ``[n]`` or ``[n, 1]``, or rows with a weight for each class.

    Returns:
        Numbers ``[n]``.

    Raises:
        ValueError: If they are none.
    """
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
