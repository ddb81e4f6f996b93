"""A bounded sample of `benchmarks/fuzz`: bad arguments to every public function."""

from __future__ import annotations

import os
import pathlib

import keras
import pytest

import keras_ntt
from benchmarks.fuzz import fuzz
from benchmarks.fuzz.arguments import Entry, model

# Results of functions, whose constructors nobody else calls, and what has entries of its own name.
RESULTS = {
    "EdgeAdvice",
    "Prediction",
    "ExportReport",
    "FileReport",
    "ChannelGroup",
    "ChannelGroups",
    "NTTLoss",
    "SparsityReport",
    "ExportError",
}
ABSTRACT = {"PrunableLayer", "PruningPolicy", "PruningSchedule"}
# Whole jobs of seconds a call, whose bad arguments have tests of their own.
JOBS = {
    "CompressionReport",
    "compress",
    "shrink_tflite",
}


def test_every_public_name_is_called():
    called = {name.split(".")[0].split()[0] for name in fuzz.ENTRIES}
    assert set(keras_ntt.__all__) - called == RESULTS | JOBS | ABSTRACT - called
    scores = {name.split(".")[1] for name in fuzz.ENTRIES if name.startswith("saliency.")}
    known = {"NetworkSaliency", "SALIENCIES", "Subject"}
    assert set(keras_ntt.saliency.__all__) - scores == known


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_bad_arguments_are_refused_and_change_nothing(seed):
    here, policy = os.getcwd(), keras.config.dtype_policy().name
    tally, _ = fuzz.soak(cases=200, seconds=120, seed=seed)
    assert tally.findings == []
    assert tally.cases > 20  # all of them, unless the machine is very busy
    assert (os.getcwd(), keras.config.dtype_policy().name) == (here, policy)


def key_error(model):
    raise KeyError("a message that is long enough. Received: model")


def no_words(model):
    raise ValueError("no")


def changes_the_model(model):
    model.weights[0].assign(model.weights[0] + 1)
    raise ValueError("model does not fit. Received: model")


def leaves_a_patch(model):
    model.layers[0].call = lambda x: x


def writes_a_file(model):
    pathlib.Path("left.txt").write_text("left")
    raise ValueError("model does not fit. Received: model")


def takes_too_long(model):
    while True:
        pass


BROKEN = {
    key_error: "undocumented KeyError",
    no_words: "does not say what was received",
    changes_the_model: "changed by a call that ValueError: mlp: weights",
    leaves_a_patch: "changed by a call that returned: mlp: calls",
    writes_a_file: "changed by a call that ValueError: file left.txt",
    takes_too_long: "took more than",
}


@pytest.mark.parametrize("function", BROKEN, ids=lambda f: f.__name__)
def test_broken_functions_are_found(monkeypatch, function):
    broken = Entry("broken", function, {"model": model("mlp", spoil=0.0)})
    monkeypatch.setattr(fuzz, "ENTRIES", {"broken": broken})
    if function is takes_too_long:
        monkeypatch.setattr(fuzz, "LIMIT", 2.0)
    tally, _ = fuzz.soak(cases=1, seconds=60, seed=0)
    assert BROKEN[function] in tally.findings[0].what


@pytest.mark.soak
def test_many_bad_arguments():
    tally, _ = fuzz.soak(cases=20_000, seconds=1200, seed=99)
    assert tally.findings == []
