"""A report of what was pruned: the weights of a model and their zeros."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.core.tables import table
from keras_ntt.masks.computed import computed_kernels
from keras_ntt.masks.constraint import is_masked
from keras_ntt.masks.names import names_by_id
from keras_ntt.masks.natural_zeros import was_pruned
from keras_ntt.masks.policies import (
    NEVER,
    KernelPolicy,
    choose_weights,
    prunable_weights,
    weights_by_magnitude,
)

_NEGLIGIBLE = 1e-6  # of the largest entry: beyond what a sum in float32 notices
_NOTICEABLE = 0.01  # of the entries
_MOST_LINES = 40
_HIDDEN = frozenset(NEVER.values())


@dataclass(frozen=True)
class WeightRow:
    """One weight of a model.

    Attributes:
        path: Its name.
        shape: Its shape.
        size: Its number of entries.
        nonzeros: Number of non-zero entries.
        masked: Whether a mask keeps its zeros.
        note: Why it is not pruned, or an empty string.
        progress: The position of its schedule, such as ``"step 3 of 8"``; an empty string if it has
            no schedule or the schedule has ended.
        negligible: Number of non-zero entries below 1e-6 of its largest entry.
        reason: Why the layer computes with other zeros than the weight has, or an empty string.
        lost: Number of non-zero entries that its mask leaves out: training did not use the mask.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    nonzeros: int
    masked: bool
    note: str
    progress: str = ""
    negligible: int = 0
    reason: str = ""
    lost: int = 0

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1 - self.nonzeros / self.size if self.size else 0.0


@dataclass(frozen=True)
class SparsityReport:
    """The zeros of a model; its ``str()`` is a table of what may be pruned.

    Attributes:
        rows: One row per trainable weight.
    """

    rows: tuple[WeightRow, ...]

    @property
    def pruned(self) -> tuple[WeightRow, ...]:
        """The rows of the weights that may be pruned."""
        return tuple(row for row in self.rows if not row.note)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the weights that may be pruned."""
        size = sum(row.size for row in self.pruned)
        return 1 - sum(row.nonzeros for row in self.pruned) / size if size else 0.0

    @property
    def nonzeros(self) -> int:
        """Number of non-zero entries of all listed weights."""
        return sum(row.nonzeros for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers and strings."""
        rows = [{**asdict(row), "sparsity": row.sparsity} for row in self.rows]
        return {"sparsity": self.sparsity, "nonzeros": self.nonzeros, "weights": rows}

    def __str__(self) -> str:
        """Return the table, without the weights that nobody prunes."""
        return self.table()

    def table(self, *, all_weights: bool = False) -> str:
        """Return the table.

        Args:
            all_weights: Whether biases and the scales and offsets of normalizations have lines,
                and each weight of a deep model has a line. By default they are counted at the end,
                and the weights of a model with more than 40 are grouped by their names.

        Returns:
            The lines.
        """
        hidden = () if all_weights else tuple(row for row in self.rows if row.note in _HIDDEN)
        rows = [row for row in self.rows if row not in hidden]
        groups = [[row] for row in rows]
        if not all_weights and len(rows) > _MOST_LINES:
            groups = _grouped(rows)
        head = ("weight", "shape", "size", "non-zeros", "sparsity", "")
        total = ("prunable weights", "", *_counts(self.pruned), "")
        found = table(head, [_line(group) for group in groups], right=(2, 3, 4), total=total)
        return "\n".join([found, *_counted(hidden)])


def _line(rows: Sequence[WeightRow]) -> tuple[str, ...]:
    """Return the cells of one weight, or of several that share the beginning of their names."""
    if len(rows) > 1:
        remarks = " / ".join(dict.fromkeys(_remarks(row) for row in rows))
        return (f"{_stem(rows)}... ({len(rows)})", "", *_counts(rows), remarks)
    (row,) = rows
    size, nonzeros, sparsity = _counts(rows)
    cells = (row.path, "x".join(map(str, row.shape)), size, nonzeros)
    return (*cells, "" if row.note in _HIDDEN else sparsity, _remarks(row))


def _counts(rows: Sequence[WeightRow]) -> tuple[str, str, str]:
    size, nonzeros = (sum(getattr(row, name) for row in rows) for name in ("size", "nonzeros"))
    return f"{size:,}", f"{nonzeros:,}", f"{1 - nonzeros / size if size else 0:.2%}"


def _counted(rows: Sequence[WeightRow]) -> list[str]:
    """Return a line for each kind of weights that nobody prunes."""
    found = []
    for kind, note in NEVER.items():
        own = [row for row in rows if row.note == note]
        if own:
            size = sum(row.size for row in own)
            weights = f"{len(own)} weight{'s' * (len(own) > 1)}"
            found.append(f"not listed: {kind} ({weights}, {size:,} entries)")
    return found


def _grouped(rows: Sequence[WeightRow]) -> list[list[WeightRow]]:
    """Group neighbours that share the beginning of their names, by the longest that will do."""
    parts = [_parts(row.path) for row in rows]
    groups = [list(rows)]
    for depth in range(1, max(map(len, parts))):
        keys = ["".join(part[:depth]) for part in parts]
        finer = [
            [rows[i] for i in same]
            for _, same in itertools.groupby(range(len(rows)), keys.__getitem__)
        ]
        if len(finer) > _MOST_LINES:
            break
        groups = finer
    return groups


def _stem(rows: Sequence[WeightRow]) -> str:
    parts = zip(*(_parts(row.path) for row in rows), strict=False)
    same = itertools.takewhile(lambda part: len(set(part)) == 1, parts)
    return "".join(part[0] for part in same)


def _parts(path: str) -> list[str]:
    return re.findall(r"[^/_]+[/_]?|[/_]", path)


def _remarks(row: WeightRow) -> str:
    """Return the note for a weight: why it is not pruned, or how its zeros are kept."""
    remarks = [row.note or _state(row)]
    if row.progress:
        remarks.append(f"schedule at {row.progress}")
    if row.lost:
        remarks.append(f"{row.lost:,} masked entries are not zero: compile() again")
    if row.reason:
        remarks.append(row.reason)
    if not row.note and row.negligible >= _NOTICEABLE * row.size:
        share = row.negligible / row.size
        remarks.append(f"{share:.0%} not zero but below {_NEGLIGIBLE:g} of the largest")
    return ", ".join(remarks)


def _state(row: WeightRow) -> str:
    """Return whether training keeps the zeros of a weight that may be pruned."""
    if row.masked:
        return "masked"
    return "zeros without a mask" if row.nonzeros < row.size else "not masked"


def sparsity_report(model: keras.Model) -> SparsityReport:
    """Count the zeros of a model, weight by weight.

    Args:
        model: A built model.

    Returns:
        A row for each trainable weight and each frozen kernel, with the reason if a weight is not
        pruned.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not built or has no kernel.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import sparsity_report
        >>> dense = keras.layers.Dense(2, name="dense")
        >>> model = keras.Sequential([keras.Input((2,)), dense], name="net")
        >>> dense.set_weights([np.array([[1.0, 0.0], [0.0, 3.0]]), np.ones(2)])
        >>> print(sparsity_report(model))
        weight            shape  size  non-zeros  sparsity
        ------------------------------------------------------------------------
        net/dense/kernel  2x2       4          2    50.00%  zeros without a mask
        ------------------------------------------------------------------------
        prunable weights            4          2    50.00%
        not listed: biases (1 weight, 2 entries)
    """
    checks.check_model(model)
    choice = choose_weights(model, weights_of=_weights_of, frozen_too=True)
    notes = {id(variable): reason for variable, reason in choice.skipped}
    names = names_by_id(model.weights)
    computed = computed_kernels(model)
    rows = []
    for variable in model.weights:
        lora = id(variable) in computed and is_masked(variable)
        if not variable.trainable and id(variable) not in notes and not lora:
            continue
        value, reason = computed.get(id(variable), (host.array_of(variable), ""))
        masked = is_masked(variable)
        rows.append(
            WeightRow(
                names[id(variable)],
                tuple(variable.shape),
                int(value.size),
                int(np.count_nonzero(value)),
                masked,
                "" if masked else notes.get(id(variable), ""),
                variable.constraint.progress if masked else "",
                _negligible(value),
                reason,
                _lost(variable) if masked else 0,
            )
        )
    return SparsityReport(tuple(rows))


def _lost(variable: keras.Variable) -> int:
    return int(np.count_nonzero(host.array_of(variable)[~variable.constraint.mask]))


def _negligible(value: np.ndarray) -> int:
    """Return how many non-zero entries are too small to change a sum with the largest one."""
    sizes = np.abs(value.astype("float64"))
    largest = sizes.max(initial=0.0)
    return int(np.count_nonzero((sizes > 0) & (sizes < _NEGLIGIBLE * largest)))


def _weights_of(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return what may be pruned of a layer, and what other options would allow."""
    usual = prunable_weights(layer)
    others = weights_by_magnitude(layer, KernelPolicy(depthwise=True))
    known = {id(v) for v in usual}
    return [
        *usual,
        *(v for v in others if id(v) not in known and (is_masked(v) or was_pruned(layer, v))),
    ]
