"""Code blocks of the README and the documentation run, from top to bottom; links lead somewhere."""

import inspect
import re

import pytest
from helpers.paths import ROOT
from test_layout import MAY_IMPORT

import keras_ntt

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)\)")


def blocks(path):
    return BLOCK.findall(path.read_text())


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.long] if path.name == "README.md" else [])
        for path in DOCUMENTS
        if blocks(path)
    ],
    ids=lambda path: path.name,
)
@pytest.mark.few(4)
def test_code_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(path))
    exec(compile(code, path.name, "exec"), {"__name__": "document"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in LINK.findall(path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


def test_the_reference_has_every_public_name():
    import keras_ntt

    pages = [path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")]
    directives = [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert len(directives) == len(set(directives))
    assert {f"keras_ntt.{name}" for name in keras_ntt.__all__} <= set(directives)


def test_the_tour_names_each_folder_once_in_reading_order():
    tour = (ROOT / "CONTRIBUTING.md").read_text().partition("## A tour")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `(\w+)/` \|", tour, re.MULTILINE)
    assert names == [name for name in MAY_IMPORT if name != "layer_rules"]


def test_results_name_only_figures_of_their_tables():
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    said, tables = text.partition("## What they say")[2].split("## Tables")
    figures = set(re.findall(r"\d+\.\d", said.partition("## Commands")[0]))
    assert figures
    assert figures <= set(re.findall(r"\d+\.\d", tables)), "not in the tables"


# What may be given by position, in this order, and by these names.
POSITIONAL = {
    "empirical_ntk": "model x1 x2",
    "ntt_loss": "student teacher x",
    "NeuralTangentTransfer": "student teacher",
    "prune_neural_tangent": "model inputs",
    "prune_at_init": "model",
    "prune_low_magnitude": "model pruning_schedule block_size block_pooling_type pruning_policy "
    "sparsity_m_by_n",
    **dict.fromkeys(["strip_pruning", "get_masks", "restore_masks", "sparsity_report"], "model"),
    "apply_masks": "model masks",
    **dict.fromkeys(["save_masks", "load_masks", "export_tflite"], "model path"),
    "NTTSchedule": "sparsity frequency end_step",
    "ConstantSparsity": "target_sparsity begin_step end_step frequency",
    "PolynomialDecay": "initial_sparsity final_sparsity begin_step end_step power frequency",
}


@pytest.mark.parametrize("name", POSITIONAL)
def test_arguments_by_position_keep_their_names_and_order(name):
    parameters = inspect.signature(getattr(keras_ntt, name)).parameters.values()
    found = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert found == POSITIONAL[name].split()
