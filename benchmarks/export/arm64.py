"""LiteRT for ARM64 on another host: files of Debian and PyPI as they are, run by QEMU's user mode.

Everything is kept in one folder; nothing is installed in the system. It needs Debian or a relative
of it on x86, for its lists of packages, and a network the first time.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

CORE = "cortex-a76"
# What a program sees of the system in place of the host's: the library crashes on an x86 host's.
SEEN = {
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
    "sys/devices/system/cpu/kernel_max": "0\n",
    "proc/cpuinfo": (
        "processor\t: 0\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid "
        "asimdrdm lrcpc dcpop asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\n"
        "CPU revision\t: 1\n\n"
    ),
}
PACKAGES = ["python3-minimal", "libpython3-stdlib", "libstdc++6"]


def command(folder: Path) -> list[str] | None:
    """Return how to begin a command line of Python for ARM64 with LiteRT and NumPy.

    Args:
        folder: Where it is, or is to be.

    Returns:
        The words before those of Python; None where this host cannot make it.
    """
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        print("needs Linux on x86", file=sys.stderr)
        return None
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        print("needs apt-get and dpkg-deb", file=sys.stderr)
        return None
    root, site = folder / "root", folder / "site"
    words = [str(folder / "qemu/usr/bin/qemu-aarch64-static"), "-cpu", CORE, "-L", str(root)]
    words += ["-E", f"PYTHONPATH={site}", str(root / "usr/bin/python3")]
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, words)
        (folder / "ready").touch()
    return words


def _make(folder: Path, words: list[str]) -> None:
    apt = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()  # as if nothing were installed: all that is needed is fetched
    settings = apt / "apt.conf"
    settings.write_text(
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; };\n'
        f'Dir::State "{apt}"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";\n'
    )
    for_arm = {**os.environ, "APT_CONFIG": str(settings)}
    _quietly(["apt-get", "update"], env=for_arm)
    fetch = ["apt-get", "--yes", "--download-only", "--no-install-recommends", "install"]
    _quietly([*fetch, *PACKAGES], env=for_arm)
    for package in (apt / "cache/archives").glob("*.deb"):
        _quietly(["dpkg-deb", "--extract", package, folder / "root"])
    for path, content in SEEN.items():
        (folder / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "root" / path).write_text(content)
    _quietly(["apt-get", "download", "qemu-user-static"], cwd=apt)
    (package,) = apt.glob("qemu-user-static_*.deb")
    _quietly(["dpkg-deb", "--extract", package, folder / "qemu"])
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run([*words, "-c", code], capture_output=True, text=True, check=True)
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34, 35)]
    _quietly(
        [sys.executable, "-m", "pip", "install", "--target", folder / "site"]
        + [f"--platform={platform}" for platform in ("manylinux2014_aarch64", *platforms)]
        + ["--python-version", version.stdout.strip(), "--only-binary=:all:", "numpy"]
        + [f"ai-edge-litert=={importlib.metadata.version('ai-edge-litert')}"]
    )
    shutil.rmtree(apt)


def _quietly(words: list, **options: object) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words[:4]))} ... failed:\n{done.stderr or done.stdout}")
