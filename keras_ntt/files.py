"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator

Path = str | os.PathLike

_MARK = ".unfinished."


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Give a path to write to, which takes the place of `path` when all went well.

    An older file at `path` is intact until then, and after any error. Not even a process that is
    killed leaves half a file there; what it may leave is a hidden file beside it, see `leftovers`.

    Args:
        path: The file to write.

    Yields:
        A path in the same folder, of the same suffixes.

    Raises:
        OSError: If the file cannot be written.
    """
    target = pathlib.Path(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}{_MARK}{target.name}")
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
    """Return the unfinished files of `path` that processes left behind when they were killed.

    Args:
        path: The file.

    Returns:
        Files that nothing reads. One may belong to a process that is writing right now.
    """
    target = pathlib.Path(path)
    if not target.parent.is_dir():
        return []
    return sorted(p for p in target.parent.iterdir() if p.name.endswith(_MARK + target.name))


def _flush(file: pathlib.Path) -> None:
    """Wait until a file is on the disk, so that a power cut cannot leave an empty one."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, target: pathlib.Path) -> OSError:
    """Return an error of the same kind that says which file is meant and what became of it."""
    kept = "The file that was there is as it was" if target.is_file() else "Nothing was written"
    message = (
        f"{os.fspath(target)!r} could not be written. {kept}. Make room, or choose a folder that "
        f"can be written to. Received: {error.strerror or error}"
    )
    return OSError(error.errno, message) if error.errno else OSError(message)
