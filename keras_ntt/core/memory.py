"""How much memory is available to a process, where the system reports it."""

from __future__ import annotations

import pathlib


def available(root: str = "/", *, swap: bool = False) -> int | None:
    """Return how many bytes a process can still allocate before the system ends it.

    Args:
        root: Where ``proc`` and ``sys`` are.
        swap: Whether the free swap space of the machine counts as well.

    Returns:
        The smaller of what is available on the machine (``MemAvailable`` of ``/proc/meminfo``) and
        what remains of the limits of its control groups; None where neither is known.
    """
    base = pathlib.Path(root)
    more = (of_machine(base, "SwapFree") or 0) if swap else 0
    known = [size for size in (of_machine(base), of_control_groups(base)) if size is not None]
    return min(known) + more if known else None


def of_machine(base: pathlib.Path, entry: str = "MemAvailable") -> int | None:
    """Return the bytes of an entry of what Linux knows of its memory, None elsewhere."""
    for line in _lines(base / "proc" / "meminfo"):
        name, _, rest = line.partition(":")
        if name == entry and rest.split()[1:] == ["kB"]:
            return int(rest.split()[0]) * 1024
    return None


def written(size: float) -> str:
    """Write a number of bytes for a reader.

    >>> written(3 * 2**30), written(700_000)
    ('3.0 GiB', '0.7 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def of_control_groups(base: pathlib.Path) -> int | None:
    """Return what remains of the limits of a process's control groups, None for no limit.

    Files that were read are counted as used, but the system frees them when memory is needed. They
    count as free here.

    Args:
        base: Where ``proc`` and ``sys`` are.
    """
    left = []
    for line in _lines(base / "proc" / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            place, names = base / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            place = base / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the group of the process may be mounted at the top.
        parts = pathlib.PurePosixPath(path.strip("/")).parts
        for count in range(len(parts) + 1):
            found = _left(place.joinpath(*parts[:count]), *names)
            left += [] if found is None else [found]
    return min(left, default=None)


def _left(folder: pathlib.Path, limit: str, usage: str) -> int | None:
    """Return what remains of the limit of one group."""
    most, used = _number(folder / limit), _number(folder / usage)
    if most is None or used is None:
        return None
    cached = 0
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            cached = int(value)
    return max(most - max(used - cached, 0), 0)


def _number(file: pathlib.Path) -> int | None:
    """Return the number in a file; None for ``max`` or a number that means no limit."""
    for line in _lines(file):
        return int(line) if line.isdigit() and int(line) < 2**60 else None
    return None


def _lines(file: pathlib.Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # missing or not readable
        return []
