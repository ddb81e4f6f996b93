"""``keras-ntt export``."""

from __future__ import annotations

import pathlib
from typing import Any

import click

from keras_ntt.cli import options, printing
from keras_ntt.cli.command import Command


@click.command(
    "export",
    cls=Command,
    python_names={"representative_data": "--calibration or --data"},
    short_help="Write a LiteRT file that zeros make small or fast.",
)
@click.argument("model", type=options.PATH)
@click.argument("path", type=options.PATH)
@click.option(
    "--target",
    type=click.Choice(("size", "latency", "int8", "dense", "micro")),
    default="size",
    show_default=True,
    help="Purpose of the file.",
)
@click.option(
    "--quantization",
    type=click.Choice(("float16", "int8_weights", "int8", "int16", "float32")),
    help="Round the weights.",
)
@options.calibration()
@options.labelled(use="to measure the file on; their inputs stand in for --calibration")
@click.option("--tolerance", type=click.FloatRange(min=0), help="Allowed relative difference.")
@click.option(
    "--cpu",
    type=click.Choice(("any", "x86", "arm")),
    default="any",
    show_default=True,
    help="Processor for --target latency.",
)
@click.option(
    "--input-type",
    "inference_input_type",
    type=click.Choice(("float32", "int8", "uint8", "int16")),
    help="Input type of the file.",
)
@click.option(
    "--output-type",
    "inference_output_type",
    type=click.Choice(("float32", "int8", "uint8", "int16")),
    help="Output type of the file.",
)
@click.option(
    "--batch-size",
    type=options.SamplesAtATime(),
    help="Batch size of the file, or 'any'.",
)
@options.microcontroller
@click.option(
    "--levels",
    type=click.IntRange(min=2),
    help="Number of values of rounded weights, for a microcontroller.",
)
@click.option("--compact", is_flag=True, help="Remove dead units first.")
@click.option("--benchmark", is_flag=True, help="Measure latency and memory on this host.")
@options.divide_by
@options.as_json
def command(
    model: pathlib.Path,
    path: pathlib.Path,
    calibration: str | None,
    data: str | None,
    tolerance: float | None,
    divide_by: float | None,
    as_json: bool,
    **chosen: Any,
) -> int:
    """Write a LiteRT (TFLite) file of a Keras MODEL to PATH.

    The file is run and compared with the model before it is written to PATH.

    \b
    Examples:
      keras-ntt export sparse.keras sparse.tflite
      keras-ntt export sparse.keras fast.tflite --target latency --cpu arm --calibration x.npy
      keras-ntt export sparse.keras int8.tflite --target int8 --calibration images/ --divide-by 255
      keras-ntt export sparse.keras micro.tflite --target micro --calibration x.npy --c-array micro
    """
    options.check_apart(
        {"MODEL": model, "--calibration": calibration, "--data": data}, {"PATH": path}
    )
    from keras_ntt.cli.jobs import export

    with printing.only_json(as_json):
        done = export.run(
            model,
            path,
            calibration,
            data,
            divide_by,
            tolerance="auto" if tolerance is None else tolerance,
            **chosen,
        )
    printing.show(done, as_json)
    return 0
