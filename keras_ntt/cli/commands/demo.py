"""``keras-ntt demo``."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import Command


@click.command(
    "demo", cls=Command, short_help="Make a trained network small without labels, on real data."
)
@click.option(
    "--what",
    type=click.Choice(("trained", "before")),
    default="trained",
    show_default=True,
    help="A network that is trained, or one before training.",
)
@click.option(
    "--output",
    "-o",
    type=options.PATH,
    default=pathlib.Path("demo-output"),
    show_default=True,
    help="Folder to write.",
)
@click.option("--seeds", type=options.POSITIVE, help="Number of networks.  [default: 3, before: 5]")
@click.option(
    "--transfer-epochs",
    type=options.POSITIVE,
    help="Passes over the unlabelled images, before training.  [default: 20]",
)
@click.option(
    "--epochs",
    type=options.POSITIVE,
    help="Passes over the images of what trains.  [default: 10, before: 30]",
)
@options.as_json
def command(
    what: str,
    output: pathlib.Path,
    seeds: int | None,
    transfer_epochs: int | None,
    epochs: int | None,
    as_json: bool,
) -> int:
    """Make a network for scikit-learn's digits small, offline.

    A trained network is made sparse without labels, and written as a file. Magnitude in one shot
    and gradual pruning with all labels are run for comparison. With --what before an MLP is pruned
    before it is trained.

    \b
    Examples:
      keras-ntt demo
      keras-ntt demo --seeds 1 --output demo-output
      keras-ntt demo --what before
    """
    given = {"seeds": seeds, "epochs": epochs}
    if what == "before":
        given["transfer_epochs"] = transfer_epochs
    elif transfer_epochs is not None:
        raise click.BadParameter("is of --what before", param_hint="--transfer-epochs")
    chosen: dict[str, int] = {name: value for name, value in given.items() if value is not None}
    with printing.only_json(as_json):
        results: dict[str, Any]
        if what == "before":
            from keras_ntt.cli.jobs import demo_before

            results = demo_before.run(output, demo_before.Settings(**chosen), say=printing.say)
        else:
            from keras_ntt.cli.jobs import demo

            results = demo.run(output, demo.Settings(**chosen), say=printing.say)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    return 0
