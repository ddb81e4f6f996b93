"""Kernels that cannot fit in memory are refused before the work, and no others."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_ntt import empirical_ntk, ntt_loss, saliency_scores
from keras_ntt.core import memory
from keras_ntt.ntk.empirical import tangents
from keras_ntt.ntk.least_memory import derivatives_memory, kernel_memory

SAID = r"The tangent kernel needs at least [\d.]+ GiB, and there are [\d.]+ .iB of memory left"


def wide(outputs, policy="float32"):
    keras.utils.set_random_seed(0)
    options = {"dtype": policy}
    return keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(outputs, **options)])


def ones(n):
    return np.ones((n, 3), "float32")


# The memory is that of the entries that nobody can do without: n1 n2 c^2 numbers twice, or n c c.
TOO_MUCH = {
    "kernel": lambda: empirical_ntk(wide(3000), ones(300)),
    "rectangle": lambda: empirical_ntk(wide(3000), ones(1000), ones(100)),
    "derivatives": lambda: empirical_ntk(wide(50_000), ones(30), outputs="trace"),
    "pairs": lambda: empirical_ntk(wide(1), ones(300_000), outputs="trace"),
    "definition": lambda: empirical_ntk(wide(20_000), ones(40), implementation="jacobian"),
    "score": lambda: saliency_scores(wide(60_000), "ntk_trace", data=ones(9)),
    "loss": lambda: ntt_loss(wide(3000), wide(3000), ones(600), sparsity=0.5),
    "loss of traces": lambda: ntt_loss(
        wide(50_000), wide(50_000), ones(30), sparsity=0.5, outputs="trace"
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
@pytest.mark.few(3)
def test_what_cannot_fit_is_refused(name):
    with pytest.raises(ValueError, match=SAID) as error:
        TOO_MUCH[name]()
    needed, there = re.findall(r"([\d.]+) GiB", str(error.value))[:2]
    assert float(needed) > float(there)
    assert ("saliency='ntk_sap'" if name == "score" else "output_projections") in str(error.value)


def test_each_advice_works():
    model, x = wide(3000), ones(300)
    for settings in ({"output_projections": 8}, {"outputs": "trace", "output_projections": 8}):
        found = empirical_ntk(model, x, **settings)
        assert found.shape[:2] == (300, 300)
    assert empirical_ntk(model, x[:1], x[:2], output_projections=None).shape == (1, 2, 3000, 3000)
    loss = ntt_loss(wide(3000), wide(3000), x, sparsity=0.5, output_projections=4)
    assert np.isfinite(float(loss.total))


@pytest.mark.parametrize(
    ("samples", "outputs", "trace", "wanted"),
    [
        ((5, 7), 3, True, 4 * 35),
        ((5, 7), 3, False, 2 * 4 * 35 * 9),
        ((5, 7), 1, False, 4 * 35),
        ((5, 1), 3, False, 4 * 5 * 9),
    ],
)
def test_the_bytes_of_a_kernel(samples, outputs, trace, wanted):
    assert kernel_memory(samples, outputs, trace=trace) == wanted


@pytest.mark.long
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "float64"])
def test_derivatives_begin_with_no_fewer_bytes(k, policy, monkeypatch):
    """What is counted is there: the largest tensor of the graph has as many bytes."""
    from keras_ntt.core.network import unroll

    keras.config.set_dtype_policy(policy)
    try:
        model = wide(40, policy)
    finally:
        keras.config.set_dtype_policy("float32")
    network = unroll(model)
    directions = None if k is None else tf.ones([6, k, 40], tf.float64)

    @tf.function
    def both(x):
        found = tangents(network, x, directions=directions)
        return found.outputs, [tf.nest.flatten(vars(f)) for f in found.factors]

    graph = both.get_concrete_function(tf.TensorSpec((6, 3))).graph
    largest = max(
        t.shape.num_elements() * t.dtype.size
        for op in graph.get_operations()
        for t in op.outputs
        if t.shape.is_fully_defined()
    )
    size = tf.as_dtype(model.compute_dtype).size
    assert derivatives_memory(6, 40, k, None, size) <= largest


def test_little_is_never_refused(tmp_path, monkeypatch):
    """The memory is not even looked at."""
    monkeypatch.setattr(memory, "available", lambda *_, **__: pytest.fail("it was looked at"))
    assert empirical_ntk(wide(3), ones(4)).shape == (4, 4, 3, 3)


def test_memory_on_a_disk_counts(tmp_path):
    (tmp_path / "proc").mkdir()
    text = "MemAvailable: 3000 kB\nSwapFree: 500 kB\n"
    (tmp_path / "proc" / "meminfo").write_text(text)
    assert memory.available(str(tmp_path)) == 3000 * 1024
    assert memory.available(str(tmp_path), swap=True) == 3500 * 1024


MEASURED = """
    import numpy as np, keras, tensorflow as tf
    from keras_ntt import empirical_ntk, ntt_loss, saliency_scores
    from keras_ntt.ntk import empirical, least_memory

    def entry(name):
        with open("/proc/self/status") as status:
            return next(int(l.split()[1]) * 1024 for l in status if l.startswith(name))

    def net(c):
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(c)])

    def call(n, c):
        {call}

    call(3, 4)
    needed = []
    for module in (empirical, ntt_module()) if {loss} else (empirical,):
        module.check_memory = lambda found, *_: needed.append(found)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = entry("VmRSS")
    kept = call({n}, {c})
    print(max(needed), entry("VmHWM") - before)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
@pytest.mark.parametrize(
    ("call", "n", "c"),
    [
        ("return empirical_ntk(net(c), np.ones((n, 3), 'float32'))", 80, 60),
        ("return empirical_ntk(net(c), np.ones((n, 3), 'float32'), outputs='trace')", 30, 1500),
        ("return empirical_ntk(net(c), np.ones((n, 3), 'float32'), outputs='trace')", 7000, 1),
        (
            "return empirical_ntk(net(c), np.ones((n, 3), 'float32'), implementation='jacobian')",
            10,
            900,
        ),
        ("return ntt_loss(net(c), net(c), np.ones((n, 3), 'float32'), sparsity=0.5)", 140, 60),
    ],
)
def test_no_less_is_needed_in_truth(call, n, c):
    loss = "ntt_loss(" in call
    text = textwrap.dedent(MEASURED).format(call=call, n=n, c=c, loss=loss)
    text = text.replace(
        "ntt_module()", "__import__('keras_ntt.pruning.neural_tangent.ntt_loss', fromlist=['x'])"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    least, measured = map(int, done.stdout.split())
    assert 2**26 < least <= 1.02 * measured
