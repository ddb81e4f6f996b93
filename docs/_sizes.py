"""Figures of Monarch layers and of differences to a shared model."""

from __future__ import annotations

from pathlib import Path

from _tables import machine, missing, read, table


def monarch(results: Path) -> str:
    """Return the latency of Monarch layers, and of networks next to channel pruning."""
    found = read(results / "monarch.json")
    if found is None:
        return missing("benchmarks.export.monarch")
    layers = [
        (
            str(row["width"]),
            row["layer"],
            f"{row['multiply_adds']:,}",
            f"{row['times_dense']:.2f}",
            f"{row['bytes'] / 1000:,.0f}",
        )
        for row in found["layers"]
    ]
    networks = [
        (
            row["network"],
            f"{row['parameters']:,}",
            f"{row['times_dense']:.2f}",
            f"{row['bytes'] / 1000:,.0f}",
            f"{100 * row['agreement_untrained']:.1f}",
            f"{100 * row['agreement']:.1f}",
        )
        for row in found["networks"]
    ]
    head = ("units", "layer", "multiply-adds", "time / dense", "kB")
    second = ("network", "parameters", "time / dense", "kB", "fitted, same class %", "trained %")
    return "\n\n".join(
        [
            machine(found["machine"]),
            table(head, layers, right=(0, 2, 3, 4)),
            table(second, networks, right=(1, 2, 3, 4, 5)),
        ]
    )


def difference(results: Path) -> str:
    """Return the bytes of updates."""
    found = read(results / "difference.json")
    if found is None:
        return missing("benchmarks.export.difference")
    body = [
        (
            row["update"],
            f"{row['trained']:,}",
            *("" if row[k] is None else f"{row[k]:,}" for k in ("keras", "zstd", "zstd_both")),
            f"{row['ours']:,}",
            f"{100 * row['accuracy']:.1f}",
        )
        for row in found["rows"]
    ]
    head = ("update", "trained", ".keras", "by zstd", "xor of bits, by zstd", "ours", "accuracy %")
    return "\n\n".join([machine(found["machine"]), table(head, body, right=range(1, 7))])
