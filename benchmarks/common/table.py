"""The figures for people to read."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras_ntt
from benchmarks.common.processes import OURS

TITLES = ("", "median ms", "quartiles", "x ours", "x floor", "first call s", "memory MB")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = platform.processor()
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(row.split(":", 1)[1].strip() for row in rows if row.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "load_average_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "keras_ntt": keras_ntt.__version__,
        **{name: version(name) for name in ("keras", "tensorflow", "numpy")},
    }


def table(name: str, figures: dict[str, Any], peer: str) -> str:
    """Return the figures of one network as a table."""
    rows = [TITLES]
    ours = figures["steps"][OURS]["median_seconds"]
    for key, one in figures["steps"].items():
        low, high = one["quartiles_seconds"]
        rows.append(
            (
                f"{key} (best of the peer)" if key == figures["best_of_peer"] else key,
                _ms(one["median_seconds"]),
                f"{_ms(low)} - {_ms(high)}",
                f"{one['median_seconds'] / ours:.2f}",
                f"{one['times_floor']:.1f}",
                f"{one['first_call_seconds']:.1f}",
                f"{one['memory_bytes']['added'] / 1e6:,.0f}",
            )
        )
    rows += [(key, f"not timed: {why}") for key, why in figures["not_timed"].items()]
    widths = [max(len(row[i]) for row in rows if len(row) > 2) for i in range(len(TITLES))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ["", f"{name}: {figures['what']}"]
    for row in rows:
        if len(row) == 2:
            lines.append(f"  {row[0].ljust(widths[0])}  {row[1]}")
            continue
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines + _notes(figures, peer))


def _notes(figures: dict[str, Any], peer: str) -> list[str]:
    floor, fit, notes = figures["floor"], figures["fit"], [f"  peer: {peer}"]
    if figures["best_of_peer"] is not None:
        over = figures["peer_best_over_ours"]
        notes += [
            f"  peer's best / ours: {over['median']:.2f}, "
            f"by round {min(over['by_round']):.2f} - {max(over['by_round']):.2f}",
            "  largest difference of the teacher's kernels, of the largest entry: "
            f"{max(figures['teacher_kernel_difference'].values()):.1e}",
        ]
    notes.append(
        f"  floor: {_ms(floor['seconds'])} ms = {floor['flops'] / 1e9:.2f} GFLOP "
        f"(counted from the {floor['counted_from']}) at "
        f"{floor['flops_per_second'] / 1e9:.0f} GFLOP/s"
    )
    if fit is not None:
        notes.append(
            f"  fit: {_ms(fit['median_seconds'])} ms a step, {_ms(fit['overhead_seconds'])} ms "
            "more than the step alone"
        )
    return notes


def _ms(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:,.0f}" if abs(ms) >= 100 else f"{ms:.2f}"
