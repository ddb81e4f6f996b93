"""Masks in ``.npz`` files: one boolean array per variable path, and a list of all weights."""

from __future__ import annotations

import io
import os
import zipfile

import keras
import numpy as np

from keras_ntt.core import checks
from keras_ntt.core.atomic_files import Path, as_path, replacing
from keras_ntt.masks.apply import apply_masks, get_masks
from keras_ntt.masks.names import keys_of, renamed
from keras_ntt.masks.policies import choose_weights

# The entry that lists the paths and shapes of all weights of the model.
_WEIGHTS = "__weights__"
_COMPRESSION = zipfile.ZIP_DEFLATED


def save_masks(model: keras.Model, path: Path) -> None:
    """Write the masks of a model to an ``.npz`` file.

    The file is written under a temporary name in the same folder, and moved to `path` when it is
    complete.

    Args:
        model: A model that holds masks.
        path: The file to write.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist.
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If the model holds no masks.

    Examples:
        >>> import keras, os, tempfile
        >>> from keras_ntt import load_masks, prune_at_init, save_masks, sparsity_report
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> sparse = prune_at_init(model, sparsity=0.8, saliency="magnitude")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_masks(sparse, os.path.join(folder, "masks.npz"))
        ...     model = load_masks(model, os.path.join(folder, "masks.npz"))
        >>> sparsity_report(model).sparsity
        0.8
    """
    masks = get_masks(model)
    if not masks:
        raise ValueError(
            "The model holds no masks to save. Prune it first, or call "
            f"keras_ntt.restore_masks(model). Received: model={model.name!r}"
        )
    lines = [f"{key} {shape} {key in masks}" for key, shape in _weights_of(model)]
    entries = {**masks, _WEIGHTS: np.array(lines)}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", _COMPRESSION) as archive:
        for key, array in entries.items():
            with archive.open(f"{key}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def load_masks(model: keras.Model, path: Path) -> keras.Model:
    """Read masks and apply them to a model.

    Masks are matched by variable path. The paths differ if Keras numbered the layers of a rebuilt
    model again. If the model then has as many weights, of the same shapes in the same order, masks
    are matched by that order.

    Args:
        model: A built model. It is changed in place.
        path: A file that `save_masks` wrote.

    Returns:
        The same model, with the masks applied.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not a mask file, or is one of another model; the model is not changed.
    """
    checks.check_model(model)
    content = as_path(path).read_bytes()
    try:
        masks = _read(content, sum(int(np.prod(v.shape)) for v in model.weights))
    except Exception as error:  # the bytes may be anything: if reading fails, they are not masks
        raise ValueError(
            "This is not a whole mask file as keras_ntt.save_masks writes it. "
            f"Received: path={os.fspath(path)!r} ({type(error).__name__}: {error})"
        ) from error
    return apply_masks(model, _matched(model, masks))


def _read(content: bytes, entries: int) -> dict[str, np.ndarray]:
    """Return the arrays of a file that may hold masks of some number of entries."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
        size = sum(info.file_size for info in members)
        # With one wrong byte in the directory zipfile skips members, so they are counted.
        end = content[-22:]
        if end[:4] == b"PK\x05\x06" and int.from_bytes(end[10:12], "little") != len(members):
            raise ValueError(f"only {len(members)} of its members are listed")
        if size > 16 * entries + 2**24:  # a few bytes can be packed to unpack to any number
            raise ValueError(f"{size:,} bytes of masks for {entries:,} weights")
    file = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("a single array")
    with file:
        arrays = {key: file[key] for key in file.files}
    if not set(arrays) - {_WEIGHTS}:
        raise ValueError("no masks in it")
    listed = {key: masked for key, _, masked in _listed(arrays)}
    missing = [key for key, masked in listed.items() if masked and key not in arrays]
    if missing:
        raise ValueError(f"no mask of {missing}")
    strange = [key for key in arrays if listed and key not in listed and key != _WEIGHTS]
    if strange:
        raise ValueError(f"masks of {strange}, which it does not list as weights")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{key!r} is not an array")
    return arrays


def _weights_of(model: keras.Model) -> list[tuple[str, str]]:
    """Return path and shape of each weight of a model; the shape as ``3x4``."""
    keys = keys_of(model.weights)
    return [
        (key, "x".join(map(str, v.shape)) or "scalar")
        for key, v in zip(keys, model.weights, strict=True)
    ]


def _listed(arrays: dict[str, np.ndarray]) -> list[tuple[str, str, bool]]:
    """Return the path, the shape and whether there is a mask, for each weight that a file lists."""
    lines = arrays.get(_WEIGHTS, np.array([], dtype=str)).ravel()
    fields = [str(line).rsplit(" ", 2) for line in lines]
    return [(path, shape, masked == "True") for path, shape, masked in fields]


def _matched(model: keras.Model, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the masks by the paths that the model's weights have."""
    keys = keys_of(model.weights)
    theirs = _listed(masks)
    masks.pop(_WEIGHTS, None)
    paths = {path: path for path, _, _ in theirs}
    if set(renamed(paths, keys)) == set(keys):  # the same names, in any order
        return masks
    if theirs and [shape for _, shape, _ in theirs] == [s for _, s in _weights_of(model)]:
        now = {path: key for (path, _, _), key in zip(theirs, keys, strict=True)}
        return {now[key]: mask for key, mask in masks.items()}
    if all(key in keys for key in renamed(masks, keys)):
        return masks
    chosen = {id(v) for v in choose_weights(model).weights}
    kernels = [
        (key, tuple(v.shape)) for key, v in zip(keys, model.weights, strict=True) if id(v) in chosen
    ]
    if [shape for _, shape in kernels] != [mask.shape for mask in masks.values()]:
        return masks
    return {key: mask for (key, _), mask in zip(kernels, masks.values(), strict=True)}
