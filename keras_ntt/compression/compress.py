"""A trained model to the smallest file that behaves the same, without labels."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_ntt.compression.agreement import accuracy, agreement, check_labelled
from keras_ntt.compression.report import CompressionReport, CompressionRow
from keras_ntt.core import atomic_files, checks
from keras_ntt.core.checks import check_sparsity
from keras_ntt.litert.export import export_tflite
from keras_ntt.litert.runtime.predict import tflite_predict
from keras_ntt.litert.runtime.run import ExportError
from keras_ntt.pruning.post_training.calibration import calibration_batches
from keras_ntt.pruning.post_training.logits import heads_of
from keras_ntt.pruning.post_training.prune import prune_post_training

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
"""What is tried if no sparsity is asked for."""

TARGETS = ("size", "latency")
QUANTIZATIONS = ("float32", "float16", "int8_weights", "int8")
_TRIED = {"size": ("float32", "int8_weights"), "latency": ("float32",)}
_HELD_OUT = 0.2  # of the inputs
_MOST_HELD_OUT = 1_000


@dataclass(frozen=True, eq=False)
class _Yardstick:
    """What files are measured by."""

    x: Any
    dense: list[np.ndarray]
    kinds: list[str]
    labelled: tuple[Any, np.ndarray] | None
    reached: float

    def measured(self, row: CompressionRow, path: pathlib.Path) -> CompressionRow:
        """Return the row of a file with what it loses."""
        found = agreement(_outputs_of(path, self.x), self.dense, self.kinds)
        if self.labelled is None:
            return replace(row, agreement=found, drop=1 - found)
        x, labels = self.labelled
        right = accuracy(_outputs_of(path, x), labels)
        return replace(row, agreement=found, accuracy=right, drop=self.reached - right)


def compress(
    model: keras.Model,
    inputs: Any,
    *,
    sparsity: float | Sequence[float] | None = None,
    max_drop: float = 0.01,
    data: Any = None,
    target: str = "size",
    quantization: str | None = None,
    epochs: int = 0,
    path: str | os.PathLike | None = None,
    seed: int = 0,
    verbose: Any = "auto",
    **options: Any,
) -> CompressionReport:
    """Make a trained model small without labels, and write the smallest file that is as good.

    The model is pruned at several sparsities by `prune_post_training`, from low to high, until too
    much is lost. Each result is written as a LiteRT file, and the *file* is measured against the
    dense model on inputs that pruning did not see. The best one within `max_drop` is kept.

    Args:
        model: A built, trained model. It stays as it is.
        inputs: Unlabelled inputs, preprocessed as for training, see `prune_post_training`. They
            are kept in memory. A random fifth, at most 1,000, is held out to measure on.
        sparsity: A fraction of zeros, or several; None tries 0.5, 0.7, 0.8, 0.9 and 0.95.
        max_drop: The most that may be lost, as a fraction: of accuracy, if there are labelled
            `data`, else of agreement with the dense model. For classifiers that is the fraction of
            inputs with the same answer; else one less the squared error relative to the variance
            of the outputs.
        data: Labelled samples ``(x, labels)`` to measure on, if there are any: class numbers, or a
            row for each sample with a weight for each class. Nothing is trained on them.
        target: ``"size"``: the smallest file wins. ``"latency"``: the fastest on this host at batch
            1, with sparse weights only where a sparse kernel is faster.
        quantization: ``"float32"``, ``"float16"``, ``"int8_weights"`` or ``"int8"``, see
            `keras_ntt.export_tflite`. None tries float32 and, for size, int8 weights.
        epochs: Passes over the inputs to recover in, see `prune_post_training`.
        path: Where the best file is written. None writes none.
        seed: Seed of every random choice.
        verbose: Whether to show a progress bar, a step a sparsity.
        **options: Further ones of `prune_post_training`, such as ``method=`` or ``filters=``.

    Returns:
        A `CompressionReport`: the model of the best file, all rows, and a table as ``str()``. If
        no file but the dense one is within `max_drop`, that is the best.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the dense model cannot be written.
        FileNotFoundError: If the directory of `path` does not exist.
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If something does not fit.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import compress
        >>> model = keras.Sequential(
        ...     [keras.Input((64,)), keras.layers.Dense(50, "relu"), keras.layers.Dense(4)]
        ... )
        >>> x = np.random.default_rng(0).normal(size=(200, 64)).astype("float32")
        >>> report = compress(
        ...     model, x, sparsity=0.5, max_drop=0.5, quantization="float32", verbose=0
        ... )
        >>> report.best.sparsity, report.best.size < report.rows[0].size
        (0.5, True)
    """
    checks.check_model(model)
    checks.check_choice("target", target, TARGETS)
    if quantization is not None:
        checks.check_choice("quantization", quantization, QUANTIZATIONS)
    max_drop = checks.check_fraction("max_drop", max_drop)
    wanted = _sparsities(sparsity)
    place = None if path is None else atomic_files.writable(path)
    tried = _TRIED[target] if quantization is None else (quantization,)
    kinds = [None if name == "float32" else name for name in dict.fromkeys(("float32", *tried))]
    seen, held, count = _parted(model, inputs, checks.check_seed(seed))
    dense = _flat(model.predict(held, verbose=0))
    labelled = check_labelled(data, dense)
    reached = 0.0
    if labelled is not None:
        reached = accuracy(_flat(model.predict(labelled[0], verbose=0)), labelled[1])
    heads = [head.kind for head in heads_of(model, held)]
    yardstick = _Yardstick(held, dense, heads, labelled, reached)
    rows: list[CompressionRow] = []
    best: tuple[CompressionRow, keras.Model, pathlib.Path] | None = None
    progress = _progress(1 + len(wanted), verbose)
    with tempfile.TemporaryDirectory() as folder:
        for level in (0.0, *wanted):
            found = model
            if level:
                found = prune_post_training(
                    model, seen, sparsity=level, epochs=epochs, seed=seed, verbose=0, **options
                )
            new = list(_files(found, level, kinds, target, seen, yardstick, pathlib.Path(folder)))
            for row, file in new:
                rows.append(row)
                fits = file is not None and (row.is_within(max_drop) or not (level or best))
                if file is not None and fits and (best is None or _key(row) < _key(best[0])):
                    best = (row, found, file)
            progress()
            if level and not any(row.is_within(max_drop) for row, _ in new):
                break
        assert best is not None  # the dense float32 file
        if place is not None:
            with atomic_files.replacing(place) as temporary:
                shutil.copyfile(best[2], temporary)
    return CompressionReport(best[1], tuple(rows), best[0], max_drop, target, count, place)


def _key(row: CompressionRow) -> float:
    return float(row.size or 0) if row.seconds is None else row.seconds


def _files(
    model: keras.Model,
    level: float,
    kinds: Sequence[str | None],
    target: str,
    samples: Any,
    yardstick: _Yardstick,
    folder: pathlib.Path,
) -> Iterator[tuple[CompressionRow, pathlib.Path | None]]:
    """Write the files of one model, and yield their rows."""
    for number, kind in enumerate(kinds):
        file = folder / f"{level:g}-{number}.tflite"
        row = CompressionRow(level, kind)
        try:
            report = export_tflite(
                model,
                file,
                target="dense" if kind == "int8" else target,
                quantization=kind,
                representative_data=_first(samples, 256),
                tolerance="auto" if kind is None else 1e9,  # what is lost is measured here
                benchmark=target == "latency",
            )
        except ExportError as error:
            if not level and kind is None:
                raise
            yield replace(row, note=f"not written: {str(error)[:60]}"), None
            continue
        timed = report.benchmark
        row = replace(
            row,
            size=report.sizes.raw,
            compressed=report.sizes.gzip,
            seconds=None if timed is None else timed.seconds,
        )
        yield yardstick.measured(row, file), file


def _sparsities(given: Any) -> tuple[float, ...]:
    """Return the sparsities to try, rising."""
    if given is None:
        return SPARSITIES
    values = given if isinstance(given, list | tuple) else [given]
    found = sorted({check_sparsity(value) for value in values} - {0.0})
    return tuple(found)


def _parted(model: keras.Model, inputs: Any, seed: int) -> tuple[Any, Any, int]:
    """Return inputs to prune with, inputs to measure on, and how many these are."""
    batches = calibration_batches(model, inputs, seed=seed)
    whole = keras.tree.map_structure(
        lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *batches
    )
    count = len(keras.tree.flatten(whole)[0])
    if count < 2:
        raise ValueError(
            "There must be two inputs at least: some to prune with, some to measure on. "
            f"Received: {count} input(s)"
        )
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(1, int(count * _HELD_OUT)), _MOST_HELD_OUT)
    parts = [
        keras.tree.map_structure(lambda a, rows=rows: a[rows], whole)
        for rows in (order[held:], order[:held])
    ]
    return parts[0], parts[1], held


def _first(x: Any, count: int) -> Any:
    return keras.tree.map_structure(lambda a: a[:count], x)


def _outputs_of(path: pathlib.Path, x: Any) -> list[np.ndarray]:
    given = keras.tree.flatten(x) if isinstance(x, list | tuple) else x
    return _flat(tflite_predict(path, given))


def _flat(outputs: Any) -> list[np.ndarray]:
    return [np.asarray(y) for y in keras.tree.flatten(outputs)]


def _progress(steps: int, verbose: Any) -> Callable[[], None]:
    if not verbose:
        return lambda: None
    bar = keras.utils.Progbar(steps, unit_name="sparsity", verbose=2 if verbose == 2 else 1)
    return lambda: bar.add(1)
