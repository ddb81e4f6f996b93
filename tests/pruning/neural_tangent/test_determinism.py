"""Same seed, same machine: the same bits, in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.paths import ROOT

import keras_ntt

CODE = """
import hashlib, os, warnings
warnings.simplefilter("ignore")
import keras, numpy as np, tensorflow as tf
tf.config.experimental.enable_op_determinism()
import keras_ntt

chance = np.random.default_rng(0)
x = chance.standard_normal((32, 8, 8, 1)).astype("float32")
y = chance.integers(0, 4, 32)

def network():
    keras.utils.set_random_seed(3)
    layers = keras.layers
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(6, 3, activation="relu"),
        layers.MaxPooling2D(), layers.Flatten(), layers.Dense(16, "relu"), layers.Dense(4)])

def train(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=False)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)

def transfer():
    model = keras_ntt.prune_neural_tangent(network(), x, sparsity=keras_ntt.NTTSchedule(0.8, 2),
        epochs=2, batch_size=8, seed=1, output_projections=2, saliency="ntk_sap", verbose=0)
    train(model)
    return model

def scheduled():
    model = keras_ntt.prune_low_magnitude(network(), keras_ntt.PolynomialDecay(0.2, 0.8, 1, 6,
        frequency=1))
    train(model)
    return model

def at_init(name):
    needs = name not in ("magnitude", "random", "synflow", "synflow_l2")
    return keras_ntt.prune_at_init(network(), sparsity=0.8, saliency=name,
        data=(x, y) if needs else None, allocation="erk" if name == "random" else "global", seed=1)

jobs = {"transfer": transfer, "scheduled": scheduled}
names = [name for name in keras_ntt.saliency.SALIENCIES if name != "iterative_snip"]
jobs |= {name: (lambda name=name: at_init(name)) for name in names}
for name, job in jobs.items():
    for _ in range(int(os.environ["TIMES"])):
        model = job()
        arrays = [*model.get_weights(), *keras_ntt.get_masks(model).values()]
        assert any(mask.any() and not mask.all() for mask in arrays[-2:])
        print("sum", name, hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest())
"""


def start(hash_seed, times):
    root = str(ROOT)
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "PYTHONHASHSEED": str(hash_seed),
        "CUDA_VISIBLE_DEVICES": "",
        "TIMES": str(times),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", CODE], env=environment, **pipes)


@pytest.mark.long
def test_masks_and_weights_are_the_same_bits_twice_and_in_other_processes():
    processes = [start(1, 2), start(2, 1)]
    outputs = [process.communicate(timeout=900) for process in processes]
    for process, (_, complaints) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, complaints[-3000:]
    twice, once = [
        [line for line in output.splitlines() if line.startswith("sum ")] for output, _ in outputs
    ]
    assert len(once) == 1 + len(keras_ntt.saliency.SALIENCIES)
    assert twice[::2] == twice[1::2] == once
    # The jobs differ, or equal sums would say nothing.
    assert len({line.split()[2] for line in once}) >= len(once) - 1
