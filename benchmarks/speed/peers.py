"""The peer, neural-tangents, in its own environment."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.networks import SETTINGS, Network
from benchmarks.common.paths import BENCHMARKS, ENVIRONMENTS
from benchmarks.common.processes import Infeasible, Process, clean_environment

ENVIRONMENT = ENVIRONMENTS / "neural-tangents"
REQUIREMENTS = (
    "neural-tangents==0.6.5",
    "jax==0.4.20",
    "jaxlib==0.4.20",
    "scipy<1.12",
    "numpy<2",
    "ml_dtypes<0.4",
)
PYTHONS = ("3.11", "3.10", "3.9")
# The one that is mostly the fastest comes first.
IMPLEMENTATIONS = ("STRUCTURED_DERIVATIVES", "NTK_VECTOR_PRODUCTS", "JACOBIAN_CONTRACTION")


class Unavailable(Exception):  # noqa: N818
    """The peer cannot run here."""


def find(wanted: bool) -> tuple[Path | None, dict[str, Any]]:
    """Return the peer's Python or None, and what to say about it."""
    if not wanted:
        return None, {"status": "not run: --no-peer"}
    try:
        python = make_environment()
        with start(python) as process:
            versions = process.ask("versions")
    except (Unavailable, Infeasible) as reason:
        print(f"neural-tangents is left out: {reason}", flush=True)
        return None, {"status": f"not run: {reason}"}
    return python, {"status": f"neural-tangents {versions['neural-tangents']}", **versions}


def start(python: Path) -> Process:
    """Start a process of the peer."""
    program = BENCHMARKS / "speed" / "neural_tangents_step.py"  # which has no package around it
    return Process([str(python), str(program)], clean_environment())


def prepare(process: Process, network: Network, arrays: Path) -> None:
    """Hand over a network, its weights and the batch."""
    process.ask("prepare", layers=network.layers, arrays=str(arrays), settings=SETTINGS)


def make_environment() -> Path:
    """Return the Python of the peer's environment, which is made if need be.

    Raises:
        Unavailable: If there is no Python that the peer runs on, or the installation fails.
    """
    folder = "Scripts" if os.name == "nt" else "bin"
    python = ENVIRONMENT / folder / "python"
    wanted = "\n".join(REQUIREMENTS)
    ready = ENVIRONMENT / ".ready"
    if ready.exists() and ready.read_text() == wanted:
        return python
    base = _base_python()
    print(f"Installing {REQUIREMENTS[0]} in {ENVIRONMENT} ...", flush=True)
    _run_or_give_up([base, "-m", "venv", "--clear", str(ENVIRONMENT)])
    _run_or_give_up([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS])
    ready.write_text(wanted)
    return python


def _base_python() -> str:
    """Return a Python 3.9 to 3.11: the running one or one on the path."""
    names = [sys.executable, *(f"python{v}" for v in PYTHONS)]
    for path in filter(None, map(shutil.which, names)):
        command = [path, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip() in PYTHONS:
            return path
    raise Unavailable(
        f"{REQUIREMENTS[0]} needs Python 3.9 to 3.11; this is Python "
        f"{platform.python_version()} and there is no other one on the path"
    )


def _run_or_give_up(command: list[str]) -> None:
    environment = clean_environment()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise Unavailable(f"installation failed: {' '.join(reason)}")
