"""A trained model to the smallest file that behaves the same, without labels."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_ntt.compression.candidates import Candidate, ladders
from keras_ntt.compression.files import QUANTIZATIONS, TARGETS, quantizations, written
from keras_ntt.compression.finished import Finished
from keras_ntt.compression.report import CompressionReport, CompressionRow
from keras_ntt.compression.yardstick import parted, yardstick_of
from keras_ntt.core import atomic_files, checks, host
from keras_ntt.core.fingerprints import fingerprint, in_words
from keras_ntt.litert.runtime.benchmark import seconds_in_turns
from keras_ntt.pruning.post_training.costs import costs_shared


class _Tried(NamedTuple):
    """A candidate that is finished; its model only where it may be the best."""

    candidate: Candidate
    rows: list[CompressionRow]
    model: keras.Model | None


def compress(
    model: keras.Model,
    inputs: Any,
    *,
    sparsity: float | Sequence[float] | None = None,
    channels: float | Sequence[float] | None = None,
    max_drop: float = 0.01,
    data: Any = None,
    methods: str | Sequence[str] | None = None,
    target: str = "size",
    quantization: str | None = None,
    epochs: int = 0,
    path: str | os.PathLike | None = None,
    folder: str | os.PathLike | None = None,
    filters: Any = None,
    seed: int = 0,
    verbose: Any = "auto",
    **options: Any,
) -> CompressionReport:
    """Make a trained model small without labels, and write the smallest file that is as good.

    Candidates are made by `prune_post_training` and `prune_channels`, from little to much, until
    too much is lost. Each is written as LiteRT files, and each *file* is measured against the dense
    model on inputs that pruning did not see. The best one within `max_drop` is kept.

    Ctrl-C ends the search: what was found until then is reported, and the best of it written.

    Args:
        model: A built, trained model. It stays as it is.
        inputs: Unlabelled inputs, preprocessed as for training, see `prune_post_training`. They
            are kept in memory. A random fifth, at most 1,000, is held out to measure on.
        sparsity: A fraction of zeros, or several; None tries 0.5, 0.7, 0.8, 0.9 and 0.95.
        channels: A fraction of the channels to remove, or several; None tries 0.25, 0.5 and 0.75.
        max_drop: The most that may be lost, as a fraction: of accuracy, if there are labelled
            `data`, else of agreement with the dense model. For classifiers that is the fraction of
            inputs with the same answer; else one less the squared error relative to the variance
            of the outputs.
        data: Labelled samples ``(x, labels)`` to measure on, if there are any: class numbers, or a
            row for each sample with a weight for each class. Nothing is trained on them.
        methods: ``"weights"`` makes weights zero, ``"channels"`` removes whole channels, which any
            runtime is faster by; or both. None tries what `sparsity` and `channels` are given for,
            or else both, channels where the model has some that may go.
        target: ``"size"``: the smallest file wins. ``"latency"``: the fastest on this host at batch
            1, with sparse weights only where a sparse kernel is faster. ``"micro"``: the smallest
            file for TensorFlow Lite Micro, with the code that unpacks it.
        quantization: ``"float32"``, ``"float16"``, ``"int8_weights"`` or ``"int8"``, see
            `keras_ntt.export_tflite`. None tries float32 and int8 weights for size, float32 and
            int8 for latency, and int8 for microcontrollers.
        epochs: Passes over the inputs to recover in, see `prune_post_training`.
        path: Where the best file is written. None writes none.
        folder: A folder for finished candidates: their files, models and rows. A search that was
            stopped goes on from there, with the same arguments. None keeps none.
        filters: Which layers are pruned, see `NeuralTangentTransfer`.
        seed: Seed of every random choice.
        verbose: Whether to show a progress bar, a step a candidate.
        **options: Further ones of `prune_post_training`, such as ``method=``.

    Returns:
        A `CompressionReport`: the model of the best file, all rows, and a table as ``str()``. If
        no file but the dense one is within `max_drop`, that is the best.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the dense model cannot be written.
        FileNotFoundError: If the directory of `path` does not exist.
        KeyboardInterrupt: If it was stopped before the dense model was measured.
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
        known = ("float32", "int8") if target == "micro" else QUANTIZATIONS
        checks.check_choice("quantization", quantization, known)
    max_drop = checks.check_fraction("max_drop", max_drop)
    plan = ladders(model, methods=methods, sparsity=sparsity, channels=channels)
    place = None if path is None else atomic_files.writable(path)
    seen, held, count = parted(model, inputs, checks.check_seed(seed))
    yardstick = yardstick_of(model, held, data, is_micro=target == "micro")
    settings = {"epochs": epochs, "filters": filters, "seed": seed, **options}
    about = {
        "model": fingerprint([host.array_of(v) for v in model.weights]),
        "inputs": fingerprint(keras.tree.flatten([seen, held])),
        "data": fingerprint(keras.tree.flatten(yardstick.labelled)) if yardstick.labelled else None,
        "target": target,
        **{name: in_words(value) for name, value in settings.items()},
    }
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(tempfile.TemporaryDirectory()) if folder is None else folder
        finished = Finished(atomic_files.as_path(where, "folder"), about)

        def tried(candidate: Candidate) -> _Tried:
            kinds = quantizations(candidate, target, quantization)
            known = None if folder is None else finished.rows(candidate)
            if known is not None and [row.quantization for row in known] in ([], kinds):
                return _Tried(candidate, known, None)
            try:
                found = candidate.make(
                    model, seen, epochs=epochs, seed=seed, filters=filters, options=options
                )
            except ValueError as error:
                if candidate.method != "channels" or methods is not None or channels is not None:
                    raise
                warnings.warn(f"Channels stay, as they cannot be removed: {error}", stacklevel=3)
                return _Tried(candidate, [], None)
            rows = (
                []
                if _is_dense(candidate, found, model)
                else list(written(found, candidate, kinds, target, seen, yardstick, finished.file))
            )
            if folder is not None:
                finished.add(candidate, rows, found)
            useful = any(row.is_within(max_drop) for row in rows)
            return _Tried(candidate, rows, found if useful else None)

        with costs_shared():
            found, whole = _search(plan, tried, max_drop, verbose)
        if target != "micro":
            found = _timed(found, finished, yardstick.one)
        best, row = _best(found, max_drop, target)
        if place is not None:
            with atomic_files.replacing(place) as temporary:
                shutil.copyfile(finished.file(best.candidate, row.quantization), temporary)
        chosen = finished.model(best.candidate, model) if best.model is None else best.model
    rows = tuple(row for one in found for row in one.rows)
    return CompressionReport(chosen, rows, row, max_drop, target, count, place, not whole)


def _is_dense(candidate: Candidate, found: keras.Model, model: keras.Model) -> bool:
    """Tell whether there were so few channels that none of them went."""
    return candidate.method == "channels" and found.count_params() == model.count_params()


def _search(
    plan: Sequence[Sequence[Candidate]],
    tried: Callable[[Candidate], _Tried],
    max_drop: float,
    verbose: Any,
) -> tuple[list[_Tried], bool]:
    """Try candidates, each method until too much is lost; tell whether that came to an end."""
    found: list[_Tried] = []
    progress = _progress(sum(map(len, plan)), verbose)
    try:
        for ladder in plan:
            for number, candidate in enumerate(ladder):
                found.append(tried(candidate))
                rows = found[-1].rows
                lost = bool(rows) and not any(row.is_within(max_drop) for row in rows)
                if lost and candidate.method != "dense":
                    progress(len(ladder) - number)
                    break
                progress(1)
    except KeyboardInterrupt:
        if not found:
            raise
        return found, False
    return found, True


def _timed(
    tried: Sequence[_Tried], finished: Finished, sample: Sequence[np.ndarray]
) -> list[_Tried]:
    """Return candidates with the latency of their files, all timed in turns."""
    files = [
        finished.file(one.candidate, row.quantization)
        for one in tried
        for row in one.rows
        if row.size is not None
    ]
    seconds = iter(seconds_in_turns([os.fspath(file) for file in files], sample))
    return [
        one._replace(
            rows=[
                row if row.size is None else replace(row, seconds=next(seconds)) for row in one.rows
            ]
        )
        for one in tried
    ]


def _best(tried: Sequence[_Tried], max_drop: float, target: str) -> tuple[_Tried, CompressionRow]:
    """Return the candidate and the row of the best file; the first one always qualifies."""
    first = tried[0].rows[0]
    pairs = [(one, row) for one in tried for row in one.rows if row.size is not None]
    fit = [(one, row) for one, row in pairs if row is first or row.is_within(max_drop)]
    return min(fit, key=lambda pair: pair[1].cost(target))


def _progress(steps: int, verbose: Any) -> Callable[[int], None]:
    if not verbose:
        return lambda count: None
    bar = keras.utils.Progbar(steps, unit_name="candidate", verbose=2 if verbose == 2 else 1)
    return bar.add
