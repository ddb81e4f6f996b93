"""How much accuracy a trained network keeps when it is pruned without labels.

    python -m benchmarks.accuracy.trained --data-dir DATA --output trained.json

The network is a ResNet-8 (MLPerf Tiny), the images CIFAR-10's, as ``ic_resnet8_jpeg.keras`` and
``cifar10_jpeg.npz`` in that folder; without them nothing is run. Pruning sees a random part of the
training images and no labels; test labels are used to report accuracies and for nothing else.
``--part validation`` measures on 5,000 training images that pruning does not see: choose settings
on that. Rows that the output has already are not run again.

The method ``labels`` is the opponent: `keras_ntt.prune_low_magnitude` and cross entropy, with *all*
labels of the pool, the same number of steps and the same schedule, and BatchNorm statistics taken
again at the end, as ours are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.common.table import machine
from keras_ntt.core.tables import table

IMAGES, NETWORK = "cifar10_jpeg.npz", "ic_resnet8_jpeg.keras"
VALIDATION = 5_000
COLUMNS = ("method", "recovery", "sparsity", "seed", "images", "steps", "rate")
BATCH = 32


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the network and the images")
    parser.add_argument("--output", type=Path, default=Path("trained.json"))
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--methods", nargs="+", default=["obc"])
    parser.add_argument("--recoveries", nargs="+", default=["held"], choices=["held", "gradual"])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3], help="first step sizes")
    parser.add_argument("--images", type=int, default=2_048, help="unlabelled images")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[0], help="of recovery, of 32 images"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--part", choices=["test", "validation"], default="test")
    return parser.parse_args()


def decoded(file: Any, part: str, indices: np.ndarray) -> np.ndarray:
    """Return some images of a part as floats from 0 to 255."""
    data, ends = file[f"{part}_jpeg"], file[f"{part}_offsets"]
    images = [tf.io.decode_jpeg(data[ends[i] : ends[i + 1]].tobytes()).numpy() for i in indices]
    return np.stack(images).astype("float32")


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Return the fraction of images whose class is found."""
    return float((model.predict(x, batch_size=500, verbose=0).argmax(axis=-1) == y).mean())


def with_labels(
    dense: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    sparsity: float,
    steps: int,
    rate: float,
    seed: int,
) -> keras.Model:
    """Prune by magnitude while training on labels, and return the sparse model."""
    keras.utils.set_random_seed(seed)
    model = keras.models.clone_model(dense)
    model.set_weights(dense.get_weights())
    end = max(int(0.75 * steps), 1)
    schedule = keras_ntt.PolynomialDecay(0.5, sparsity, 0, end, frequency=20)
    model = keras_ntt.prune_low_magnitude(model, pruning_schedule=schedule)
    falling = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(falling), "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed)
    model.fit(data.repeat().batch(BATCH).prefetch(2), steps_per_epoch=steps, epochs=1, verbose=0)
    sparse = keras_ntt.strip_pruning(model)
    keras_ntt.reestimate_batch_norm(sparse, images[:2_048])
    return sparse


def main() -> None:
    """Run what is missing, and print the table."""
    asked = options()
    folder = asked.data_dir
    if folder is None or not (folder / IMAGES).exists() or not (folder / NETWORK).exists():
        print(f"not run: --data-dir with {IMAGES} and {NETWORK} is needed")
        return
    found: dict[str, Any] = {"rows": []}
    if asked.output.exists():
        found = json.loads(asked.output.read_text())
    found["machine"] = machine()
    dense = keras.models.load_model(folder / NETWORK, compile=False)
    with np.load(folder / IMAGES) as archive:
        file = {name: archive[name] for name in archive.files}
    order = np.random.default_rng(0).permutation(len(file["train_offsets"]) - 1)
    held, pool = order[:VALIDATION], order[VALIDATION:]
    if asked.part == "test":
        part, which = "test", np.arange(len(file["test_offsets"]) - 1)
    else:
        part, which = "train", held
    x, y = decoded(file, part, which), file[f"{part}_labels"].ravel()[which]
    found[f"dense_{asked.part}"] = accuracy(dense, x, y)
    for seed in range(asked.seeds):
        some = np.random.default_rng(seed + 1).permutation(pool)
        images = decoded(file, "train", some if "labels" in asked.methods else some[: asked.images])
        labels = file["train_labels"].ravel()[some[: len(images)]]
        for steps, sparsity, method, recovery, rate in itertools.product(
            asked.steps, asked.sparsities, asked.methods, asked.recoveries, asked.rates
        ):
            used = len(images) if method == "labels" else min(asked.images, len(images))
            recovery = "labels" if method == "labels" else recovery if steps else ""
            values = (method, recovery, sparsity, seed, used, steps, rate if steps else 0)
            row = {**dict(zip(COLUMNS, values, strict=True)), "part": asked.part}
            if any(row.items() <= other.items() for other in found["rows"]):
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            if method == "labels":
                sparse = with_labels(dense, images, labels, sparsity, steps, rate, seed)
            else:
                sparse = keras_ntt.prune_post_training(
                    dense,
                    images[:used],
                    sparsity=sparsity,
                    method=method,
                    samples=min(2_048, used),
                    epochs=-(-steps * BATCH // used),
                    recovery=recovery or "held",
                    learning_rate=rate,
                    seed=seed,
                    verbose=0,
                )
            row["wall_seconds"] = time.perf_counter() - wall
            row["cpu_seconds"] = time.process_time() - cpu
            row["accuracy"] = accuracy(sparse, x, y)
            found["rows"].append(row)
            asked.output.write_text(json.dumps(found, indent=1) + "\n")
    print(text(found, asked.part))


def text(found: dict[str, Any], part: str) -> str:
    """Return the rows as a table."""
    body = [
        (
            *(str(row[name]) for name in COLUMNS),
            f"{100 * row['accuracy']:.1f}",
            f"{row['cpu_seconds']:.0f}",
        )
        for row in sorted(found["rows"], key=lambda row: [str(row[name]) for name in COLUMNS])
        if row["part"] == part
    ]
    dense = f"dense: {100 * found[f'dense_{part}']:.1f} % ({part} images)"
    head = (*COLUMNS, "accuracy %", "CPU s")
    return f"{dense}\n{table(head, body, right=range(2, len(head)))}"


if __name__ == "__main__":
    main()
