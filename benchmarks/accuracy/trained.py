"""How much accuracy a trained network keeps when it is pruned without labels.

    python -m benchmarks.accuracy.trained --data-dir DATA --output trained.json

The network is a ResNet-8 (MLPerf Tiny), the images CIFAR-10's, as ``ic_resnet8_jpeg.keras`` and
``cifar10_jpeg.npz`` in that folder; ``--network`` chooses another one, which is trained first and
kept. What is missing is told, and nothing is run. Pruning sees a random part of the training inputs
and no labels; test labels are used to report accuracies and for nothing else. ``--part validation``
measures on training inputs that pruning does not see: choose settings on that. Rows that the output
has already are not run again.

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
from benchmarks.accuracy.trained_networks import NETWORKS, dense_of
from benchmarks.common.table import machine
from keras_ntt.core.tables import table

COLUMNS = ("method", "recovery", "sparsity", "seed", "images", "steps", "rate")
ALSO = {"network": "resnet8", "pattern": None}  # what rows without these columns are of
FIXED = {"2:4": 0.5, "1:4": 0.75}  # sparsities of patterns
BATCH = 32


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the network and the images")
    parser.add_argument(
        "--idx-dir",
        type=Path,
        default=Path("/usr/share/datasets/fashion-mnist"),
        help="folder with the files of Fashion-MNIST",
    )
    parser.add_argument("--network", default="resnet8", choices=list(NETWORKS))
    parser.add_argument("--pattern", choices=list(FIXED), help="of zeros, which fixes the sparsity")
    parser.add_argument(
        "--networks-dir", type=Path, help="where trained networks are kept  [beside --output]"
    )
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
    pattern: str | None = None,
) -> keras.Model:
    """Prune by magnitude while training on labels, and return the sparse model."""
    keras.utils.set_random_seed(seed)
    model = keras.models.clone_model(dense)
    model.set_weights(dense.get_weights())
    end = max(int(0.75 * steps), 1)
    schedule = keras_ntt.PolynomialDecay(0.5, sparsity, 0, end, frequency=20)
    if pattern is None:
        model = keras_ntt.prune_low_magnitude(model, pruning_schedule=schedule)
    else:  # a pattern has its own sparsity, from the first step on
        keep, of = (int(number) for number in pattern.split(":"))
        model = keras_ntt.prune_low_magnitude(model, sparsity_m_by_n=(of - keep, of))
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
    network = NETWORKS[asked.network]
    task = network.task(asked.data_dir, asked.idx_dir)
    if task is None:
        print(f"not run: {network.needs} is needed")
        return
    found: dict[str, Any] = {"rows": []}
    if asked.output.exists():
        found = json.loads(asked.output.read_text())
    found["machine"] = machine()
    order = np.random.default_rng(0).permutation(len(task.train.y))
    held, pool = order[: network.validation], order[network.validation :]
    # A network that comes trained was trained on all of them.
    dense = dense_of(asked.network, task, pool, asked.networks_dir or asked.output.parent)
    if asked.part == "test":
        part, which = task.test, np.arange(len(task.test.y))
    else:
        part, which = task.train, held
    x, y = part.x(which), part.y[which]
    found[dense_key(asked)] = accuracy(dense, x, y)
    sparsities = [FIXED[asked.pattern]] if asked.pattern else asked.sparsities
    for seed in range(asked.seeds):
        some = np.random.default_rng(seed + 1).permutation(pool)
        some = some if "labels" in asked.methods else some[: asked.images]
        images, labels = task.train.x(some), task.train.y[some]
        for steps, sparsity, method, recovery, rate in itertools.product(
            asked.steps, sparsities, asked.methods, asked.recoveries, asked.rates
        ):
            used = len(images) if method == "labels" else min(asked.images, len(images))
            recovery = "labels" if method == "labels" else recovery if steps else ""
            values = (method, recovery, sparsity, seed, used, steps, rate if steps else 0)
            row = {**dict(zip(COLUMNS, values, strict=True)), "part": asked.part}
            row |= {"network": asked.network, "pattern": asked.pattern}
            if any(row.items() <= {**ALSO, **other}.items() for other in found["rows"]):
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            if method == "labels":
                sparse = with_labels(
                    dense, images, labels, sparsity, steps, rate, seed, asked.pattern
                )
            else:
                sparse = keras_ntt.prune_post_training(
                    dense,
                    images[:used],
                    sparsity=sparsity,
                    method=method,
                    pattern=asked.pattern,
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
    print(text(found, asked))


def dense_key(asked: argparse.Namespace) -> str:
    """Return the name under which the dense network's accuracy is kept."""
    ending = "" if asked.network == "resnet8" else f"_{asked.network}"
    return f"dense_{asked.part}{ending}"


def text(found: dict[str, Any], asked: argparse.Namespace) -> str:
    """Return the rows of a network and a part as a table."""
    rows = [{**ALSO, **row} for row in found["rows"]]
    columns = ("pattern", *COLUMNS) if any(row["pattern"] for row in rows) else COLUMNS
    body = [
        (
            *(str(row[name] or "") if name == "pattern" else str(row[name]) for name in columns),
            f"{100 * row['accuracy']:.1f}",
            f"{row['cpu_seconds']:.0f}",
        )
        for row in sorted(rows, key=lambda row: [str(row[name]) for name in columns])
        if (row["part"], row["network"]) == (asked.part, asked.network)
    ]
    dense = f"{asked.network}, dense: {100 * found[dense_key(asked)]:.1f} % ({asked.part} part)"
    head = (*columns, "accuracy %", "CPU s")
    return f"{dense}\n{table(head, body, right=range(2, len(head)))}"


if __name__ == "__main__":
    main()
