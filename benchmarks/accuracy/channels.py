"""How much accuracy a network keeps when channels are removed without labels.

    python -m benchmarks.accuracy.channels --data-dir DATA

Two networks, both the ResNet-8 of MLPerf Tiny on CIFAR-10: ``resnet8`` was fine-tuned on the
JPEG-coded images that are measured on (``ic_resnet8_jpeg.keras``), and loses a part of its
multiply-adds; ``original`` is the published file (``ic_resnet8.h5``), which is brought down to at
most 50,858 of its 78,666 parameters. The images are ``cifar10_jpeg.npz`` in the same folder;
without it, or a network, that is said and nothing is run.

Pruning sees a random part of the training images and no labels. Test labels are used to report
accuracies and for nothing else: ``--part validation`` measures on 5,000 training images that
pruning does not see, and settings are chosen on that. Rows that the file of results has already are
not run again; ``--minutes`` ends the run after the row that passes it.

``labels`` is the opponent: the default's smaller model, repaired without labels, then trained with
cross entropy on the labels of the same images, as many steps of as many images, Adam with the same
schedule, the statistics of BatchNormalization taken again at the end. ``magnitude, labels`` is what
is common without this package: channels of the smallest magnitude go, nothing is repaired, and the
same training follows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.accuracy.trained import BATCH, accuracy
from benchmarks.accuracy.trained_networks import CIFAR, VALIDATION, decoded
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from keras_ntt.core.channels.graph import channel_graph
from keras_ntt.core.tables import table
from keras_ntt.pruning.channels.plan import cost_of

NETWORKS = {"resnet8": "ic_resnet8_jpeg.keras", "original": "mlperf_tiny/ic_resnet8.h5"}
PARAMETERS = 50_858
"""What the published network is brought down to: the point of a peer of Keras 2."""

ONE_SHOT: dict[str, dict[str, Any]] = {
    "random": {"importance": "random"},
    "magnitude, no repair": {"importance": "magnitude", "refit": False},
    "magnitude": {"importance": "magnitude"},
    "activation": {"importance": "activation"},
    "default": {},
    "default, global": {"allocation": "global"},
}
TRAINED = ("default, epochs", "labels", "magnitude, labels")
KEYS = ("part", "network", "flops", "method", "images", "steps", "rate", "seed")


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the networks and the images")
    parser.add_argument("--output", type=Path, default=RESULTS / "channels.json")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--flops", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    methods = [*ONE_SHOT, *TRAINED]
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=8, help="passes over them")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3], help="first step sizes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--part", choices=["test", "validation"], default="test")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    return parser.parse_args()


class Images:
    """The images of a part to measure on, and random training images.

    Attributes:
        x: Images to measure on.
        y: Their labels.
    """

    def __init__(self, path: Path, part: str):
        with np.load(path) as archive:
            self._file = {name: archive[name] for name in archive.files}
        order = np.random.default_rng(0).permutation(len(self._file["train_offsets"]) - 1)
        self._pool = order[VALIDATION:]
        which = np.arange(len(self._file["test_offsets"]) - 1)
        which, name = (which, "test") if part == "test" else (order[:VALIDATION], "train")
        self.x, self.y = self._some(name, which)
        self._drawn: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def drawn(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return random training images, and labels for the opponent."""
        if seed not in self._drawn or len(self._drawn[seed][0]) < count:
            order = np.random.default_rng(seed + 1).permutation(self._pool)
            self._drawn[seed] = self._some("train", order[:count])
        x, y = self._drawn[seed]
        return x[:count], y[:count]

    def _some(self, name: str, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = self._file[f"{name}_labels"].ravel()[which]
        return decoded(self._file, name, which), labels


def main() -> None:
    """Run what is missing, and print the table."""
    asked = options()
    folder = asked.data_dir
    wanted = [CIFAR, *(NETWORKS[name] for name in asked.networks)]
    if folder is None or not all((folder / file).exists() for file in wanted):
        print(f"not run: --data-dir with {', '.join(wanted)} is needed")
        return
    found: dict[str, Any] = {"rows": []}
    if asked.output.exists():
        found = json.loads(asked.output.read_text())
    start = time.perf_counter()
    images, models = Images(folder / CIFAR, asked.part), {}
    for row in rows(asked):
        if any(row.items() <= other.items() for other in found["rows"]):
            continue
        if time.perf_counter() - start > 60 * asked.minutes:
            print("stopped by --minutes; the same call goes on")
            break
        name = row["network"]
        if name not in models:
            models[name] = keras.models.load_model(folder / NETWORKS[name], compile=False)
        found["machine"] = machine()
        found["rows"].append(measured(row, models[name], images, asked.epochs))
        asked.output.write_text(json.dumps(found, indent=1) + "\n")
        keras.backend.clear_session()
    print(text(found, asked.part))


def rows(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows that are asked for, without figures."""
    for seed, name in itertools.product(range(asked.seeds), asked.networks):
        base = {"part": asked.part, "network": name}
        if not seed:
            nothing = {"flops": 0.0, "images": 0, "steps": 0, "rate": 0.0, "seed": 0}
            yield {**base, "method": "dense", **nothing}
        for flops in asked.flops if name == "resnet8" else [None]:
            for method in asked.methods:
                for images in [256, asked.images] if name == "original" else [asked.images]:
                    row = {**base, "flops": flops, "method": method, "images": images, "seed": seed}
                    if method in ONE_SHOT:
                        yield {**row, "steps": 0, "rate": 0.0}
                    elif images == asked.images:
                        steps = asked.epochs * -(-images // BATCH)
                        for rate in asked.rates:
                            yield {**row, "steps": steps, "rate": rate}


def measured(
    row: dict[str, Any], model: keras.Model, images: Images, epochs: int
) -> dict[str, Any]:
    """Return a row with its figures."""
    wall, cpu = time.perf_counter(), time.process_time()
    smaller = model
    if row["method"] != "dense":
        x, y = images.drawn(row["images"], row["seed"])
        keras.utils.set_random_seed(row["seed"])
        wall, cpu = time.perf_counter(), time.process_time()
        smaller = pruned(model, x, y, row, epochs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cost = cost_of(channel_graph(smaller), set())
    return {
        **row,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "accuracy": accuracy(smaller, images.x, images.y),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
    }


def pruned(
    model: keras.Model, x: np.ndarray, y: np.ndarray, row: dict[str, Any], epochs: int
) -> keras.Model:
    """Return the smaller model of a row."""
    whole = model.count_params()
    target: dict[str, Any] = {"ratio": 1 - PARAMETERS / whole}
    if row["flops"] is not None:
        target = {"flops": row["flops"]}
    target |= {"round_to": 1, "seed": row["seed"], "verbose": 0}
    method = row["method"]
    if method in ONE_SHOT:
        return keras_ntt.prune_channels(model, x, **target, **ONE_SHOT[method])
    if method == "default, epochs":
        return keras_ntt.prune_channels(
            model, x, **target, epochs=epochs, learning_rate=row["rate"]
        )
    how = ONE_SHOT["magnitude, no repair"] if method == "magnitude, labels" else {}
    smaller = keras_ntt.prune_channels(model, x, **target, **how)
    falling = keras.optimizers.schedules.CosineDecay(row["rate"], row["steps"])
    smaller.compile(keras.optimizers.Adam(falling), "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=row["seed"])
    smaller.fit(data.batch(BATCH).prefetch(2), epochs=epochs, verbose=0)
    keras_ntt.reestimate_batch_norm(smaller, x[:1024])
    return smaller


def text(found: dict[str, Any], part: str) -> str:
    """Return the rows of a part as a table."""
    mine = [row for row in found["rows"] if row["part"] == part]
    body = [
        (
            *("" if row[key] is None else str(row[key]) for key in KEYS[1:]),
            f"{row['parameters']:,}",
            f"{row['multiply_adds']:,}",
            f"{100 * row['accuracy']:.2f}",
            f"{row['cpu_seconds']:.0f}",
        )
        for row in sorted(mine, key=lambda row: [str(row[key]) for key in KEYS])
    ]
    head = (*KEYS[1:], "parameters", "multiply-adds", "accuracy %", "CPU s")
    return str(table(head, body, right=range(3, len(head))))


if __name__ == "__main__":
    main()
