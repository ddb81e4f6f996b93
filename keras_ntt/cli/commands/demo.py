"""``keras-ntt demo``."""

from __future__ import annotations

import json
import pathlib

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import Command


@click.command(
    "demo", cls=Command, short_help="Prune, train, compare and export a network on real data."
)
@click.option(
    "--output",
    "-o",
    type=options.PATH,
    default=pathlib.Path("demo-output"),
    show_default=True,
    help="Folder to write.",
)
@click.option(
    "--seeds", type=options.POSITIVE, default=5, show_default=True, help="Number of runs."
)
@click.option(
    "--transfer-epochs",
    type=options.POSITIVE,
    default=20,
    show_default=True,
    help="Passes over the unlabelled images.",
)
@click.option(
    "--epochs",
    type=options.POSITIVE,
    default=30,
    show_default=True,
    help="Passes over the labelled images.",
)
@options.as_json
def command(
    output: pathlib.Path, seeds: int, transfer_epochs: int, epochs: int, as_json: bool
) -> int:
    """Prune an MLP on scikit-learn's digits, offline.

    It is pruned without labels, trained and exported. Dense, magnitude-pruned and randomly pruned
    networks are trained for comparison.

    \b
    Examples:
      keras-ntt demo
      keras-ntt demo --seeds 1 --output demo-output
    """
    from keras_ntt.cli.jobs import demo

    settings = demo.Settings(seeds, transfer_epochs, epochs)
    with printing.only_json(as_json):
        results = demo.run(output, settings, say=printing.say)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    return 0
