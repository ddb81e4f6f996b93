"""What tests expect of warnings, float types and other processes."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import warnings

import keras

from helpers.paths import ROOT


def use_float(name):
    """Make models and layers of the given float type from here to the end of the test."""
    keras.config.set_floatx(name)
    keras.config.set_dtype_policy(name)


@contextlib.contextmanager
def warned(match):
    """Expect one warning of ours. Libraries' own may come too."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    (text,) = [str(w.message) for w in found if w.category is UserWarning]
    assert re.search(match, text), text


def run_python(code):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
