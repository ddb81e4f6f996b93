"""Networks without a part of their channels: sizes, latency, and what the pruning costs.

    python -m benchmarks.export.channels [--networks NAME ...] [--data-dir DATA]
    python -m benchmarks.export.channels --flops 0.5 --networks MobileNet

removes half of the channels, rounded to 8, of networks of keras.applications with random weights, a
U-Net and, with data, those of MLPerf Tiny; or, with ``--flops``, a fraction of the multiply-adds.
Channels go by magnitude, since only the shapes count here. Each network runs in its own process,
which tells the memory that pruning takes. Files of the smaller and of the whole network, in float
and in int8, are timed in turns at batch 1 on one thread; the ratio is that of the least times,
which a busy machine changes little. Rows that the file of results has already are not run again.
Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import applications, layers

import keras_ntt
from benchmarks.common.paths import RESULTS, ROOT
from benchmarks.common.processes import peak_memory, resident_memory
from benchmarks.common.table import machine
from keras_ntt.core.channels.graph import channel_graph
from keras_ntt.core.tables import table
from keras_ntt.litert.runtime.run import interpreter, quantized
from keras_ntt.pruning.channels.plan import cost_of

APPLICATIONS = """
    MobileNet MobileNetV2 MobileNetV3Small MobileNetV3Large EfficientNetB0 EfficientNetV2B0
    ResNet50 DenseNet121 NASNetMobile ConvNeXtTiny Xception InceptionV3 VGG16
"""


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="folder with the networks of MLPerf Tiny")
    parser.add_argument("--networks", nargs="*", help="those to try, all by default")
    parser.add_argument("--flops", type=float, help="fraction of the multiply-adds to remove")
    parser.add_argument("--allocation", choices=["uniform", "global"], default="uniform")
    parser.add_argument("--rounds", type=int, default=300, help="of timing; 0 leaves files out")
    parser.add_argument("--kinds", nargs="*", choices=["float", "int8"], default=["float", "int8"])
    parser.add_argument("--limit", type=float, default=1800, help="seconds a network")
    parser.add_argument("--output", type=Path, default=RESULTS / "channel_networks.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run what is missing, and print the table."""
    asked = options()
    known = every_network(asked.data_dir)
    if asked.one:
        print(json.dumps(figures(asked.one, known[asked.one](), asked)))
        return 0
    found: dict[str, Any] = {"rows": []}
    if asked.output.exists():
        found = json.loads(asked.output.read_text())
    for name in asked.networks or known:
        if name not in known:
            print(f"not run: {name} is not known, or --data-dir has no such file")
            continue
        key = {"network": name, "flops": asked.flops, "allocation": asked.allocation}
        if any(key.items() <= row.items() for row in found["rows"]):
            continue
        found["machine"] = machine()
        found["rows"].append({**key, **in_a_process(name, asked)})
        asked.output.write_text(json.dumps(found, indent=1) + "\n")
    print(text(found["rows"]))
    return 0


def in_a_process(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a network, measured in another process."""
    command = [sys.executable, "-m", "benchmarks.export.channels", "--one", name]
    command += ["--rounds", str(asked.rounds), "--kinds", *asked.kinds]
    command += ["--allocation", asked.allocation]
    if asked.flops is not None:
        command += ["--flops", str(asked.flops)]
    if asked.data_dir is not None:
        command += ["--data-dir", str(asked.data_dir)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=asked.limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"not_run": f"over {asked.limit:.0f} s"}
    if done.returncode:
        return {"not_run": (done.stderr.strip().splitlines() or ["without a word"])[-1][:200]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def figures(name: str, model: keras.Model, asked: argparse.Namespace) -> dict[str, Any]:
    """Return what pruning a network costs, and what it brings."""
    target: dict[str, Any] = {"channels": 0.5}
    if asked.flops is not None:
        target = {"flops": asked.flops}
    before = resident_memory(os.getpid())
    start, cpu = time.perf_counter(), time.process_time()
    smaller = keras_ntt.prune_channels(model, **target, allocation=asked.allocation)
    row: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "added_memory": peak_memory() - before,
        "peak_memory": peak_memory(),
    }
    for key, one in (("dense", model), ("smaller", smaller)):
        cost = cost_of(channel_graph(one), set())
        row[key] = {"parameters": cost.parameters, "multiply_adds": cost.multiply_adds}
    if asked.rounds:
        for kind in asked.kinds:
            row[kind] = files(kind, model, smaller, asked.rounds)
    return row


def files(kind: str, model: keras.Model, smaller: keras.Model, rounds: int) -> dict[str, Any]:
    """Return the sizes and the ratio of the times of two files."""
    rng = np.random.default_rng(0)
    shape = tuple(size or 224 for size in model.input_shape[1:])
    samples = rng.uniform(0, 255, (16, *shape)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{which}.tflite" for which in ("smaller", "dense")]
        try:
            for path, one in zip(paths, (smaller, model), strict=True):
                keras_ntt.export_tflite(
                    one,
                    path,
                    target="dense" if kind == "float" else "int8",
                    representative_data=samples,
                )
        except Exception as error:  # a network that a kind of file cannot hold is a result
            return {"not_run": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        calls = [inference(path, samples[:1]) for path in paths]
        times = np.array([[seconds(call) for call in calls] for _ in range(rounds)])
        (ours, theirs), least = np.median(times, axis=0).tolist(), times.min(axis=0).tolist()
        return {
            "bytes": paths[0].stat().st_size,
            "dense_bytes": paths[1].stat().st_size,
            "seconds": ours,
            "dense_seconds": theirs,
            "least_seconds": least[0],
            "least_dense_seconds": least[1],
            "ratio": least[0] / least[1],
            "ratio_of_medians": ours / theirs,
            "load": os.getloadavg()[0],
        }


def inference(path: Path, sample: np.ndarray) -> Callable[[], None]:
    """Return a function that runs a file of one input on one thread."""
    loaded = interpreter(str(path))
    (port,) = loaded.get_input_details()
    loaded.resize_tensor_input(port["index"], sample.shape)
    loaded.allocate_tensors()
    given = quantized(sample, port["dtype"], port["quantization"])
    loaded.set_tensor(port["index"], given)
    loaded.invoke()
    invoke: Callable[[], None] = loaded.invoke
    return invoke


def seconds(call: Callable[[], None]) -> float:
    """Return the time of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def text(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    head = ["network", "removed", "parameters", "multiply-adds", "float bytes", "float time"]
    head += ["int8 bytes", "int8 time", "seconds", "MB"]
    body = []
    for row in rows:
        what = "half the channels" if row["flops"] is None else f"{row['flops']:.0%} of the work"
        what += ", global" if row["allocation"] == "global" else ""
        if "not_run" in row:
            body.append([row["network"], what, row["not_run"], *[""] * 7])
            continue
        shares = [
            f"{row['smaller'][key] / row['dense'][key]:.3f}"
            for key in ("parameters", "multiply_adds")
        ]
        parts = []
        for kind in ("float", "int8"):
            one = row.get(kind, {})
            known = "ratio" in one
            parts.append(f"{one['bytes'] / one['dense_bytes']:.3f}" if known else "-")
            parts.append(f"{one['ratio']:.2f}" if known else "-")
        cost = [f"{row['seconds']:.1f}", f"{row['added_memory'] / 1e6:,.0f}"]
        body.append([row["network"], what, *shares, *parts, *cost])
    title = "fractions of the whole network; time in turns, batch 1, one thread"
    return f"{title}\n{table(head, body, right=range(2, len(head)))}"


def every_network(data: Path | None) -> dict[str, Callable[[], keras.Model]]:
    """Return the networks by name."""
    found: dict[str, Callable[[], keras.Model]] = {
        name: lambda name=name: getattr(applications, name)(
            weights=None, input_shape=(224, 224, 3), classifier_activation=None
        )
        for name in APPLICATIONS.split()
    }
    found["U-Net"] = unet
    if data is not None:
        for file in sorted((data / "mlperf_tiny").glob("*.h5")):
            found[file.name] = lambda file=file: keras_ntt.load_model(file)
    return found


def unet() -> keras.Model:
    """Return a U-Net of three levels."""
    x = inputs = layers.Input((128, 128, 3))
    skips = []
    for width in (32, 64, 128):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(256, 3, padding="same", activation="relu")(x)
    for width in (128, 64, 32):
        x = layers.Conv2DTranspose(width, 2, strides=2)(x)
        x = layers.Concatenate()([x, skips.pop()])
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(x))


if __name__ == "__main__":
    sys.exit(main())
