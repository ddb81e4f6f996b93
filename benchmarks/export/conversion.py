"""Time two conversions to LiteRT: from a function of constants, and from a SavedModel.

    python -m benchmarks.export.conversion [--rounds N] [--output FILE]

The first is what `keras_ntt.export_tflite` takes where it can, the second what it takes otherwise
and what Keras's own export writes. Both convert the same model in turns, to float32 and to int8
weights. Prints the medians and their ratio, whether the outputs of the files are identical bit by
bit, and writes JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from benchmarks.common.timing import Contestant, ratio_by_round, run_rounds
from keras_ntt.core.tables import table
from keras_ntt.litert import convert as module
from keras_ntt.litert.ports import ports_of
from keras_ntt.litert.runtime import run as runs

KINDS = (None, "int8_weights")
FUNCTION, SAVED_MODEL = "function", "SavedModel"


def small() -> keras.Model:
    """Return a network of two convolutions and a dense layer."""
    layers = keras.layers
    parts = [layers.Conv2D(8, 3, activation="relu"), layers.BatchNormalization()]
    parts += [layers.Conv2D(8, 3, strides=2, activation="relu"), layers.Flatten()]
    return keras.Sequential([keras.Input((16, 16, 3)), *parts, layers.Dense(10, "softmax")])


NETWORKS = {
    "small": small,
    "MobileNet 0.25, 96": lambda: keras.applications.MobileNet(
        (96, 96, 3), alpha=0.25, weights=None
    ),
    "MobileNetV2, 96": lambda: keras.applications.MobileNetV2((96, 96, 3), weights=None),
}


def files(model: keras.Model, way: str) -> list[bytes]:
    """Return the files of a model by one of the two ways."""
    ports, integers = ports_of(model), module._Integers([], "float32", "float32")
    assert ports is not None
    if way == SAVED_MODEL:
        return module._by_saved_model(model, KINDS, ports, integers, "steps")
    found = module._by_function(model, KINDS, ports, integers)
    assert found is not None
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what TensorFlow and Keras print to oneself, as an export does."""
    with contextlib.redirect_stdout(io.StringIO()), module.chatter_dropped():
        yield


def seconds(model: keras.Model, way: str, repeats: int) -> list[float]:
    """Return how long some conversions take."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        with quiet():
            files(model, way)
        found.append(time.perf_counter() - begin)
    return found


def outputs(content: bytes, x: np.ndarray) -> list[np.ndarray]:
    """Return what a file computes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        return runs.run(str(path), [x])


def are_same(model: keras.Model) -> bool:
    """Return whether the files of both ways return the same bits."""
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    with quiet():
        pairs = zip(files(model, FUNCTION), files(model, SAVED_MODEL), strict=True)
        return all(np.array_equal(outputs(one, x), outputs(other, x)) for one, other in pairs)


def main() -> None:
    """Time all networks, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "conversion.json")
    asked = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "networks": {}}
    rows = []
    for name, make in NETWORKS.items():
        model = make()
        same = are_same(model)  # and the first call of each, which imports
        ways = {
            w: Contestant(functools.partial(seconds, model, w)) for w in (FUNCTION, SAVED_MODEL)
        }
        run_rounds(ways, asked.rounds)
        ratios = ratio_by_round(ways[SAVED_MODEL], ways[FUNCTION])
        report["networks"][name] = {
            **{way: contestant.report() for way, contestant in ways.items()},
            "ratios": ratios,
            "same_outputs": same,
        }
        medians = [f"{ways[w].median:.2f}" for w in (FUNCTION, SAVED_MODEL)]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append((name, *medians, spread, "yes" if same else "no"))
    print(
        table(
            ("network", "function s", "SavedModel s", "ratio", "same bits"), rows, right=range(1, 4)
        )
    )
    asked.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
