"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

Path = str | os.PathLike


def as_path(path: Any, name: str = "path") -> pathlib.Path:
    """Return the path of a file, checked.

    Args:
        path: A string or an ``os.PathLike``.
        name: What the argument is called.

    Returns:
        The path, of a file that may exist or not.

    Raises:
        TypeError: If it is neither.
        ValueError: If no file can have that name.
    """
    try:
        found = pathlib.Path(path)
    except TypeError as error:
        raise TypeError(
            f"{name} must be the path of a file, a string or an os.PathLike. "
            f"Received: {name}={path!r}"
        ) from error
    try:
        possible = bool(found.name) and b"\0" not in os.fsencode(found)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"{name} must be the path of a file. Received: {name}={path!r}")
    return found


def writable(path: Any, name: str = "path") -> pathlib.Path:
    """Return the path of a file to write, in a folder that is there.

    Args:
        path: A string or an ``os.PathLike``.
        name: What the argument is called.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If the folder is missing.
        IsADirectoryError: If the path is that of a folder.
        TypeError: If it is no path.
        ValueError: If no file can have that name.
    """
    found = as_path(path, name)
    if not found.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", os.fspath(found.parent))
    if found.is_dir():
        raise IsADirectoryError(errno.EISDIR, "A folder is in the way", os.fspath(found))
    return found


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Give a path to write to, which takes the place of `path` when all went well.

    An older file at `path` is intact until then, and after any error.

    Args:
        path: The file to write.

    Yields:
        A path in the same folder.

    Raises:
        OSError: If nothing can be written there.
        TypeError: If `path` is no path.
        ValueError: If no file can have that name.
    """
    target = writable(path)
    # Not longer for a long name, which may have as many characters as the file system takes.
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_model(path: Any) -> Any:
    """Load a ``.keras`` file, without what it was compiled with.

    Args:
        path: The file.

    Returns:
        The Keras model.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If it is no path.
        ValueError: If Keras cannot load it.
    """
    import keras

    file = as_path(path)
    if not file.exists():
        raise FileNotFoundError(errno.ENOENT, "There is no such model file", os.fspath(file))
    try:
        return keras.models.load_model(file, compile=False)
    except Exception as error:  # archives of any origin make it raise anything
        raise ValueError(
            "Keras cannot load this file as a model. Save the model again, as model.keras, and "
            "load layers of one's own in Python. "
            f"Received: {os.fspath(file)!r} ({type(error).__name__}: {error})"
        ) from error
