"""The documentation site: figures from files of results, links, notebooks, and the whole of it."""

from __future__ import annotations

import base64
import json
import re

import _figures as figures
import _pages as pages
import pytest
from helpers.paths import ROOT


def cells(markdown):
    """Return the cells of the rows of all tables."""
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


# --- figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "help"])
def test_what_is_not_measured_says_so(name, tmp_path):
    assert "Not measured yet: `python -m benchmarks." in figures.FIGURES[name](tmp_path)


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "help"])
def test_files_that_are_there_are_shown(name):
    shown = figures.FIGURES[name](ROOT / "benchmarks" / "results")
    assert "|" in shown or "Not measured yet" in shown or "import keras" in shown


def test_markers_of_figures_are_known():
    names = [
        name
        for file in (ROOT / "docs").rglob("*.md")
        for name, _ in figures.BLOCK.findall(file.read_text())
    ]
    assert sorted(names) == sorted(figures.FIGURES)


def test_pages_have_the_figures_of_the_files_of_results():
    for file in (ROOT / "docs").rglob("*.md"):
        text = file.read_text()
        assert text.split() == figures.filled(text).split(), (
            f"{file.name}: run `python docs/_figures.py`"
        )


def test_figures_that_were_typed_are_found():
    typed = "<!-- figures: import_time -->\nIt takes no time.\n<!-- end -->\n"
    assert "no time" not in figures.filled(typed)


def test_step_times(tmp_path):
    def one(seconds):
        return {
            "median_seconds": seconds,
            "quartiles_seconds": [seconds / 2, seconds * 2],
            "times_floor": 3.04,
            "first_call_seconds": 1.25,
            "memory_bytes": {"added": 120e6},
        }

    network = {
        "what": "one step, batch 64, 10 outputs",
        "steps": {"keras_ntt": one(0.01), "peer NTK_VECTOR_PRODUCTS": one(0.25)},
        "not_timed": {"TensorFlow, Jacobian": "took over 40 s"},
        "best_of_peer": "peer NTK_VECTOR_PRODUCTS",
        "floor": {
            "seconds": 0.001,
            "flops": 4.2e8,
            "counted_from": "layers",
            "flops_per_second": 4.2e11,
        },
        "fit": {"median_seconds": 0.0111},
    }
    content = {
        "machine": {"cpu": "A CPU", "cores": 2, "keras": "3.15.1"},
        "networks": {"net": network, "other": {"failed": "a | reason"}},
    }
    (tmp_path / "ntt_step.json").write_text(json.dumps(content))
    shown = figures.step_times(tmp_path)
    rows = cells(shown)
    assert rows[2] == ["keras_ntt", "10.00", "5.00 to 20.00", "1.00", "3.0", "1.2", "120"]
    assert rows[3][:4] == [
        "peer NTK_VECTOR_PRODUCTS (best of the peer)",
        "250",
        "125 to 500",
        "25.00",
    ]
    assert "The floor is 1.00 ms: 0.42 GFLOP, counted from the layers, at 420 GFLOP/s." in shown
    assert "TensorFlow, Jacobian: not timed, took over 40 s." in shown
    assert "This network failed: a | reason" in shown
    assert "Measured on A CPU, 2 cores, Keras 3.15.1." in shown
    (tmp_path / "ntt_step_without_vnni.json").write_text(
        json.dumps(content).replace("A CPU", "An older CPU")
    )
    older = figures.step_times_without_vnni(tmp_path)
    assert older == shown.replace("A CPU", "An older CPU")


def test_start_up(tmp_path):
    def one(seconds, *ratios):
        return {
            "median_seconds": seconds,
            "ratio": dict(zip(("low", "median", "high"), ratios, strict=True)),
        }

    commands = {"python -c pass": one(0.0201, 1, 1, 1), "keras-ntt --help": one(0.15, 7, 7.46, 8.1)}
    content = {"machine": {}, "rounds": 5, "commands": commands}
    (tmp_path / "start_up.json").write_text(json.dumps(content))
    rows = cells(figures.start_up(tmp_path))
    assert rows[2] == ["`python -c pass`", "20.10", "1.0", "1.0 to 1.0"]
    assert rows[3] == ["`keras-ntt --help`", "150", "7.5", "7.0 to 8.1"]


def test_growth(tmp_path):
    sweep = {
        "series": "10 outputs",
        "points": [{"batch": 8}, {"batch": 64}],
        "left_out": None,
        "exponent_of_seconds": {"exponent": 1.234},
        "exponent_of_bytes": None,
    }
    content = {"machine": {}, "sweeps": {"batch": [sweep, {**sweep, "points": []}]}}
    (tmp_path / "growth.json").write_text(json.dumps(content))
    (tmp_path / "growth_batch.png").write_bytes(b"")
    shown = figures.growth(tmp_path)
    assert cells(shown)[2] == ["batch", "10 outputs", "8 to 64", "1.23", "", ""]
    assert cells(shown)[3][2] == "none"
    assert "(../benchmarks/results/growth_batch.png)" in shown


def test_sizes_are_those_of_the_file():
    results = ROOT / "benchmarks" / "results"
    found = json.loads((results / "export_size.json").read_text())
    rows = [row for row in cells(figures.sizes(results)) if row[0].endswith("%")]
    assert len(rows) == len(found)
    for row, one in zip(rows, found, strict=True):
        assert float(row[1]) == pytest.approx(one["float32"]["raw"] / 1000, rel=1e-3)
        assert float(row[6]) == pytest.approx(one["int8_weights"]["limit"] / 1000, rel=1e-3)


def test_kills_of_all_files_are_added_up(tmp_path):
    job = {"kills": 40, "runs_ended": 4, "same_masks": 4, "files_looked_at": 1200}
    writing = {"kills": 7, "files_looked_at": 30}
    for name, jobs in (
        ("soak_kills", {"transfer": job}),
        ("soak_kills_b", {"transfer": job, "export": writing}),
    ):
        content = {"kills": sum(one["kills"] for one in jobs.values()), "faults": [], "jobs": jobs}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    shown = figures.FIGURES["kills"](tmp_path)
    assert "87 kills, 0 faults" in shown
    assert cells(shown)[2:] == [["transfer", "80", "8 of 8", "2,400"], ["export", "7", "", "30"]]


def test_findings_of_the_fuzz_are_shown(tmp_path):
    content = {
        **{"seed": 3, "cases": 12_345, "seconds": 600.0, "versions": {"keras": "3"}},
        **{"by_function": {"a": 1, "b": 2}, "by_exception": {"TypeError": 5, "ValueError": 9000}},
        "findings": [{"entry": "ntt_loss", "what": "undocumented IndexError"}],
    }
    (tmp_path / "soak_fuzz.json").write_text(json.dumps(content))
    shown = figures.FIGURES["fuzz"](tmp_path)
    assert "Seed 3: 12,345 cases of 2 functions in 10 minutes, 1 findings (keras 3)." in shown
    assert cells(shown)[2] == ["ValueError", "9,000"]
    assert "- ntt_loss: undocumented IndexError" in shown


def test_overhead_and_scaling(tmp_path):
    kind = {"median_seconds": 0.012, "added": 0.034, "quartiles": [0.01, 0.05]}
    content = {"machine": {}, "network": "lenet", "batch": 64, "kinds": {"masks": kind}}
    (tmp_path / "soak_overhead.json").write_text(json.dumps(content))
    assert cells(figures.FIGURES["overhead"](tmp_path))[2] == [
        "masks",
        "12.00",
        "+3.4 %",
        "+1.0 to +5.0",
    ]
    workers = {
        "1": {"steps_a_second": 10.0, "samples_a_second": 640.0, "bytes_reduced": 0},
        "2": {"steps_a_second": 8.0, "samples_a_second": 1024.0, "bytes_reduced": 2_500_000},
    }
    paper = [
        {"link": "NVLink", "step": 0.01, "replicas": n, "efficiency": e}
        for n, e in ((2, 1), (8, 0.5))
    ]
    network = {"workers": workers, "on_paper": paper}
    (tmp_path / "scaling.json").write_text(
        json.dumps({"machine": {}, "networks": {"net": network}})
    )
    rows = cells(figures.FIGURES["scaling"](tmp_path))
    assert rows[3] == ["net", "2", "8.0", "1.60", "2.50"]
    assert rows[6:] == [["net", "NVLink", "10 ms", "50%"]]


# --- pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source", "wanted"),
    [
        ("[a](docs/layers.md)", "README.md", "[a](layers.md)"),
        ("[a](../README.md#install)", "tutorials/README.md", "[a](../index.md#install)"),
        ("![p](docs/demo-curves.png)", "README.md", "![p](demo-curves.png)"),
        (
            "![p](results/growth_batch.png)",
            "benchmarks/RESULTS.md",
            "![p](figures/growth_batch.png)",
        ),
        ("[a](../tutorials/README.md)", "docs/api/index.md", "a"),
        ("[a](../../tutorials/README.md)", "docs/api/index.md", "[a](../tutorials/index.md)"),
        ("see [the code](keras_ntt/ntk.py).", "README.md", "see the code."),
        ("[a](https://example.org/x)", "README.md", "[a](https://example.org/x)"),
        (
            "![p](from_tfmot_files/0.png)",
            "tutorials/from_tfmot.ipynb",
            "![p](from_tfmot_files/0.png)",
        ),
        ("![p](other_files/0.png)", "tutorials/from_tfmot.ipynb", "p"),
    ],
)
def test_links_are_moved(text, source, wanted):
    assert pages.with_links(text, source, pages.site_paths()) == wanted


def test_code_stays_as_it_is():
    text = "[a](x) `[b](x)`\n\n```python\n[c](x)\n```\n\n[d `e`](x)\n"
    changed = pages.outside_code(text, lambda part: part.replace("(x)", "(y)"))
    assert changed == "[a](y) `[b](x)`\n\n```python\n[c](x)\n```\n\n[d `e`](y)\n"


def test_notebooks_are_pages(tmp_path):
    picture = base64.b64encode(b"\x89PNG").decode()
    content = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "Text."]},
            {
                "cell_type": "code",
                "source": ["print(1)"],
                "outputs": [
                    {"output_type": "stream", "text": ["1\n"]},
                    {"output_type": "display_data", "data": {"image/png": picture}},
                ],
            },
            {"cell_type": "code", "source": [], "outputs": []},
        ]
    }
    shown = pages.notebook(content, tmp_path / "book_files")
    assert shown.startswith("# Title\nText.\n\n```python\nprint(1)\n```\n\n```text\n1\n```")
    assert "(book_files/0.png)" in shown
    assert (tmp_path / "book_files" / "0.png").read_bytes() == b"\x89PNG"


def test_every_picture_of_a_notebook_is_on_its_page(tmp_path):
    paths, shown = pages.site_paths(), 0
    for book in sorted((ROOT / "tutorials").glob("*.ipynb")):
        content = json.loads(book.read_text())
        outputs = [o for cell in content["cells"] for o in cell.get("outputs", [])]
        wanted = sum("image/png" in output.get("data", {}) for output in outputs)
        files = tmp_path / f"{book.stem}_files"
        source = book.relative_to(ROOT).as_posix()
        text = pages.outside_code(
            pages.notebook(content, files),
            lambda part, source=source: pages.with_links(part, source, paths),
        )
        found = re.findall(r"!\[Output of the code above\]\(([^)]+)\)", text)
        assert len(found) == wanted
        assert all((tmp_path / name).exists() for name in found)
        shown += wanted
    assert shown >= 18


def test_every_page_is_in_the_contents():
    paths = pages.site_paths()
    listed = []
    for entry in pages.navigation(paths):
        for value in entry.values():
            listed += value if isinstance(value, list) else [value]
    assert sorted(listed) == sorted(p for p in paths.values() if p.endswith(".md"))


def test_help_of_every_command_is_shown():
    shown = figures.FIGURES["help"](ROOT)
    for command in ("demo", "prune", "report", "compare", "export", "inspect"):
        assert f"Usage: keras-ntt {command}" in shown


def test_formulas_are_mathml():
    pytest.importorskip("latex2mathml")
    text = (ROOT / "docs" / "maths.md").read_text()
    shown = pages.page(text, "docs/maths.md", pages.site_paths())
    outside = re.sub(r"```.*?```", "", shown, flags=re.DOTALL)
    assert "$" not in outside
    assert not re.search("^ *<math", outside, re.MULTILINE)  # Markdown would make it a block
    tags = re.findall(r"\\tag\{(\d+)\}", text)
    assert tags == [str(i + 1) for i in range(len(tags))]
    assert re.findall(r'<span class="number">\((\d+)\)</span>', shown) == tags
