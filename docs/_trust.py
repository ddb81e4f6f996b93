"""Figures of the page on trust: faults, bad arguments, long runs, overhead, workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _tables import machine, missing, ms, read, table


def kills(results: Path) -> str:
    """Return what became of processes that were killed."""
    found = [one for file in sorted(results.glob("soak_kills*.json")) if (one := read(file))]
    if not found:
        return missing("benchmarks.soak.kills")
    jobs: dict[str, list[dict[str, Any]]] = {}
    for run in found:
        for name, job in run["jobs"].items():
            jobs.setdefault(name, []).append(job)
    body = []
    for name, parts in jobs.items():
        ended = [part for part in parts if "runs_ended" in part]
        same = (
            f"{sum(part['same_masks'] for part in ended)} of "
            f"{sum(part['runs_ended'] for part in ended)}"
            if ended
            else ""
        )
        looked = sum(part.get("files_looked_at", 0) for part in parts)
        body.append([name, str(sum(part["kills"] for part in parts)), same, f"{looked:,}"])
    total, faults = sum(run["kills"] for run in found), sum(len(run["faults"]) for run in found)
    head = ("what was killed", "kills", "same masks as undisturbed", "files looked at")
    said = (
        f"{total} kills, {faults} faults. A fault is a half-written file, a lost mask or a run "
        "that does not end."
    )
    return "\n\n".join([said, table(head, body, right=(1, 2, 3))])


def fuzz(results: Path) -> str:
    """Return how many cases with bad arguments were tried, and what they found."""
    found = [one for file in sorted(results.glob("soak_fuzz*.json")) if (one := read(file))]
    if not found:
        return missing("benchmarks.fuzz.fuzz")
    parts = []
    for run in found:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        parts.append(
            f"Seed {run['seed']}: {run['cases']:,} cases of {len(run['by_function'])} functions in "
            f"{run['seconds'] / 60:,.0f} minutes, {len(run['findings'])} findings ({versions})."
        )
        ended = sorted(run["by_exception"].items(), key=lambda item: -item[1])
        body = [[name, f"{count:,}"] for name, count in ended]
        parts.append(table(("ended by", "cases"), body, right=(1,)))
        parts += [f"- {one['entry']}: {one['what']}" for one in run["findings"]]
    return "\n\n".join(parts)


def long_run(results: Path) -> str:
    """Return how the memory of a long transfer grew."""
    found = read(results / "soak_long_run.json")
    if found is None:
        return missing("benchmarks.soak.long_run")
    grown = f"{found['growth'] / 2**20:.1f} MiB of {found['memory_bytes'][-1] / 2**20:,.0f}"
    row = [f"{found['steps']:,}", grown, str(found["traces"][-1])]
    head = ("steps", "growth of memory in the last three quarters", "times traced")
    return table(head, [row], right=(0, 1, 2))


def overhead(results: Path) -> str:
    """Return what masks add to a training step."""
    found = read(results / "soak_overhead.json")
    if found is None:
        return missing("benchmarks.soak.overhead")
    body = [
        [
            name,
            ms(one["median_seconds"]),
            f"{100 * one['added']:+.1f} %",
            " to ".join(f"{100 * q:+.1f}" for q in one["quartiles"]),
        ]
        for name, one in found["kinds"].items()
    ]
    head = (
        f"{found['network']}, batch {found['batch']}",
        "ms a step",
        "more than dense",
        "quartiles",
    )
    return "\n\n".join([machine(found["machine"]), table(head, body, right=(1, 2, 3))])


def scaling(results: Path) -> str:
    """Return how a transfer scales with workers, measured and on paper."""
    found = read(results / "scaling.json")
    if found is None:
        return missing("benchmarks.speed.scaling")
    measured, paper = [], []
    for name, network in found["networks"].items():
        alone = min(network["workers"].values(), key=lambda row: row["bytes_reduced"])
        for workers, row in network["workers"].items():
            measured.append(
                [
                    name,
                    workers,
                    f"{row['steps_a_second']:.1f}",
                    f"{row['samples_a_second'] / alone['samples_a_second']:.2f}",
                    f"{row['bytes_reduced'] / 1e6:.2f}",
                ]
            )
        for row in network["on_paper"]:
            if row["replicas"] == max(one["replicas"] for one in network["on_paper"]):
                step = f"{1000 * row['step']:.0f} ms"
                paper.append([name, row["link"], step, f"{row['efficiency']:.0%}"])
    head = (
        "network",
        "workers",
        "steps a second",
        "samples a second, x one worker",
        "MB summed a step",
    )
    replicas = max(row["replicas"] for row in network["on_paper"])
    return "\n\n".join(
        [
            machine(found["machine"]),
            table(head, measured, right=(1, 2, 3, 4)),
            f"On paper: the share of the time that {replicas} replicas compute, by link and by the "
            "time of a step.",
            table(("network", "link", "a step alone", "computing"), paper, right=(2, 3)),
        ]
    )
