"""Hide messages that TensorFlow's C++ code writes to standard error while it converts."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

_LOCK = threading.Lock()
# Lines of its logs that are information or warnings, and what a pass of the converter prints.
CHATTER = (
    rb"[IW]\d{4} [\d:.]+ |\d{4}-\d\d-\d\d [\d:.]+: [IW] |INFO: |fully_quantize: |"
    rb"WARNING: All log messages before absl::InitializeLog"
)


@contextlib.contextmanager
def chatter_dropped() -> Iterator[None]:
    """Keep information and warnings of TensorFlow's C++ code off the standard error stream.

    Meanwhile the stream is a file and not a pipe: a thread that empties a pipe could not run while
    the converter holds the interpreter's lock. Errors, and messages of other code, appear at the
    end. If two threads do this at the same time, the second does nothing.
    """
    if not _LOCK.acquire(blocking=False):
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(_LOCK.release)
        try:
            stream = os.dup(2)
        except OSError:  # a process without the stream
            yield
            return
        stack.callback(os.close, stream)
        written = stack.enter_context(tempfile.TemporaryFile())
        _flush()
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(stream, 2)
            written.seek(0)
            others = b"".join(line for line in written if not re.match(CHATTER, line))
            if others:
                os.write(2, others)


def _flush() -> None:
    with contextlib.suppress(Exception):  # standard error may have been replaced by any object
        sys.stderr.flush()
