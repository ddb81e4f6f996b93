"""What all figures of the documentation share: files of results, tables, words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(head: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a Markdown table.

    Args:
        head: Titles of the columns.
        body: Cells of the rows.
        right: Columns that are aligned on the right.

    Returns:
        The lines of the table.
    """
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in body]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def missing(program: str) -> str:
    """Return what stands for figures that are not there."""
    return f"*Not measured yet: `python -m {program}` writes the figures of this part.*"


def read(path: Path) -> Any:
    """Return the content of a JSON file, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def machine(found: dict[str, Any]) -> str:
    """Return in words where something was measured."""
    load = found.get("load_average_before") or []
    parts = [f"{found.get('cpu', 'unknown CPU')}, {found.get('cores', '?')} cores"]
    parts += [
        f"{name} {found[key]}"
        for name, key in (("TensorFlow", "tensorflow"), ("Keras", "keras"), ("Python", "python"))
        if key in found
    ]
    parts += [f"load {load[0]:.1f} at the start"] if load else []
    return "Measured on " + ", ".join(parts) + "."


def ms(seconds: float) -> str:
    """Return a time in milliseconds."""
    value = 1000 * seconds
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
