"""The notebooks run, and what they show is what their code printed and drew.

They run as plain code in this process, with ``FAST = True``: no kernel is started, TensorFlow is
imported once for all, and warnings are errors as in every other test.
"""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import re

import pytest
from helpers.paths import ROOT
from save_outputs import code_of, digest, installs

NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
HUB = "https://colab.research.google.com/github/keras-ntt/keras_ntt/blob/main/tutorials/"
LINK = re.compile(r"\]\(([^)#]+)\)")
# What only one machine knows, and what TensorFlow says when it starts.
PRIVATE = re.compile(
    # A path from the root of a file system, which an address or a relative path is not.
    r"/(tmp|home|root|usr)/|(?<![\w.:/<-])/[a-z]\w*/\w|site-packages|\bWARNING\b|[IWE]0000|ms/step|Traceback"
)


def read(path):
    return json.loads(path.read_text())


def show(value):
    """Draw what a notebook would show."""
    if hasattr(value, "_repr_png_"):
        assert value._repr_png_().startswith(b"\x89PNG")


def run(path, *, tag=None):
    """Run the cells with a tag, or those without one."""
    namespace = {"__name__": "notebook", "display": show}
    for i, (source, tags) in enumerate(code_of(read(path))):
        wanted = tag in tags if tag else "tfmot" not in tags
        if installs(source) or not wanted:
            continue
        if "parameters" in tags:
            assert source.startswith("FAST = False")
            source = "FAST = True"
        *body, last = ast.parse(source).body
        parts = [ast.Module(body, []), ast.Module([last], [])]
        if isinstance(last, ast.Expr):
            parts[1] = ast.Expression(last.value)
        name = f"{path.name}, cell {i}"
        exec(compile(parts[0], name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            show(eval(compile(parts[1], name, "eval"), namespace))
        else:
            exec(compile(parts[1], name, "exec"), namespace)


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    run(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path",
    [p for p in NOTEBOOKS if any("tfmot" in tags for _, tags in code_of(read(p)))],
    ids=lambda p: p.stem,
)
def test_cells_for_tfmot_run(path, tmp_path, monkeypatch):
    if importlib.util.find_spec("tensorflow_model_optimization") is None:
        pytest.skip("tensorflow-model-optimization is not installed")
    monkeypatch.chdir(tmp_path)
    run(path, tag="tfmot")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_saved_outputs_are_whole_and_of_this_code(path):
    notebook = read(path)
    assert notebook["metadata"]["outputs_of"] == digest(notebook), (
        "The code was changed: python tutorials/save_outputs.py"
    )
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    done = [count for count in counts if count is not None]
    assert done == list(range(1, len(done) + 1))
    assert len(counts) - len(done) == sum(installs(s) for s, _ in code_of(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_saved_outputs_are_fit_to_be_seen(path):
    outputs = [o for cell in read(path)["cells"] for o in cell.get("outputs", [])]
    kinds = {(o["output_type"], o.get("name", "stdout")) for o in outputs}
    assert kinds <= {("stream", "stdout"), ("execute_result", "stdout"), ("display_data", "stdout")}
    for output in outputs:
        text = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
        found = PRIVATE.search(text)
        assert found is None, found
        if "image/png" in output.get("data", {}):
            assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG")
    pictures = sum("image/png" in o.get("data", {}) for o in outputs)
    assert pictures >= (0 if path.stem == "from_tfmot" else 2)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_opens_in_colab_and_links_lead_somewhere(path):
    texts = ["".join(c["source"]) for c in read(path)["cells"] if c["cell_type"] == "markdown"]
    assert texts[0].startswith("# ")
    assert f"({HUB}{path.name})" in texts[0]
    for target in LINK.findall("\n".join(texts)):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target


def test_every_notebook_is_listed():
    index = (ROOT / "tutorials" / "README.md").read_text()
    assert set(re.findall(r"\((\w+\.ipynb)\)", index)) == {p.name for p in NOTEBOOKS}
    assert len(NOTEBOOKS) == 7


def test_digest_is_of_code_alone():
    notebook = read(NOTEBOOKS[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []
    notebook["cells"][0]["source"] = ["# Another title"]
    assert digest(notebook) == digest(read(NOTEBOOKS[0]))
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["source"] = ["FAST = None"]
    assert digest(notebook) != digest(read(NOTEBOOKS[0]))
