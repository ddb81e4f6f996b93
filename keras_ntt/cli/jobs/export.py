"""What ``keras-ntt export`` does."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from keras_ntt.cli import data as files
from keras_ntt.cli import printing
from keras_ntt.cli.jobs import evaluate
from keras_ntt.litert.export import export_tflite
from keras_ntt.litert.report import ExportReport


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was written, and its figures on labelled samples, if there were any."""

    report: ExportReport
    evaluation: evaluate.Evaluation | None

    def to_dict(self) -> dict[str, Any]:
        """Return both in a form for JSON."""
        found = self.evaluation
        extra = {} if found is None else {"evaluation": found.to_dict()}
        return {**self.report.to_dict(), **extra}

    def __str__(self) -> str:
        """Return both as text."""
        return f"{self.report}" + ("" if self.evaluation is None else f"\n\n{self.evaluation}")


def run(
    model: pathlib.Path,
    path: pathlib.Path,
    calibration: str | None,
    labelled: str | None,
    divide_by: float | None,
    **chosen: Any,
) -> Exported:
    """Write a file, and evaluate it.

    Args:
        model: The Keras model.
        path: The file to write.
        calibration: Where unlabelled inputs are, or None.
        labelled: Where labelled samples are, or None. Their inputs are used if `calibration` is
            None.
        divide_by: The number to divide all inputs by, or None.
        **chosen: Further arguments of `keras_ntt.export_tflite`.

    Returns:
        What was done.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If model, samples and options do not fit.
    """
    loaded = files.load_model(model)
    source = labelled if calibration is None else calibration
    x = None if source is None else files.read_inputs(source, loaded, divide_by)
    has_labels = labelled is not None and files.has_labels(labelled, loaded)
    if labelled is not None and not has_labels:
        printing.note(f"{labelled} has no labels, so the file is not measured on it.")
    report = export_tflite(loaded, path, representative_data=x, **chosen)
    if labelled is None or not has_labels:
        return Exported(report, None)
    return Exported(report, evaluate.of_file(path, labelled, divide_by))
