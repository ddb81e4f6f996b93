"""Files that are either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import Any

Path = str | os.PathLike

_MARK = ".unfinished."
_LONGEST = 180  # bytes; most file systems allow 255 for the whole name


def as_path(path: Any, name: str = "path") -> pathlib.Path:
    """Check and return the path of a file.

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
    """Check and return the path of a file to write, in an existing folder.

    Args:
        path: A string or an ``os.PathLike``.
        name: What the argument is called.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If the folder is missing.
        IsADirectoryError: If the path is a folder.
        TypeError: If it is not a path.
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
    """Yield a temporary path to write to, which replaces `path` when all went well.

    An older file at `path` stays intact until then, and after any error. Even a killed process
    never leaves half a file there. It may leave a hidden file next to it, see `leftovers`.

    Args:
        path: The file to write.

    Yields:
        A path in the same folder, of the same suffix.

    Raises:
        OSError: If the file cannot be written.
        TypeError: If `path` is not a path.
        ValueError: If no file can have that name.
    """
    target = writable(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}{_MARK}{_short(target)}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _explained(error, target) from error
        raise


def leftovers(path: Path) -> list[pathlib.Path]:
    """Return the unfinished files that killed processes left next to `path`.

    Args:
        path: The file.

    Returns:
        Files that nothing reads. One may belong to a process that is writing right now.
    """
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        return []
    return sorted(p for p in target.parent.iterdir() if p.name.endswith(_MARK + _short(target)))


def _short(target: pathlib.Path) -> str:
    """Return the name of a file, shortened if it is very long."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST:
        return target.name
    return hashlib.sha256(name).hexdigest() + target.suffix[-16:]


def _flush(file: pathlib.Path) -> None:
    """Wait until a file is on the disk, so that a power cut cannot leave an empty one."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, target: pathlib.Path) -> OSError:
    """Return an error of the same kind that names the file and says what happened to it."""
    kept = "The file that was there is as it was" if target.is_file() else "Nothing was written"
    message = (
        f"{os.fspath(target)!r} could not be written. {kept}. Make room, or choose a folder that "
        f"can be written to. Received: {error.strerror or error}"
    )
    return OSError(error.errno, message) if error.errno else OSError(message)
