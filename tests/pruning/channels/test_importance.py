"""Scores of channels: by hand, by brute force, by other formulas."""

from __future__ import annotations

import itertools

import keras
import numpy as np
from helpers.architectures import sequential
from helpers.channel_removal import draw
from keras import layers

from keras_ntt.core.channels.graph import channel_graph
from keras_ntt.core.channels.groups import groups_of
from keras_ntt.pruning.channels import importance, linear
from keras_ntt.pruning.channels.moments import moments_read
from keras_ntt.pruning.channels.scores import gradients_of


def parts(model):
    graph = channel_graph(model)
    return graph, [group for group in groups_of(graph) if group.kept is None]


def example():
    model = sequential(
        (4, 4, 2),
        layers.Conv2D(3, 1, name="first"),
        layers.BatchNormalization(name="norm"),
        layers.Conv2D(2, 1, name="second"),
        layers.GlobalAveragePooling2D(),
    )
    first, norm, second = model.layers[:3]
    first.kernel.assign(np.array([(1, 2), (0, 1), (2, 2)], float).T[None, None])
    norm.gamma.assign([1, 2, 0.5])
    second.kernel.assign(np.array([(3, 1, 1), (0, 1, 2)], float).T[None, None])
    return model


def test_magnitude_by_hand():
    (score,) = importance.magnitude(*parts(example()))
    np.testing.assert_allclose(score, [1.2766, 0.5957, 1.1277], atol=5e-5)


def test_scales_of_normalizations():
    (score,) = importance.batch_norm(*parts(example()))
    np.testing.assert_allclose(score, np.array([1, 2, 0.5]) * 3 / 3.5)


def test_magnitude_of_a_flattened_group():
    model = draw(sequential((3, 3, 1), layers.Conv2D(4, 2), layers.Flatten(), layers.Dense(2)), 0)
    (score,) = importance.magnitude(*parts(model))
    kernel, _, rows, _ = model.get_weights()
    made = (kernel**2).sum(axis=(0, 1, 2))
    read = (rows**2).sum(axis=1).reshape(4, 4).sum(axis=0)
    expected = (made + read) / (made + read).mean()
    np.testing.assert_allclose(score, expected, rtol=1e-6)


def test_taylor_is_the_change_of_the_loss_to_first_order():
    model = draw(sequential((3,), layers.Dense(5, "tanh"), layers.Dense(2)), 1)
    model.compile(loss="mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.normal(size=(6, 2)).astype("float32")
    graph, groups = parts(model)
    (score,) = importance.taylor(graph, groups, gradients_of(model, (x, y), None, 4))
    first = model.layers[0]
    kernel, bias = (np.asarray(w) for w in first.get_weights())

    def loss(scale, unit):
        factor = np.ones(5)
        factor[unit] = scale
        first.set_weights([kernel * factor, bias * factor])
        value = np.mean((np.asarray(model(x), np.float64) - y) ** 2)
        first.set_weights([kernel, bias])
        return value

    slopes = [(loss(1.01, unit) - loss(0.99, unit)) / 0.02 for unit in range(5)]
    np.testing.assert_allclose(score, np.square(slopes), rtol=2e-2, atol=1e-7)


def convolutions():
    return draw(
        sequential(
            (6, 6, 2),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.Conv2D(3, 2, padding="same", strides=2),
            layers.GlobalAveragePooling2D(),
        ),
        0,
    )


def read_rows(model, x):
    """What the second layer reads, by loops, with zeros at the borders."""
    hidden = np.asarray(model.layers[0](x), np.float64)
    return np.stack(
        [
            hidden[n, i : i + 2, j : j + 2].ravel()
            for n, i, j in itertools.product(range(len(x)), range(0, 6, 2), range(0, 6, 2))
        ]
    )


def test_moments_are_those_of_patches():
    model = convolutions()
    x = np.random.default_rng(1).normal(size=(5, 6, 6, 2)).astype("float32")
    moments = moments_read(channel_graph(model), [x[:2], x[2:]])[id(model.layers[1])]
    rows = read_rows(model, x)
    np.testing.assert_allclose(moments.inputs[0], rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    covariance = np.cov(rows.T, bias=True)
    np.testing.assert_allclose(moments.hessian[0], covariance, rtol=1e-4, atol=1e-5)


def test_activation_is_the_share_of_variance_of_one_channel():
    model = convolutions()
    x = np.random.default_rng(1).normal(size=(5, 6, 6, 2)).astype("float32")
    graph, groups = parts(model)
    moments = moments_read(graph, [x])
    (score,) = importance.activation(graph, groups, moments)
    rows, weights = read_rows(model, x), linear.matrix(model.layers[1])
    damping = importance.DAMPING * np.var(rows, axis=0).mean()
    whole = np.var(rows @ weights, axis=0).sum()
    for channel in range(4):
        taps = np.arange(4) * 4 + channel
        alone = sum((np.var(rows[:, tap]) + damping) * np.sum(weights[tap] ** 2) for tap in taps)
        np.testing.assert_allclose(score[channel], alone / whole, rtol=1e-4)


def test_reconstruction_is_the_least_error_that_others_leave():
    model = convolutions()
    x = np.random.default_rng(1).normal(size=(5, 6, 6, 2)).astype("float32")
    graph, groups = parts(model)
    (score,) = importance.reconstruction(graph, groups, moments_read(graph, [x]))
    rows, weights = read_rows(model, x), linear.matrix(model.layers[1])
    covariance = np.cov(rows.T, bias=True)
    whole = np.sum(weights * (covariance @ weights))
    hessian = covariance + importance.DAMPING * np.diag(covariance).mean() * np.eye(16)

    def error(gone):
        kept = np.array([i for i in range(16) if i % 4 not in gone], int)
        fitted = np.zeros_like(weights)
        fitted[kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], (hessian @ weights)[kept])
        apart = fitted - weights
        return np.sum(apart * (hessian @ apart)) / whole

    gone, total, expected = [], 0.0, np.zeros(4)
    highest = 0.0
    while len(gone) < 4:
        left = [c for c in range(4) if c not in gone]
        best = min(left, key=lambda c: error([*gone, c]))
        step, total = error([*gone, best]) - total, error([*gone, best])
        highest = max(highest, step)
        expected[best] = highest
        gone.append(best)
    np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_a_layer_that_nothing_linear_reads_has_its_magnitude():
    x = layers.Input((5,))
    y = layers.Dense(4, name="made")(layers.Dense(6)(x))
    y = layers.LSTM(3)(layers.Reshape((2, 2))(y))
    model = draw(keras.Model(x, layers.Dense(2)(y)), 0)
    graph, groups = parts(model)
    moments = moments_read(graph, [np.ones((3, 5), "float32")])
    number = [group.name for group in groups].index("made")
    found = importance.reconstruction(graph, groups, moments)[number]
    expected = importance.magnitude(graph, groups)[number]
    np.testing.assert_array_equal(found, expected)
