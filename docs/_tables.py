"""Markdown tables, of JSON of any form too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

MOST_ROWS = 200


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


def number(value: float) -> str:
    """Return a number with about three significant digits."""
    if value == 0 or (isinstance(value, int) and abs(value) < 10**15):
        return f"{value:,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2e}"


def of_any_form(value: Any, level: int = 3) -> list[str]:
    """Return JSON as tables: one of single values, one for each list or set of records.

    Args:
        value: The content of a JSON file.
        level: The level of the headings of its parts.

    Returns:
        Paragraphs, tables and headings.
    """
    if _is_single(value):
        return [_cell(value)]
    if isinstance(value, list):
        if all(_is_single(one) for one in value):
            return [_cell(value)]
        rows = [one if isinstance(one, dict) else {"": one} for one in value]
        return _records(rows)
    if value and all(isinstance(one, dict) and one for one in value.values()) and len(value) > 1:
        rows = [{"": key, **one} for key, one in value.items()]
        if all(_is_flat(one) for one in value.values()):
            return _records(rows)
    single = {key: one for key, one in value.items() if _is_flat_value(one)}
    parts = []
    if single:
        parts.append(table(("", ""), [[_words(k), _cell(v)] for k, v in single.items()]))
    for key, one in value.items():
        if key not in single:
            parts += [f"{'#' * min(level, 6)} {_words(key)}", *of_any_form(one, level + 1)]
    return parts


def _records(rows: list[dict[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown = rows[:MOST_ROWS]
    body = [[_cell(row.get(key)) for key in keys] for row in shown]
    numeric = [
        i
        for i, key in enumerate(keys)
        if all(isinstance(r.get(key, 0), int | float | None) for r in rows)
    ]
    parts = [table([_words(key) for key in keys], body, right=numeric)]
    left = len(rows) - len(shown)
    return [*parts, f"And {left:,} more."] if left else parts


def _is_single(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _is_flat_value(value: Any) -> bool:
    return _is_single(value) or (isinstance(value, list) and all(map(_is_single, value)))


def _is_flat(record: dict[str, Any]) -> bool:
    return all(_is_flat_value(value) for value in record.values())


def _words(key: str) -> str:
    return key.replace("_", " ")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list) and all(map(_is_single, value)):
        more = f" … ({len(value):,} in all)" if len(value) > 20 else ""
        return ", ".join(_cell(one) for one in value[:20]) + more
    if isinstance(value, dict | list):
        return f"`{json.dumps(value)}`"
    text = str(value).replace("<", "&lt;")
    return text if len(text) <= 300 else text[:300] + " …"
