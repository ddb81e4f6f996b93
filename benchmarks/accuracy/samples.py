"""Whether chosen calibration inputs beat random ones when a trained network is pruned.

    python -m benchmarks.accuracy.samples --data-dir DATA --output samples.json

ResNet-8 (MLPerf Tiny) on CIFAR-10 is pruned without labels by `keras_ntt.prune_post_training` on
a few images of a larger pool, which are drawn uniformly or chosen by
`keras_ntt.choose_samples`. Accuracy is that on 5,000 other training images. Rows that the output
has already are not run again.
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

import keras_ntt
from benchmarks.accuracy.trained import accuracy
from benchmarks.accuracy.trained_networks import CIFAR, RESNET, VALIDATION, decoded
from benchmarks.common.table import machine
from keras_ntt.core.tables import table

WAYS = ("random", "norm", "gram_schmidt")


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the network and the images")
    parser.add_argument("--output", type=Path, default=Path("samples.json"))
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9])
    parser.add_argument("--images", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--method", default="obc", help="of prune_post_training")
    parser.add_argument("--pool", type=int, default=10_000, help="images to choose from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    return parser.parse_args()


def chosen(way: str, dense: keras.Model, pool: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return which images of the pool are taken."""
    if way == "random":
        return np.random.default_rng(seed).permutation(len(pool))[:n]
    return keras_ntt.choose_samples(dense, pool, n, method=way, batch_size=500, seed=seed)


def main() -> None:
    """Run what is missing, and print the table."""
    asked, start = options(), time.monotonic()
    folder = asked.data_dir
    if folder is None or not (folder / CIFAR).exists() or not (folder / RESNET).exists():
        print(f"not run: --data-dir with {CIFAR} and {RESNET} is needed")
        return
    found: dict[str, Any] = {"rows": []}
    if asked.output.exists():
        found = json.loads(asked.output.read_text())
    found["machine"] = machine()
    dense = keras.models.load_model(folder / RESNET, compile=False)
    with np.load(folder / CIFAR) as archive:
        file = {name: archive[name] for name in archive.files}
    order = np.random.default_rng(0).permutation(len(file["train_offsets"]) - 1)
    held, others = order[:VALIDATION], order[VALIDATION:]
    x, y = decoded(file, "train", held), file["train_labels"].ravel()[held]
    found["dense_validation"] = accuracy(dense, x, y)
    for seed in range(asked.seeds):
        some = np.random.default_rng(seed + 1).permutation(others)[: asked.pool]
        pool: np.ndarray | None = None
        for sparsity, n, way in itertools.product(asked.sparsities, asked.images, WAYS):
            row = {"sparsity": sparsity, "images": n, "way": way, "seed": seed}
            row |= {"method": asked.method, "pool": asked.pool}
            if any(row.items() <= other.items() for other in found["rows"]):
                continue
            if time.monotonic() - start > 60 * asked.minutes:
                break
            pool = decoded(file, "train", some) if pool is None else pool
            images = pool[chosen(way, dense, pool, n, seed)]
            sparse = keras_ntt.prune_post_training(
                dense, images, sparsity=sparsity, method=asked.method, seed=seed, verbose=0
            )
            row["accuracy"] = accuracy(sparse, x, y)
            found["rows"].append(row)
            asked.output.write_text(json.dumps(found, indent=1) + "\n")
    print(text(found))


def text(found: dict[str, Any]) -> str:
    """Return mean accuracies, and by how much the choice beats random ones of the same seeds."""
    rows = {(r["sparsity"], r["images"], r["way"], r["seed"]): r for r in found["rows"]}
    body = []
    for sparsity, n, way in sorted({key[:3] for key in rows}, key=lambda k: (k[:2], k[2])):
        mine = {key[3]: r["accuracy"] for key, r in rows.items() if key[:3] == (sparsity, n, way)}
        theirs = {s: rows.get((sparsity, n, "random", s)) for s in mine}
        gains = [100 * (mine[s] - r["accuracy"]) for s, r in theirs.items() if r is not None]
        cells = (f"{100 * np.mean(list(mine.values())):.2f}", str(len(mine)))
        by_seed = " ".join(f"{gain:+.2f}" for gain in gains) if way != "random" else ""
        body.append((str(sparsity), str(n), way, *cells, by_seed))
    head = ("sparsity", "images", "chosen", "accuracy %", "seeds", "points over random, by seed")
    dense = f"dense: {100 * found['dense_validation']:.2f} % ({VALIDATION} validation images)"
    return f"{dense}\n{table(head, body, right=(0, 1, 3, 4))}"


if __name__ == "__main__":
    main()
