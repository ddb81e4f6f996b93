"""``keras-ntt shrink``."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import Command


@click.command("shrink", cls=Command, short_help="Make a LiteRT file smaller, of any source.")
@click.argument("source", type=options.PATH)
@click.argument("path", type=options.PATH)
@click.option(
    "--target",
    type=click.Choice(("size", "micro")),
    default="size",
    show_default=True,
    help="What the file is for.",
)
@options.microcontroller
@options.as_json
def command(source: pathlib.Path, path: pathlib.Path, as_json: bool, **chosen: Any) -> int:
    """Write a smaller file that computes what the LiteRT (TFLite) file SOURCE does to PATH.

    \b
    Examples:
      keras-ntt shrink model.tflite smaller.tflite
      keras-ntt shrink model.tflite micro.tflite --target micro --c-array micro
    """
    options.check_apart({"SOURCE": source}, {"PATH": path})
    from keras_ntt.litert.shrink import shrink_tflite

    printing.show(shrink_tflite(source, path, **chosen), as_json)
    return 0
