"""The main job on real data: a trained network made small without labels, beside other ways."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from keras_ntt import plots
from keras_ntt.cli.jobs.digits import Digits, load_digits
from keras_ntt.core.tables import table as as_table

SPARSITIES = (0.8, 0.9, 0.95)
METHODS = {
    "magnitude": "magnitude in one shot",
    "one shot": "no labels, one shot",
    "recovered": "no labels, recovered",
    "labels": "gradual magnitude, all labels",
}
RATES = {"recovered": 3e-3, "labels": 1e-2}
"""First step sizes, by a fifth of the training images: 1e-2 is the best of four with labels; to
recover, 3e-3 and 1e-2 are level."""

_BATCH = 32


@dataclass(frozen=True)
class Settings:
    """How long the demo trains.

    Attributes:
        seeds: Number of networks, with other weights and batches.
        training_epochs: Passes over the labelled images, to train the dense network.
        epochs: Passes over the images to recover in, and of gradual pruning with labels.
    """

    seeds: int = 3
    training_epochs: int = 15
    epochs: int = 10


def make_model() -> keras.Model:
    """Return a small convolutional network for images of 8 x 8 pixels."""
    layers = keras.layers
    parts: list[Any] = [keras.Input((8, 8, 1))]
    for filters in (16, 32, 64):
        parts += [layers.Conv2D(filters, 3, padding="same", use_bias=False)]
        parts += [layers.BatchNormalization(), layers.ReLU()]
        parts += [layers.MaxPooling2D()] if filters == 32 else []
    parts += [layers.GlobalAveragePooling2D(), layers.Dense(10, "softmax")]
    return keras.Sequential(parts)


def as_images(data: Digits) -> Digits:
    """Return the digits as images ``[n, 8, 8, 1]``."""
    x_train, x_test = (x.reshape(-1, 8, 8, 1) for x in (data.x_train, data.x_test))
    return data._replace(x_train=x_train, x_test=x_test)


def train(model: keras.Model, data: Digits, epochs: int, rate: float, seed: int) -> None:
    """Train on labels, with a step size that falls along a cosine."""
    keras.utils.set_random_seed(seed)
    count = len(data.x_train)
    steps = -(-count // _BATCH)
    falling = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    model.compile(keras.optimizers.Adam(falling), "sparse_categorical_crossentropy")
    samples = tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train)).shuffle(count, seed)
    model.fit(
        samples.batch(_BATCH).repeat(),
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
    )


def sparse_version(
    method: str, dense: keras.Model, data: Digits, sparsity: float, seed: int, epochs: int
) -> keras.Model:
    """Return what a method makes of a trained network.

    Args:
        method: One of `METHODS`.
        dense: The trained network; it is not changed.
        data: The digits. Only ``"labels"`` sees labels, those of the training images.
        sparsity: The fraction of zeros of all kernels together.
        seed: Seed of the random choices.
        epochs: Passes over the training images, of the methods that train.

    Returns:
        A sparse network.
    """
    x = data.x_train
    if method == "magnitude":  # and the statistics of BatchNormalization, without which it is lost
        return keras_ntt.prune_post_training(
            dense,
            x,
            sparsity=sparsity,
            method="magnitude",
            allocation="global",
            refit=False,
            verbose=0,
        )
    if method == "labels":
        model = keras.models.clone_model(dense)
        model.set_weights(dense.get_weights())
        steps = epochs * -(-len(x) // _BATCH)
        schedule = keras_ntt.PolynomialDecay(0.5, sparsity, 0, int(0.75 * steps), frequency=20)
        model = keras_ntt.prune_low_magnitude(model, pruning_schedule=schedule)
        train(model, data, epochs, RATES["labels"], seed)
        model = keras_ntt.strip_pruning(model)
        keras_ntt.reestimate_batch_norm(model, x)
        return model
    return keras_ntt.prune_post_training(
        dense,
        x,
        sparsity=sparsity,
        samples=None,
        epochs=epochs if method == "recovered" else 0,
        learning_rate=RATES["recovered"],
        seed=seed,
        verbose=0,
    )


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Return the fraction of images whose class is found."""
    answers = keras.ops.convert_to_numpy(model(x, training=False)).argmax(axis=1)
    return float((answers == y).mean())


def run(output: pathlib.Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the demo.

    Args:
        output: The folder to write `small.tflite`, `small.keras`, `accuracy.png`, `files.png` and
            `results.json` to.
        settings: How long it trains.
        say: Where the progress and the tables go, line by line.

    Returns:
        What was measured.
    """
    output.mkdir(parents=True, exist_ok=True)
    data, begun = as_images(load_digits()), time.perf_counter()
    say(
        f"{len(data.x_train)} images, {len(data.x_test)} more to test on. A network of three "
        "convolutions is trained with labels, then made sparse: without labels, and in other ways."
    )
    dense_accuracies: list[float] = []
    found: dict[str, dict[float, list[float]]] = {
        method: {sparsity: [] for sparsity in SPARSITIES} for method in METHODS
    }
    first = None
    for seed in range(settings.seeds):
        keras.utils.set_random_seed(seed)
        dense = make_model()
        train(dense, data, settings.training_epochs, 3e-3, seed)
        first = first or dense
        dense_accuracies.append(accuracy(dense, data.x_test, data.y_test))
        say(f"network {seed + 1}/{settings.seeds}: dense {dense_accuracies[-1]:.1%}")
        for sparsity in SPARSITIES:
            cells = []
            for method in METHODS:
                sparse = sparse_version(method, dense, data, sparsity, seed, settings.epochs)
                found[method][sparsity].append(accuracy(sparse, data.x_test, data.y_test))
                cells.append(f"{method} {found[method][sparsity][-1]:.1%}")
            say(f"  {sparsity:.0%} zeros: {', '.join(cells)}")
    assert first is not None
    results: dict[str, Any] = {
        **asdict(settings),
        "steps": settings.epochs * -(-len(data.x_train) // _BATCH),
        "dense": dense_accuracies,
        "accuracy": found,
    }
    say("\n" + table(results))
    say("\nThe first network as a file, without labels; accuracy on the test images:")
    report = keras_ntt.compress(
        first,
        data.x_train,
        sparsity=SPARSITIES,
        data=(data.x_test, data.y_test),
        epochs=settings.epochs,
        samples=None,
        learning_rate=RATES["recovered"],
        path=output / "small.tflite",
        verbose=0,
    )
    say(str(report))
    keras_ntt.save_model(report.model, output / "small.keras")
    results |= {"files": report.to_dict(), "seconds": time.perf_counter() - begun}
    drawn = _draw(results, report, output)
    (output / "results.json").write_text(json.dumps(results, indent=1))
    names = ["small.tflite", "small.keras", *drawn, "results.json"]
    say(f"\nWritten to {output}: {', '.join(names)} ({results['seconds']:.0f} s in all)")
    return results


def table(results: dict[str, Any]) -> str:
    """Return accuracies in per cent as mean +- standard deviation over networks."""

    def cell(values: list[float]) -> str:
        percents = 100 * np.array(values)
        spread = percents.std(ddof=1) if len(percents) > 1 else 0.0
        return f"{percents.mean():.1f} ± {spread:.1f}"

    head = ["", *(f"{sparsity:.0%} zeros" for sparsity in SPARSITIES)]
    body = [[ABOUT_DENSE, *[cell(results["dense"])] * len(SPARSITIES)]]
    for method, row in results["accuracy"].items():
        body.append([METHODS[method], *(cell(row[sparsity]) for sparsity in SPARSITIES)])
    title = (
        f"Test accuracy in per cent, {results['seeds']} networks; {results['steps']} steps where "
        "they train"
    )
    return f"{title}\n{as_table(head, body, right=range(1, len(head)))}"


ABOUT_DENSE = "dense"


def _draw(results: dict[str, Any], report: Any, output: pathlib.Path) -> list[str]:
    """Draw accuracies and files; without matplotlib there are no pictures."""
    named = {METHODS[method]: row for method, row in results["accuracy"].items()}
    try:
        figures = {
            "accuracy.png": plots.accuracy_by_sparsity(named, dense=results["dense"]),
            "files.png": plots.size_by_agreement(report),
        }
    except ImportError:
        return []
    for name, figure in figures.items():
        figure.savefig(output / name, dpi=120)
    return list(figures)
