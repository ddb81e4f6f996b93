"""``keras-ntt report``."""

from __future__ import annotations

import pathlib

import click

from keras_ntt.cli import data, options, printing
from keras_ntt.cli.command import Command


@click.command("report", cls=Command, short_help="Count the zeros of a Keras model.")
@click.argument("model", type=options.PATH)
@click.option("--all", "all_weights", is_flag=True, help="List every weight on its own line.")
@options.as_json
def command(model: pathlib.Path, all_weights: bool, as_json: bool) -> int:
    """Count the zeros of a Keras MODEL, weight by weight.

    Biases and the scales and offsets of normalizations are counted at the end, and the weights of
    deep models are grouped. Masks are not saved with a model, so no weight of a file is masked.

    \b
    Examples:
      keras-ntt report sparse.keras
      keras-ntt report sparse.keras --all
      keras-ntt report sparse.keras --json
    """
    from keras_ntt.masks.report import sparsity_report

    report = sparsity_report(data.load_model(model))
    if all_weights and not as_json:
        click.echo(report.table(all_weights=True))
    else:
        printing.show(report, as_json)
    return 0
