"""Costs that are measured once for several sparsities."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from keras_ntt import prune_post_training
from keras_ntt.pruning.post_training.allocate import counts_by_cost
from keras_ntt.pruning.post_training.costs import Costs, costs_of, costs_shared


def test_costs_are_measured_once_while_they_are_shared():
    model, other, inputs = object(), object(), object()
    count = []

    def found(given, x, *settings):
        def measure():
            count.append(1)
            return Costs([np.ones(1) * len(count)], [None])

        return float(costs_of(given, x, settings, measure).entries[0][0])

    assert [found(model, inputs) for _ in range(2)] == [1, 2]
    with costs_shared():
        assert [found(model, inputs), found(model, inputs)] == [3, 3]
        assert [found(other, inputs), found(model, other), found(model, inputs, "a")] == [4, 5, 6]
        assert found(model, inputs) == 3
    assert found(model, inputs) == 7


def test_no_kernel_is_left_with_next_to_nothing():
    dear, cheap = np.arange(100.0) + 1000, np.arange(200.0)
    # Of 300 entries 30 stay, a tenth; of the cheap ones a fiftieth at least, which is 4.
    assert counts_by_cost([dear, cheap], [100, 200], 0.9) == [26, 4]
    assert counts_by_cost([dear, dear.repeat(2)], [100, 200], 0.9) == [10, 20]


def test_models_are_the_same_as_without(rng):
    parts = [keras.Input((10,)), layers.Dense(12, "relu"), layers.Dense(3, "softmax")]
    model, x = keras.Sequential(parts), rng.normal(size=(50, 10)).astype("float32")

    def pruned():
        options = {"method": "sparsegpt", "verbose": 0}
        return [prune_post_training(model, x, sparsity=s, **options) for s in (0.5, 0.8)]

    alone = pruned()
    with costs_shared():
        together = pruned()
    for one, two in zip(alone, together, strict=True):
        for v, w in zip(one.weights, two.weights, strict=True):
            np.testing.assert_array_equal(v, w)
