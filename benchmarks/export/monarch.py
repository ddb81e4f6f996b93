"""Compare Monarch layers, dense layers and channel pruning: size, latency in LiteRT, agreement.

    python -m benchmarks.export.monarch --data-dir FASHION_MNIST --output monarch.json

*layers* times square layers alone. *networks* trains an MLP of two hidden layers on 50,000 images
of Fashion-MNIST and makes smaller ones of it without labels, all trained on the dense network's
outputs for the same steps: Monarch matrices, and channels removed. Agreement is on 10,000 other
images. Latency is that of float32 files at batch 1 on one thread, all taken in turns: ratios are
also valid on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

import keras_ntt
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from benchmarks.export.difference import HELD, images, train
from keras_ntt.core.tables import table

WIDTHS = (256, 512, 1024, 2048, 4096)
BLOCKS = (4, 16)


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the files of Fashion-MNIST")
    parser.add_argument("--output", type=Path, default=RESULTS / "monarch.json")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--hidden", type=int, default=512, help="units of the hidden layers")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    return parser.parse_args()


def runner(model: keras.Model, folder: str) -> tuple[Callable[[], float], int]:
    """Return a function that times some inferences of a model's file, and the file's size."""
    path = Path(folder, f"{model.name}_{time.monotonic_ns()}.tflite")
    keras_ntt.export_tflite(model, path, target="dense")
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    x = np.random.default_rng(0).normal(size=given["shape"]).astype("float32")
    interpreter.set_tensor(given["index"], x)

    def run(seconds: float = 0.05) -> float:
        interpreter.invoke()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            interpreter.invoke()
            count += 1
        return (time.perf_counter() - start) / count

    return run, path.stat().st_size


def in_turns(models: dict[str, keras.Model], rounds: int) -> dict[str, dict[str, Any]]:
    """Return median latency, and that divided by the first model's in the same round."""
    with tempfile.TemporaryDirectory() as folder:
        made = {name: runner(model, folder) for name, model in models.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(rounds):
            for name, (run, _) in made.items():
                times[name].append(run())
    first = times[next(iter(times))]
    return {
        name: {
            "seconds": statistics.median(mine),
            "times_dense": statistics.median(a / b for a, b in zip(mine, first, strict=True)),
            "bytes": made[name][1],
        }
        for name, mine in times.items()
    }


def layers(widths: list[int], rounds: int) -> list[dict[str, Any]]:
    """Time square layers."""
    rows = []
    for width in widths:
        models = {"dense": keras.Sequential([keras.Input((width,)), keras.layers.Dense(width)])}
        for blocks in BLOCKS:
            layer = keras_ntt.MonarchDense(width, blocks)
            models[f"monarch {blocks}"] = keras.Sequential([keras.Input((width,)), layer])
        for name, found in in_turns(models, rounds).items():
            weights = models[name].count_params() - width
            rows.append({"width": width, "layer": name, "multiply_adds": weights, **found})
    return rows


def distilled(model: keras.Model, dense: keras.Model, x: np.ndarray, epochs: int) -> keras.Model:
    """Train a model on the outputs of the dense one, and return it."""
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(x, dense.predict(x, verbose=0), batch_size=128, epochs=epochs, verbose=0)
    return model


def networks(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Make smaller networks of a trained one and compare them."""
    x, y = images(asked.data_dir)
    pool, held, labels = x[:-HELD], x[-HELD:], y[-HELD:]
    parts = [keras.layers.Dense(asked.hidden, "relu") for _ in range(2)]
    dense = keras.Sequential([keras.Input((784,)), *parts, keras.layers.Dense(10)])
    train(dense, pool, y[:-HELD], asked.epochs)
    models, bare = {"dense": dense}, {}
    for blocks in BLOCKS:
        made = keras_ntt.to_monarch(dense, pool[:2048], blocks=blocks, filters=parts_of(dense))
        models[f"monarch {blocks}"] = made
    for flops in asked.flops:
        models[f"channels, {flops:.0%} off"] = keras_ntt.prune_channels(
            dense, pool[:2048], flops=flops, verbose=0
        )
    right = dense.predict(held, verbose=0).argmax(axis=1)
    for name, model in models.items():
        bare[name] = float((model.predict(held, verbose=0).argmax(axis=1) == right).mean())
        if name != "dense":
            distilled(model, dense, pool, asked.epochs)
    rows = []
    for name, found in in_turns(models, asked.rounds).items():
        classes = models[name].predict(held, verbose=0).argmax(axis=1)
        rows.append(
            {
                "network": name,
                "parameters": models[name].count_params(),
                **found,
                "agreement_untrained": bare[name],
                "agreement": float((classes == right).mean()),
                "accuracy": float((classes == labels).mean()),
            }
        )
    return rows


def parts_of(dense: keras.Model) -> list[str]:
    """Return the names of the hidden layers: the last one has too few outputs for blocks."""
    return [f"^{layer.name}$" for layer in dense.layers[:-1]]


def main() -> None:
    """Measure, and print the tables."""
    asked = options()
    keras.utils.set_random_seed(0)
    found: dict[str, Any] = {"machine": machine(), "layers": layers(asked.widths, asked.rounds)}
    if asked.data_dir is not None:
        found["networks"] = networks(asked)
    asked.output.write_text(json.dumps(found, indent=1) + "\n")
    print(text(found))


def text(found: dict[str, Any]) -> str:
    """Return the tables."""
    rows = [
        (
            str(r["width"]),
            r["layer"],
            f"{r['multiply_adds']:,}",
            f"{1e6 * r['seconds']:,.1f}",
            f"{r['times_dense']:.2f}",
            f"{r['bytes']:,}",
        )
        for r in found["layers"]
    ]
    head = ("width", "layer", "multiply-adds", "us", "x dense", "bytes")
    tables = [table(head, rows, right=(0, 2, 3, 4, 5))]
    rows = [
        (
            r["network"],
            f"{r['parameters']:,}",
            f"{1e6 * r['seconds']:,.1f}",
            f"{r['times_dense']:.2f}",
            f"{r['bytes']:,}",
            *(f"{100 * r[k]:.1f}" for k in ("agreement_untrained", "agreement", "accuracy")),
        )
        for r in found.get("networks", ())
    ]
    head = ("network", "parameters", "us", "x dense", "bytes", "fitted %", "trained %", "right %")
    return "\n\n".join([*tables, *([table(head, rows, right=range(1, 8))] if rows else [])])


if __name__ == "__main__":
    main()
