"""Latency and memory of two files, measured on this host, in turns."""

from __future__ import annotations

import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_ntt.litert.runtime import run

_AT_ONCE = 2**28  # bytes of files that are timed in turns
_MEMORY = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter

def resident():
    return int(open("/proc/self/statm").read().split()[1])

before = resident()
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
for given in interpreter.get_input_details():
    interpreter.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
interpreter.invoke()
import resource
print((resident() - before) * resource.getpagesize())
"""


@dataclass(frozen=True)
class Benchmark:
    """Latency at batch 1 on one thread, and memory, of a file and of its dense twin.

    Attributes:
        cpu: The kind of CPU; nothing is claimed beyond it.
        seconds: Median time of an inference.
        dense_seconds: The same of the dense float32 file.
        speedup: Median over rounds of dense time by time, both taken in the same round.
        low: Lower quartile of that.
        high: Upper quartile of that.
        memory: Bytes by which loading and running the file makes a process grow, or None.
        dense_memory: The same of the dense float32 file.
    """

    cpu: str
    seconds: float
    dense_seconds: float
    speedup: float
    low: float
    high: float
    memory: int | None
    dense_memory: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the numbers in one line."""
        text = (
            f"measured on this {self.cpu}, batch 1, 1 thread: {self.seconds * 1e6:,.1f} us, dense "
            f"{self.dense_seconds * 1e6:,.1f} us, {self.speedup:.2f} times as fast "
            f"(quartiles {self.low:.2f} to {self.high:.2f})"
        )
        if self.memory is not None and self.dense_memory is not None:
            text += f"; memory {self.memory / 1e6:,.1f} MB, dense {self.dense_memory / 1e6:,.1f} MB"
        return text


def cpu_class() -> str:
    """Name the kind of CPU this host has, as far as it matters to the kernels."""
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64", "i686"):
        return f"{machine or 'unknown'} CPU"
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "x86 CPU"
    known = (("avx512f", "x86 CPU with AVX-512"), ("avx", "x86 CPU with AVX"))
    return next((name for flag, name in known if flag in flags), "x86 CPU without AVX")


def measure(path: str, dense: str, sample: Sequence[np.ndarray], *, rounds: int = 21) -> Benchmark:
    """Time two files in turns, and measure what memory they take.

    Args:
        path: The file.
        dense: Its dense twin.
        sample: One sample with its batch axis, of each input.
        rounds: How many times each takes its turn.

    Returns:
        The measurement.
    """
    ours, theirs = (_inference(file, sample) for file in (path, dense))
    once = _time(theirs, 3)
    repeats = max(1, int(0.005 / max(once, 1e-7)))  # about 5 ms, twice a round
    pairs = []
    for _ in range(rounds):
        # Both orders in a round, because the one that follows finds other caches.
        first, second, third, fourth = (
            _time(call, repeats) for call in (ours, theirs, theirs, ours)
        )
        pairs.append(((first + fourth) / 2, (second + third) / 2))
    ratios = [dense_time / time_ for time_, dense_time in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Benchmark(
        cpu_class(),
        statistics.median(p[0] for p in pairs),
        statistics.median(p[1] for p in pairs),
        middle,
        low,
        high,
        _memory(path),
        _memory(dense),
    )


def seconds_in_turns(
    paths: Sequence[str], sample: Sequence[np.ndarray], *, rounds: int = 11
) -> list[float]:
    """Time files at batch 1 on one thread, in turns, so that a busy moment meets all of them.

    Args:
        paths: The files.
        sample: One sample with its batch axis, of each input.
        rounds: How many times each takes its turn.

    Returns:
        The median time of an inference, of each file.
    """
    found: list[float] = []
    for group in _together(paths):
        calls = [_inference(path, sample) for path in group]
        repeats = [max(1, int(0.002 / max(_time(call, 1), 1e-7))) for call in calls]
        turns = [
            [_time(call, count) for call, count in zip(calls, repeats, strict=True)]
            for _ in range(rounds)
        ]
        found += [statistics.median(times) for times in zip(*turns, strict=True)]
    return found


def _together(paths: Sequence[str]) -> Iterator[list[str]]:
    """Cut files into groups that fit into memory at once."""
    group: list[str] = []
    size = 0
    for path in paths:
        own = pathlib.Path(path).stat().st_size
        if group and size + own > _AT_ONCE:
            yield group
            group, size = [], 0
        group.append(path)
        size += own
    yield from [group] if group else []


def _inference(path: str, sample: Sequence[np.ndarray]) -> Callable[[], None]:
    loaded = run.interpreter(path)
    given = list(zip(loaded.get_input_details(), sample, strict=True))
    for port, array in given:
        loaded.resize_tensor_input(port["index"], array.shape)
    loaded.allocate_tensors()
    for port, array in given:
        loaded.set_tensor(port["index"], run.quantized(array, port["dtype"], port["quantization"]))
    loaded.invoke()
    return loaded.invoke


def _time(call: Callable[[], None], repeats: int) -> float:
    call()  # what another file has pushed out of the caches comes back
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _memory(path: str) -> int | None:
    """Return what a fresh process grows by, where the system tells."""
    if not pathlib.Path("/proc/self/statm").exists():
        return None
    command = [sys.executable, "-c", _MEMORY, path]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return int(result.stdout.split()[-1]) if result.returncode == 0 else None
