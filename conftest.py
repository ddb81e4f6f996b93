"""Which modules pytest leaves out, for packages that are not installed; where examples write."""

import importlib.util

import pytest

collect_ignore = []
if importlib.util.find_spec("tensorflow_model_optimization") is None:
    collect_ignore.append("keras_ntt/tfmot")


@pytest.fixture(autouse=True)
def _examples_write_elsewhere(request, monkeypatch):
    """Run the examples of docstrings in an empty folder, not in the project's."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(request.getfixturevalue("tmp_path"))
