"""Compare the prediction of XNNPACK's sparse inference with what XNNPACK does.

XNNPACK leaves its sparse kernels out on x86 CPUs with AVX. This program runs the unmodified
LiteRT library in a process in which the CPU seems to have no AVX, where the same rewrite of the
graph and the same sparse layout are used as on ARM. For each network it prints the prediction,
the ratio of the times of the dense file and of the file with DENSIFY, and the difference of their
outputs.

    python -m benchmarks.export.sparse_inference [--arm64] [--cases NAME ...] [--output FILE]

It needs Linux on an x86 CPU that lets CPUID trap, and a C compiler. If one is missing, it prints
which, and ends with code 77. Times are those of 128-bit kernels, not of an ARM core.

With ``--arm64`` it runs the unmodified library for ARM64 instead, under QEMU, and also compares its
outputs with those of this host. It then needs Debian on x86 and, once, a network. Times are of
emulated instructions: they show which kernels run, not how fast they are on a device.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Nothing else here: a Python with only NumPy and LiteRT runs this module too.
from benchmarks.common.paths import BENCHMARKS, ENVIRONMENTS, ROOT
from benchmarks.export import arm64

UNSUPPORTED = 77
EMULATED = "arm64"
CHILD = ("-m", "benchmarks.export.sparse_inference", "--child")
SPEEDUP = 1.2  # from which the sparse kernels must have run
SAME = 1e-4  # relative; the sparse kernels add up in another order


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--size", type=int, default=96, help="input size (default 96)")
    parser.add_argument("--sparsity", type=float, default=0.9, help="of 1x1 (default 0.9)")
    parser.add_argument("--arm64", action="store_true", help="the library for ARM64, emulated")
    parser.add_argument("--check", action="store_true", help="end with 1 if a prediction fails")
    parser.add_argument("--output", type=Path, help="where to write JSON")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_compare(*options.child)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        child = host(options, Path(folder))
        if child is None:
            return UNSUPPORTED
        names = _names(options.cases)
        rows = [_case(name, options, child, Path(folder)) for name in names]
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=2))
    failed = [row["case"] for row in rows if not row["safe"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} as predicted or safer")
    return 1 if options.check and failed else 0


def host(options: Any, folder: Path) -> list[str] | None:
    """Return the command that compares two files where XNNPACK has its sparse kernels."""
    if options.arm64:
        python = arm64.command(ENVIRONMENTS / "arm64")
        return python and [*python, *CHILD, EMULATED]
    library = build_library(folder)
    return library and [sys.executable, *CHILD, str(library)]


def build_library(folder: Path) -> Path | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64" or not compiler:
        print("needs Linux on x86 and a C compiler", file=sys.stderr)
        return None
    library = folder / "without_avx.so"
    source = BENCHMARKS / "export" / "without_avx.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    code = f"import ctypes; assert ctypes.CDLL({str(library)!r}).hide_avx() == 0"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode:
        print("this CPU or kernel does not let CPUID trap", file=sys.stderr)
        return None
    return library


def _names(wanted: list[str] | None) -> list[str]:
    known = list(_cases())
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        sys.exit(f"no such case: {unknown}; there are {known}")
    return wanted or known


def _case(name: str, options: Any, child: list[str], folder: Path) -> dict[str, Any]:
    import numpy as np

    from keras_ntt.litert.convert import convert
    from keras_ntt.litert.format import flatbuffer as fb
    from keras_ntt.litert.format import storage
    from keras_ntt.litert.format.rewrite import rewrite
    from keras_ntt.litert.format.weights import weights_of
    from keras_ntt.litert.xnnpack import verdict as verdicts

    content = convert(_network(options, **_cases()[name]), [None])[0]
    model = fb.read(content)
    choices = {
        (w.subgraph, w.tensor): (w, storage.densified(w, int8=False, reason=""))
        for w in weights_of(model)
        if storage.sparsity(w) > 0.5
    }
    sparse = rewrite(model, choices)
    dense_file, sparse_file = folder / "dense.tflite", folder / "sparse.tflite"
    dense_file.write_bytes(content)
    sparse_file.write_bytes(fb.write(sparse))
    command = [*child, dense_file, sparse_file]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    predicted = verdicts.predict(sparse).kind
    found: dict[str, float] = {}
    if result.returncode == 0:
        found = json.loads(result.stdout.strip().split("\n")[-1])
        actual = _actual(found)
        text = f"x {found['speedup']:5.2f}  difference {found['difference']:.1e}"
        if options.arm64:
            here = outputs_of(dense_file)
            there = np.load(f"{dense_file}.npy")
            found["from_this_host"] = float(np.abs(here - there).max() / np.abs(here).max())
            text += f"  from this host {found['from_this_host']:.1e}"
    else:
        actual, text = "wrong", result.stderr.strip().split("\n")[-1]
    # To be warned of a file that is fine costs bytes; the reverse costs right answers.
    verdict = "" if actual == predicted else "false alarm" if predicted == "wrong" else "MISSED"
    print(f"{name:30} predicted {predicted:6}  found {actual:6}  {text}  {verdict}", flush=True)
    met = verdict != "MISSED"
    return {"case": name, "predicted": predicted, "found": actual, "safe": met, **found}


def _actual(found: dict[str, float]) -> str:
    if found["difference"] > SAME:
        return "wrong"
    return "sparse" if found["difference"] > 0 or found["speedup"] >= SPEEDUP else "dense"


def _compare(library: str, dense: str, sparse: str) -> dict[str, float]:
    """Run both files in this process, without AVX or on ARM64, in turns."""
    if library != EMULATED and ctypes.CDLL(library).hide_avx() != 0:
        sys.exit("CPUID does not trap")
    import numpy as np

    turns, repeats = (4, 2) if library == EMULATED else (16, 20)
    loaded = [_loaded(path) for path in (dense, sparse)]
    calls = [interpreter.invoke for interpreter in loaded]
    outputs = [_output(interpreter) for interpreter in loaded]
    np.save(f"{dense}.npy", outputs[0])
    times: list[list[float]] = [[], []]
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            begin = time.perf_counter()
            for _ in range(repeats):
                calls[which]()
            times[which].append((time.perf_counter() - begin) / repeats)
    scale = float(np.abs(outputs[0]).max())
    return {
        "dense_seconds": statistics.median(times[0]),
        "speedup": statistics.median(d / s for d, s in zip(*times, strict=True)),
        "difference": float(np.abs(outputs[0] - outputs[1]).max()) / scale,
    }


def outputs_of(path: Path) -> Any:
    """Return what a file computes on this host, from the inputs that both sides take."""
    return _output(_loaded(str(path)))


def _loaded(path: str) -> Any:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    x = np.random.default_rng(0).normal(size=given["shape"]).astype("float32")
    interpreter.set_tensor(given["index"], x)
    return interpreter


def _output(interpreter: Any) -> Any:
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy()


# --- the networks ----------------------------------------------------------------------------


def _cases() -> dict[str, dict[str, Any]]:
    from keras import layers

    def residual(x: Any) -> Any:
        return layers.Add()([x, layers.Conv2D(64, 1)(x)])

    def squeeze(x: Any) -> Any:
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        return layers.Multiply()([x, layers.Conv2D(64, 1, activation="sigmoid")(gate)])

    def squeeze_dense(x: Any) -> Any:
        gate = layers.Dense(64, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
        return layers.Multiply()([x, layers.Reshape((1, 1, 64))(gate)])

    def squeeze_and_pool(x: Any) -> Any:
        return layers.MaxPooling2D()(squeeze(x))

    def convolutional_head() -> Any:
        def head(x: Any) -> Any:
            pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
            return layers.Flatten()(layers.Conv2D(64, 1)(pooled))

        return head

    def kept_head() -> Any:
        return lambda x: layers.Flatten()(layers.GlobalAveragePooling2D(keepdims=True)(x))

    def concatenate(x: Any) -> Any:
        return layers.Concatenate()([x, layers.Conv2D(64, 1)(x)])

    def subtract(x: Any) -> Any:
        return layers.Subtract()([x, layers.Conv2D(64, 1)(x)])

    def two_means(x: Any) -> Any:
        means = [layers.GlobalAveragePooling2D()(x) for x in (x, layers.MaxPooling2D()(x))]
        return layers.Concatenate()(means)

    def activation(name: str) -> dict[str, Any]:
        return {"activation": lambda: layers.Activation(name)}

    return {
        "base": {},
        "batch fixed": {"batch": 1},
        "residual": {"middle": residual},
        "5x5 depthwise": {"middle": layers.DepthwiseConv2D(5, padding="same")},
        "bilinear upsampling": {"middle": layers.UpSampling2D(interpolation="bilinear")},
        "leaky relu": {"activation": layers.LeakyReLU},
        "hard silu": activation("hard_silu"),
        "silu": activation("silu"),
        "gelu": activation("gelu"),
        "prelu": {"activation": layers.PReLU},
        "stem same": {"stem": "same"},
        "stem stride 1": {"stem": "stride 1"},
        "one channel": {"channels": 1},
        "odd size": {"odd": 1},
        "flatten": {"head": layers.Flatten},
        "squeeze and excite": {"middle": squeeze},
        "squeeze by Dense": {"middle": squeeze_dense},
        "squeeze and max pooling": {"middle": squeeze_and_pool},
        "convolutional head": {"head": convolutional_head},
        "pooled with kept axes": {"head": kept_head},
        "concatenation": {"middle": concatenate},
        "difference": {"middle": subtract},
        "second mean of a pooled branch": {"head": lambda: two_means},
        "global max pooling": {"head": layers.GlobalMaxPooling2D},
        "Dense on pixels": {"middle": lambda x: layers.Dense(64)(x)},
        "downsampled same": {"downsample": "same"},
        "1x1 of stride 2": {"middle": layers.Conv2D(64, 1, strides=2)},
        "3x3 in the middle": {"middle": layers.Conv2D(64, 3, padding="same")},
        "max pooling": {"middle": layers.MaxPooling2D()},
        "average pooling": {"middle": layers.AveragePooling2D(2)},
    }


def _network(
    options: Any,
    *,
    batch: int | None = None,
    stem: str = "explicit",
    channels: int = 3,
    odd: int = 0,
    downsample: str = "explicit",
    middle: Any = None,
    activation: Any = None,
    head: Any = None,
) -> Any:
    import keras
    import numpy as np
    from keras import layers

    keras.utils.set_random_seed(0)
    act = activation or (lambda: layers.ReLU(6.0))
    size = options.size + odd
    inputs = keras.Input(batch_shape=(batch, size, size, channels))
    if stem == "explicit":
        x = layers.Conv2D(16, 3, strides=2)(layers.ZeroPadding2D(1)(inputs))
    else:
        x = layers.Conv2D(16, 3, strides=1 if stem == "stride 1" else 2, padding="same")(inputs)
    x = act()(layers.Conv2D(64, 1)(act()(x)))
    if downsample == "explicit":
        x = layers.DepthwiseConv2D(3, strides=2)(layers.ZeroPadding2D(1)(x))
    else:
        x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = act()(layers.Conv2D(64, 1)(act()(x)))
    if middle is not None:
        x = middle(x)
    x = act()(layers.Conv2D(128, 1)(act()(x)))
    x = (head or layers.GlobalAveragePooling2D)()(x)
    model = keras.Model(inputs, layers.Dense(10)(x))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1):
            layer.kernel.assign(layer.kernel * (rng.random(layer.kernel.shape) >= options.sparsity))
    return model


if __name__ == "__main__":
    sys.exit(main())
