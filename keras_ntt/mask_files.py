"""Masks in files: ``.npz``, one boolean array a variable path."""

from __future__ import annotations

import os
import pathlib
import tempfile
import zipfile

import keras
import numpy as np

from keras_ntt.policies import choose_weights
from keras_ntt.sparse_model import apply_masks, get_masks, keys_of, renamed

Path = str | os.PathLike

_DEFLATED = zipfile.ZIP_DEFLATED


def save_masks(model: keras.Model, path: Path) -> None:
    """Write the masks of a model to an ``.npz`` file.

    The file is written beside its place and moved there when it is whole.

    Args:
        model: A model that holds masks.
        path: The file to write.

    Raises:
        ValueError: If the model holds no masks.
    """
    masks = get_masks(model)
    if not masks:
        raise ValueError(
            "The model holds no masks to save. Prune it first, or call "
            f"keras_ntt.restore_masks(model). Received: model={model.name!r}"
        )
    target = pathlib.Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent or ".", suffix=".npz")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", _DEFLATED) as archive:
            for key, mask in masks.items():
                with archive.open(f"{key}.npy", "w") as entry:
                    np.lib.format.write_array(entry, mask, allow_pickle=False)
        os.replace(temporary, target)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def load_masks(model: keras.Model, path: Path) -> keras.Model:
    """Read masks and apply them to a model.

    Masks are matched by variable path. Where no path matches, because Keras numbered the layers
    of a rebuilt model anew, they are matched in order, if numbers and shapes agree.

    Args:
        model: A built model. It is changed in place.
        path: A file that `save_masks` wrote.

    Returns:
        The same model, with the masks applied.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no mask file or is one of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            masks = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, AttributeError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise ValueError(
            "This is not a whole mask file as keras_ntt.save_masks writes it. "
            f"Received: path={os.fspath(path)!r} ({error})"
        ) from error
    return apply_masks(model, _matched(model, masks))


def _matched(model: keras.Model, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    keys = keys_of(model.weights)
    if set(renamed(masks, keys)) & set(keys):
        return masks
    chosen = {id(v) for v in choose_weights(model).weights}
    kernels = [
        (key, tuple(v.shape)) for key, v in zip(keys, model.weights, strict=True) if id(v) in chosen
    ]
    if [shape for _, shape in kernels] != [mask.shape for mask in masks.values()]:
        return masks
    return {key: mask for (key, _), mask in zip(kernels, masks.values(), strict=True)}
