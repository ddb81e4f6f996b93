"""Time `keras-ntt --help`, `keras-ntt --version` and an empty Python, as whole processes.

    python -m benchmarks.speed.start_up [--rounds N] [--output FILE]

Each round starts every command once, in turns. Prints the median times, and the median and the
quartiles of the ratios to the empty Python of the same round, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.paths import RESULTS, ROOT
from benchmarks.common.table import machine
from keras_ntt.core.tables import table

EMPTY = "python -c pass"
OPTIONS = ("--help", "--version")


def commands() -> dict[str, list[str]]:
    """Return the commands by the names that the table has.

    Raises:
        FileNotFoundError: If ``keras-ntt`` is not installed in this environment.
    """
    folder = sysconfig.get_path("scripts")
    program = shutil.which("keras-ntt", path=folder)
    if program is None:
        raise FileNotFoundError(
            "keras-ntt is timed as it is installed, and this environment has no such program. "
            f"Install it with `pip install --editable .`. Received: folder={folder}"
        )
    ours = {f"keras-ntt {option}": [program, option] for option in OPTIONS}
    return {EMPTY: [sys.executable, "-c", "pass"], **ours}


def seconds(command: Sequence[str]) -> float:
    """Return how long a process takes from its start to its end, with this folder's code."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    begin = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    return time.perf_counter() - begin


def measure(rounds: int) -> dict[str, Any]:
    """Time all commands, in turns.

    Args:
        rounds: How often each is started; at least 2.

    Returns:
        The figures for the JSON file.
    """
    all_commands = commands()
    for command in all_commands.values():  # to fill the caches of files and byte code
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in all_commands}
    for turn in range(rounds):
        names = list(all_commands)
        for name in names if turn % 2 else reversed(names):
            times[name].append(seconds(all_commands[name]))
    found = {}
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times[EMPTY], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        ratio = {"median": middle, "low": low, "high": high}
        found[name] = {"median_seconds": statistics.median(own), "ratio": ratio}
    return {"rounds": rounds, "commands": found}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "start_up.json")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    found = {"machine": machine(), **measure(options.rounds)}
    body = [
        [
            name,
            f"{1000 * one['median_seconds']:.0f}",
            f"{one['ratio']['median']:.1f}",
            f"{one['ratio']['low']:.1f} to {one['ratio']['high']:.1f}",
        ]
        for name, one in found["commands"].items()
    ]
    print(table(["command", "median ms", "x Python", "quartiles"], body, right=(1, 2, 3)))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
