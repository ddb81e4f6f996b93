"""Scores of logits are the same whether the model ends in softmax or sigmoid, or not at all."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.expect import warned
from keras import layers

import keras_ntt

X = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
Y = np.arange(12) % 3
SCORES = ["logit_snip", "ntk_sap", "ntk_trace", "synflow", "snip", "grasp"]


def network(*ends):
    """Return a network of fixed weights, with the layers given at its end."""
    keras.utils.set_random_seed(3)
    last = layers.Dense(3, activation=ends[0] if ends and isinstance(ends[0], str) else None)
    parts = [keras.Input((6,)), layers.Dense(8, "tanh", name="first"), last]
    return keras.Sequential([*parts, *(end for end in ends if not isinstance(end, str))])


def scores_of(model, score):
    data = (X, Y) if score in ("snip", "grasp") else X
    return list(keras_ntt.saliency_scores(model, score, data=data).values())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.few(2)
def test_a_score_of_logits_is_that_of_the_model_without_its_softmax(score):
    wanted = scores_of(network(), score)
    for end in ("softmax", layers.Softmax(), layers.Activation("sigmoid")):
        model = network(end)
        with warned("ends in (softmax|sigmoid).*looks at what goes into"):
            found = scores_of(model, score)
        for mine, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_a_loss_that_is_given_takes_what_the_model_returns():
    loss = keras.losses.SparseCategoricalCrossentropy()  # of probabilities
    scores = [
        list(
            keras_ntt.saliency_scores(
                network(*ends), keras_ntt.saliency.SNIP(loss), data=(X, Y)
            ).values()
        )
        for ends, loss in [
            (("softmax",), loss),
            ((), keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        ]
    ]
    for mine, other in zip(*scores, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4)
