"""Figures of the page on channel pruning: networks without channels, and other programs."""

from __future__ import annotations

from pathlib import Path

from _tables import missing, read, table


def networks(results: Path) -> str:
    """Return sizes and times of networks without a part of their channels."""
    found = read(results / "channel_networks.json")
    if found is None:
        return missing("benchmarks.export.channels")
    body = []
    for row in found["rows"]:
        removed = "half the channels" if row["flops"] is None else f"{row['flops']:.0%} of the work"
        removed += ", global" if row["allocation"] == "global" else ""
        if "not_run" in row:
            body.append([row["network"], removed, row["not_run"], *[""] * 7])
            continue
        shares = [
            f"{row['smaller'][key] / row['dense'][key]:.2f}"
            for key in ("parameters", "multiply_adds")
        ]
        files = []
        for kind in ("float", "int8"):
            one = row.get(kind, {})
            known = "ratio" in one
            files += [f"{one['bytes'] / one['dense_bytes']:.2f}" if known else ""]
            files += [f"{one['ratio']:.2f}" if known else ""]
        cost = [f"{row['seconds']:.1f}", f"{row['added_memory'] / 1e6:,.0f}"]
        body.append([row["network"], removed, *shares, *files, *cost])
    head = ["network", "removed", "parameters", "multiply-adds", "float file", "float time"]
    head += ["int8 file", "int8 time", "seconds", "MB"]
    return table(head, body, right=range(2, len(head)))


def peers(results: Path) -> str:
    """Return the accuracy that other programs leave without labels, and ours."""
    found = read(results / "channel_peers.json")
    if found is None:
        return missing("benchmarks.accuracy.channel_peers")
    body = []
    for row in found["rows"]:
        if row["part"] != "test":
            continue
        point = "" if row["flops"] is None else f"{row['flops']:.0%}"
        head = [row["network"], point, row["peer"]]
        if "not_run" in row:
            body.append([*head, row["not_run"], "", "", ""])
            continue
        costs = [f"{row[name]:,}" for name in ("parameters", "multiply_adds")]
        body.append([*head, row["method"], *costs, f"{100 * row['accuracy']:.1f}"])
    titles = ["network", "multiply-adds removed", "program", "method"]
    titles += ["parameters", "multiply-adds", "accuracy %"]
    return table(titles, body, right=(4, 5, 6))
