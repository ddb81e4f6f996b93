"""Texts that tell arrays and functions apart."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from keras_ntt.core.fingerprints import fingerprint, in_words


@pytest.mark.parametrize(
    "other",
    [
        [np.zeros((2, 3), "float64")],
        [np.zeros((3, 2), "float32")],
        [np.full((2, 3), -0.0, "float32")],
        [np.zeros((2, 3), "float32"), np.zeros(0, "float32")],
    ],
    ids=["type", "shape", "bits", "number"],
)
def test_arrays_that_differ_in_anything_are_told_apart(other):
    assert fingerprint(other) != fingerprint([np.zeros((2, 3), "float32")])


def test_the_order_in_memory_does_not_matter():
    x = np.arange(6.0).reshape(2, 3)
    assert fingerprint([x]) == fingerprint([np.asfortranarray(x)])


def test_functions_are_told_apart_by_what_they_do():
    assert in_words(lambda x: x + 1) == in_words(lambda x: x + 1)
    assert in_words(lambda x: x + 1) != in_words(lambda x: x + 2)
    assert in_words(lambda x: [y + 1 for y in x]) != in_words(lambda x: [y + 2 for y in x])


@pytest.mark.long
def test_functions_have_the_same_text_in_another_process():
    code = (
        "from keras_ntt.core.fingerprints import in_words\n"
        "print(in_words(lambda x: x.name in {'a', 'b', 'c', 'd'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
