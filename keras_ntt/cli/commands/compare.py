"""``keras-ntt compare``: its options. `keras_ntt.cli.jobs.compare` does the work."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import Command
from keras_ntt.cli.methods import DEFAULT, METHODS
from keras_ntt.selection.allocation_names import ALLOCATIONS


@click.command(
    "compare", cls=Command, short_help="Compare the methods on a model and labelled data."
)
@click.argument("model", type=options.PATH)
@options.labelled(required=True, use="to train and to measure on")
@click.option("--sparsity", "-s", type=options.SPARSITY, required=True, help="Fraction of zeros.")
@click.option(
    "--method",
    "-m",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help=f"Can be repeated.  [default: {', '.join(DEFAULT)}]",
)
@click.option(
    "--allocation",
    type=click.Choice(ALLOCATIONS),
    default="layerwise",
    show_default=True,
    help="How the sparsity is allocated across layers. erk, balanced, set and rigl have their own.",
)
@click.option(
    "--seeds", type=options.POSITIVE, default=1, show_default=True, help="Number of runs."
)
@click.option(
    "--redraw", is_flag=True, help="Draw new first weights for each run, with the initializers."
)
@click.option(
    "--transfer-epochs",
    type=options.POSITIVE,
    default=10,
    show_default=True,
    help="Passes over the unlabelled inputs, for ntt.",
)
@click.option(
    "--epochs",
    type=options.POSITIVE,
    default=10,
    show_default=True,
    help="Passes over the labelled samples, for all methods.",
)
@click.option("--batch-size", type=options.POSITIVE, default=64, show_default=True)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Learning rate of Adam, with labels.",
)
@click.option(
    "--transfer-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=5e-4,
    show_default=True,
    help="Learning rate of Adam, without labels.",
)
@click.option("--ntk-weight", type=click.FloatRange(min=0), default=1e-3, show_default=True)
@click.option("--l2", type=click.FloatRange(min=0), default=1e-5, show_default=True)
@options.divide_by
@options.seed
@options.as_json
def command(
    model: pathlib.Path, data: str, methods: tuple[str, ...], as_json: bool, **chosen: Any
) -> int:
    """Compare methods of pruning the Keras MODEL before training.

    Each method's network is trained on the labels in the same way; the table has the accuracy on
    the test part. set and rigl begin with the masks of erk and move them meanwhile. Methods that do
    not fit the model are named, with the reason, and the exit code is then 1.

    \b
    Examples:
      keras-ntt compare model.keras --data digits.npz --sparsity 0.97
      keras-ntt compare model.keras --data tfds:mnist --divide-by 255 -s 0.97 -m ntt -m erk
    """
    from keras_ntt.cli.jobs import compare

    settings = compare.Settings(methods=methods or DEFAULT, **chosen)
    with printing.only_json(as_json):
        results = compare.run(model, data, settings)
        printing.say(compare.table(results))
    if as_json:
        click.echo(json.dumps(results, indent=2))
    for method, reason in results["not_run"].items():
        printing.note(f"Not run: {method}: {reason}")
    return 1 if results["not_run"] else 0
