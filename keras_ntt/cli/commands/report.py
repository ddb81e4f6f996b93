"""``keras-ntt report``."""

from __future__ import annotations

import pathlib

import click

from keras_ntt.cli import data, options, printing
from keras_ntt.cli.command import Command


@click.command("report", cls=Command, short_help="Count the zeros of a Keras model.")
@click.argument("model", type=options.PATH)
@options.as_json
def command(model: pathlib.Path, as_json: bool) -> int:
    """Count the zeros of a Keras MODEL, weight by weight.

    Masks are not saved with a model, so no weight of a file is masked.

    \b
    Examples:
      keras-ntt report sparse.keras
      keras-ntt report sparse.keras --json
    """
    from keras_ntt.masks.report import sparsity_report

    printing.show(sparsity_report(data.load_model(model)), as_json)
    return 0
