"""Types of options, and options that several commands share."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import click

PATH = click.Path(path_type=pathlib.Path)
POSITIVE = click.IntRange(min=1)


class _Sparsity(click.FloatRange):
    """A fraction of zeros; per cent are refused."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = click.FLOAT.convert(value, param, ctx)
        if 1 < number < 100:
            self.fail(
                f"{value} is not a fraction of zeros: {number:g} % is {number / 100:g}.", param, ctx
            )
        return super().convert(value, param, ctx)


SPARSITY = _Sparsity(min=0, max=1, max_open=True)


class Fraction(click.ParamType):
    """A fraction, as ``0.01`` or ``1%``."""

    name = "fraction"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the fraction."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%?)", value.strip())
        number = float(match[1]) / (100 if match[2] else 1) if match else -1.0
        if not 0 <= number <= 1:
            self.fail(f"{value!r} is not a fraction such as 0.01 or 1%", param, ctx)
        return number


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class Bytes(click.ParamType):
    """A number of bytes, such as ``2GiB``, ``500MB`` or ``1000000``."""

    name = "bytes"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(|[KMG]I?)B?", value.strip().upper())
        size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
        if size < 1:
            self.fail(f"{value!r} is not a size such as 2GiB, 500MB or 1000000 bytes", param, ctx)
        return size


class Structure(click.ParamType):
    """A pattern: ``2:4``, ``filters``, or a block ``4x1`` of inputs and outputs."""

    name = "pattern"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the pattern as `keras_ntt.prune_at_init` takes it."""
        from keras_ntt.selection.named_patterns import as_pattern

        block = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
        pattern = (int(block[1]), int(block[2])) if block else value
        try:
            as_pattern(pattern)
        except ValueError:
            self.fail(f"{value!r} is not a pattern such as 2:4, 4x1 or filters", param, ctx)
        return pattern


def check_apart(
    read: Mapping[str, str | os.PathLike | None], written: Mapping[str, str | os.PathLike | None]
) -> None:
    """Raise if a command would write a path that it reads, or would write a path twice.

    Args:
        read: The paths that it reads, by the names of their options; None for those not given.
        written: The paths that it writes, likewise.

    Raises:
        click.UsageError: If two are the same, links resolved.
    """
    pairs = [
        *itertools.product(read.items(), written.items()),
        *itertools.combinations(written.items(), 2),
    ]
    for (first, path), (second, other) in pairs:
        if path is None or other is None:
            continue
        same = os.path.realpath(path) == os.path.realpath(other)
        there = os.path.exists(path) and os.path.exists(other)
        if same or (there and os.path.samefile(path, other)):
            raise click.UsageError(
                f"{first} and {second} are the same file, and one would overwrite the other. "
                f"Give them different paths. Received: {second}={os.fspath(other)}"
            )


SOURCE = "FOLDER|FILE|tfds:NAME"
_FORMS = "a folder of images, a .npy file, an .npz file with x, or tfds:NAME"


def inputs(*, required: bool = False) -> Any:
    """Return the option of samples without labels."""
    text = f"Unlabelled inputs to learn from: {_FORMS}."
    return click.option("--inputs", metavar=SOURCE, required=required, help=text)


def labelled(*, required: bool = False, use: str = "to measure on") -> Any:
    """Return the option of samples with labels.

    Args:
        required: Whether the command needs it.
        use: What the samples are for.
    """
    text = (
        f"Labelled data {use}: a folder with a folder of images for each class, an .npz file with "
        "x and y (and x_test, y_test), or tfds:NAME."
    )
    return click.option("--data", metavar=SOURCE, required=required, help=text)


def calibration() -> Any:
    """Return the option of samples for quantization, and for the comparison with the model."""
    text = f"Unlabelled inputs to measure ranges of numbers and compare outputs on: {_FORMS}."
    return click.option("--calibration", "--inputs", metavar=SOURCE, help=text)


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
seed = click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**31 - 1),
    default=0,
    show_default=True,
    help="Seed of every random choice.",
)
divide_by = click.option(
    "--divide-by",
    type=click.FloatRange(min=0, min_open=True),
    help="Divide the inputs by this number first: 255 for pixels in bytes.",
)
quiet = click.option("--quiet", "-q", is_flag=True, help="No progress bar.")


class ArenaLimit(click.ParamType):
    """Bytes of memory, or ``dense``."""

    name = "bytes"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        """Return the number of bytes, or the word."""
        return value if value == "dense" else Bytes().convert(value, param, ctx)


class SamplesAtATime(click.ParamType):
    """A whole number of at least 1, or ``any``."""

    name = "samples"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        """Return the number, or the word."""
        return value if value == "any" else click.IntRange(min=1).convert(value, param, ctx)


def microcontroller(function: Any) -> Any:
    """Add the options of files for microcontrollers to a command."""
    for option in (
        click.option("--npu", type=click.Choice(("ethos-u",)), help="Write the file for Vela."),
        click.option("--c-array", metavar="PATH", help="Also write C source: PATH.h and PATH.cc."),
        click.option(
            "--arena-limit",
            type=ArenaLimit(),
            help="Memory on a microcontroller, such as 64KiB, or 'dense'.",
        ),
        click.option("--huffman", is_flag=True, help="Allow Huffman codes on a microcontroller."),
    ):
        function = option(function)
    return function
