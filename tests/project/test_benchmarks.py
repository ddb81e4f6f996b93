"""The benchmarks: what they import, that documents name programs that exist, and a short one."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys

import pytest
from helpers import structure
from helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
PROGRAM = re.compile(r"\bbenchmarks((?:\.[a-z_0-9]+){2,})(?![\w(])")
OLD = re.compile(r"python (?:-m )?benchmarks/\S*")


def test_folders_import_themselves_and_what_is_common():
    found = structure.imports(structure.sources(BENCHMARKS))
    own = [one for one in found if one.module.split(".")[0] == "benchmarks"]
    assert len(own) > 50
    for file, module, line in own:
        start, end = file.split(".")[1], module.split(".")[1]
        assert end in (start, "common"), f"{file}:{line} imports {module}"
    assert not structure.circles({(a, b) for a, b, _ in own if a != b})


def test_no_path_is_added():
    for folder in ("benchmarks", "docs", "examples", "tests", "tutorials"):
        for file in structure.sources(ROOT / folder):
            for node in ast.walk(file.tree):
                if isinstance(node, ast.Attribute) and node.attr == "path":
                    assert ast.unparse(node) != "sys.path", f"{file.name}:{node.lineno}"


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")),
    *(BENCHMARKS / name for name in ("README.md", "RESULTS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").glob("*.py")),
]


def test_programs_that_documents_name_exist():
    named = set()
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        named |= {(path.name, name) for name in PROGRAM.findall(text)}
        if path.name != "CHANGELOG.md":  # which says what they were called
            assert not OLD.findall(text), path
    assert len({name for _, name in named}) > 10
    for document, name in named:
        file = BENCHMARKS.joinpath(*name.split(".")).with_suffix(".py")
        assert file.exists(), f"{document}: benchmarks{name}"


@pytest.mark.long
def test_programs_say_what_they_take(monkeypatch, capsys):
    found = structure.imports(structure.sources(BENCHMARKS))
    programs = [one.file for one in found if one.module == "argparse"]
    assert len(programs) > 15
    for name in programs:  # in this process: each of its own would import TensorFlow
        monkeypatch.setattr(sys, "argv", [name, "--help"])
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(name, run_name="__main__")
        assert (ended.value.code, "usage:" in capsys.readouterr().out) == (0, True), name


def run(module, *words):
    result = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.long
def test_the_start_of_the_command_line_is_timed(tmp_path):
    output = tmp_path / "start_up.json"
    shown = run("benchmarks.speed.start_up", "--rounds", "3", "--output", str(output))
    found = json.loads(output.read_text())
    names = ["python -c pass", "keras-ntt --help", "keras-ntt --version"]
    assert list(found["commands"]) == names
    assert [line.split("  ")[0] for line in shown.splitlines()[2:]] == names
    empty = found["commands"]["python -c pass"]
    assert empty["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert all(one["median_seconds"] > 0 for one in found["commands"].values())
