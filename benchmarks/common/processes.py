"""Processes that answer one JSON line with another, within limits of time and memory."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.paths import ROOT

OURS, OURS_XLA, WITHOUT_ONEDNN = "keras_ntt", "keras_ntt, XLA", "keras_ntt, oneDNN off"
JACOBIAN, TRAINING = "TensorFlow, Jacobian", "training step"
MEMORY_LIMIT = 8 * 2**30


class Infeasible(Exception):  # noqa: N818
    """Something took too much time or memory, or failed."""


class Process:
    """A process that answers commands, in the root of the project.

    Args:
        command: What to run.
        environment: Its environment.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None):
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in end()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            bufsize=1,
            env=environment,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._complaints.close()

    def ask(self, do: str, *, limit: float = 600.0, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for the answer.

        Args:
            do: The command.
            limit: Seconds to wait at most.
            **arguments: What the command takes.

        Returns:
            The answer.

        Raises:
            Infeasible: If it fails, or takes more than `limit` or `MEMORY_LIMIT`. The process has
                ended in the latter cases.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Infeasible(f"the process has ended: {self._last_words()}") from error
        line = self._wait(limit)
        if not line:
            raise Infeasible(f"the process ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Infeasible(answer["error"].splitlines()[0][:200])
        return answer

    def _wait(self, limit: float) -> str:
        begin = time.perf_counter()
        while True:
            try:
                return self._lines.get(timeout=0.5)
            except queue.Empty:
                if time.perf_counter() - begin > limit:
                    self._process.kill()
                    raise Infeasible(f"over {limit:.0f} s") from None
                if resident_memory(self._process.pid) > MEMORY_LIMIT:
                    self._process.kill()
                    raise Infeasible(f"over {MEMORY_LIMIT / 2**30:.0f} GiB") from None

    def _last_words(self) -> str:
        self._complaints.seek(0)
        return (self._complaints.read().strip().splitlines() or ["without a word"])[-1][:200]


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes.

    Linux's own figure comes first: getrusage's is handed down by the process that started this
    one, so that the child of a large process would never seem small.
    """
    found = _status("self", "VmHWM")
    if found is not None:
        return found
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_memory(process: int) -> int:
    """Return the resident size of a process in bytes; 0 where the system does not say."""
    return _status(str(process), "VmRSS") or 0


def _status(process: str, row: str) -> int | None:
    try:
        rows = Path("/proc", process, "status").read_text().splitlines()
        return next(int(one.split()[1]) * 1024 for one in rows if one.startswith(row))
    except (OSError, StopIteration):
        return None


def clean_environment() -> dict[str, str]:
    """Return the environment for the peer, without what is meant for this Python."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in ours} | {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_PLATFORMS": "cpu",
    }
