"""Run files in TensorFlow Lite Micro, in a separate process: a too small arena can kill it."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.litert.runtime.run import ExportError

_GENEROUS = 8  # times the bytes of file and activations: an arena for a first run
_CHILD = """
import sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime
file, arena, inputs, outputs = sys.argv[1:5]
interpreter = runtime.Interpreter.from_file(file, arena_size=int(arena))
interpreter.print_allocations()
if inputs:
    given = np.load(inputs)
    ports = [given[name] for name in sorted(given.files)]
    found, number = {}, int(sys.argv[5])
    if not ports:
        interpreter.invoke()
    for sample in range(len(ports[0]) if ports else 0):
        for port, array in enumerate(ports):
            interpreter.set_input(array[sample], port)
        interpreter.invoke()
        for port in range(number):
            found.setdefault(f"{port:03d}", []).append(interpreter.get_output(port).copy())
    np.savez(outputs, **{name: np.array(values) for name, values in found.items()})
"""

# Loads the interpreter once and tries each arena in a fork.
_SEARCH = """
import os
import sys
from tflite_micro.python.tflite_micro import runtime
file, start, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def fits(arena):
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            runtime.Interpreter.from_file(file, arena_size=arena).invoke()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


low, high = start - 1, start
while not fits(high):
    low, high = high, high + max(2 * (high - low), 1024)
    if high > limit:
        sys.exit(f"it does not run in {low} bytes")
while low >= start and high - low > 64:
    middle = (low + high) // 2 // 16 * 16
    low, high = (low, middle) if fits(middle) else (middle, high)
print(high)
"""


class Arena(NamedTuple):
    """Memory that the interpreter has taken, in bytes, on this machine.

    Attributes:
        head: The planned part: activations, unpacked weights, scratch.
        tail: The persistent part: structures of tensors and operators.
    """

    head: int
    tail: int

    @property
    def total(self) -> int:
        """Bytes of both parts."""
        return self.head + self.tail


class Ran(NamedTuple):
    """What came of a file.

    Attributes:
        outputs: One array ``[samples, ...]`` an output.
        arena: The memory that it took.
    """

    outputs: tuple[np.ndarray, ...]
    arena: Arena


def is_installed() -> bool:
    """Return whether the interpreter of TensorFlow Lite Micro can be imported."""
    try:
        return importlib.util.find_spec("tflite_micro") is not None
    except (ImportError, ValueError):
        return False


def run(
    content: bytes, inputs: Sequence[np.ndarray], *, outputs: int, arena: int | None = None
) -> Ran:
    """Run a file in a child process.

    Args:
        content: The file.
        inputs: One array ``[samples, 1, ...]`` an input, in the file's types.
        outputs: Number of outputs of the file.
        arena: Bytes of memory to give it; None takes a generous number.

    Returns:
        Outputs and memory.

    Raises:
        ExportError: If the interpreter refuses the file, or its process ends by a fault.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, given, found = (pathlib.Path(folder) / n for n in ("m.tflite", "x.npz", "y.npz"))
        file.write_bytes(content)
        arrays: dict[str, Any] = {f"{i:03d}": array for i, array in enumerate(inputs)}
        np.savez(given, **arrays)
        size = arena or _GENEROUS * (len(content) + sum(a[:1].nbytes for a in inputs)) + 2**22
        words = [sys.executable, "-c", _CHILD, file, str(size), given, found, str(outputs)]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()
            said = [line for line in last if not line.startswith((" ", "Traceback"))][-3:]
            raise ExportError(
                "TensorFlow Lite Micro could not run the file in an arena of "
                f"{size:,} bytes. Received: exit code {done.returncode}: {'; '.join(said)}"
            )
        with np.load(found) as written:
            results = tuple(written[name] for name in sorted(written.files))
    return Ran(results, _arena_of(done.stderr))


def smallest_arena(content: bytes, start: int) -> int:
    """Return how much memory a file works in.

    While it prepares, the interpreter may need more than it has taken in the end. Each size is
    tried in a separate process, which may crash.

    Args:
        content: The file.
        start: Bytes that it has taken.

    Returns:
        The start if it works in that; else the fewest bytes above it, to within 64.

    Raises:
        ExportError: If the file does not work in 16 times as many.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "m.tflite"
        file.write_bytes(content)
        words = [sys.executable, "-c", _SEARCH, str(file), str(start), str(16 * start + 2**16)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(
            "TensorFlow Lite Micro did not run the file in any arena that was tried. "
            f"Received: {done.stderr.strip()[-300:] or 'no message'}"
        )
    return int(done.stdout.split()[-1])


def _arena_of(text: str) -> Arena:
    parts = [re.search(rf"Arena allocation {part} (\d+) bytes", text) for part in ("head", "tail")]
    sizes = [int(found[1]) for found in parts if found is not None]
    if len(sizes) != 2:
        raise ExportError(
            "The interpreter of TensorFlow Lite Micro did not say how much memory it takes. "
            f"Received: {text[:300]!r}"
        )
    return Arena(*sizes)
