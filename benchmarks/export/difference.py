"""Bytes of an update: a file of the whole model, packed differences, and ours.

    python -m benchmarks.export.difference --data-dir FASHION_MNIST --output difference.json

LeNet-300-100 learns the first five classes of Fashion-MNIST; then a copy of it learns all ten from
half of the images, whole or with frozen entries, and is sent as an update. Another is trained from
a seed. Accuracy is that on 10,000 training images that nothing else saw. *zstd* packs the file of
Keras at level 19, *zstd, both* the exclusive or of the bits of all weights with those of the base.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_ntt
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from keras_ntt.core.tables import table
from keras_ntt.litert.format import sizes
from keras_ntt.masks.difference_format import bits

HELD = 10_000
SEED = 7


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the files of Fashion-MNIST")
    parser.add_argument("--output", type=Path, default=RESULTS / "difference.json")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--frozen", type=float, nargs="+", default=[0.9, 0.99, 0.999])
    return parser.parse_args()


def images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the training images as rows of floats, and their labels."""
    x, y = (
        np.frombuffer(gzip.decompress((folder / f"train-{name}-ubyte.gz").read_bytes()), "uint8")
        for name in ("images-idx3", "labels-idx1")
    )
    return x[16:].reshape(-1, 784).astype("float32") / 255, y[8:].astype("int32")


def network() -> keras.Model:
    """Return LeNet-300-100."""
    parts = [keras.layers.Dense(n, "relu") for n in (300, 100)]
    return keras.Sequential([keras.Input((784,)), *parts, keras.layers.Dense(10)])


def train(model: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int) -> keras.Model:
    """Train a model and return it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


def row(name: str, model: keras.Model, base: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Measure the files of one model."""
    masks = keras_ntt.trained_entries(model)
    trained = sum(int(m.sum()) for m in masks.values())
    trained += sum(v.numpy().size for v in model.weights if v.path not in masks)
    with tempfile.TemporaryDirectory() as folder:
        whole, ours = Path(folder, "model.keras"), Path(folder, "ours")
        plain = network()
        plain.set_weights(model.get_weights())
        plain.save(whole)  # never compiled: no state of an optimizer
        keras_ntt.save_difference(model, base, ours)
        again = keras_ntt.load_difference(network(), ours) if base == SEED else None
        again = again or keras_ntt.load_difference(base, ours)
        for found, wanted in zip(again.get_weights(), model.get_weights(), strict=True):
            assert np.array_equal(bits(found), bits(wanted))
        packed = sizes.of(whole.read_bytes())
        both = None
        if base != SEED:
            pairs = zip(model.get_weights(), base.get_weights(), strict=True)
            both = sizes.of(b"".join((bits(a) ^ bits(b)).tobytes() for a, b in pairs)).zstd
        return {
            "update": name,
            "trained": trained,
            "keras": packed.raw,
            "zstd": packed.zstd,
            "zstd_both": both,
            "ours": ours.stat().st_size,
            "accuracy": float((model.predict(x, verbose=0).argmax(axis=1) == y).mean()),
        }


def main() -> None:
    """Train, measure, and print the table."""
    asked = options()
    if asked.data_dir is None:
        print("not run: --data-dir with the files of Fashion-MNIST is needed")
        return
    keras.utils.set_random_seed(0)
    x, y = images(asked.data_dir)
    held, x_train, y_train = (x[-HELD:], y[-HELD:]), x[:-HELD], y[:-HELD]
    half = len(x_train) // 2
    first = np.flatnonzero(y_train[:half] < 5)
    base = train(network(), x_train[first], y_train[first], asked.epochs)
    new, labels = x_train[half:], y_train[half:]
    whole = keras.models.clone_model(base)
    whole.set_weights(base.get_weights())
    rows = [row("all entries", train(whole, new, labels, asked.epochs), base, *held)]
    for frozen in asked.frozen:
        model = keras_ntt.freeze_at_init(
            base, frozen=frozen, data=(new[:2048], labels[:2048]), seed=None
        )
        train(model, new, labels, asked.epochs)
        rows.append(row(f"{frozen:.1%} frozen", model, base, *held))
    for frozen in asked.frozen:
        model = keras_ntt.freeze_at_init(
            network(), frozen=frozen, data=(x_train[:2048], y_train[:2048]), seed=SEED
        )
        train(model, x_train, y_train, asked.epochs)
        rows.append(row(f"from a seed, {frozen:.1%} frozen", model, SEED, *held))
    found = {"machine": machine(), "epochs": asked.epochs, "rows": rows}
    asked.output.write_text(json.dumps(found, indent=1) + "\n")
    print(text(rows))


def text(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    head = ("update", "trained", ".keras", "zstd", "zstd, both", "ours", "accuracy %")
    keys = ("keras", "zstd", "zstd_both", "ours")
    body = [
        (
            r["update"],
            f"{r['trained']:,}",
            *("" if r[key] is None else f"{r[key]:,}" for key in keys),
            f"{100 * r['accuracy']:.1f}",
        )
        for r in rows
    ]
    return table(head, body, right=range(1, len(head)))


if __name__ == "__main__":
    main()
