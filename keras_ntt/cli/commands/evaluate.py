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
    epilog="If the data have a test part, only this part is used.",
)
@click.argument("model", type=options.PATH)
@options.labelled(required=True)
@options.divide_by
@options.as_json
def command(model: pathlib.Path, data: str, divide_by: float | None, as_json: bool) -> int:
    """Measure MODEL, a Keras model or a LiteRT (TFLite) file, on labelled data.

    It prints size and sparsity. If the labels are classes, it prints accuracy and cross-entropy; if
    they have the shape of the outputs, the mean squared error.

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
