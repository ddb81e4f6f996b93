"""Where the time of a step goes: TensorFlow's own profile of its operations, by kind.

    python -m benchmarks.speed.profile_step [--networks NAME ...] [--output FILE]

Operations run one after another here, each on all cores, so that their times add up to the step's.
Prints a table and writes JSON. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import tensorflow as tf

from benchmarks.common import networks
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from benchmarks.speed.contestants import Ours
from keras_ntt.core.tables import table

STEPS = 10
KINDS = {
    "products": ("MatMul", "BatchMatMul", "FusedMatMul"),
    "convolutions": ("Conv2D", "DepthwiseConv2d"),
    "moving data": (
        *("Transpose", "Slice", "Concat", "Pad", "Split", "Pack", "Tile", "Gather", "Reshape"),
        *("ExtractImagePatches", "SpaceTo", "BatchToSpace", "BroadcastTo", "Select"),
    ),
    "pooling": ("Pool",),
    "sums": ("AddN", "Sum", "L2Loss", "BiasAddGrad", "Mean"),
}
ENTRYWISE = "entry by entry, and the rest"


def profile(name: str) -> dict[str, Any]:
    """Return the milliseconds of a step by kind and by operation.

    Args:
        name: The network, of `networks.NETWORKS`.

    Returns:
        Milliseconds by kind, the longest operations, and how many operations a step has.
    """
    ours = Ours(networks.NETWORKS[name])
    ours.start()
    ours.run(3)
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2)
        with tf.profiler.experimental.Profile(folder, options):
            ours.run(STEPS)
        seconds, counts = read(Path(folder))
    kinds: collections.Counter[str] = collections.Counter()
    for operation, time in seconds.items():
        kinds[kind(operation)] += time
    return {
        "kinds": {name: 1000 * time for name, time in kinds.most_common()},
        "operations": {
            name: {"milliseconds": 1000 * time, "times": counts[name]}
            for name, time in seconds.most_common(12)
        },
        "count": sum(counts.values()),
    }


def kind(operation: str) -> str:
    """Return the kind of an operation."""
    found = (name for name, parts in KINDS.items() if any(part in operation for part in parts))
    return next(found, ENTRYWISE)


def read(folder: Path) -> tuple[collections.Counter[str], dict[str, float]]:
    """Return seconds and number of each operation a step, from the files of the profiler."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (file,) = folder.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace()
    space.ParseFromString(file.read_bytes())
    seconds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # "name of the operation:its type"; other events are not of operations.
                name, _, operation = plane.event_metadata[event.metadata_id].name.partition(":")
                if operation.isidentifier() and "::" not in name and name:
                    operation = operation.removeprefix("_Mkl").removeprefix("Native")
                    seconds[operation] += event.duration_ps / 1e12 / STEPS
                    counts[operation] += 1
    return seconds, {name: count / STEPS for name, count in counts.items()}


def main() -> None:
    """Profile, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chosen = ["lenet-300-100", "lenet-5-caffe", "resnet-8"]
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=chosen)
    parser.add_argument("--output", type=Path, default=RESULTS / "profile.json")
    options = parser.parse_args()
    tf.config.threading.set_inter_op_parallelism_threads(1)
    found = {name: profile(name) for name in options.networks}
    for name, one in found.items():
        total = sum(one["kinds"].values())
        print(f"\n{name}: {total:.1f} ms in {one['count']:.0f} operations")
        body = [[kind, f"{time:.2f}", f"{time / total:.0%}"] for kind, time in one["kinds"].items()]
        print(table(["", "ms", ""], body, right=(1, 2)))
        for operation, times in one["operations"].items():
            print(f"  {times['milliseconds']:8.2f} ms  {times['times']:4.0f} x {operation}")
    options.output.write_text(
        json.dumps({"machine": machine(), "networks": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
