"""The structure of a package, read from its source: imports, private names, code in `__init__`."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator
from typing import NamedTuple


class Import(NamedTuple):
    """One import of a module.

    Attributes:
        file: The file that imports, as a dotted name.
        module: The module that is imported, as a dotted name.
        line: The line.
    """

    file: str
    module: str
    line: int


class Source(NamedTuple):
    """A file of a package.

    Attributes:
        name: Its dotted name; that of a package for an ``__init__.py``.
        tree: Its syntax tree.
        is_package: Whether it is an ``__init__.py``.
    """

    name: str
    tree: ast.Module
    is_package: bool


def sources(package: pathlib.Path) -> list[Source]:
    """Return all files of a package, parsed, but those of hidden folders, as of environments."""
    found = []
    for path in sorted(package.rglob("*.py")):
        if any(part.startswith(".") for part in path.relative_to(package).parts):
            continue
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Source(name, ast.parse(path.read_text(encoding="utf-8")), is_package))
    return found


def imports(files: list[Source]) -> list[Import]:
    """Return all imports, those inside functions and of names typed only included."""
    names = {file.name for file in files}
    found = []
    for file in files:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                modules = [name if name in names else str(node.module) for name in whole]
            else:
                continue
            found += [Import(file.name, module, node.lineno) for module in dict.fromkeys(modules)]
    return found


def circles(arrows: set[tuple[str, str]]) -> list[list[str]]:
    """Return the circles of a graph, each as the nodes that reach one another."""
    after: dict[str, set[str]] = {}
    for start, end in arrows:
        after.setdefault(start, set()).add(end)
    reached = {node: _reached(node, after) for node in after}
    rest, found = {node for node in after if node in reached[node]}, []
    while rest:
        first = min(rest)
        circle = sorted(n for n in rest if n in reached[first] and first in reached[n])
        found.append(circle)
        rest -= set(circle)
    return found


def levels(arrows: set[tuple[str, str]]) -> int:
    """Return the number of levels of a graph without circles: the nodes of its longest path."""
    after: dict[str, set[str]] = {}
    for start, end in arrows:
        after.setdefault(start, set()).add(end)

    def depth(node: str) -> int:
        return 1 + max(map(depth, after.get(node, ())), default=0)

    return max(map(depth, after), default=0)


def private_names(file: Source) -> Iterator[tuple[int, str]]:
    """Yield uses of others' private names, with their lines.

    Others' are those of anything but ``self`` and ``cls``, of modules that are imported, and what
    ``getattr`` and the like name. Of named tuples, ``_replace`` and ``_asdict`` are public.
    """
    for node in ast.walk(file.tree):
        if any(_is_private(name) for name in _names_in(node)):
            yield node.lineno, ast.unparse(node)


def _names_in(node: ast.AST) -> list[str]:
    """Return the names that a node takes from elsewhere."""
    if isinstance(node, ast.Attribute):
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        return [] if own else [node.attr]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        asks = node.func.id in ("getattr", "hasattr", "setattr", "delattr")
        return [str(a.value) for a in node.args[1:2] if asks and isinstance(a, ast.Constant)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
        return [node.value] if f"{node.value}.".startswith(INSIDE) else []
    return []


def logic_in_init(file: Source) -> Iterator[tuple[int, str]]:
    """Yield what an ``__init__.py`` holds beside its docstring, imports and constants."""
    for i, node in enumerate(file.tree.body):
        docstring = i == 0 and isinstance(node, ast.Expr)
        if not docstring and not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign):
            yield node.lineno, ast.unparse(node).splitlines()[0]


INSIDE = ("keras.src.", "tensorflow.python.")


def _is_private(name: str) -> bool:
    public = ("_replace", "_asdict", "_fields", "_make", "__")
    parts = [part for part in name.split(".") if not part.startswith(public)]
    return f"{name}.".startswith(INSIDE) or any(part.startswith("_") for part in parts)


def _reached(start: str, after: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(after.get(start, ()))
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += after.get(node, ())
    return found
