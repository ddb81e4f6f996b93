"""The code blocks of the README and the tutorials run, from top to bottom."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = [ROOT / "docs", ROOT / "tutorials"]
DOCUMENTS = [ROOT / "README.md", *(p for f in FOLDERS for p in sorted(f.glob("*.md")))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Blocks that need tf_keras and tensorflow-model-optimization, which few environments have.
TFMOT = re.compile(r"^```python tfmot\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)\)")


def blocks(path):
    return BLOCK.findall(path.read_text())


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if blocks(p)], ids=lambda p: p.name)
def test_code_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(path))
    exec(compile(code, path.name, "exec"), {"__name__": "document"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if TFMOT.search(p.read_text())], ids=lambda p: p.name
)
def test_code_for_tfmot_runs(path, tmp_path, monkeypatch):
    if importlib.util.find_spec("tensorflow_model_optimization") is None:
        pytest.skip("tensorflow-model-optimization is not installed")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(TFMOT.findall(path.read_text()))
    exec(compile(code, path.name, "exec"), {"__name__": "document"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in LINK.findall(path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target
