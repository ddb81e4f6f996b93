"""``keras-ntt inspect``."""

from __future__ import annotations

import pathlib

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import Command


@click.command("inspect", cls=Command, short_help="Show what is sparse in a LiteRT file.")
@click.argument("path", type=options.PATH)
@options.as_json
def command(path: pathlib.Path, as_json: bool) -> int:
    """Inspect a LiteRT (TFLite) file without running it.

    It shows what is sparse in the file at PATH, and what the runtime will do with it.

    \b
    Examples:
      keras-ntt inspect model.tflite
      keras-ntt inspect model.tflite --json
    """
    from keras_ntt.litert.export import inspect_tflite

    printing.show(inspect_tflite(path), as_json)
    return 0
