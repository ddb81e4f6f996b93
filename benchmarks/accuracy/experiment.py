"""One run of the reproduction: a network that a method finds, trained and tested."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.accuracy import moving
from benchmarks.accuracy.datasets import Data

TRANSFERS = {"ntt-all": "all", "ntt-kept": "kept", "ntt-balanced": "all"}
SCORES = {
    "magnitude": "magnitude",
    "random": "random",
    "balanced": "balanced",
    "snip": "snip",
    "logit-snip": "logit_snip",
    "grasp": "grasp",
    "synflow": "synflow",
    "ntk-sap": "ntk_sap",
}
LABELLED = ("snip", "grasp")
METHODS = ("dense", *TRANSFERS, *SCORES, "erk-random", *moving.STARTS)
STEPS_AT_ONCE = 50
BATCH = 64
# The weight decay of the published demos, and how many epochs a transfer takes by default.
NETWORKS = {
    "lenet-300-100": {"l2": 1e-4, "transfer_epochs": 5},
    "lenet-5-caffe": {"l2": 1e-5, "transfer_epochs": 1},
    "conv-4": {"l2": 1e-5, "transfer_epochs": 1},
    "separable": {"l2": 1e-5, "transfer_epochs": 1},
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One network to find, train and test."""

    dataset: str
    network: str
    method: str
    allocation: str
    pattern: str
    density: float
    seed: int
    split: str
    label_fraction: float
    epochs: int
    score_samples: int = 0
    transfer_epochs: int = 0
    learning_rate: float = 0.0
    ntk_weight: float = 0.0
    l2: float = 0.0
    drop_fraction: float = 0.0
    frequency: int = 0
    begin: float = 0.0
    end: float = 0.0

    @property
    def key(self) -> str:
        """A file name: what tells runs apart in words, and a digest of all settings."""
        settings = dataclasses.asdict(self)
        if self.method not in moving.STARTS:
            settings = {k: v for k, v in settings.items() if k not in moving.SETTINGS}
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        words = (self.dataset, self.network, self.method, self.allocation, self.pattern)
        words = tuple(word.replace(":", "of") for word in words)
        return "-".join([*words, f"{self.density:g}", f"seed{self.seed}", digest])

    @property
    def finding(self) -> Run:
        """What finding the network depends on: all but the training that follows."""
        labels = self.label_fraction if self.method in LABELLED else 1.0
        return dataclasses.replace(self, label_fraction=labels, epochs=0)


def network(name: str, shape: tuple[int, ...]) -> keras.Model:
    """Return a network with Glorot-normal kernels, biases of standard deviation 0.01.

    The separable network has He-normal ones; its many layers would let the signal vanish.
    """
    settings = {
        "kernel_initializer": "he_normal" if name == "separable" else "glorot_normal",
        "bias_initializer": keras.initializers.RandomNormal(stddev=0.01),
        "kernel_regularizer": keras.regularizers.L2(1e-8),
    }

    def dense(units: int, activation: str | None = "relu") -> keras.layers.Layer:
        return keras.layers.Dense(units, activation, **settings)

    def conv(filters: int, size: int, strides: int = 1) -> keras.layers.Layer:
        return keras.layers.Conv2D(filters, size, strides, activation="relu", **settings)

    def depthwise(strides: int = 1) -> keras.layers.Layer:
        return keras.layers.DepthwiseConv2D(
            3,
            strides,
            "same",
            activation="relu",
            # Not "he_normal": Keras counts all channels in the fan-in of a depthwise kernel.
            depthwise_initializer=keras.initializers.RandomNormal(stddev=(2 / 9) ** 0.5),
            bias_initializer=settings["bias_initializer"],
            depthwise_regularizer=settings["kernel_regularizer"],
        )

    pool, flatten = keras.layers.MaxPooling2D, keras.layers.Flatten
    layers = {
        "lenet-300-100": lambda: [flatten(), dense(300), dense(100)],
        "lenet-5-caffe": lambda: [conv(20, 5), pool(), conv(50, 5), pool(), flatten(), dense(500)],
        "conv-4": lambda: [
            *(conv(64, 3), conv(64, 3), pool(), conv(128, 3), conv(128, 3), pool()),
            *(flatten(), dense(512)),
        ],
        "separable": lambda: [
            *(keras.layers.ZeroPadding2D(1), conv(32, 3, 2), depthwise(2), conv(64, 1)),
            *(depthwise(), conv(128, 1), depthwise(), conv(128, 1)),
            keras.layers.GlobalAveragePooling2D(),
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
        """Note the running means of the epoch, where `every` more steps have been taken."""
        last = self.rows[-1]["step"] if self.rows else 0
        if not self.rows or self.model.step // self.every > last // self.every:
            self.rows.append({"step": self.model.step, **{k: float(v) for k, v in logs.items()}})
            write(self.path, self.rows)


def transfer(run: Run, model: keras.Model, x: np.ndarray, scratch: Path) -> dict[str, Any]:
    """Run the transfer on a model, in place; return its loss curve and the time it took."""
    balanced = run.method == "ntt-balanced"  # whose first masks are held
    ntt = keras_ntt.NeuralTangentTransfer(
        model,
        pruning_schedule=keras_ntt.NTTSchedule(1 - run.density, None if balanced else 100),
        allocation=run.allocation,
        pattern=pattern(run),
        filters=prunable(run, model),
        saliency="balanced" if balanced else "magnitude",
        saliency_data=x[: run.score_samples] if balanced and run.score_samples else None,
        ntk_weight=run.ntk_weight,
        l2=run.l2,
        wrt=TRANSFERS[run.method],
        seed=run.seed,
    )
    ntt.compile(keras.optimizers.Adam(run.learning_rate), steps_per_execution=STEPS_AT_ONCE)
    curve = Curve(scratch / "curve.json")
    backup = keras.callbacks.BackupAndRestore(scratch / "backup", save_freq="epoch")
    begun = time.perf_counter()
    ntt.fit(x, batch_size=BATCH, epochs=run.transfer_epochs, callbacks=[backup, curve], verbose=0)
    return {"curve": curve.rows, "seconds": time.perf_counter() - begun, "steps": ntt.step}


def pattern(run: Run) -> Any:
    """Return the pattern of a run, as keras_ntt takes it."""
    if run.pattern == "none":
        return None
    if "x" in run.pattern:
        return tuple(map(int, run.pattern.split("x")))
    return run.pattern


def prunable(run: Run, model: keras.Model) -> Any:
    """Return which layers are pruned.

    All, but whole filters not in the layer of the classes, and of the separable network those
    that XNNPACK runs sparse.
    """
    if run.network == "separable":
        return keras_ntt.PruneForLatencyOnXNNPack().allow_pruning
    return None if run.pattern != "filters" else lambda layer: layer is not model.layers[-1]


def find(run: Run, data: Data, scratch: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Return the network that a method finds, and what was measured meanwhile."""
    keras.utils.set_random_seed(run.seed)
    model = network(run.network, data.x_train.shape[1:])
    if run.method == "dense" or moving.STARTS.get(run.method, "") is None:
        return model, {}
    if run.method in TRANSFERS:
        return model, {"transfer": transfer(run, model, data.x_train, scratch)}
    begun = time.perf_counter()
    n = labelled(run, data) if run.method in LABELLED else len(data.x_train)
    some = chance(run, data)[: min(n, run.score_samples)]
    model = keras_ntt.prune_at_init(
        model,
        sparsity=1 - run.density,
        saliency={**SCORES, **moving.STARTS}.get(run.method, "random"),
        allocation=run.allocation,
        pattern=pattern(run),
        filters=prunable(run, model),
        data=(data.x_train[some], data.y_train[some]) if run.score_samples else None,
        seed=run.seed,
        verbose=0,
    )
    return model, {"seconds": time.perf_counter() - begun}


def found(run: Run, data: Data, output: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Return the network that a method finds, from its file if another run has found it."""
    key = run.finding.key
    weights, masks = (output / "found" / f"{key}.{kind}" for kind in ("weights.h5", "masks.npz"))
    notes = output / "found" / f"{key}.json"
    if notes.exists():
        model = network(run.network, data.x_train.shape[1:])
        model.load_weights(weights)
        return keras_ntt.load_masks(model, masks), json.loads(notes.read_text())
    scratch = output / "unfinished" / key
    scratch.mkdir(parents=True, exist_ok=True)
    model, measured = find(run, data, scratch)
    if run.method in TRANSFERS:
        notes.parent.mkdir(parents=True, exist_ok=True)
        model.save_weights(weights)
        keras_ntt.save_masks(model, masks)
        write(notes, measured)
    shutil.rmtree(scratch)
    return model, measured


def labelled(run: Run, data: Data) -> int:
    """Return how many images have labels."""
    return round(len(data.x_train) * run.label_fraction)


def chance(run: Run, data: Data) -> np.ndarray:
    """Return the images' order, of which the first have labels."""
    return np.random.default_rng(run.seed).permutation(len(data.x_train))


def train(run: Run, model: keras.Model, data: Data) -> list[float]:
    """Train on labels; return the test accuracy after each epoch.

    An epoch is a compiled loop over Keras's own training step on batches in a new order. `fit`
    takes half as long again: networks this small wait for the input pipeline. GraNet, which looks
    at the network between two steps, is trained by `fit`.
    """
    keras.utils.set_random_seed(run.seed)
    some = chance(run, data)[: labelled(run, data)]
    x, y = tf.constant(data.x_train[some]), tf.constant(data.y_train[some])
    total = run.epochs * -(-len(some) // BATCH)
    if run.method == "gradual":
        moving.prune_gradually(run, model, total)
    # XLA makes steps of this MLP shorter, and those of convolutions longer.
    fast = run.network == "lenet-300-100"
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=fast,
    )
    if run.method == "granet":
        history = model.fit(
            *(x, y, BATCH, run.epochs, 0),
            callbacks=[moving.granet(run, total, x.numpy(), y.numpy(), BATCH)],
            validation_data=(data.x_test, data.y_test),
            validation_batch_size=1000,
        )
        return [float(value) for value in history.history["val_accuracy"]]
    model.optimizer.build(model.trainable_variables)
    model.evaluate(x[:1], y[:1], verbose=0)  # which makes the variables of the metrics

    # The data are arguments, because those that a function captures were not freed with it.
    @tf.function(jit_compile=fast)
    def steps(x: tf.Tensor, y: tf.Tensor, batches: tf.Tensor) -> None:
        for batch in batches:
            model.train_step((tf.gather(x, batch), tf.gather(y, batch)))

    callbacks = keras.callbacks.CallbackList(moving.exchange(run, total), model=model)
    callbacks.on_train_begin()
    accuracies = []
    order = np.random.default_rng(run.seed)
    for epoch in range(run.epochs):
        shuffled = order.permutation(len(some)).astype("int32")
        whole = len(some) // BATCH * BATCH
        callbacks.on_epoch_begin(epoch)
        model.steps_per_execution = total // run.epochs  # for the callback: the loop is one
        callbacks.on_train_batch_begin(0)
        model.steps_per_execution = 1
        steps(x, y, tf.constant(shuffled[:whole].reshape(-1, BATCH)))
        if whole < len(some):
            steps(x, y, tf.constant(shuffled[None, whole:]))
        tested = model.evaluate(
            data.x_test, data.y_test, batch_size=1000, verbose=0, return_dict=True
        )
        accuracies.append(float(tested["accuracy"]))
    callbacks.on_train_end()
    return accuracies


def do(run: Run, data: Data, output: Path) -> dict[str, Any]:
    """Do one run and write its file."""
    model, measured = found(run, data, output)
    accuracy = train(run, model, data)
    masks = keras_ntt.get_masks(model)
    result = {
        "settings": dataclasses.asdict(run),
        "accuracy": accuracy,
        "kept": {path: int(mask.sum()) for path, mask in masks.items()},
        "nonzeros": sum(int(np.count_nonzero(w)) for w in model.get_weights()),
        "environment": environment(),
        **measured,
    }
    write(output / "runs" / f"{run.key}.json", result)
    return result


def unpack(known: Path, output: Path) -> None:
    """Write the files of runs that a file of results has and the folder has not."""
    for result in json.loads(known.read_text()):
        path = output / "runs" / f"{Run(**result['settings']).key}.json"
        if not path.exists():
            write(path, result)


def environment() -> dict[str, str]:
    """Return what the figures may depend on."""
    return {
        "keras_ntt": keras_ntt.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def write(path: Path, content: Any) -> None:
    """Write JSON beside its place and move it there when it is whole.

    Several processes may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
