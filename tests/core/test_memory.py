"""How much memory there is, read from files as Linux writes them."""

from __future__ import annotations

import pytest

from keras_ntt.core import memory

KIB, GIB = 1024, 2**30


def machine(root, **files):
    """Write files below a folder; two dashes stand for a slash, one for a dot."""
    for name, text in files.items():
        file = root.joinpath(*name.split("__"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return str(root)


MEMINFO = f"MemTotal: {64 * GIB // KIB} kB\nMemFree: 12 kB\nMemAvailable: {8 * GIB // KIB} kB\n"


def test_what_the_machine_has(tmp_path):
    assert memory.available(machine(tmp_path, proc__meminfo=MEMINFO)) == 8 * GIB


def test_nothing_is_known_elsewhere(tmp_path):
    assert memory.available(str(tmp_path)) is None
    assert memory.available(machine(tmp_path, proc__meminfo="MemAvailable: many\n")) is None


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("limit", "used", "cached", "left"),
    [
        (4 * GIB, 3 * GIB, 0, 1 * GIB),
        (4 * GIB, 3 * GIB, 2 * GIB, 3 * GIB),
        (4 * GIB, 5 * GIB, 0, 0),
        (20 * GIB, 1 * GIB, 0, 8 * GIB),  # more than the machine has
        ("max", 3 * GIB, 0, 8 * GIB),
    ],
)
def test_a_control_group(limit, used, cached, left, tmp_path):
    root = machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/jobs/mine\n")
    inner = tmp_path / "sys/fs/cgroup/jobs/mine"
    stat = f"anon 12\ninactive_file {cached}"
    group(inner, memory__max=limit, memory__current=used, memory__stat=stat)
    assert memory.available(root) == left


def test_a_group_around_the_own_one_and_one_mounted_at_the_top(tmp_path):
    root = machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/jobs/mine\n")
    top = tmp_path / "sys/fs/cgroup"
    group(top / "jobs", memory__max=6 * GIB, memory__current=4 * GIB)
    assert memory.available(root) == 2 * GIB
    group(top, memory__max=3 * GIB, memory__current=2 * GIB)
    assert memory.available(root) == 1 * GIB


def test_control_groups_of_the_first_version(tmp_path):
    text = "9:name=systemd:/\n8:cpu,cpuacct:/a\n4:memory:/a\n"
    root = machine(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup=text)
    inner = tmp_path / "sys/fs/cgroup/memory/a"
    used = {"memory__usage_in_bytes": 3 * GIB, "memory__stat": f"total_inactive_file {GIB}"}
    group(inner, memory__limit_in_bytes=5 * GIB, **used)
    assert memory.available(root) == 3 * GIB
    group(inner, memory__limit_in_bytes=9223372036854771712, **used)  # no limit
    assert memory.available(root) == 8 * GIB
