"""prune_channels: how much goes, what is repaired, what is refused."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from helpers.architectures import sequential
from helpers.channel_removal import draw, outputs_of
from helpers.expect import warned
from keras import layers

from keras_ntt import apply_masks, get_masks, prune_channels
from keras_ntt.core.channels.graph import channel_graph
from keras_ntt.core.channels.groups import groups_of
from keras_ntt.core.channels.resize import Removal, resized
from keras_ntt.pruning.channels.plan import Plan, cost_of, level_for
from keras_ntt.pruning.channels.repair import DAMPING, repair


def network(width=16):
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    y = layers.Conv2D(width, 3, padding="same", activation="relu", name="inner")(x)
    y = layers.Conv2D(width, 3, padding="same", name="outer")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.SeparableConv2D(width, 3, strides=2, name="apart")(x)
    return draw(keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x))), 0)


def images(n=48, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 8, 8, 3)).astype("float32")


def sizes(model):
    return {layer.name: layer.filters for layer in model.layers if hasattr(layer, "filters")}


def test_half_of_the_channels():
    model = network()
    before = model.get_weights()
    smaller = prune_channels(model, channels=0.5, round_to=1)
    assert sizes(smaller) == {"stem": 8, "inner": 8, "outer": 8, "apart": 8}
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_channels_of_least_weight_go():
    model = network()
    kernel = model.get_layer("inner").get_weights()[0]
    kernel[..., [2, 5, 11]] *= 1e-3
    model.get_layer("inner").kernel.assign(kernel)
    rows = model.get_layer("outer").get_weights()[0]
    rows[:, :, [2, 5, 11]] *= 1e-3
    model.get_layer("outer").kernel.assign(rows)
    smaller = prune_channels(model, channels=3 / 16, filters="^inner$", round_to=1)
    assert sizes(smaller) == {**sizes(model), "inner": 13}
    kept = np.delete(kernel, [2, 5, 11], axis=-1)
    np.testing.assert_array_equal(smaller.get_layer("inner").kernel, kept)
    before, after = (outputs_of(m, images(4))[0] for m in (model, smaller))
    np.testing.assert_allclose(after, before, atol=1e-2 * np.abs(before).max())


def test_numbers_are_rounded_up_and_groups_keep_some():
    model = network(20)
    assert set(sizes(prune_channels(model, channels=0.7)).values()) == {8}
    assert set(sizes(prune_channels(model, channels=0.55)).values()) == {16}
    few = prune_channels(model, channels=0.99, round_to=1, min_channels=3)
    assert set(sizes(few).values()) == {3}


@pytest.mark.parametrize("target", ["ratio", "flops"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_targets_are_met_by_little(target, allocation):
    model = network()
    graph = channel_graph(model)
    whole = cost_of(graph, set())
    assert whole.parameters == model.count_params()
    # 3x3 kernels at 64 positions, the separable one at 9, the head at one.
    assert whole.multiply_adds == 64 * 9 * (3 + 16 + 16) * 16 + 9 * (9 * 16 + 256) + 9 * 16 * 4
    smaller = prune_channels(model, **{target: 0.4}, allocation=allocation, round_to=1)
    left = cost_of(channel_graph(smaller), set())
    assert left.parameters == smaller.count_params()
    number = int(target == "flops")
    assert 0.54 < left[number] / whole[number] <= 0.6


def test_channels_come_back_where_more_went_than_had_to():
    # Two groups of 4; all of level 0.5 go together. A channel of the first costs 3, else 1.
    groups = groups_of(
        channel_graph(draw(sequential((3,), layers.Dense(4), layers.Dense(4), layers.Dense(2)), 0))
    )[:2]
    levels = [np.array([0.25, 0.5, 1.0, 0.75]), np.array([0.5, 0.25, 0.75, 1.0])]
    plan = Plan(groups, levels, round_to=1, min_channels=1)
    first = set(groups[0].labels)

    def cost(removed):
        return 16 - sum(3 if label in first else 1 for label in removed)

    removed, left = level_for(plan, cost, 9)
    assert (len(removed), left) == (4, 8)
    one, other = groups[0].labels, groups[1].labels
    assert plan.refilled(removed, cost, 9) == {one[0], one[1], other[1]}
    assert plan.refilled(removed, cost, 8) == removed
    by_two = plan._replace(round_to=2)
    assert by_two.refilled(by_two.removed(0.5), cost, 14) == {other[0], other[1]}


def test_a_measured_latency_is_met():
    model, seen = network(), []

    def measure(candidate):
        seen.append(candidate.count_params())
        return candidate.count_params() ** 0.5

    smaller = prune_channels(model, latency=0.3, measure=measure, round_to=1)
    assert 0.6 < (smaller.count_params() / model.count_params()) ** 0.5 <= 0.7
    assert 2 < len(seen) < 12


def test_less_than_was_asked_for_warns():
    with warned(r"ratio=0\.9 cannot be reached: no more than 0\.\d+"):
        smaller = prune_channels(network(), ratio=0.9, filters="inner", min_channels=8)
    assert sizes(smaller)["inner"] == 8


def test_least_squares_of_one_layer_is_that_of_numpy():
    model = draw(sequential((5,), layers.Dense(6, "tanh"), layers.Dense(3)), 0)
    x = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
    graph = channel_graph(model)
    removal = Removal(graph, graph.removable()[[1, 4]])
    smaller = resized(removal)
    before = smaller.layers[1].get_weights()[0].astype(np.float64)
    repair(removal, smaller, [x[:25], x[25:]])
    hidden = np.delete(np.asarray(model.layers[0](x), np.float64), [1, 4], axis=1)
    target = np.asarray(model(x), np.float64)
    a = hidden - hidden.mean(axis=0)
    hessian = a.T @ a / 40
    ridge = DAMPING * np.diag(hessian).mean() * np.eye(4)
    expected = np.linalg.solve(
        hessian + ridge, a.T @ (target - target.mean(axis=0)) / 40 + ridge @ before
    )
    np.testing.assert_allclose(smaller.layers[1].kernel, expected, rtol=1e-4, atol=1e-5)
    bias = target.mean(axis=0) - hidden.mean(axis=0) @ expected
    np.testing.assert_allclose(smaller.layers[1].bias, bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        smaller.layers[0].kernel, np.delete(model.layers[0].get_weights()[0], [1, 4], axis=1)
    )


def test_statistics_are_those_of_the_smaller_model():
    x = images()
    model = draw(
        sequential(
            (8, 8, 3),
            layers.Conv2D(6, 3, activation="relu"),
            layers.Conv2D(5, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ),
        0,
    )
    smaller = prune_channels(model, x, channels=0.5, round_to=1)
    read = np.asarray(smaller.layers[1](smaller.layers[0](x)), np.float64)
    norm = smaller.layers[2]
    np.testing.assert_allclose(norm.moving_mean, read.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, read.var(axis=(0, 1, 2)), rtol=1e-3)


def apart(model, smaller, x):
    (expected,), (found,) = outputs_of(model, x), outputs_of(smaller, x)
    return float(np.mean((found - expected) ** 2) / np.var(expected))


@pytest.mark.parametrize("importance", ["activation", "reconstruction"])
def test_copies_of_channels_cost_nothing(importance):
    model = network()
    stem = model.get_layer("inner")
    kernel, bias = stem.get_weights()
    kernel[..., 8:], bias[8:] = 2 * kernel[..., :8], 2 * bias[:8]
    stem.set_weights([kernel, bias])
    smaller = prune_channels(
        model, images(), channels=0.5, importance=importance, filters="^inner$", round_to=1
    )
    without = prune_channels(
        model, channels=0.5, importance="random", filters="^inner$", round_to=1
    )
    assert apart(model, without, images(seed=1)) > 0.05
    if importance == "reconstruction":  # the others take over, whichever of a pair goes
        assert apart(model, smaller, images(seed=1)) < 0.01


@pytest.mark.long
def test_epochs_bring_the_outputs_closer():
    model, x = network(), images(64)
    options = {"flops": 0.5, "round_to": 1, "batch_size": 16, "verbose": 0, "refit": False}
    smaller = prune_channels(model, x, **options)
    taught = prune_channels(model, x, epochs=20, learning_rate=3e-3, **options)
    assert apart(model, taught, x) < 0.7 * apart(model, smaller, x)


def test_scores_of_ones_own_and_with_labels():
    model, x = network(), images()
    last = prune_channels(
        model,
        channels=0.5,
        importance=lambda _, group: np.arange(group.channels),
        filters="inner",
        round_to=1,
    )
    kernel = model.get_layer("inner").get_weights()[0]
    np.testing.assert_array_equal(last.get_layer("inner").kernel, kernel[..., 8:])
    labels = np.random.default_rng(0).integers(0, 4, 48)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    smaller = prune_channels(model, channels=0.5, importance="taylor", data=(x, labels), loss=loss)
    assert sizes(smaller)["inner"] == 8


def test_constants_go_into_the_biases():
    model = draw(sequential((3,), layers.Dense(4, "tanh"), layers.Dense(2)), 0)
    kernel = model.layers[0].get_weights()[0]
    kernel[:, 1] = 0
    model.layers[0].kernel.assign(kernel)
    smaller = prune_channels(
        model,
        channels=0.25,
        importance=lambda _, group: np.abs(np.arange(group.channels) - 1),
        round_to=1,
    )
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    np.testing.assert_allclose(outputs_of(smaller, x)[0], outputs_of(model, x)[0], atol=1e-6)


def test_channels_go_before_weights():
    model = network()
    mask = np.ones((3, 3, 16, 16), bool)
    mask[1] = False
    smaller = prune_channels(model, channels=0.5)
    path = smaller.get_layer("inner").kernel.path
    apply_masks(smaller, {path: mask[..., :8, :8]})
    assert get_masks(smaller)[path].sum() == 6 * 64
    apply_masks(model, {model.get_layer("inner").kernel.path: mask})
    with pytest.raises(ValueError, match=r"Prune channels first.*Received.*1 mask"):
        prune_channels(model, channels=0.5)


def test_half_precision_is_fitted_in_more():
    keras.config.set_dtype_policy("mixed_float16")
    model = network()
    smaller = prune_channels(model, images(), channels=0.5, round_to=1)
    assert smaller.get_layer("inner").compute_dtype == "float16"
    assert apart(model, smaller, images()) < 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of channels, ratio, flops and latency.*Received: none of them"),
        ({"ratio": 0.5, "flops": 0.5}, "Received: {'ratio': 0.5, 'flops': 0.5}"),
        ({"ratio": 1.0}, r"in \[0, 1\).*Received: ratio=1.0"),
        ({"ratio": 0.5, "importance": "size"}, "importance must be one of.*Received"),
        ({"ratio": 0.5, "importance": "activation"}, "pass inputs. Received: inputs=None"),
        ({"ratio": 0.5, "importance": "taylor"}, "needs labels.*Received: data=None"),
        ({"ratio": 0.5, "epochs": 2}, "pass inputs. Received"),
        ({"latency": 0.5}, "pass both. Received: latency=0.5, measure=None"),
        ({"ratio": 0.5, "round_to": 0}, "Received: round_to=0"),
        ({"ratio": 0.5, "filters": "nothing"}, "no channels that may be removed.*Received"),
        ({"ratio": 0.5, "allocation": "best"}, "allocation must be one of.*Received"),
        ({"ratio": 0.5, "importance": lambda m, g: [1.0]}, "a finite score for each.*Received"),
        ({"ratio": 0.5, "epochs": -1}, "Received: epochs=-1"),
        ({"ratio": 0.5, "learning_rate": "x"}, "Received: learning_rate='x'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        prune_channels(network(), **options)
