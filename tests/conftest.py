"""What all tests share: a clean Keras before and after each one, and small models."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import use_float

# A test calls each of its functions a few times: looking for a faster graph and waking threads
# for arrays of a few numbers take longer than they save. Results do not depend on either.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

# The same examples in every run, and no files left behind.
hypothesis.settings.register_profile(
    "keras_ntt", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile("keras_ntt")

collect_ignore = ["helpers/distributed_child.py"]  # a program

# Clearing a session collects garbage; what the imports made need not be looked at each time.
gc.collect()
gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before marks choose what is run
def pytest_collection_modifyitems(items):
    """Leave some parameters of a test that is marked ``few(count)`` to the long tests."""
    groups = {}
    for item in items:
        if item.get_closest_marker("few"):
            groups.setdefault((item.path, item.originalname), []).append(item)
    for group in groups.values():
        (count,) = group[0].get_closest_marker("few").args
        kept = {round(i) for i in np.linspace(0, len(group) - 1, count)}
        for i, item in enumerate(group):
            if i not in kept:
                item.add_marker(pytest.mark.long)
                item.add_marker(pytest.mark.wide)


@pytest.fixture(autouse=True)
def _clean_keras():
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()
    gc.freeze()  # what is still there stays, and is not looked through after each further test
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def float64():
    use_float("float64")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def mlp():
    """Return a factory of a dense network: 6 inputs, 8 tanh units, 3 outputs."""

    def make(**options):
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(8, activation="tanh", **options),
                keras.layers.Dense(3),
            ]
        )

    return make


@pytest.fixture
def cnn():
    """Return a factory of a convolutional network: 6x6x2 inputs, 3 outputs."""

    def make():
        return keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                keras.layers.Conv2D(4, 3, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.MaxPooling2D(),
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        )

    return make
