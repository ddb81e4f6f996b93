"""Compile a file for an Ethos-U NPU with Vela, if it is installed, and read its report."""

from __future__ import annotations

import csv
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

ACCELERATOR = "ethos-u55-128"
_KIB = 1024


def is_installed() -> bool:
    """Return whether the compiler Vela can be imported."""
    try:
        return importlib.util.find_spec("ethosu.vela") is not None
    except (ImportError, ValueError):
        return False


def compiled(content: bytes) -> dict[str, Any] | None:
    """Return the result of Vela for a file.

    Args:
        content: The file.

    Returns:
        By name the accelerator, the bytes of weights, dense and encoded, of flash and of SRAM, and
        the number of operators on the CPU; or the message of Vela under ``"error"`` if it refuses
        the file. None if it is not installed.
    """
    if not is_installed():
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.tflite"
        file.write_bytes(content)
        words = [sys.executable, "-m", "ethosu.vela", str(file)]
        words += ["--accelerator-config", ACCELERATOR, "--output-dir", folder, "--verbose-weights"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        tables = sorted(pathlib.Path(folder).glob("*summary*.csv"))
        if done.returncode or not tables:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
            return {"accelerator": ACCELERATOR, "error": said[-1][:300]}
        with tables[0].open(newline="") as table:
            row = next(csv.DictReader(table))
    return read(row, done.stdout)


def read(row: dict[str, str], printed: str) -> dict[str, Any]:
    """Return the figures of Vela's summary.

    Args:
        row: The row of its table.
        printed: Its printed output.

    Returns:
        The figures, by name.
    """
    cpu = re.search(r"CPU operators = (\d+)", printed)
    return {
        "accelerator": ACCELERATOR,
        "weights": int(float(row["total_original_weights"])),
        "encoded_weights": int(float(row["total_npu_encoded_weights"])),
        "flash": round(float(row["off_chip_flash_memory_used"]) * _KIB),
        "sram": round(float(row["sram_memory_used"]) * _KIB),
        "cpu_operators": None if cpu is None else int(cpu[1]),
    }
