"""The code blocks of the README run, from top to bottom, and links lead somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = [ROOT / "docs", ROOT / "tutorials"]
DOCUMENTS = [ROOT / "README.md", *(p for f in FOLDERS for p in sorted(f.glob("*.md")))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)\)")


def blocks(path):
    return BLOCK.findall(path.read_text())


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if blocks(p)], ids=lambda p: p.name)
def test_code_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(path))
    exec(compile(code, path.name, "exec"), {"__name__": "document"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in LINK.findall(path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target
