"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator

Path = str | os.PathLike


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Give a path to write to, which takes the place of `path` when all went well.

    An older file at `path` is intact until then, and after any error.

    Args:
        path: The file to write.

    Yields:
        A path in the same folder.
    """
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
