"""The program keras-ntt: its commands and what it reports."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from keras_ntt import __version__
from keras_ntt.cli.command import INTERRUPTED, is_reported, message_of
from keras_ntt.cli.commands import (
    compare,
    compress,
    demo,
    evaluate,
    export,
    inspect,
    prune,
    report,
    shrink,
)


@click.group(
    name="keras-ntt",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 success, 1 an error that was reported, 2 wrong usage, 130 Ctrl-C.",
)
@click.version_option(__version__, prog_name="keras-ntt", message="%(prog)s %(version)s")
def program() -> None:
    """Make Keras models sparse, without labels, and export them.

    MODEL is a .keras or .h5 file or a SavedModel folder. The options --inputs, --calibration and
    --data each take a folder of images, an .npy or .npz file, or tfds:NAME. They are unlabelled
    inputs to learn from, unlabelled inputs to quantize and check a file with, and labelled data.

    \b
    Examples:
      keras-ntt demo
      keras-ntt compress model.keras --inputs images/ --divide-by 255 -o small.tflite
      keras-ntt prune model.keras --inputs images.npy --sparsity 0.97 -o sparse.keras
      keras-ntt report sparse.keras
      keras-ntt evaluate sparse.keras --data data.npz
      keras-ntt export sparse.keras sparse.tflite

    keras-ntt COMMAND --help has the options of a command, and examples.
    """


for _command in (*(demo, compress, prune, report, compare, evaluate, export, shrink, inspect),):
    program.add_command(_command.command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; None takes them from the system.

    Returns:
        The exit code: 0 for success, 1 for an error that was reported, 2 for wrong usage,
        130 after Ctrl-C.
    """
    words = None if arguments is None else list(arguments)
    try:
        code = program.main(words, prog_name="keras-ntt", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort) as stop:
        reason = stop.__cause__ or stop
        click.echo("\n" + " ".join(["Stopped.", *map(str, reason.args)]), err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:  # the reader of the output has closed it
        sys.stderr.close()
        return 1
    except Exception as error:
        if not is_reported(error):
            raise
        click.echo(f"keras-ntt: {message_of(error)}", err=True)
        return 1
    return code if isinstance(code, int) else 0
