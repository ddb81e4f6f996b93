"""Assemble the pages of the documentation site.

    python docs/_pages.py build/site

Writes ``pages/`` and ``mkdocs.yml`` into that folder, whose site goes to ``html/``: the pages of
this folder, the README, the tutorials, the change log and the like, with links between them as the
site has them, and formulas as MathML. `docs/_figures.py` has written the figures. Nothing is
fetched.
"""

from __future__ import annotations

import argparse
import base64
import json
import posixpath
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+(?:\n[^$\n]+)?)\$(?!\w)", re.DOTALL)
TAG = re.compile(r"\\tag\{(\w+)\}")

# Pages that are not where they are in the repository.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/RESULTS.md": "tables.md",
    "tutorials/README.md": "tutorials/index.md",
}


def site_paths() -> dict[str, str]:
    """Return the files of the repository that the site has: ``their path -> path on the site``."""
    found = {source: target for source, target in MOVED.items() if (ROOT / source).exists()}
    patterns = ["tutorials/*.md", "tutorials/*.ipynb", "docs/**/*.md", "docs/**/*.png"]
    for pattern in (*patterns, "benchmarks/results/*.png"):
        for file in sorted(ROOT.glob(pattern)):
            source = file.relative_to(ROOT).as_posix()
            target = source.replace("benchmarks/results/", "figures/")
            target = target.removeprefix("docs/").removesuffix(".ipynb")
            found.setdefault(source, target + ".md" * source.endswith(".ipynb"))
    return found


def with_links(text: str, source: str, paths: dict[str, str]) -> str:
    """Return a text whose links lead where its files are on the site.

    Args:
        text: Markdown without code blocks.
        source: The path of its file in the repository.
        paths: What `site_paths` returns.

    Returns:
        The text. A link to a file that the site does not have becomes its words.
    """
    here = posixpath.dirname(paths[source])
    own = f"{posixpath.splitext(posixpath.basename(source))[0]}_files/"  # written by `notebook`

    def replaced(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        if target.startswith(("http://", "https://", "#", "mailto:", own)):
            return match[0]
        file, hash_, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), file))
        if file not in paths:
            return words
        return f"{mark}[{words}]({posixpath.relpath(paths[file], here or '.')}{hash_}{anchor})"

    return LINK.sub(replaced, text)


def with_formulas(text: str) -> str:
    """Return a text whose formulas ``$...$`` and ``$$...$$`` are MathML."""
    from latex2mathml.converter import convert

    def replaced(match: re.Match[str]) -> str:
        block, inline = match.groups()
        if inline is not None:
            # In a span, because Markdown takes a line that begins with <math> for a block.
            return f"<span>{convert(inline.replace(chr(10), ' '))}</span>"
        tag = TAG.search(block)
        number = f'<span class="number">({tag[1]})</span>' if tag else ""
        return f'<div class="formula">{convert(TAG.sub("", block), display="block")}{number}</div>'

    return FORMULA.sub(replaced, text)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Apply a change to all of a text but its code blocks and code spans."""
    parts = []
    for i, part in enumerate(FENCE.split(text)):
        if i % 2:
            parts.append(part)
            continue
        spans = re.split(r"(`[^`\n]+`)", part)
        whole = "\x00".join(spans[::2])  # what belongs together is changed together
        changed = change(whole).split("\x00")
        if len(changed) != len(spans[::2]):
            raise ValueError("a link or a formula has a code span that it lost")
        codes = [*spans[1::2], ""]
        parts.append("".join(a + b for a, b in zip(changed, codes, strict=True)))
    return "".join(parts)


def page(text: str, source: str, paths: dict[str, str]) -> str:
    """Return a page of the site from a Markdown text of the repository."""
    text = outside_code(text, lambda part: with_links(part, source, paths))
    return outside_code(text, with_formulas) if "$" in text else text


def notebook(content: dict[str, Any], files: Path) -> str:
    """Return a notebook as Markdown.

    Args:
        content: The notebook.
        files: A folder for its pictures, next to the page.

    Returns:
        Its text, code and outputs.
    """
    parts = []
    for cell in content["cells"]:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif cell["cell_type"] == "code" and text:
            parts.append(f"```python\n{text}\n```")
            parts += [one for output in cell["outputs"] for one in _output(output, files)]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any], files: Path) -> list[str]:
    data = output.get("data", {})
    if "image/png" in data:
        files.mkdir(parents=True, exist_ok=True)
        name = f"{len(list(files.iterdir()))}.png"
        (files / name).write_bytes(base64.b64decode("".join(data["image/png"])))
        return [f"![Output of the code above]({files.name}/{name})"]
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return [f"```text\n{text}\n```"] if text else []


def navigation(paths: dict[str, str]) -> list[dict[str, Any]]:
    """Return the contents of the site, in order."""
    tutorials = [
        target
        for target in paths.values()
        if target.startswith("tutorials/") and target[-3:] == ".md"
    ]
    reference = [
        "pruning",
        "channels",
        "masks",
        "schedules",
        "kernel",
        "saliency",
        "callbacks",
        "export",
    ]
    reference += ["plots", "tfmot"]
    pages = {target for target in paths.values() if target.endswith(".md")}
    contents: list[dict[str, Any]] = [
        {"Home": "index.md"},
        {"Tutorials": sorted(tutorials, key=lambda t: (t != "tutorials/index.md", t))},
        {
            "Guide": [
                "trained.md",
                "channels.md",
                "freezing.md",
                "microcontrollers.md",
                "before_training.md",
                "command_line.md",
                "tensorboard.md",
                "distribution.md",
                "keras_behaviour.md",
                "layers.md",
                "maths.md",
                "faq.md",
            ]
        },
        {
            "Measurements": [
                "results.md",
                "tables.md",
                "performance.md",
                "trust.md",
                "benchmarks.md",
            ]
        },
        {"Reference": ["api/index.md", *(f"api/{name}.md" for name in reference)]},
        {"Project": ["contributing.md", "changelog.md"]},
    ]
    for entry in contents:
        for key, value in entry.items():
            if isinstance(value, list):
                entry[key] = [one for one in value if one in pages]
    return contents


def assemble(output: Path) -> None:
    """Write the pages and the configuration.

    Args:
        output: The folder, whose ``pages`` are replaced.
    """
    pages, paths = output / "pages", site_paths()
    shutil.rmtree(pages, ignore_errors=True)
    for source, target in paths.items():
        file = pages / target
        file.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".png"):
            shutil.copy(ROOT / source, file)
            continue
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text = notebook(json.loads(text), file.with_name(f"{file.stem}_files"))
        file.write_text(page(text, source, paths), encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "style", pages / "style")
    configuration = (ROOT / "docs" / "mkdocs.yml").read_text()
    contents = json.dumps(navigation(paths), indent=1, ensure_ascii=False)
    (output / "mkdocs.yml").write_text(
        f"{configuration}\ndocs_dir: pages\nsite_dir: html\nnav: {contents}\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    assemble(parser.parse_args().output)
