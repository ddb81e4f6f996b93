"""One contestant of `ntt_step.py`, in its own process.

    python -m benchmarks.speed.worker NETWORK CONTESTANT

Reads one JSON command a line from standard input and answers each with one JSON line on standard
output:

    {"do": "start"}                     the first step: its seconds, loss and memory
    {"do": "step", "repeats": 3}
    {"do": "save", "output": "x.npz"}   weights, masks and inputs
    {"do": "kernel", "output": "k.npy"}
    {"do": "fit"}
    {"do": "flops"}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # everyone on the CPU

from benchmarks.common.networks import NETWORKS, Network
from benchmarks.common.processes import (
    JACOBIAN,
    MEMORY_LIMIT,
    OURS,
    OURS_XLA,
    TRAINING,
    WITHOUT_ONEDNN,
    peak_memory,
)
from benchmarks.speed.contestants import JacobianStep, Ours, TrainingStep

MAKERS: dict[str, Callable[[Network], Any]] = {
    OURS: Ours,
    OURS_XLA: lambda network: Ours(network, jit_compile=True),
    WITHOUT_ONEDNN: Ours,
    JACOBIAN: JacobianStep,
    TRAINING: TrainingStep,
}


def answer(contestant: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Carry a command out."""
    do = command["do"]
    if do == "start":
        return start(contestant)
    if do == "step":
        return {"seconds": contestant.run(command["repeats"])}
    if do == "fit":
        return {"seconds": [contestant.fit()]}
    if do == "flops":
        return contestant.flops()
    {"save": contestant.save, "kernel": contestant.kernel}[do](Path(command["output"]))
    return {}


def start(contestant: Any) -> dict[str, Any]:
    """Take the first step, and one more for the memory."""
    if isinstance(contestant, JacobianStep) and contestant.bytes_of_jacobians() > MEMORY_LIMIT:
        raise MemoryError(
            f"its Jacobians alone take {contestant.bytes_of_jacobians() / 1e9:.0f} GB"
        )
    before = peak_memory()
    begin = time.perf_counter()
    loss = contestant.start()
    seconds = time.perf_counter() - begin
    warm = contestant.run(1)
    memory = {"before": before, "added": peak_memory() - before}
    return {"first": seconds, "warm": warm[0], "loss": loss, "memory": memory}


def main() -> None:
    """Answer commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    network, name = sys.argv[1:]
    contestant = MAKERS[name](NETWORKS[network])
    for line in sys.stdin:
        try:
            found = answer(contestant, json.loads(line))
        except Exception as error:  # reported to the other side, which decides
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
