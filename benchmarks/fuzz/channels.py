"""Remove random channels of zeros from random functional models: outputs and gradients must stay.

    python -m benchmarks.fuzz.channels --cases 2000

A case draws a model of 3 to 12 layers with branches, concatenations, residuals, gates, splits and
depthwise, grouped, separable and transposed convolutions, sets random channels to zero, and
removes them, in float64 and in float32. Relative to the largest, outputs may differ by 1e-12 and by
4e-6, gradients of the weights that stay by 1e-10 in float64. The same seed draws the same cases, so
``--first NUMBER --cases 1`` repeats one.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from tests.helpers.channel_removal import assert_exact, assert_gradients, inputs_of
from tests.helpers.random_graphs import random_graph


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--cases", type=int, default=2000)
    options.add_argument("--first", type=int, default=0, help="the first case")
    given = options.parse_args()
    start, found = time.time(), collections.Counter()
    for number in range(given.first, given.first + given.cases):
        try:
            for dtype, tolerance in (("float64", 1e-12), ("float32", 4e-6)):
                keras.config.set_floatx(dtype)
                keras.config.set_dtype_policy(dtype)
                model = random_graph(number)
                removal, smaller = assert_exact(model, number, tolerance=tolerance)
                if dtype == "float64":
                    assert_gradients(removal, smaller, inputs_of(model, number + 1), 1e-10)
        except Exception:
            found["failed"] += 1
            print(f"case {number}:\n{traceback.format_exc()}", flush=True)
        else:
            found["exact"] += 1
            found["with channels removed"] += bool(removal.removed)
            found["parameters before"] += model.count_params()
            found["parameters after"] += smaller.count_params()
        keras.backend.clear_session()
        if (number + 1) % 100 == 0:
            print(f"{number + 1} cases, {time.time() - start:.0f} s", flush=True)
    print(", ".join(f"{name}: {count:,}" for name, count in found.items()))
    print(f"{time.time() - start:.0f} s")
    return int(found["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
