"""Compare methods of pruning at initialization under the protocol of Liu & Zenke (2020).

    python benchmarks/reproduce.py --idx-dir /usr/share/datasets/fashion-mnist

Every run, one network of one method, density, allocation and seed, is a file in
``OUTPUT/runs``; runs whose file is there are not repeated, and a transfer that was stopped goes
on from its last whole epoch. So stop it at any time and call it again with the same settings. The
tables of all finished runs are written to ``OUTPUT/RESULTS.md``. README.md in this folder has
the protocol.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from _datasets import TFDS_NAMES, Data, load

import keras_ntt

HERE = Path(__file__).resolve().parent
SHOWN_EPOCHS = (1, 2, 5, 10, 20, 50)
TRANSFERS = {"ntt-all": "all", "ntt-kept": "kept"}
SCORES = {
    "magnitude": "magnitude",
    "random": "random",
    "snip": "snip",
    "logit-snip": "logit_snip",
    "grasp": "grasp",
    "synflow": "synflow",
    "ntk-sap": "ntk_sap",
}
METHODS = ("dense", *TRANSFERS, *SCORES, "erk-random")
# The weight decay of the published demos, and how many epochs a transfer takes by default.
NETWORKS = {
    "lenet-300-100": {"l2": 1e-4, "epochs": 5},
    "lenet-5-caffe": {"l2": 1e-5, "epochs": 1},
    "conv-4": {"l2": 1e-5, "epochs": 1},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One network to find, train and test."""

    dataset: str
    network: str
    method: str
    allocation: str
    density: float
    seed: int
    split: str
    label_fraction: float
    samples: int
    epochs: int
    transfer_epochs: int
    score_samples: int

    @property
    def key(self) -> str:
        """A file name: what tells runs apart in words, and a digest of all settings."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:8]
        words = (self.dataset, self.network, self.method, self.allocation)
        return "-".join([*words, f"{self.density:g}", f"seed{self.seed}", digest])


def network(name: str, shape: tuple[int, ...]) -> keras.Model:
    """Return a network with Glorot-normal kernels, biases of standard deviation 0.01."""
    settings = {
        "kernel_initializer": "glorot_normal",
        "bias_initializer": keras.initializers.RandomNormal(stddev=0.01),
        "kernel_regularizer": keras.regularizers.L2(1e-8),
    }

    def dense(units: int, activation: str | None = "relu") -> keras.layers.Layer:
        return keras.layers.Dense(units, activation, **settings)

    def conv(filters: int, size: int) -> keras.layers.Layer:
        return keras.layers.Conv2D(filters, size, activation="relu", **settings)

    pool, flatten = keras.layers.MaxPooling2D, keras.layers.Flatten
    layers = {
        "lenet-300-100": lambda: [flatten(), dense(300), dense(100)],
        "lenet-5-caffe": lambda: [conv(20, 5), pool(), conv(50, 5), pool(), flatten(), dense(500)],
        "conv-4": lambda: [
            *(conv(64, 3), conv(64, 3), pool(), conv(128, 3), conv(128, 3), pool()),
            *(flatten(), dense(512)),
        ],
    }[name]()
    return keras.Sequential([keras.Input(shape), *layers, dense(10, None)])


class Curve(keras.callbacks.Callback):
    """Writes the loss of a transfer to a file as it goes, and reads it back if it goes on."""

    def __init__(self, path: Path, every: int = 100):
        super().__init__()
        self.path, self.every = path, every

    def on_train_begin(self, logs: Any = None) -> None:
        """Read what an earlier part of the run has written."""
        rows = json.loads(self.path.read_text()) if self.path.exists() else []
        self.rows = [row for row in rows if row["step"] <= self.model.step]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the running means of the epoch."""
        if batch == 0 or self.model.step % self.every == 0:
            self.rows.append({"step": self.model.step, **{k: float(v) for k, v in logs.items()}})
            write(self.path, self.rows)


def transfer(run: Run, model: keras.Model, x: np.ndarray, scratch: Path) -> dict[str, Any]:
    """Run the transfer on a model, in place; return its loss curve and the time it took."""
    ntt = keras_ntt.NeuralTangentTransfer(
        model,
        pruning_schedule=keras_ntt.NTTSchedule(1 - run.density),
        allocation=run.allocation,
        ntk_weight=1e-3,
        l2=NETWORKS[run.network]["l2"],
        wrt=TRANSFERS[run.method],
        seed=run.seed,
    )
    ntt.compile(keras.optimizers.Adam(5e-4))
    curve = Curve(scratch / "curve.json")
    backup = keras.callbacks.BackupAndRestore(scratch / "backup", save_freq="epoch")
    begun = time.perf_counter()
    ntt.fit(x, batch_size=64, epochs=run.transfer_epochs, callbacks=[backup, curve], verbose=2)
    return {"curve": curve.rows, "seconds": time.perf_counter() - begun, "steps": ntt.step}


def find(run: Run, data: Data, scratch: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Return the network that a method finds, and what was measured meanwhile."""
    keras.utils.set_random_seed(run.seed)
    model = network(run.network, data.x_train.shape[1:])
    if run.method == "dense":
        return model, {}
    if run.method in TRANSFERS:
        return model, {"transfer": transfer(run, model, data.x_train, scratch)}
    begun = time.perf_counter()
    some = np.random.default_rng(run.seed).permutation(len(data.x_train))[: run.score_samples]
    model = keras_ntt.prune_at_init(
        model,
        sparsity=1 - run.density,
        saliency=SCORES.get(run.method, "random"),
        allocation=run.allocation,
        data=(data.x_train[some], data.y_train[some]) if run.score_samples else None,
        seed=run.seed,
        verbose=0,
    )
    return model, {"seconds": time.perf_counter() - begun}


def train(run: Run, model: keras.Model, data: Data) -> list[float]:
    """Train on labels; return the test accuracy after each epoch."""
    keras.utils.set_random_seed(run.seed)
    n = round(len(data.x_train) * run.label_fraction)
    some = np.random.default_rng(run.seed).permutation(len(data.x_train))[:n]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    history = model.fit(
        data.x_train[some],
        data.y_train[some],
        batch_size=64,
        epochs=run.epochs,
        validation_data=(data.x_test, data.y_test),
        validation_batch_size=1000,
        verbose=0,
    )
    return [float(a) for a in history.history["val_accuracy"]]


def do(run: Run, data: Data, output: Path) -> dict[str, Any]:
    """Do one run and write its file."""
    scratch = output / "unfinished" / run.key
    scratch.mkdir(parents=True, exist_ok=True)
    model, found = find(run, data, scratch)
    masks = keras_ntt.get_masks(model)
    accuracy = train(run, model, data)
    result = {
        "settings": dataclasses.asdict(run),
        "accuracy": accuracy,
        "kept": {path: int(mask.sum()) for path, mask in masks.items()},
        "nonzeros": sum(int(np.count_nonzero(w)) for w in model.get_weights()),
        "environment": environment(),
        **found,
    }
    write(output / "runs" / f"{run.key}.json", result)
    shutil.rmtree(scratch)
    return result


def environment() -> dict[str, str]:
    return {
        "keras_ntt": keras_ntt.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def write(path: Path, content: Any) -> None:
    """Write JSON beside its place and move it there when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def plan(options: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs, seed by seed, so that a part of them is already a comparison."""
    seen = set()
    cells = itertools.product(
        range(options.seeds), options.networks, options.densities, options.allocations
    )
    for seed, name, density, allocation in cells:
        for method in options.methods:
            if method == "random" and allocation == "erk":
                continue  # that is erk-random
            epochs = options.transfer_epochs or NETWORKS[name]["epochs"]
            run = Run(
                dataset=options.dataset,
                network=name,
                method=method,
                allocation={"dense": "none", "erk-random": "erk"}.get(method, allocation),
                density=1.0 if method == "dense" else density,
                seed=seed,
                split=options.split,
                label_fraction=options.label_fraction,
                samples=options.samples,
                epochs=options.epochs,
                transfer_epochs=epochs if method in TRANSFERS else 0,
                score_samples=options.score_samples if method in SCORES else 0,
            )
            if run not in seen:
                seen.add(run)
                yield run


def tables(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown: accuracy in per cent, mean ± standard deviation."""
    lines = ["# Results of `reproduce.py`", ""]
    environments = {json.dumps(r["environment"], sort_keys=True) for r in results}
    lines += [
        *(
            f"- {', '.join(f'{k} {v}' for k, v in json.loads(e).items())}"
            for e in sorted(environments)
        )
    ]
    same = ("dataset", "network", "split", "label_fraction", "samples", "epochs")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result["settings"][s] for s in same), []).append(result)
    for group, members in sorted(groups.items()):
        epochs = [e for e in SHOWN_EPOCHS if e <= group[-1]]
        lines += ["", "## " + ", ".join(f"{k} {v}" for k, v in zip(same, group, strict=True)), ""]
        lines += [
            "| density | allocation | method | transfer epochs | seeds | "
            + " | ".join(f"epoch {e}" for e in epochs)
            + " |",
            "| --- " * (5 + len(epochs)) + "|",
        ]
        rows: dict[tuple[Any, ...], list[list[float]]] = {}
        for member in members:
            s = member["settings"]
            row = (-s["density"], s["allocation"], s["method"], s["transfer_epochs"])
            rows.setdefault(row, []).append(member["accuracy"])
        ranked = sorted(
            rows, key=lambda row: (row[0], row[1], -np.mean([a[-1] for a in rows[row]]))
        )
        for row in ranked:
            accuracy = 100 * np.array(rows[row])
            cells = [cell(accuracy[:, e - 1]) for e in epochs]
            density, allocation, method, passes = -row[0], *row[1:]
            lines.append(
                f"| {density:.2%} | {allocation} | {method} | {passes or ''} | {len(accuracy)} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines) + "\n"


def cell(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=TFDS_NAMES, default="fashion_mnist")
    parser.add_argument("--idx-dir", type=Path, help="folder of the four IDX files")
    parser.add_argument("--tfds-dir", type=Path, help="folder of tensorflow-datasets")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "reproduce")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["lenet-300-100"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.05, 0.03, 0.01])
    parser.add_argument(
        "--allocations",
        nargs="+",
        choices=["layerwise", "global", "erk"],
        default=["layerwise", "global"],
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--transfer-epochs", type=int, default=0, help="0: as NETWORKS has it")
    parser.add_argument("--score-samples", type=int, default=1000)
    parser.add_argument("--label-fraction", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=0, help="training images; 0 takes all")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--list", action="store_true", help="list the runs and stop")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    runs = list(plan(options))
    left = [r for r in runs if not (options.output / "runs" / f"{r.key}.json").exists()]
    print(f"{len(runs)} runs, {len(runs) - len(left)} done.", flush=True)
    if options.list:
        print("\n".join(f"{'left' if r in left else 'done'}  {r.key}" for r in runs))
        return 0
    if left:
        data = load(
            options.dataset,
            idx_dir=options.idx_dir,
            tfds_dir=options.tfds_dir,
            split=options.split,
        )
        if options.samples:
            data = data._replace(
                x_train=data.x_train[: options.samples], y_train=data.y_train[: options.samples]
            )
    for i, run in enumerate(left):
        begun = time.perf_counter()
        keras.backend.clear_session()
        accuracy = do(run, data, options.output)["accuracy"][-1]
        print(
            f"{i + 1}/{len(left)}  {run.key}  {accuracy:.2%}  {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    files = sorted((options.output / "runs").glob("*.json"))
    (options.output / "RESULTS.md").write_text(tables([json.loads(f.read_text()) for f in files]))
    print(f"Written: {options.output / 'RESULTS.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
