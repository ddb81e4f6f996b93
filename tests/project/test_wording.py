"""The style check finds the phrases of its list in all that people read; the tree has none."""

import json

import _wording
import pytest

# In two parts, because this file is read as well.
LIST = "\n".join(
    ["# a comment", "", "ready" + " made -> prepared", "skip: old", "slow*" + " by -> x"]
)


def findings(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return [(found.place, found.phrase) for found in _wording.findings(tmp_path, LIST)]


@pytest.mark.long
def test_the_tree_has_none_of_the_phrases(capsys):
    assert _wording.main() == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("README.md", "It is\nready\nmade.", "README.md:2"),
        ("docs/page.md", "- A list: Ready\n  made.", "docs/page.md:1"),
        ("keras_ntt/a.py", '"""Doc.\n\nIt is ready\n    made.\n"""\n', "keras_ntt/a.py:3"),
        ("keras_ntt/a.py", "x = 1  # so\n# ready\n# made\n", "keras_ntt/a.py:2"),
        (
            "keras_ntt/a.py",
            'x = 1\nm = (\n    f"{x} ready "\n    f"made {x}"\n)\n',
            "keras_ntt/a.py:3",
        ),
        ("tests/b.py", "x = {'help': r'ready made'}\n", "tests/b.py:1"),
    ],
)
def test_a_phrase_is_found_over_a_line_break(tmp_path, name, text, place):
    assert findings(tmp_path, name, text) == [(place, "ready made")]


def test_a_phrase_is_found_in_the_text_of_a_notebook_but_not_in_its_code_and_outputs(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["# ready made"], "outputs": [{"text": "ready made"}]},
        {"cell_type": "markdown", "source": ["Title\n", "ready\n", "made"]},
    ]
    found = findings(tmp_path, "tutorials/a.ipynb", json.dumps({"cells": cells}))
    assert found == [("tutorials/a.ipynb:cell 2, line 2", "ready made")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", "ready\n\nmade"),  # two paragraphs
        ("README.md", "already made, ready-made, ready mades"),
        ("README.md", "`ready made`\n\n```\nready made\n```\n"),
        ("keras_ntt/a.py", '"""Doc ``ready made`` and `ready made`."""\nready = made = 1\n'),
        ("keras_ntt/a.py", 'x = 1\ny = f"{x} ready{x} made"\n'),
        ("keras_ntt/a.py", '"""Doc.\n\nArgs:\n    ready\n    made: Two names.\n"""\n'),
        ("old/a.md", "ready made"),  # no folder that is read
        ("data.json", "ready made"),
    ],
)
def test_what_is_no_phrase_is_not_found(tmp_path, name, text):
    assert findings(tmp_path, name, text) == []


def test_a_star_stands_for_the_rest_of_a_word(tmp_path):
    assert len(findings(tmp_path, "a.md", "Slow by two, slowed by three, slows\nby four.")) == 3


def test_a_file_or_folder_of_the_list_is_left_out(tmp_path):
    text = LIST + "\nskip: docs/old\nskip: docs/new.md"
    for name in ("docs/old/a.md", "docs/new.md", "docs/newer.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("ready made")
    assert [found.place for found in _wording.findings(tmp_path, text)] == ["docs/newer.md:1"]


def test_a_line_that_is_no_phrase_is_refused():
    with pytest.raises(ValueError, match=r"Line 2.*Received: 'ready'"):
        _wording.read_phrases("a -> b\nready")


def test_the_program_prints_the_place_and_the_better_form(tmp_path, monkeypatch, capsys):
    (tmp_path / "wording.txt").write_text(LIST)
    (tmp_path / "a.md").write_text("It is ready made.")
    monkeypatch.setattr(_wording, "PHRASES", tmp_path / "wording.txt")
    assert _wording.main(tmp_path) == 1
    assert capsys.readouterr().out == "a.md:1: 'ready made'. Better: prepared\n"
