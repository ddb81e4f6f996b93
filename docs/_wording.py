"""Find phrases that read badly, and print better ones.

    python docs/_wording.py

Reads ``docs/wording.txt`` and looks for its phrases in Markdown, in the Markdown cells of
notebooks, and in docstrings, comments and strings of Python files. Code spans and code blocks are
left out. A phrase is also found over a line break. The exit code is 1 if there is one.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PHRASES = Path(__file__).with_name("wording.txt")
FOLDERS = ("keras_ntt", "docs", "tutorials", "benchmarks", "examples", "tests")
SUFFIXES = (".md", ".ipynb", ".py", ".pyi")
CODE = re.compile(r"^```.*?^```|``.+?``|`[^`\n]+`", re.MULTILINE | re.DOTALL)
# What an f-string inserts, and the name of an argument in a docstring.
INSERTED = re.compile(r"\{[^{}]*\}")
ARGUMENT = re.compile(r"^ +\*{0,2}\w+:(?= )", re.MULTILINE)
# The prefix and the quotes of a string.
QUOTES = re.compile(r"^[a-zA-Z]*(?:'''|\"\"\"|'|\")|(?:'''|\"\"\"|'|\")$")
# A space of a phrase: blanks, and at most one line break, so that paragraphs stay apart.
GAP = r"[ \t]*(?:\n[ \t]*|[ \t])"
# Stands for code, which no phrase matches.
NOTHING = "\0"


class Phrase(NamedTuple):
    """A phrase, what to write in its place, and the expression that finds it."""

    phrase: str
    better: str
    expression: re.Pattern[str]


class Finding(NamedTuple):
    """Where a phrase is."""

    place: str
    phrase: str
    better: str

    def __str__(self) -> str:
        """Return the line that is printed."""
        return f"{self.place}: {self.phrase!r}. Better: {self.better}"


def read_phrases(text: str) -> tuple[list[Phrase], set[str]]:
    """Return the phrases of a list, and the files that it leaves out.

    Args:
        text: Lines ``phrase -> better form``, in which ``*`` stands for the rest of a word; lines
            ``skip: path``; empty lines and lines that begin with ``#``.

    Returns:
        The phrases in their order, and the paths.

    Raises:
        ValueError: A line is none of these.
    """
    phrases, skipped = [], set()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("skip:"):
            skipped.add(line.removeprefix("skip:").strip())
            continue
        phrase, arrow, better = (part.strip() for part in line.partition("->"))
        if not (phrase and arrow and better):
            raise ValueError(f"Line {number} has no `phrase -> better form`. Received: {line!r}")
        words = [re.escape(word).replace(r"\*", r"\w*") for word in phrase.split()]
        left = r"(?<![\w-])" if phrase[0].isalnum() else ""
        expression = re.compile(rf"{left}{GAP.join(words)}(?![\w-])", re.IGNORECASE)
        phrases.append(Phrase(phrase, better, expression))
    return phrases, skipped


def _without(text: str, spans: re.Pattern[str]) -> str:
    """Return a text in which what an expression finds is blanked out, lines kept."""
    return spans.sub(lambda match: re.sub(r"[^\n]", NOTHING, match[0]), text)


def prose_of_python(source: str) -> str:
    """Return a Python source of which only comments and strings are left, each where it was."""
    starts = [0]
    for line in io.StringIO(source):
        starts.append(starts[-1] + len(line))
    left = [c if c.isspace() else NOTHING for c in source]
    kinds = {tokenize.COMMENT, tokenize.STRING}
    # From Python 3.12 on an f-string is several tokens.
    parts = [getattr(tokenize, f"FSTRING_{part}", None) for part in ("START", "MIDDLE", "END")]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in kinds and token.type not in parts:
            continue
        begin = starts[token.start[0] - 1] + token.start[1]
        end = starts[token.end[0] - 1] + token.end[1]
        text = source[begin:end]
        if token.type == tokenize.COMMENT:
            text = re.sub(r"^#+:?", lambda match: " " * len(match[0]), text)
        elif token.type != parts[1]:
            # Prefix and quotes are blanks, so that the parts of a string over several lines join.
            text = _without(text, INSERTED) if "f" in text[:2].lower() else text
            text = QUOTES.sub(lambda match: " " * len(match[0]), text)
        left[begin:end] = text
    return _without(_without("".join(left), CODE), ARGUMENT)


def prose_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the texts of a file, each with what stands before its line numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(text)["cells"], 1):
            if cell["cell_type"] == "markdown":
                yield f"cell {number}, line ", _without("".join(cell["source"]), CODE)
    elif path.suffix == ".md":
        yield "", _without(text, CODE)
    else:
        yield "", prose_of_python(text)


def files_of(root: Path) -> list[Path]:
    """Return the files below a folder that are read, in order."""
    found = [path for path in root.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += (root / folder).rglob("*")
    return sorted(path for path in found if path.suffix in SUFFIXES and path.is_file())


def findings(root: Path, text: str) -> list[Finding]:
    """Return the phrases that a tree has.

    Args:
        root: The folder of the project.
        text: The list of phrases, see `read_phrases`.

    Returns:
        Each place of each phrase, file by file.
    """
    phrases, skipped = read_phrases(text)
    found = []
    for path in files_of(root):
        name = path.relative_to(root).as_posix()
        if any(name == one or name.startswith(f"{one}/") for one in skipped):
            continue
        for before, prose in prose_of(path):
            for phrase, better, expression in phrases:
                for match in expression.finditer(prose):
                    line = prose.count("\n", 0, match.start()) + 1
                    found.append(Finding(f"{name}:{before}{line}", phrase, better))
    return found


def main(root: Path = ROOT) -> int:
    """Print the findings.

    Args:
        root: The folder of the project.

    Returns:
        The exit code.
    """
    found = findings(root, PHRASES.read_text(encoding="utf-8"))
    for one in found:
        print(one)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
