"""Nothing of what TensorFlow's C++ code writes while it converts is left in the output."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest
from helpers.architectures import sequential
from keras import layers

from keras_ntt.litert.chatter import chatter_dropped
from keras_ntt.litert.convert import convert

LINES = {
    "I0000 00:00:1796102085.647633   19903 devices.cc:67] Number of eligible GPUs: 0": False,
    "W0000 00:00:1796102086.302051   19903 helpers.cc:364] Ignored output_format.": False,
    "2026-01-01 10:00:00.123456: I tensorflow/core/x.cc:1] Restoring": False,
    "2026-01-01 10:00:00.123456: W tensorflow/core/x.cc:1] Ignored": False,
    "fully_quantize: 0, inference_type: 6, input_inference_type: FLOAT32": False,
    "WARNING: All log messages before absl::InitializeLog() is called": False,
    "E0000 00:00:1796102085.647633   19903 x.cc:67] failed": True,
    "F0000 00:00:1796102085.647633   19903 x.cc:67] Check failed": True,
    "2026-01-01 10:00:00.123456: E tensorflow/core/x.cc:1] failed": True,
    "2026-01-01 10:00:00 INFO a line of somebody's own log": True,
    "I am a line of somebody's own": True,
    "": True,
}


def test_information_is_dropped_and_all_else_comes_through(capfd):
    with chatter_dropped():
        os.write(2, "".join(f"{line}\n" for line in LINES).encode())
        print("to Python's stream", file=sys.stderr)
    os.write(2, b"I0000 00:00:1.5 9 x.cc:1] after it\n")
    kept = [line for line, comes in LINES.items() if comes]
    found = capfd.readouterr().err.splitlines()
    assert [line for line in found if line in LINES] == kept
    assert "to Python's stream" in found
    assert found[-1].endswith("after it")


def _fail():
    with chatter_dropped():
        os.write(2, b"E0000 the cause\n")
        raise KeyError


def test_it_comes_through_when_something_raises(capfd):
    with pytest.raises(KeyError):
        _fail()
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "E0000 the cause\nlater\n"


def test_two_at_the_same_time(capfd):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with chatter_dropped():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(20)
    with chatter_dropped():
        leave.set()
        thread.join()
        os.write(2, b"one\n")
    os.write(2, b"two\n")
    assert capfd.readouterr().err == "one\ntwo\n"


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_conversion_writes_nothing(quantization, capfd):
    model = sequential((6,), layers.Dense(8, "relu"), layers.Dense(2))
    samples = [np.random.default_rng(0).normal(size=(16, 6)).astype("float32")]
    capfd.readouterr()
    convert(model, [quantization], samples)
    assert tuple(capfd.readouterr()) == ("", "")
