"""A file as C source: an array for the flash of a microcontroller, and its header."""

from __future__ import annotations

import os
import pathlib
import re

from keras_ntt.core import atomic_files
from keras_ntt.litert.micro.report import MicroReport

_BYTES_A_LINE = 12


def paths_of(path: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the two files of a path.

    Args:
        path: The path of either file, or of both without a suffix.

    Returns:
        The header and the source.

    Raises:
        FileNotFoundError: If their folder does not exist.
        TypeError: If `path` is not a path.
        ValueError: If no C identifier can be made of the name.
    """
    found = atomic_files.as_path(path, "c_array")
    if found.suffix in (".h", ".cc", ".cpp", ".c"):
        source = found.suffix if found.suffix != ".h" else ".cc"
        found = found.with_suffix("")
    else:
        source = ".cc"
    if not re.search("[A-Za-z]", found.name):
        raise ValueError(
            "c_array must be a path whose name makes a C identifier, such as 'firmware/model'. "
            f"Received: c_array={os.fspath(path)!r}"
        )
    header, code = (found.with_name(found.name + suffix) for suffix in (".h", source))
    atomic_files.writable(header, "c_array")
    atomic_files.writable(code, "c_array")
    return header, code


def name_of(path: pathlib.Path) -> str:
    """Return the C identifier of an array in a file.

    >>> name_of(pathlib.Path("person-detector.v2.cc"))
    'person_detector_v2'
    """
    name = re.sub(r"\W", "_", path.name.removesuffix(path.suffix), flags=re.ASCII)
    return name if name[0].isalpha() else f"m{name}"


def write(path: str | os.PathLike, content: bytes, report: MicroReport) -> tuple[pathlib.Path, ...]:
    """Write a file as C source.

    Args:
        path: The path of either file, or of both without a suffix.
        content: The file.
        report: Its figures.

    Returns:
        The header and the source.

    Raises:
        OSError: If they cannot be written.
    """
    header, code = paths_of(path)
    name = name_of(code)
    for target, text in (
        (header, header_text(name, content, report)),
        (code, source_text(name, header.name, content)),
    ):
        with atomic_files.replacing(target) as temporary:
            temporary.write_text(text)
    return header, code


def header_text(name: str, content: bytes, report: MicroReport) -> str:
    """Return a header that declares a model.

    Args:
        name: C identifier of the array.
        content: The file.
        report: Its figures.

    Returns:
        The text.
    """
    guard = f"{name.upper()}_H_"
    calls = " &&\n         ".join(f"resolver.{c.removesuffix(';')} == 0" for c in report.resolver)
    source = "measured" if report.measured else "computed"
    return f"""// Written by keras_ntt: a model for TensorFlow Lite Micro.
#ifndef {guard}
#define {guard}

#include <cstddef>

extern const unsigned char {name}[];
constexpr size_t {name}_size = {len(content)};

// Bytes of memory, {source} on a 64-bit host; a 32-bit target needs fewer.
constexpr size_t {name}_arena_size = {report.arena};

// Operators to register, with a resolver MicroMutableOpResolver<{name}_operators>.
constexpr int {name}_operators = {len(report.resolver)};

// Registers them; returns whether all could be.
template <typename Resolver>
bool {name}_register(Resolver& resolver) {{
  return {calls or "true"};
}}

#endif  // {guard}
"""


def source_text(name: str, header: str, content: bytes) -> str:
    """Return the source that defines a model.

    Args:
        name: C identifier of the array.
        header: Name of the header.
        content: The file.

    Returns:
        The text.
    """
    rows = [
        "    " + " ".join(f"0x{byte:02x}," for byte in content[start : start + _BYTES_A_LINE])
        for start in range(0, len(content), _BYTES_A_LINE)
    ]
    body = "\n".join(rows)
    return f"""// Written by keras_ntt: a model for TensorFlow Lite Micro.
#include "{header}"

alignas(16) const unsigned char {name}[] = {{
{body}
}};
"""
