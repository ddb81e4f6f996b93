"""What was tried to make a model small, and what came out."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import keras

from keras_ntt.core.tables import table


@dataclass(frozen=True)
class CompressionRow:
    """One file that was tried.

    Attributes:
        sparsity: Fraction of zeros that was asked for.
        quantization: See `keras_ntt.export_tflite`; None is float32.
        channels: Fraction of the channels that were to go. Where both are 0, the model is the
            dense one.
        size: Bytes of the file; None if it could not be written.
        compressed: Bytes of it by gzip.
        code: Bytes of code that unpacks it on a microcontroller.
        arena: Bytes of memory that it needs there, as counted on a 64-bit host.
        agreement: How far the file agrees with the dense model on inputs that pruning did not see.
        accuracy: Its accuracy on labelled data, if there are any.
        drop: What is lost: of the dense model's accuracy with labelled data, else of agreement.
        seconds: Median latency of one sample on this host, if it was measured.
        note: Why there is no file.
    """

    sparsity: float
    quantization: str | None
    channels: float = 0.0
    size: int | None = None
    compressed: int | None = None
    code: int = 0
    arena: int | None = None
    agreement: float | None = None
    accuracy: float | None = None
    drop: float | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """What the row is called in a table."""
        what = "dense"
        if self.sparsity:
            what = f"{100 * self.sparsity:g} % zeros"
        elif self.channels:
            what = f"{100 * self.channels:g} % fewer channels"
        return f"{what}, {self.quantization or 'float32'}"

    def is_within(self, max_drop: float) -> bool:
        """Tell whether there is a file that loses at most `max_drop`."""
        return self.drop is not None and self.drop <= max_drop + 1e-12

    def cost(self, target: str) -> float:
        """Return what the best file has least of: seconds, or bytes with the code for it."""
        return float((self.seconds if target == "latency" else None) or self.flash or 0)

    @property
    def flash(self) -> int | None:
        """Bytes of the file and of the code that unpacks it."""
        return None if self.size is None else self.size + self.code


@dataclass(frozen=True, eq=False)
class CompressionReport:
    """What `compress` returns; ``str()`` is a table.

    Attributes:
        model: The Keras model of the best file, with masks if it is sparse.
        rows: All files that were tried, the dense ones first.
        best: The row of the best file.
        max_drop: The most that it was allowed to lose.
        target: ``"size"``, ``"latency"`` or ``"micro"``.
        held_out: Inputs that agreement was measured on.
        path: Where the best file was written, if anywhere.
        interrupted: Whether Ctrl-C ended the search before all candidates were tried.
    """

    model: keras.Model
    rows: tuple[CompressionRow, ...]
    best: CompressionRow
    max_drop: float
    target: str
    held_out: int
    path: pathlib.Path | None = None
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "best": asdict(self.best),
            "max_drop": self.max_drop,
            "target": self.target,
            "held_out": self.held_out,
            "path": None if self.path is None else str(self.path),
            "interrupted": self.interrupted,
        }

    def __str__(self) -> str:
        columns = [(name, cell) for name, cell in _COLUMNS if any(map(cell, self.rows))]
        head = ["file", *(name for name, _ in columns), ""]
        body = [
            [row.name, *(cell(row) for _, cell in columns), self._mark(row)] for row in self.rows
        ]
        lines = [table(head, body, right=range(1, len(head) - 1))]
        whole, best = self.rows[0].flash, self.best.flash
        ratio = (
            f", {whole / best:.1f} times smaller than the dense float32 file"
            if whole and best
            else ""
        )
        lines.append(
            f"Best within a drop of {100 * self.max_drop:g} % on {self.held_out} held-out inputs: "
            f"{self.best.name}{ratio}."
        )
        if self.path is not None:
            lines.append(f"Written to {self.path}.")
        if self.interrupted:
            lines.append("The search was stopped; more candidates were to come.")
        return "\n".join(lines)

    def _mark(self, row: CompressionRow) -> str:
        mark = "best" if row is self.best else row.note
        return mark or ("" if row.is_within(self.max_drop) else "loses too much")


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


_COLUMNS: tuple[tuple[str, Callable[[CompressionRow], str]], ...] = (
    ("bytes", lambda row: _number(row.size)),
    ("gzip", lambda row: _number(row.compressed)),
    ("code", lambda row: _number(row.code or None)),
    ("arena", lambda row: _number(row.arena)),
    ("agreement %", lambda row: _per_cent(row.agreement)),
    ("accuracy %", lambda row: _per_cent(row.accuracy)),
    ("ms", lambda row: "" if row.seconds is None else f"{1000 * row.seconds:.3f}"),
)
