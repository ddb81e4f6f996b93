"""Tables of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    right: Collection[int] = (),
    total: Sequence[str] | None = None,
) -> str:
    """Return rows as lines of aligned columns below a head and a rule.

    Args:
        head: Titles of the columns.
        body: Cells of the rows.
        right: Columns that are aligned on the right.
        total: Cells of a last row below another rule.

    Returns:
        The lines.

    >>> print(table(("a", "n"), [("x", "10"), ("yy", "2")], right=(1,)))
    a    n
    ------
    x   10
    yy   2
    """
    rows = [head, *body, *([] if total is None else [total])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    end = [] if total is None else [rule, line(total)]
    return "\n".join([line(head), rule, *map(line, body), *end])
