"""What ``keras-ntt compare`` does."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import keras_ntt
from keras_ntt.cli import data, printing
from keras_ntt.cli.methods import MOVING, SCORES
from keras_ntt.core.copies import copy_of, redrawn
from keras_ntt.core.logits import looks_like_probabilities
from keras_ntt.core.tables import table as text_table

LABELS = ("snip", "grasp")  # the methods that look at them before training


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to compare; the attributes are the options of the command."""

    methods: tuple[str, ...]
    sparsity: float
    allocation: str
    seeds: int
    redraw: bool
    transfer_epochs: int
    epochs: int
    batch_size: int
    learning_rate: float
    transfer_rate: float
    ntk_weight: float
    l2: float
    divide_by: float | None
    seed: int


def run(path: pathlib.Path, source: str, settings: Settings) -> dict[str, Any]:
    """Find, train and test a network with each method.

    Args:
        path: The dense model.
        source: Where the data are.
        settings: How to compare.

    Returns:
        Accuracies, and why methods were not run, in a form for JSON.
    """
    given = data.load_model(path)
    labelled = data.read_labelled(source, given, settings.divide_by)
    loss = loss_for(given, labelled)
    rows: dict[str, dict[str, Any]] = {}
    not_run: dict[str, str] = {}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        keras.utils.set_random_seed(seed)
        dense = redrawn(given) if settings.redraw else given
        for method in settings.methods:
            if method in not_run:
                continue
            begun = time.perf_counter()
            try:
                model = sparse_version(method, dense, labelled, settings, seed)
            except ValueError as error:
                not_run[method] = str(error)
                rows.pop(method, None)
                continue
            seconds = time.perf_counter() - begun
            row = rows.setdefault(method, {"accuracy": [], "seconds": []})
            moves = moving(method, len(labelled.y), settings, seed)
            accuracy = accuracy_after_training(model, labelled, loss, settings, seed, moves)
            row["accuracy"].append(accuracy)
            row["seconds"].append(seconds)
            row["nonzeros"] = sum(int(np.count_nonzero(w)) for w in model.get_weights())
            row["labels"] = method in LABELS
            printing.note(f"seed {seed}  {method:<10}  accuracy {row['accuracy'][-1]:.1%}")
    about = {"model": str(path), "data": source, "settings": dataclasses.asdict(settings)}
    return {**about, "methods": rows, "not_run": not_run}


def sparse_version(
    method: str, dense: keras.Model, labelled: data.Labelled, settings: Settings, seed: int
) -> keras.Model:
    """Return a copy of a dense model, pruned by a method.

    Args:
        method: The method, ``"dense"`` for none.
        dense: The model; it is not changed.
        labelled: The data; the labels of the training part are for those that need them.
        settings: How to compare.
        seed: Seed of the method's random choices.

    Returns:
        The copy, with its masks.

    Raises:
        ValueError: If the method does not fit the model.
    """
    if method == "dense":
        return copy_of(dense)
    if method == "ntt":
        return keras_ntt.prune_neural_tangent(
            dense,
            labelled.x,
            sparsity=settings.sparsity,
            allocation=settings.allocation,
            epochs=settings.transfer_epochs,
            batch_size=settings.batch_size,
            optimizer=keras.optimizers.Adam(settings.transfer_rate),
            ntk_weight=settings.ntk_weight,
            l2=settings.l2,
            seed=seed,
            verbose=0,
        )
    saliency, allocation = SCORES["erk" if method in MOVING else method]
    return keras_ntt.prune_at_init(
        dense,
        sparsity=settings.sparsity,
        saliency=saliency,
        allocation=allocation or settings.allocation,
        data=(labelled.x, labelled.y) if method in LABELS else labelled.x,
        seed=seed,
        verbose=0,
    )


def moving(
    method: str, samples: int, settings: Settings, seed: int
) -> list[keras.callbacks.Callback]:
    """Return the callback of a method that moves its masks in training, in a list; else none.

    SET moves them after each epoch. RigL does so a hundred times in the first three quarters of the
    training, or every 100 steps where it is long.
    """
    if method not in MOVING:
        return []
    epoch = -(-samples // settings.batch_size)
    steps = epoch * settings.epochs
    if method == "set":
        return [keras_ntt.SET(begin_step=epoch - 1, end_step=steps, frequency=epoch, seed=seed)]
    end = max(round(0.75 * steps), 1)
    return [keras_ntt.RigL(end_step=end, frequency=min(max(end // 100, 1), 100), seed=seed)]


def loss_for(model: keras.Model, labelled: data.Labelled) -> keras.losses.Loss:
    """Return the cross-entropy that fits a model's outputs: logits or probabilities.

    Args:
        model: The model.
        labelled: The data.

    Returns:
        The loss.

    Raises:
        ValueError: If the outputs are not one row of classes a sample.
    """
    outputs = keras.ops.convert_to_tensor(model(_rows(labelled.x, slice(32)), training=False))
    labels = np.concatenate([labelled.y, labelled.y_test])
    classes = outputs.shape[1] if len(outputs.shape) == 2 else 0
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            "The methods are compared by the accuracy of a classifier: a model with one output a "
            "class, and labels that number the classes from 0. Received: outputs of shape "
            f"{tuple(outputs.shape)} and labels from {labels.min()} to {labels.max()}"
        )
    logits = not looks_like_probabilities(outputs)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


def accuracy_after_training(
    model: keras.Model,
    labelled: data.Labelled,
    loss: keras.losses.Loss,
    settings: Settings,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> float:
    """Train a model on labels and return its accuracy on the test part."""
    keras.utils.set_random_seed(seed)
    model.compile(keras.optimizers.Adam(settings.learning_rate), loss)
    x, y = labelled.x, labelled.y
    size, epochs = settings.batch_size, settings.epochs
    model.fit(x, y, batch_size=size, epochs=epochs, verbose=0, callbacks=list(callbacks))
    # Not with `predict`: TensorFlow would trace its function for every model, and warn.
    starts = range(0, len(labelled.y_test), 256)
    parts = [_rows(labelled.x_test, slice(start, start + 256)) for start in starts]
    answers = [np.argmax(model(part, training=False), axis=1) for part in parts]
    return float(np.mean(np.concatenate(answers) == labelled.y_test))


def _rows(x: Any, rows: slice) -> Any:
    return keras.tree.map_structure(lambda array: array[rows], x)


def table(results: dict[str, Any]) -> str:
    """Return the accuracies as a table, best first.

    Args:
        results: What `run` returned.

    Returns:
        The lines: accuracy in per cent, as mean ± standard deviation over the seeds.
    """
    rows = results["methods"]
    ranked = sorted(rows, key=lambda method: -np.mean(rows[method]["accuracy"]))
    body = [
        [
            method,
            spread(100 * np.array(rows[method]["accuracy"])),
            f"{rows[method]['nonzeros']:,}",
            "yes" if rows[method]["labels"] else "no",
            f"{np.mean(rows[method]['seconds']):.1f}",
        ]
        for method in ranked
    ]
    settings = results["settings"]
    title = (
        f"Test accuracy in per cent after {settings['epochs']} epochs, "
        f"sparsity {settings['sparsity']:.2%}, {settings['allocation']}, "
        f"{settings['seeds']} seed{'s' * (settings['seeds'] > 1)}"
    )
    head = ("method", "accuracy", "non-zeros", "labels to prune", "seconds to prune")
    return f"{title}\n{text_table(head, body, right=(1, 2, 4))}"


def spread(values: np.ndarray) -> str:
    """Return the mean, and the standard deviation where there is one.

    >>> spread(np.array([80.0])), spread(np.array([80.0, 82.0]))
    ('80.0', '81.0 ± 1.4')
    """
    deviation = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{deviation}"
