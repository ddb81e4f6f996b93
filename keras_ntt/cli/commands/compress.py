"""``keras-ntt compress``."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import INTERRUPTED, Command

_GO_ON = "The same command continues from there; with --restart it begins again."


@click.command(
    "compress",
    cls=Command,
    short_help="Make a trained model small without labels.",
    epilog="The loss is measured on inputs that pruning does not use: a fifth of --inputs.",
)
@click.argument("model", type=options.PATH)
@options.inputs(required=True)
@click.option("--output", "-o", type=options.PATH, required=True, help="The .tflite file to write.")
@click.option(
    "--max-drop",
    type=options.Fraction(),
    default="1%",
    show_default=True,
    help="Largest allowed loss of agreement with the model, or of accuracy (--data).",
)
@click.option(
    "--sparsity",
    "-s",
    type=options.SPARSITY,
    multiple=True,
    help="Fraction of zeros. Can be repeated.  [default: 0.5, 0.7, 0.8, 0.9, 0.95]",
)
@click.option(
    "--channels",
    "-c",
    type=options.SPARSITY,
    multiple=True,
    help="Fraction of the channels to remove. Can be repeated.  [default: 0.25, 0.5, 0.75]",
)
@click.option(
    "--methods",
    type=click.Choice(("weights", "channels")),
    multiple=True,
    help="Make weights zero, or remove whole channels. Can be repeated.  [default: both]",
)
@click.option(
    "--target",
    type=click.Choice(("size", "latency", "micro")),
    default="size",
    show_default=True,
    help="Whether the smallest file wins, the fastest, or the smallest for a microcontroller.",
)
@click.option(
    "--quantization",
    type=click.Choice(("float32", "float16", "int8_weights", "int8")),
    help="Round the weights.  [default: float32 and int8_weights; by --target]",
)
@click.option(
    "--method",
    type=click.Choice(("obc", "sparsegpt", "alps", "wanda", "magnitude")),
    default="obc",
    show_default=True,
    help="How entries are chosen; sparsegpt is faster for wide layers.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Passes over the inputs for recovery.",
)
@options.labelled(use="to measure accuracy on")
@click.option("--keras", "keras_file", type=options.PATH, help="Also write the .keras model.")
@click.option("--picture", type=options.PATH, help="Draw size against agreement, as .png or .svg.")
@click.option("--restart", is_flag=True, help="Discard the candidates of an interrupted run.")
@options.divide_by
@options.seed
@options.quiet
@options.as_json
def command(
    model: pathlib.Path,
    inputs: str,
    output: pathlib.Path,
    keras_file: pathlib.Path | None,
    picture: pathlib.Path | None,
    data: str | None,
    divide_by: float | None,
    sparsity: tuple[float, ...],
    channels: tuple[float, ...],
    methods: tuple[str, ...],
    restart: bool,
    quiet: bool,
    as_json: bool,
    **chosen: Any,
) -> int:
    """Make a trained Keras MODEL small without labels, and write a LiteRT file.

    It makes more and more weights zero, removes more and more channels, and compares each file
    with the model. The best file within --max-drop is written. After Ctrl-C the same command
    continues.

    \b
    Examples:
      keras-ntt compress model.keras --inputs images/ --divide-by 255 -o small.tflite
      keras-ntt compress model.keras --inputs x.npy --max-drop 2% --epochs 5 -o small.tflite
    """
    if keras_file is not None and keras_file.suffix != ".keras":
        raise click.BadParameter("must be a file that ends in .keras", param_hint="--keras")
    options.check_apart(
        {"MODEL": model, "--inputs": inputs, "--data": data},
        {"--output": output, "--keras": keras_file, "--picture": picture},
    )
    unfinished = output.with_name(f"{output.name}.unfinished")
    if restart:
        shutil.rmtree(unfinished, ignore_errors=True)
    from keras_ntt.cli import data as files
    from keras_ntt.compression.compress import compress
    from keras_ntt.masks.models_and_backups import save_model

    with printing.only_json(as_json):
        loaded = files.load_model(model)
        found = None if data is None else files.read_samples(data, loaded, divide_by)
        report = compress(
            loaded,
            files.read_inputs(inputs, loaded, divide_by),
            sparsity=list(sparsity) or None,
            channels=list(channels) or None,
            methods=list(methods) or None,
            data=None if found is None else (found.x, files.class_numbers("y", found.y)),
            path=output,
            folder=unfinished,
            verbose=printing.verbosity(quiet),
            **chosen,
        )
        if keras_file is not None:
            save_model(report.model, keras_file)
        if picture is not None:
            from keras_ntt.plots import size_by_agreement

            size_by_agreement(report).savefig(picture, dpi=120)
    printing.show(report, as_json)
    if report.interrupted:
        printing.note(f"Stopped. {_GO_ON}")
        return INTERRUPTED
    shutil.rmtree(unfinished)
    return 0
