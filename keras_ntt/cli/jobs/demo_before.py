"""A network pruned before training, without labels: prune, train, compare, export."""

from __future__ import annotations

import gzip
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from keras_ntt import plots
from keras_ntt.cli.jobs.digits import Digits, load_digits
from keras_ntt.core.copies import copy_of

SPARSITY = 0.97
# Score and allocation of the methods that need no training.
AT_ONCE = {
    "magnitude": ("magnitude", "layerwise"),
    "random": ("random", "layerwise"),
    "ERK": ("random", "erk"),
    "balanced": ("balanced", "erk"),
}
EARLY = 5
METHODS = ("dense", "NTT", "magnitude", "random", "ERK", "balanced")
ABOUT = {
    "dense": "dense",
    "NTT": "Neural Tangent Transfer, no labels",
    "magnitude": "magnitude at initialization",
    "random": "uniform random",
    "ERK": "random, Erdős-Rényi densities",
    "balanced": "balanced random, the same densities",
}


@dataclass(frozen=True)
class Settings:
    """How long the demo trains.

    Attributes:
        seeds: Number of runs with other weights and batches.
        transfer_epochs: Passes over the unlabelled training images.
        epochs: Passes over the labelled training images.
        batch_size: Samples a batch, for both.
    """

    seeds: int = 5
    transfer_epochs: int = 20
    epochs: int = 30
    batch_size: int = 64


def make_model() -> keras.Model:
    """Return a dense MLP 64-300-100-10 with Glorot-normal weights."""

    def dense(units: int, activation: str | None) -> keras.layers.Layer:
        return keras.layers.Dense(
            units,
            activation,
            kernel_initializer="glorot_normal",
            bias_initializer=keras.initializers.RandomNormal(stddev=0.01),
        )

    parts = [keras.Input((64,)), dense(300, "relu"), dense(100, "relu"), dense(10, None)]
    return keras.Sequential(parts)


def sparse_version(
    method: str, model: keras.Model, x: np.ndarray, seed: int, settings: Settings
) -> keras.Model:
    """Return the network that a method finds in a dense one.

    Args:
        method: One of `METHODS`.
        model: The dense network; it is not changed.
        x: Unlabelled images, used by NTT and balanced masks alone.
        seed: Seed of the random choices.
        settings: How long the transfer is.

    Returns:
        A copy of the model that holds its masks.
    """
    if method == "NTT":
        return keras_ntt.prune_neural_tangent(
            model,
            _epochs_in_one(x, seed, settings),
            sparsity=keras_ntt.NTTSchedule(SPARSITY, frequency=None),  # holds the first masks
            saliency="balanced",
            saliency_data=x,
            allocation="erk",
            epochs=1,
            optimizer=keras.optimizers.Adam(1e-3),
            ntk_weight=1.0,
            l2=0.0,
            seed=seed,
            verbose=1 if sys.stdout.isatty() else 2,
        )
    if method in AT_ONCE:
        saliency, allocation = AT_ONCE[method]
        return keras_ntt.prune_at_init(
            model, sparsity=SPARSITY, saliency=saliency, allocation=allocation, data=x, seed=seed
        )
    return copy_of(model)


def _epochs_in_one(x: np.ndarray, seed: int, settings: Settings) -> tf.data.Dataset:
    """Return all epochs of the transfer as one, for a single progress bar."""
    samples = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed)
    return samples.repeat(settings.transfer_epochs).batch(settings.batch_size)


class _TestAccuracy(keras.callbacks.Callback):
    """Takes the test accuracy after each epoch, at once, without an input pipeline."""

    def __init__(self, data: Digits):
        super().__init__()
        self.data = data
        self.accuracies: list[float] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self._call = tf.function(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        answers = self._call(self.data.x_test).numpy().argmax(axis=1)
        self.accuracies.append(float((answers == self.data.y_test).mean()))


def train(model: keras.Model, data: Digits, seed: int, settings: Settings) -> list[float]:
    """Train on labels and return the test accuracy after each epoch.

    The batches come from one iterator for all epochs: with arrays and validation data `fit` makes
    four an epoch, which takes longer than to train on this few images.
    """
    keras.utils.set_random_seed(seed)
    n, test = len(data.x_train), _TestAccuracy(data)
    steps = math.ceil(n / settings.batch_size)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps,
    )
    samples = tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train)).shuffle(n, seed)
    model.fit(
        samples.batch(settings.batch_size).repeat(),
        steps_per_epoch=steps,
        epochs=settings.epochs,
        shuffle=False,  # by `fit`: the samples come shuffled
        callbacks=[test],
        verbose=0,
    )
    return test.accuracies


def run(output: pathlib.Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the demo.

    Args:
        output: The folder to write `sparse.keras`, `sparse.tflite`, `curves.png` and
            `results.json` to.
        settings: How long it trains.
        say: Where the progress and the table go, line by line.

    Returns:
        What was measured.
    """
    output.mkdir(parents=True, exist_ok=True)
    data, begun = load_digits(), time.perf_counter()
    say(
        f"{len(data.x_train)} images to train on, {len(data.x_test)} to test on; "
        f"MLP 64-300-100-10, {SPARSITY:.0%} of the weights pruned, in each "
        "kernel alike. NTT, ERK and balanced allocate them by Erdős-Rényi densities instead."
    )
    curves: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    models: dict[str, keras.Model] = {}
    for seed in range(settings.seeds):
        keras.utils.set_random_seed(seed)
        dense = make_model()
        for method in METHODS:
            start = time.perf_counter()
            model = sparse_version(method, dense, data.x_train, seed, settings)
            found = time.perf_counter() - start
            curves[method].append(train(model, data, seed, settings))
            models.setdefault(method, model)
            say(
                f"seed {seed + 1}/{settings.seeds}  {method:<9}  "
                f"accuracy {curves[method][-1][-1]:.1%}"
                + (f"  (pruned in {found:.0f} s)" if method == "NTT" else "")
            )
    results = _export(models, curves, data, output, settings, say)
    results["seconds"] = time.perf_counter() - begun
    say("\n" + table(results))
    say(_verdict(results))
    with_plots = _draw(results, output)
    (output / "results.json").write_text(json.dumps(results, indent=1))
    names = ["sparse.keras", "sparse.tflite", *with_plots, "results.json"]
    say(f"\nWritten to {output}: {', '.join(names)} ({results['seconds']:.0f} s in all)")
    return results


def _export(
    models: dict[str, keras.Model],
    curves: dict[str, list[list[float]]],
    data: Digits,
    output: pathlib.Path,
    settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the files of the first seed's networks and return all that was measured."""
    results: dict[str, Any] = {
        "sparsity": SPARSITY,
        "early_epoch": min(EARLY, settings.epochs),
        "epochs": settings.epochs,
        "seeds": settings.seeds,
        "methods": {},
    }
    for method, model in models.items():
        keras_ntt.strip_pruning(model)
        path = output / ("sparse.tflite" if method == "NTT" else f".{method}.tflite")
        report = keras_ntt.export_tflite(model, path, representative_data=data.x_test)
        packed = len(gzip.compress(path.read_bytes(), 9))
        if method == "NTT":
            keras_ntt.save_model(model, output / "sparse.keras")
            answers = keras_ntt.tflite_predict(path, data.x_test).argmax(axis=1)
            accuracy = float((answers == data.y_test).mean())
            in_keras = float(
                (
                    keras.ops.convert_to_numpy(model(data.x_test)).argmax(axis=1) == data.y_test
                ).mean()
            )
            results["tflite_accuracy"], results["keras_accuracy"] = accuracy, in_keras
            say(f"\n{report}")
            say(f"Accuracy of the file {accuracy:.2%}, of the Keras model {in_keras:.2%}.")
        else:
            path.unlink()
        results["methods"][method] = {
            "accuracy": curves[method],
            "nonzeros": report.nonzeros,
            "tflite_bytes": report.size,
            "tflite_gzip_bytes": packed,
        }
    return results


def table(results: dict[str, Any]) -> str:
    """Return the results as a table: accuracy in per cent as mean +- standard deviation."""
    early = results["early_epoch"]
    epochs = [f"epoch {epoch}" for epoch in (early, results["epochs"])]
    head = (
        f"{'method':<36}{epochs[0]:>14}{epochs[1]:>14}"
        f"{'non-zeros':>12}{'.tflite':>10}{'gzipped':>10}"
    )
    lines = [f"Test accuracy in per cent, {results['seeds']} seeds", head, "-" * len(head)]
    for method, row in results["methods"].items():
        accuracy = 100 * np.array(row["accuracy"])
        cells = [
            f"{values.mean():.1f} ± {values.std(ddof=1) if len(values) > 1 else 0.0:.1f}"
            for values in (accuracy[:, early - 1], accuracy[:, -1])
        ]
        lines.append(
            f"{ABOUT[method]:<36}{cells[0]:>14}{cells[1]:>14}{row['nonzeros']:>12,}"
            f"{row['tflite_bytes'] / 1000:>7.0f} kB{row['tflite_gzip_bytes'] / 1000:>7.0f} kB"
        )
    return "\n".join(lines)


def _verdict(results: dict[str, Any]) -> str:
    """Say in words which sparse network came out best, whichever it is."""
    final = {m: np.mean(r["accuracy"], axis=0) for m, r in results["methods"].items()}
    sparse = {m: final[m] for m in METHODS if m != "dense" and m in final}
    sentences = []
    for epoch in (results["early_epoch"], results["epochs"]):
        scores = {method: accuracy[epoch - 1] for method, accuracy in sparse.items()}
        best = sorted(scores, key=scores.__getitem__, reverse=True)
        gap = 100 * (scores[best[0]] - scores[best[1]])
        sentences.append(
            f"After {epoch} epochs {best[0]} is the best sparse network, {gap:.1f} points ahead of "
            f"{best[1]}."
        )
    return "\n".join(sentences)


def _draw(results: dict[str, Any], output: pathlib.Path) -> list[str]:
    """Draw the training curves; without matplotlib there is no picture."""
    curves = {method: row["accuracy"] for method, row in results["methods"].items()}
    try:
        figure = plots.training_curves(curves, names=ABOUT, label="test accuracy (%)")
    except ImportError:
        return []
    figure.savefig(output / "curves.png", dpi=120)
    return ["curves.png"]
