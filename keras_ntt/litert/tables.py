"""Tables of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(head: Sequence[str], body: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return rows as lines of aligned columns below a head and a rule.

    Args:
        head: Titles of the columns.
        body: Cells of the rows.
        right: Columns that are aligned on the right.

    Returns:
        The lines.

    >>> print(table(("a", "n"), [("x", "10"), ("yy", "2")], right=(1,)))
    a    n
    ------
    x   10
    yy   2
    """
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(head), rule, *map(line, body)])
