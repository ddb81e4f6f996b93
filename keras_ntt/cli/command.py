"""What all commands do: they hide start-up messages, and name options in errors and warnings.

TensorFlow's own messages are hidden unless ``--verbose`` is given. The package's messages name
Python arguments; here these become the options of the command.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import click

from keras_ntt.litert.chatter import CHATTER

INTERRUPTED = 130
"""The exit code after Ctrl-C."""

# What a user can cause. Anything else is a defect of this package and shows its traceback.
REPORTED = (
    ImportError,
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    FloatingPointError,
    MemoryError,
)

# What TensorFlow, absl, CUDA and LiteRT write when they start, whatever the level of their logs:
# what a conversion writes, and errors, such as that there is no GPU.
NOTICES = re.compile(
    CHATTER + rb"|E0000 00:00:|\d{4}-\d\d-\d\d [\d:.]+: E |"
    rb"To enable the following instructions: |INFO:tensorflow:"
)


class Reported(click.ClickException):
    """An error that a user can cause, in the terms of the command."""

    def show(self, file: Any = None) -> None:
        """Print it."""
        click.echo(f"keras-ntt: {self.message}", file=file, err=file is None)


class Command(click.Command):
    """A command with the option ``--verbose``, whose errors name its options.

    Args:
        *args: As for `click.Command`.
        python_names: The options of Python arguments that have another name.
        **kwargs: As for `click.Command`.
    """

    def __init__(
        self, *args: Any, python_names: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._python_names = dict(python_names or {})
        text = "Show TensorFlow's own messages."
        option = click.Option(["--verbose"], is_flag=True, expose_value=False, help=text)
        option.callback = _remember
        self.params.append(option)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, quietly unless ``--verbose`` is given."""
        verbose = ctx.meta.get(__name__)
        with contextlib.nullcontext() if verbose else without_notices(), self._warnings():
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
                raise  # they have their own codes
            except Exception as error:
                if not is_reported(error):
                    raise
                raise Reported(self.in_options(message_of(error))) from error

    def in_options(self, message: str) -> str:
        """Return a message of the package with its arguments replaced by this command's options.

        Args:
            message: The message.

        Returns:
            The same, where ``memory_limit=`` is ``--memory-limit=`` and so on.
        """
        names = {
            param.name: max(param.opts, key=len)
            for param in self.params
            if isinstance(param, click.Option) and param.name is not None
        }
        parts = re.split(r"(\w\([^()]*\))", message)  # calls, which stay as they are
        for i in range(0, len(parts), 2):
            for name, option in {**names, **self._python_names}.items():
                parts[i] = _renamed(parts[i], name, option)
        return "".join(parts)

    @contextlib.contextmanager
    def _warnings(self) -> Iterator[None]:
        """Print warnings to users as a line, in the terms of the command."""
        before = warnings.showwarning

        def show(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, UserWarning):
                words = self.in_options(str(message))
                click.echo(f"keras-ntt: warning: {words}", err=True)
            else:
                before(message, category, *args, **kwargs)

        warnings.showwarning = show
        try:
            yield
        finally:
            warnings.showwarning = before


def _renamed(text: str, name: str, option: str) -> str:
    """Return a text with an argument replaced by an option, but not inside another name."""
    first = option.partition(" ")[0]
    text = re.sub(rf"(?<![\w.(*-]){name}=True\b", first, text)
    text = re.sub(rf"(?<![\w.(*-]){name}=(?=\S)", f"{first}=", text)
    if "_" in name:
        text = re.sub(rf"(?<![\w.(=*-]){name}\b(?![(=.])", option, text)
    return text


def is_reported(error: Exception) -> bool:
    """Tell whether a user can cause an error, also in TensorFlow while it runs."""
    if isinstance(error, REPORTED):
        return True
    import tensorflow as tf

    return isinstance(error, tf.errors.OpError)


def message_of(error: Exception) -> str:
    """Return the text of an error, or its type if it has none."""
    return str(error).strip() or type(error).__name__


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
        if before.fileno() == 2:  # standard error was not replaced
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
