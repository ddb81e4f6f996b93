"""``keras-ntt evaluate``."""

from __future__ import annotations

import pathlib

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import Command


@click.command(
    "evaluate",
    cls=Command,
    short_help="Measure a Keras model or a LiteRT file on labelled data.",
    epilog="Of data in two parts the one to test on is measured on, of others all.",
)
@click.argument("model", type=options.PATH)
@options.labelled(required=True)
@options.divide_by
@options.as_json
def command(model: pathlib.Path, data: str, divide_by: float | None, as_json: bool) -> int:
    """Measure MODEL, a Keras model or a LiteRT (TFLite) file, on labelled data.

    Accuracy and cross-entropy where the labels are classes, the mean squared error where they are
    of the shape of the outputs; size and sparsity.

    \b
    Examples:
      keras-ntt evaluate model.keras --data images/ --divide-by 255
      keras-ntt evaluate small.tflite --data data.npz --json
    """
    from keras_ntt.cli.jobs import evaluate

    with printing.only_json(as_json):
        found = evaluate.run(model, data, divide_by)
    printing.show(found, as_json)
    return 0
