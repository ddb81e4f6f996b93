"""Files for microcontrollers: the networks of MLPerf Tiny at 0 to 95 % zeros.

    python -m benchmarks.export.micro --data-dir FOLDER [--output FILE] [--network NAME ...]

FOLDER has the folder mlperf_tiny/ with the reference models of the benchmark. The smallest weights
of each layer except depthwise ones are set to zero, without training. The official file is also
used unchanged. Prints bytes and arena, and the time of a run relative to the dense file. With the
package tflite_micro, outputs are compared bit by bit. Networks are added to those that FILE has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks.common.paths import RESULTS
from keras_ntt.core.tables import table
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro.build import build
from keras_ntt.litert.micro.export import inputs_of, with_levels
from keras_ntt.litert.ports import ports_of
from keras_ntt.litert.runtime import micro as runtime

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)
KERAS = {
    "ResNet-8": ("ic_resnet8.h5", (0, 255)),
    "MobileNetV1 0.25": ("vww_mobilenet_v1_025.h5", (0, 1)),
    "autoencoder": ("ad_autoencoder.h5", (-3, 3)),
}
FILES = {"DS-CNN": "kws_int8.tflite", "MobileNetV1 0.25, official": "vww_int8.tflite"}
LIMITS = {"autoencoder": 44_000}
LEVELS = (None, 15, 7)
KEPT = ("dense_size", "slim_size", "size", "dense_arena", "arena", "measured", "decoded", "runs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS / "micro.json")
    parser.add_argument("--network", nargs="*", choices=(*KERAS, *FILES), default=(*KERAS, *FILES))
    options = parser.parse_args()
    folder = None if options.data_dir is None else options.data_dir / "mlperf_tiny"
    if folder is None or not folder.is_dir():
        print("not run: --data-dir has no folder mlperf_tiny")
        return 0
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    for name in options.network:
        rows = [row for row in rows if row["network"] != name] + list(measure(name, folder))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=2) + "\n")
    print(show(rows))
    return 0


def measure(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each sparsity, number of levels and method."""
    for sparsity in SPARSITIES:
        if name in KERAS:
            content, samples = converted(folder / KERAS[name][0], KERAS[name][1], sparsity)
            model = fb.read(content)
        else:
            content = (folder / FILES[name]).read_bytes()
            model = fb.read(content)
            prune_file(model, sparsity)
            shapes = [
                model.subgraphs[0].tensors[int(i)].shape[1:] for i in model.subgraphs[0].inputs
            ]
            rng = np.random.default_rng(0)
            samples = [rng.integers(-128, 128, (8, *shape)).astype(np.int8) for shape in shapes]
        for levels in LEVELS:
            rounded = model if levels is None else with_levels(model, levels, samples)[0]
            inputs = inputs_of(rounded, samples)
            ways = [("HUFFMAN", True, None)]
            if levels is None:
                ways.insert(0, ("PRUNING", False, None))
            if levels is None and name in LIMITS:
                ways.append((f"PRUNING, arena {LIMITS[name]:,}", False, LIMITS[name]))
            for method, huffman, limit in ways:
                built = build(rounded, len(content), inputs, huffman=huffman, arena_limit=limit)
                yield {
                    "network": name,
                    "sparsity": sparsity,
                    "levels": levels,
                    "method": method,
                    **{key: getattr(built.report, key) for key in KEPT},
                    "load": os.getloadavg()[0],
                    "time_ratio": ratio(fb.write(rounded), built.content, inputs),
                }


class DepthwiseOfKeras2(keras.layers.DepthwiseConv2D):
    """A layer whose configuration has an argument that Keras 3 does not know."""

    def __init__(self, *args: Any, groups: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)


def converted(
    path: Path, limits: tuple[float, float], sparsity: float
) -> tuple[bytes, list[np.ndarray]]:
    known = {"DepthwiseConv2D": DepthwiseOfKeras2}
    model = keras.models.load_model(path, compile=False, custom_objects=known)
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and "epthwise" not in type(layer).__name__:
            values = keras.ops.convert_to_numpy(kernel).copy()
            smallest = np.argsort(np.abs(values), axis=None)[: round(values.size * sparsity)]
            values.reshape(-1)[smallest] = 0
            kernel.assign(values)
    shape = (32, *model.inputs[0].shape[1:])
    samples = [np.random.default_rng(0).uniform(*limits, shape).astype("float32")]
    ports = ports_of(model)
    assert ports is not None
    types = {"input_type": "int8", "output_type": "int8"}
    (content,) = convert(model, ["int8"], samples, ports=ports.with_batch(), **types)
    return content, samples


def prune_file(model: Any, sparsity: float) -> None:
    """Set the smallest integers of convolutions and dense layers to zero, of a file."""
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if fb.operator_name(model, operator) in ("CONV_2D", "FULLY_CONNECTED") and sparsity:
            tensor = graph.tensors[int(operator.inputs[1])]
            array = fb.constant(model, tensor)
            assert array is not None
            values = array.copy()
            scales = np.asarray(tensor.quantization.scale).reshape(-1, *[1] * (values.ndim - 1))
            order = np.argsort(np.abs(values * scales), axis=None)
            values.reshape(-1)[order[: round(values.size * sparsity)]] = 0
            tensor.buffer = fb.add_buffer(model, values)
    fb.drop_unused(model)


def ratio(dense: bytes, content: bytes, inputs: list[np.ndarray]) -> float | None:
    """Return the time of a run by that of the dense file, or None.

    Both are the processor's time of this process, the least of some runs in turns.
    """
    if not runtime.is_installed():
        return None
    from tflite_micro.python.tflite_micro import runtime as tflm

    pair = [tflm.Interpreter.from_bytes(c, arena_size=2_000_000) for c in (dense, content)]
    least = [float("inf")] * 2
    for _ in range(21):
        for number, interpreter in enumerate(pair):
            for port, array in enumerate(inputs):
                interpreter.set_input(array[0], port)
            start = time.process_time()
            interpreter.invoke()
            least[number] = min(least[number], time.process_time() - start)
    return least[1] / least[0]


def show(rows: list[dict[str, Any]]) -> str:
    head = ["network", "zeros", "levels", "stored by", "dense", "slim", "file"]
    head += ["arena dense", "arena"]
    head += ["same on", "time"]
    body = [
        [
            row["network"],
            f"{row['sparsity']:.0%}",
            str(row["levels"] or "all"),
            row["method"],
            *(f"{row[key]:,}" for key in KEPT[:5]),
            f"{row['runs']} inputs" if row["runs"] else "not run",
            "-" if row["time_ratio"] is None else f"{row['time_ratio']:.2f}",
        ]
        for row in rows
    ]
    return table(head, body, right=range(4, len(head)))


if __name__ == "__main__":
    sys.exit(main())
