"""Time `from keras_ntt import *` and `import keras`, in turns, in new processes.

    python -m benchmarks.speed.import_time [--rounds N] [--output FILE]

`import keras_ntt` alone imports next to nothing: a public name is imported when it is first used.
Here all of them are. Keras imports TensorFlow, which takes most of the time; keras_ntt should add
little to it. Prints the median and the quartiles of the ratios of pairs, and the slowest modules of
this package, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common.paths import RESULTS, ROOT

LIMIT = 1.1  # times what Keras takes
IMPORTS = {"keras": "import keras", "keras_ntt": "from keras_ntt import *"}
TIMED = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"


def seconds(module: str) -> float:
    """Return how long a module takes to import in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(IMPORTS[module])],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
    )
    return float(done.stdout.split()[-1])


def slowest(count: int = 8) -> list[dict[str, Any]]:
    """Return the modules of this package that take longest, without what they import."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import keras; from keras_ntt import *"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
    )
    rows = []
    for line in done.stderr.splitlines():
        own, _, name = line.removeprefix("import time:").split("|") if "|" in line else ("", "", "")
        if own.strip().isdigit() and name.strip().startswith("keras_ntt"):
            rows.append({"module": name.strip(), "milliseconds": int(own) / 1000})
    return sorted(rows, key=lambda row: -row["milliseconds"])[:count]


def measure(rounds: int) -> dict[str, Any]:
    """Time both, in turns.

    Args:
        rounds: Number of pairs.

    Returns:
        The figures for the JSON file.
    """
    for module in IMPORTS:  # to fill the caches of files and byte code
        seconds(module)
    pairs = []
    for turn in range(rounds):
        order = ("keras", "keras_ntt") if turn % 2 else ("keras_ntt", "keras")
        pair = {module: seconds(module) for module in order}
        pairs.append((pair["keras"], pair["keras_ntt"]))
    ratios = [ours / theirs for theirs, ours in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "machine": {
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "python": platform.python_version(),
            **{name: version(name) for name in ("keras", "tensorflow")},
        },
        "keras_seconds": statistics.median(theirs for theirs, _ in pairs),
        "keras_ntt_seconds": statistics.median(ours for _, ours in pairs),
        "ratio": {"median": middle, "low": low, "high": high},
        "rounds": rounds,
        "slowest_modules": slowest(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "import_time.json")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    found = measure(options.rounds)
    ratio = found["ratio"]
    print(
        f"keras {found['keras_seconds']:.2f} s, keras_ntt {found['keras_ntt_seconds']:.2f} s; "
        f"ratio {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
    )
    for row in found["slowest_modules"]:
        print(f"  {row['milliseconds']:7.1f} ms  {row['module']}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    if ratio["median"] > LIMIT:
        print(f"more than {LIMIT} times what Keras takes", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
