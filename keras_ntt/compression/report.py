"""What was tried to make a model small, and what came out."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras

from keras_ntt.core.tables import table


@dataclass(frozen=True)
class CompressionRow:
    """One file that was tried.

    Attributes:
        sparsity: Fraction of zeros that was asked for; 0 is the dense model.
        quantization: See `keras_ntt.export_tflite`; None is float32.
        size: Bytes of the file; None if it could not be written.
        compressed: Bytes of it by gzip.
        agreement: How far the file agrees with the dense model on inputs that pruning did not see.
        accuracy: Its accuracy on labelled data, if there are any.
        drop: What is lost: of the dense model's accuracy with labelled data, else of agreement.
        seconds: Median latency of one sample on this host, if it was measured.
        note: Why there is no file.
    """

    sparsity: float
    quantization: str | None
    size: int | None = None
    compressed: int | None = None
    agreement: float | None = None
    accuracy: float | None = None
    drop: float | None = None
    seconds: float | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """What the row is called in a table."""
        what = f"{100 * self.sparsity:g} % zeros" if self.sparsity else "dense"
        return f"{what}, {self.quantization or 'float32'}"

    def is_within(self, max_drop: float) -> bool:
        """Tell whether there is a file that loses at most `max_drop`."""
        return self.drop is not None and self.drop <= max_drop + 1e-12


@dataclass(frozen=True, eq=False)
class CompressionReport:
    """What `compress` returns; ``str()`` is a table.

    Attributes:
        model: The Keras model of the best file, with masks if it is sparse.
        rows: All files that were tried, the dense ones first.
        best: The row of the best file.
        max_drop: The most that it was allowed to lose.
        target: ``"size"`` or ``"latency"``.
        held_out: Inputs that agreement was measured on.
        path: Where the best file was written, if anywhere.
    """

    model: keras.Model
    rows: tuple[CompressionRow, ...]
    best: CompressionRow
    max_drop: float
    target: str
    held_out: int
    path: pathlib.Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "best": asdict(self.best),
            "max_drop": self.max_drop,
            "target": self.target,
            "held_out": self.held_out,
            "path": None if self.path is None else str(self.path),
        }

    def __str__(self) -> str:
        head = ["file", "bytes", "gzip", "agreement %"]
        labelled = any(row.accuracy is not None for row in self.rows)
        timed = any(row.seconds is not None for row in self.rows)
        head += ["accuracy %"] * labelled + ["ms"] * timed + [""]
        body = [self._cells(row, labelled, timed) for row in self.rows]
        lines = [table(head, body, right=range(1, len(head) - 1))]
        whole, best = self.rows[0].size, self.best.size
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
        return "\n".join(lines)

    def _cells(self, row: CompressionRow, labelled: bool, timed: bool) -> Sequence[str]:
        mark = "best" if row is self.best else row.note
        if not mark and not row.is_within(self.max_drop):
            mark = "loses too much"
        cells = [row.name, _number(row.size), _number(row.compressed), _per_cent(row.agreement)]
        cells += [_per_cent(row.accuracy)] * labelled
        cells += ["" if row.seconds is None else f"{1000 * row.seconds:.3f}"] * timed
        return [*cells, mark]


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
