"""What commands print, and where."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import click


@contextlib.contextmanager
def only_json(as_json: bool) -> Iterator[None]:
    """Send everything else to standard error, if standard output is for JSON.

    Args:
        as_json: Whether it is.

    Yields:
        Nothing.
    """
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def verbosity(quiet: bool) -> int:
    """Return Keras's `verbose`: a bar in a terminal, one line per epoch elsewhere."""
    if quiet:
        return 0
    return 1 if sys.stdout.isatty() else 2


def say(line: str) -> None:
    """Print a line for people."""
    click.echo(line)


def note(line: str) -> None:
    """Print a line for people that is not part of the result."""
    click.echo(line, err=True)


def show(result: Any, as_json: bool) -> None:
    """Print a report, which has ``to_dict()``, or a dictionary."""
    content = result if isinstance(result, dict) else result.to_dict()
    click.echo(json.dumps(content, indent=2) if as_json else str(result))
