"""A command that keeps TensorFlow's start-up messages to itself, unless ``--verbose`` is given."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

# What TensorFlow, absl, CUDA and LiteRT write when they start, whatever the level of their logs.
NOTICES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IWE]0000 00:00:|"
    rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] |To enable the following instructions: |"
    rb"INFO: Created TensorFlow Lite|INFO:tensorflow:"
)


class Command(click.Command):
    """A command with the option ``--verbose``."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        text = "Show TensorFlow's own messages."
        option = click.Option(["--verbose"], is_flag=True, expose_value=False, help=text)
        option.callback = _remember
        self.params.append(option)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, quietly unless it was asked not to be."""
        with contextlib.nullcontext() if ctx.meta.get(__name__) else without_notices():
            return super().invoke(ctx)


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[__name__] = value


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Drop `NOTICES` from what compiled code writes to standard error; all else passes.

    What Python writes to ``sys.stderr`` goes where it went, past the filter.
    """
    try:
        true = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    before, level = sys.stderr, os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    source, sink = os.pipe()
    thread = threading.Thread(target=_forward, args=(source, true), daemon=True)
    own = os.fdopen(os.dup(true), "w", buffering=1)
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if before.fileno() == 2:  # not replaced by somebody
            before.flush()
            sys.stderr = own
    os.dup2(sink, 2)
    os.close(sink)
    thread.start()
    try:
        yield
    finally:
        os.dup2(true, 2)
        sys.stderr = before
        own.close()
        thread.join(timeout=2)  # a child process may hold the pipe open
        if not thread.is_alive():
            os.close(true)
        os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
        if level is not None:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = level


def _forward(source: int, target: int) -> None:
    """Copy lines from one file descriptor to another, without `NOTICES`."""
    with os.fdopen(source, "rb", buffering=0) as lines:
        rest = b""
        while part := lines.read(65536):
            *whole, rest = (rest + part).split(b"\n")
            kept = [line + b"\n" for line in whole if not NOTICES.match(line)]
            if kept:
                os.write(target, b"".join(kept))
        if rest and not NOTICES.match(rest):
            os.write(target, rest)
