"""The command line, ``keras-ntt``."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence


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
    return parser


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
