"""What the package's messages advise: the calls, arguments, options and extras that they name."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from helpers import structure

# A call in prose: a name, dotted or not, and arguments with at most one level of parentheses.
_CALL = re.compile(r"(?<![\w.\\])([A-Za-z_][\w.]*)\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)")
_ARGUMENT = re.compile(r"(?<![\w.(*-])([a-z]\w*)=")
_DOTTED = re.compile(r"\bkeras_ntt(?:\.\w+)+")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*)")
_COMMAND = re.compile(r"\bkeras-ntt ([a-z]+)\b(?! \()")
_EXTRA = re.compile(r"pip install '?([\w-]+)(?:\[(\w+)\])?")
_IDENTIFIER = re.compile(r"(?<![\w./\\-])([a-z]+(?:_[a-z0-9]+)+)(?![\w/\\.-])")

HOLE = "…"
"""What stands for a value that a message fills in."""


class Message(NamedTuple):
    """A text that a user may read.

    Attributes:
        module: The module that it is in, as a dotted name.
        line: The line.
        text: The text, with `HOLE` where a value goes.
    """

    module: str
    line: int
    text: str

    @property
    def advice(self) -> str:
        """The text without what was received."""
        return self.text.partition("Received:")[0]


def messages(package: pathlib.Path) -> Iterator[Message]:
    """Yield the texts of a package that have words in them, docstrings excepted."""
    for file in structure.sources(package):
        skipped = set()
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Expr):  # a docstring
                skipped.add(id(node.value))
            if id(node) in skipped:
                continue
            if isinstance(node, ast.JoinedStr):
                skipped |= {id(inner) for inner in ast.walk(node)} - {id(node)}
                text = "".join(_part(value) for value in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if len(re.findall(r"[A-Za-z]{2,} [A-Za-z]", text)) >= 1:
                yield Message(file.name, node.lineno, text)


def _part(value: ast.expr) -> str:
    return value.value if isinstance(value, ast.Constant) else HOLE


def calls(text: str) -> Iterator[tuple[str, str]]:
    """Yield the calls in a text, ``(name, arguments)``."""
    for name, arguments in _CALL.findall(text):
        if arguments == "s":  # a plural, `input(s)`
            continue
        yield name, arguments
        yield from calls(arguments)


def keywords(arguments: str) -> list[str]:
    """Return the names of the keyword arguments of a call."""
    code = arguments.replace(HOLE, "_").replace("...", "_")
    try:
        call = ast.parse(f"f({code})", mode="eval").body
    except SyntaxError:  # words, such as `take(number of batches)`
        return re.findall(r"(?:^|[,(])\s*([a-z]\w*)=", code)
    assert isinstance(call, ast.Call)
    return [word.arg for word in call.keywords if word.arg is not None]


def arguments(text: str) -> set[str]:
    """Return the names in ``name=value`` outside of calls."""
    return set(_ARGUMENT.findall(_CALL.sub(" ", text)))


def dotted(text: str) -> set[str]:
    """Return the dotted names of the package."""
    return set(_DOTTED.findall(text))


def options(text: str) -> set[str]:
    """Return the options of the command line."""
    return set(_OPTION.findall(text))


def commands(text: str) -> set[str]:
    """Return the commands of the command line."""
    return set(_COMMAND.findall(text))


def extras(text: str) -> set[tuple[str, str]]:
    """Return what a text wants installed: packages with extras."""
    return set(_EXTRA.findall(text))


def identifiers(text: str) -> set[str]:
    """Return the words with an underscore, which are names of something."""
    return set(_IDENTIFIER.findall(text))
