"""Exported files in other releases of LiteRT, and in tf.lite: do they load, and compute the same?

    python -m benchmarks.export.releases [--releases VERSION ...]

Networks of many kinds of layers are exported for every target and quantization. Each file is run
by the newest release in this environment first. Its outputs are what other releases must give, up
to 1e-5 of the largest one, and 5 % where all is computed in int8, by other kernels. Each release
gets its own environment in ``benchmarks/.envs``, which downloads some megabytes once. Prints a
table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import keras_ntt
from benchmarks.common.paths import BENCHMARKS, ENVIRONMENTS, RESULTS
from benchmarks.common.processes import clean_environment
from benchmarks.export.interpret import run
from keras_ntt.core.tables import table
from keras_ntt.litert.runtime.run import ExportError, interpreter

SPARSITIES = (0.5, 0.9, 0.97, 0.99)
FLOATS_AT_THE_ENDS = {"inference_input_type": "float32", "inference_output_type": "float32"}
FORMS: dict[str, dict[str, Any]] = {
    "size": {"target": "size"},
    "size-float16": {"target": "size", "quantization": "float16"},
    "size-int8-weights": {"target": "size", "quantization": "int8_weights"},
    "latency": {"target": "latency"},
    "dense-float16": {"target": "dense", "quantization": "float16"},
    "int8": {"target": "int8", "batch_size": "any", **FLOATS_AT_THE_ENDS},
}


def networks() -> dict[str, keras.Model]:
    """Return small networks of the kinds of layers that files hold sparse weights for."""

    def sequential(
        shape: tuple[int, ...], *hidden: keras.layers.Layer, batch: int | None = None
    ) -> keras.Model:
        inputs = keras.Input(batch_shape=(batch, *shape))
        return keras.Sequential([inputs, *hidden, layers.Flatten(), layers.Dense(10)])

    return {
        "mlp": sequential((83,), layers.Dense(301, "relu"), layers.Dense(77, "relu")),
        "lenet": sequential(
            (19, 17, 1),
            *(layers.Conv2D(9, 5, activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(21, 3, activation="relu"), layers.MaxPooling2D()),
        ),
        "mobile": sequential(
            (15, 15, 3),
            layers.Conv2D(12, 3, 2, "same", activation="relu"),
            *(layers.DepthwiseConv2D(3, padding="same"), layers.Conv2D(33, 1, activation="relu")),
            *(layers.DepthwiseConv2D(3, 2), layers.Conv2D(40, 1, activation="relu")),
            layers.GlobalAveragePooling2D(),
        ),
        "transposed": sequential(
            (5, 6, 7), layers.Conv2DTranspose(11, 3, 2, activation="relu"), layers.Conv2D(4, 3)
        ),
        "one-dimensional": sequential(
            (31, 5), layers.Conv1D(18, 3, activation="relu"), layers.SeparableConv1D(13, 3)
        ),
        "unrolled": sequential((6, 20), layers.GRU(32, return_sequences=True), layers.LSTM(24)),
        "lstm": sequential(
            (6, 20), layers.LSTM(48, return_sequences=True), layers.LSTM(32), batch=1
        ),
    }


def write(folder: Path) -> tuple[int, list[str]]:
    """Export the networks, with the outputs that the newest release computes.

    Args:
        folder: Where to write the files.

    Returns:
        How many were written, and what became of those that the exporter refused to write.
    """
    chance = np.random.default_rng(0)
    count, refused = 0, []
    for name, network in networks().items():
        for sparsity in SPARSITIES:
            sparse = keras_ntt.prune_at_init(
                network, sparsity=sparsity, saliency="random", allocation="layerwise"
            )
            model = keras_ntt.strip_pruning(sparse)
            samples = chance.normal(size=(64, *model.input_shape[1:])).astype("float32")
            for form, settings in FORMS.items():
                path = folder / f"{name}-{sparsity}-{form}.tflite"
                if model.input_shape[0] is not None:  # as the model has it
                    settings = {k: v for k, v in settings.items() if k != "batch_size"}
                try:
                    keras_ntt.export_tflite(model, path, representative_data=samples, **settings)
                except ExportError as error:
                    refused.append(f"{path.stem}: {str(error).split('path=')[0]}")
                    continue
                loaded = interpreter(str(path))
                arrays = {}
                for batch in (1, 3) if model.input_shape[0] is None else (1,):
                    arrays[f"inputs_{batch}"] = inputs = samples[:batch]
                    arrays[f"outputs_{batch}"] = run(loaded, inputs)
                np.savez(path.with_suffix(".npz"), **arrays)
                count += 1
    return count, refused


def python_of(release: str) -> Path:
    """Return the Python of a release's environment, which is made if need be."""
    folder = ENVIRONMENTS / f"litert-{release}"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", f"ai-edge-litert=={release}"]
        subprocess.run(command, check=True, env=clean_environment())
        (folder / ".ready").touch()
    return python


def ask(python: Path, folder: Path, *words: str) -> list[dict[str, Any]]:
    """Run all files in an environment, and return what came of each."""
    command = [str(python), str(BENCHMARKS / "export" / "interpret.py"), str(folder), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=clean_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{python} ended with {done.returncode}: {done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def wrong(row: dict[str, Any]) -> bool:
    """Tell whether a file failed."""
    tolerance = 0.05 if row["file"].endswith("-int8") else 1e-5  # some steps of the outputs
    return "error" in row or not row["difference"] <= tolerance


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", nargs="+", default=["2.1.0", "1.4.0", "1.2.0"])
    parser.add_argument("--output", type=Path, default=RESULTS / "litert_releases.json")
    options = parser.parse_args()
    newest, tensorflow = version("ai-edge-litert"), version("tensorflow")
    found: dict[str, Any] = {"written_with": newest, "releases": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["files"], found["refused"] = write(folder)
        runs = {newest: ask(Path(sys.executable), folder)}
        for release in options.releases:
            runs[release] = ask(python_of(release), folder)
        runs[f"tf.lite of TensorFlow {tensorflow}"] = ask(
            Path(sys.executable), folder, "tensorflow"
        )
    for release, rows in runs.items():
        kinds = [row for row in rows if not wrong(row)]
        found["releases"][release] = {
            "runs": len(rows),
            "right": len(kinds),
            "largest_difference": max((row["difference"] for row in kinds), default=None),
            "failures": [row for row in rows if wrong(row)],
        }
    body = [
        [release, str(one["right"]), str(one["runs"]), f"{one['largest_difference']:.1e}"]
        for release, one in found["releases"].items()
    ]
    print(table(["release", "right", "of", "largest difference"], body, right=(1, 2, 3)))
    print("\n".join(found["refused"]))
    for release, one in found["releases"].items():
        for row in one["failures"][:5]:
            print(f"{release}: {row}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(one["failures"] for one in found["releases"].values()))


if __name__ == "__main__":
    sys.exit(main())
