"""Where the benchmarks are, and where they write."""

from __future__ import annotations

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
"""The folder in which ``python -m benchmarks...`` is called."""
RESULTS = BENCHMARKS / "results"
ENVIRONMENTS = BENCHMARKS / ".envs"
"""Environments of other programs and releases, which the benchmarks make themselves."""
