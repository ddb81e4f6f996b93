"""The command line, ``keras-ntt``."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; None takes them from the system.

    Returns:
        The exit code: 0 for success, 1 for an error that was reported, 2 for wrong arguments,
        130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    # TensorFlow's own notices would bury what is printed here. Only this program's
    # environment is changed, and only where the user has not chosen.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError, RuntimeError, FloatingPointError) as error:
        print(f"keras-ntt: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-ntt",
        description="Prune Keras models before training, without labels.",
        epilog="example: keras-ntt demo --output demo-output",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="prune, train, compare and export a network on real data, offline",
        description="Prune an MLP on scikit-learn's digits without labels, train it beside dense, "
        "magnitude-pruned and randomly pruned networks, and export it.",
        epilog="example: keras-ntt demo --seeds 5 --output demo-output",
    )
    demo.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("demo-output"), help="folder to write"
    )
    demo.add_argument("--seeds", type=_positive, default=5, help="number of runs (default 5)")
    demo.add_argument(
        "--transfer-epochs", type=_positive, default=60, help="label-free epochs (default 60)"
    )
    demo.add_argument("--epochs", type=_positive, default=30, help="labelled epochs (default 30)")
    demo.set_defaults(run=_demo)
    _add_export(commands)
    _add_inspect(commands)
    return parser


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a LiteRT file of a Keras model, small or fast by its zeros",
        description="Write a LiteRT (TFLite) file of a Keras model. It is run and compared with "
        "the model before it takes its place.",
        epilog="example: keras-ntt export model.keras model.tflite --target latency",
    )
    export.add_argument("model", type=pathlib.Path, help="a .keras file")
    export.add_argument("path", type=pathlib.Path, help="the .tflite file to write")
    export.add_argument(
        "--target",
        choices=("size", "latency", "int8", "dense"),
        default="size",
        help="what the file is for (default size)",
    )
    export.add_argument(
        "--quantization", choices=("float16", "int8_weights", "int8"), help="round the weights"
    )
    export.add_argument(
        "--data", type=pathlib.Path, help="a .npy file of inputs to compare outputs on"
    )
    export.add_argument("--tolerance", type=float, help="relative difference allowed")
    export.add_argument(
        "--cpu", choices=("any", "x86", "arm"), default="any", help="what latency is for"
    )
    export.add_argument("--compact", action="store_true", help="remove dead units first")
    export.add_argument(
        "--benchmark", action="store_true", help="measure latency and memory on this host"
    )
    export.add_argument("--json", action="store_true", help="print the report as JSON")
    export.set_defaults(run=_export)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="say what is sparse in a LiteRT file, and what the runtime will do with it",
        description="Look into a LiteRT (TFLite) file without running it.",
        epilog="example: keras-ntt inspect model.tflite",
    )
    inspect.add_argument("path", type=pathlib.Path, help="a .tflite file")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")
    inspect.set_defaults(run=_inspect)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def _version() -> str:
    from keras_ntt import __version__

    return f"keras-ntt {__version__}"


def _demo(options: argparse.Namespace) -> int:
    from keras_ntt import demo

    settings = demo.Settings(options.seeds, options.transfer_epochs, options.epochs)
    demo.run(options.output, settings, say=lambda line: print(line, flush=True))
    return 0


def _export(options: argparse.Namespace) -> int:
    import numpy as np

    from keras_ntt.export import export_tflite
    from keras_ntt.files import load_model

    report = export_tflite(
        load_model(options.model),
        options.path,
        target=options.target,
        quantization=options.quantization,
        representative_data=None if options.data is None else np.load(options.data),
        tolerance="auto" if options.tolerance is None else options.tolerance,
        cpu=options.cpu,
        compact=options.compact,
        benchmark=options.benchmark,
    )
    _show(report, options.json)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from keras_ntt.export import inspect_tflite

    _show(inspect_tflite(options.path), options.json)
    return 0


def _show(report: Any, as_json: bool) -> None:
    print(json.dumps(report.to_dict(), indent=2) if as_json else report)
