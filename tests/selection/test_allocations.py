"""How many entries each weight keeps: closed forms, exact totals, names of layers."""

from __future__ import annotations

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import warned
from helpers.small_classifiers import counts_of, data, kernels, mlp
from hypothesis import strategies as st
from keras import layers

from keras_ntt import (
    NeuralTangentTransfer,
    NTTSchedule,
    PolynomialDecay,
    get_masks,
    prune_at_init,
)
from keras_ntt.masks.policies import choose_weights
from keras_ntt.saliency.of_weights import OfWeights, magnitude
from keras_ntt.selection.allocation_names import ALLOCATIONS
from keras_ntt.selection.allocations import Shares, erdos_renyi
from keras_ntt.selection.compiled_masks import CompiledMasks
from keras_ntt.selection.counts import counts_by_threshold, round_to_total
from keras_ntt.selection.find_masks import Recipe

LENET_300_100 = [(784, 300), (300, 100), (100, 10)]


LENET_5 = [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]


@pytest.mark.parametrize(
    ("shapes", "density", "wanted"),
    [
        (LENET_300_100, 0.1, [0.07957, 0.23019, 1]),
        (LENET_300_100, 0.03, [0.02309, 0.06680, 0.55110]),
        (LENET_5, 0.03, [0.4168, 0.0215, 0.0218, 0.6858]),
    ],
)
def test_erk_densities(shapes, density, wanted):
    np.testing.assert_allclose(erdos_renyi(shapes, density), wanted, atol=6e-5)


def test_er_looks_at_channels_only():
    """For matrices it is ERK; a convolution counts as its 1 x 1 core."""
    matrices = [(20, 30), (30, 5)]
    assert erdos_renyi(matrices, 0.2, kernel=False) == erdos_renyi(matrices, 0.2)
    found = erdos_renyi([(3, 3, 10, 20), (20, 10)], 0.05, kernel=False)
    # The same odds, 30 / 200, for both: so the same density.
    np.testing.assert_allclose(found, [0.05, 0.05])


SHAPES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=6)


@hypothesis.given(SHAPES, st.floats(0.0, 1.0))
def test_erdos_renyi_meets_the_density(shapes, density):
    sizes = np.array([np.prod(s) for s in shapes], float)
    for kernel in (True, False):
        found = np.array(erdos_renyi(shapes, density, kernel=kernel))
        assert ((found >= -1e-12) & (found <= 1 + 1e-12)).all()
        np.testing.assert_allclose(found @ sizes, density * sizes.sum(), rtol=1e-9, atol=1e-9)


@hypothesis.given(SHAPES, st.floats(0.0, 0.999))
def test_counts_are_exact(shapes, sparsity):
    names = tuple(f"layer_{i}/kernel" for i in range(len(shapes)))
    for kind in ("er", "erk"):
        shares = Shares(names, tuple(map(tuple, shapes)), kind)
        found, size = shares.counts(sparsity), sum(shares.sizes)
        assert sum(found) == max(round(size * (1 - sparsity)), 1)
        assert all(0 <= c <= s for c, s in zip(found, shares.sizes, strict=True))
        if sum(found) >= len(found):
            assert min(found) >= 1


@hypothesis.given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 20)), min_size=1, max_size=5), st.data()
)
def test_rounding_to_a_total(parts, draw):
    sizes = [s for _, s in parts]
    wanted = [f * s for f, s in parts]
    total = draw.draw(st.integers(0, sum(sizes)))
    found = round_to_total(wanted, sizes, total)
    assert sum(found) == total
    assert all(0 <= c <= s for c, s in zip(found, sizes, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("saliency", ["random", "snip", "synflow", "grasp"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_any_score_with_any_allocation(saliency, allocation, sparsity):
    model = mlp()
    pruned = prune_at_init(
        model, sparsity=sparsity, saliency=saliency, allocation=allocation, data=data(), verbose=0
    )
    sizes = [48, 40, 15]
    found = counts_of(pruned)
    if allocation == "layerwise":
        assert found == [max(round(s * (1 - sparsity)), 1) for s in sizes]
    else:
        assert sum(found) == round(103 * (1 - sparsity))
    assert min(found) >= 1


def test_global_takes_the_largest_of_all():
    model = mlp()
    pruned = prune_at_init(model, sparsity=0.7, saliency="magnitude")
    values = np.concatenate([np.abs(w).ravel() for w in kernels(model)])
    threshold = np.sort(values)[-31]
    for mask, weight in zip(get_masks(pruned).values(), kernels(model), strict=True):
        np.testing.assert_array_equal(mask, np.abs(weight) >= threshold)


@pytest.mark.long
def test_plsr_takes_the_ratio_of_the_score_and_the_entries_by_magnitude():
    model = mlp()
    by_score = prune_at_init(model, sparsity=0.7, saliency="synflow", verbose=0)
    pruned = prune_at_init(model, sparsity=0.7, saliency="synflow", allocation="plsr", verbose=0)
    assert counts_of(pruned) == counts_of(by_score)
    for mask, weight in zip(get_masks(pruned).values(), kernels(model), strict=True):
        threshold = np.sort(np.abs(weight).ravel())[-mask.sum()]
        np.testing.assert_array_equal(mask, np.abs(weight) >= threshold)


@pytest.mark.parametrize(
    ("allocation", "wanted"),
    [
        ({"first": 0.5}, [24, 8, 3]),
        ({"^first/": 0.5, "second|third": 0.0}, [24, 40, 15]),
        ({"first/kernel": 0.25, "ir": 0.5}, [36, 8, 8]),
        ({".*": 0.75, "second": 0.5}, [12, 20, 4]),
        ({"second": 1.0}, [10, 0, 3]),
    ],
)
def test_sparsities_of_single_layers(allocation, wanted):
    x = layers.Input((6,))
    y = layers.Dense(5, name="second")(layers.Dense(8, name="first")(x))
    model = keras.Model(x, layers.Dense(3, name="third")(y))
    assert next(v.path for v in choose_weights(model).weights) == "first/kernel"
    pruned = prune_at_init(model, sparsity=0.8, saliency="random", allocation=allocation)
    assert counts_of(pruned) == wanted


def many_blocks():
    """Return 12 layers of 8 entries, of which the names of some begin with those of others."""
    return keras.Sequential(
        [
            keras.Input((1,)),
            *(layers.Dense(8 if i % 2 == 0 else 1, name=f"block_{i}") for i in range(12)),
        ]
    )


@pytest.mark.parametrize(
    ("allocation", "dense"),
    [
        ({"block_1": 0.0}, {1}),  # a name: not block_10 and block_11
        ({"block_1/kernel": 0.0}, {1}),
        ({"block_1$": 0.0}, {1}),  # an expression for names, as filters take it
        ({"block_1[01]$": 0.0}, {10, 11}),
        ({"^block_1": 0.0}, {1, 10, 11}),  # and one for paths
        ({"block_1.*": 0.0, "block_10": 0.5}, {1, 11}),
        ({"block_1": 0.5, "block_1.": 0.0}, {10, 11}),
    ],
)
@pytest.mark.few(3)
def test_a_name_means_one_layer_and_an_expression_all_that_have_it(allocation, dense):
    pruned = prune_at_init(many_blocks(), sparsity=0.5, saliency="random", allocation=allocation)
    assert counts_of(pruned) == [8 if i in dense else 4 for i in range(12)]


def test_the_name_of_a_layer_that_is_not_pruned_is_no_expression():
    with pytest.raises(ValueError, match=r"names layers that are not pruned.*\['block_1'\]"):
        prune_at_init(
            many_blocks(),
            sparsity=0.5,
            saliency="random",
            allocation={"block_1": 0.0},
            filters="block_1[01]",
        )


def test_the_name_of_a_layer_of_layers_means_all_in_it():
    attention = [layers.MultiHeadAttention(2, 4, name=name) for name in ("mix", "mix_1")]
    x = keras.Input((3, 8))
    y = attention[1](attention[0](x, x), x)
    pruned = prune_at_init(
        keras.Model(x, y), sparsity=0.5, saliency="random", allocation={"mix": 0.0, "query": 0.75}
    )
    # Query, key, value and output: 8 x 2 x 4 entries each; the inner name goes before the outer.
    assert counts_of(pruned) == [16, 64, 64, 64, 16, 32, 32, 32]


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        ("other", r"allocation must be one of 'layerwise', 'global', 'er', 'erk', 'plsr', or map"),
        (None, "allocation must be one of.*Received: allocation=None"),
        ({"nowhere": 0.5}, r"names layers that are not pruned.*\['nowhere'\]"),
        ({"dense": 1.5}, r"sparsities in\s+\[0, 1\]"),
        ({"dense": "much"}, r"sparsities in\s+\[0, 1\]"),
        ({"(": 0.5}, "neither a layer's name nor a regular expression"),
        ({3: 0.5}, "must map names"),
    ],
)
def test_rejects_unknown_allocations(allocation, message):
    with pytest.raises(ValueError, match=message):
        prune_at_init(mlp(), sparsity=0.5, saliency="random", allocation=allocation)


@pytest.mark.parametrize("allocation", ["global", "plsr", "er", "erk"])
def test_too_few_entries_for_the_weights(allocation):
    """Two of 103 entries for three weights."""
    options = {"sparsity": 0.985, "saliency": "random", "allocation": allocation}
    with pytest.raises(ValueError, match="fewer entries to keep than weights to prune"):
        prune_at_init(mlp(), **options)
    with warned("would remove all of.*allow_empty_layers=True"):
        pruned = prune_at_init(mlp(), **options, allow_empty_layers=True)
    assert sum(counts_of(pruned)) == 2


@pytest.mark.parametrize("allocation", ["global", "plsr", "er", "erk"])
@pytest.mark.parametrize("saliency", ["magnitude", "synflow"])
@pytest.mark.parametrize("schedule", [0.985, NTTSchedule(0.985), PolynomialDecay(0.5, 0.985, 0, 9)])
@pytest.mark.few(8)
def test_too_few_entries_in_a_transfer(allocation, saliency, schedule):
    model = mlp()
    with pytest.raises(ValueError, match=r"fewer entries to keep.*Received: sparsity=0\.985"):
        NeuralTangentTransfer(
            model, pruning_schedule=schedule, saliency=saliency, allocation=allocation
        )
    assert all(kernel.all() for kernel in kernels(model))


def test_one_entry_for_each_weight_is_enough():
    """Three of 103 entries for three weights."""
    for allocation in ("global", "er", "erk"):
        transfer = NeuralTangentTransfer(mlp(), pruning_schedule=0.971, allocation=allocation)
        assert [int(m.sum()) for m in transfer.masks.values()] == [1, 1, 1]


def test_a_threshold_leaves_each_weight_its_least():
    scores = [np.array([9.0, 8.0, 7.0, 6.0]), np.array([[1.0, 3.0], [2.0, 0.0]])]
    assert counts_by_threshold(scores, 4, [0, 0]) == [4, 0]
    assert counts_by_threshold(scores, 4, [1, 1]) == [3, 1]
    assert counts_by_threshold(scores, 4, [0, 3]) == [1, 3]
    assert counts_by_threshold([np.ones(3), np.ones(3)], 4, [0, 0]) == [3, 1]


def test_one_threshold_leaves_every_weight_an_entry():
    weights = [tf.constant([5.0, 4.0, 3.0]), tf.constant([[0.1, 0.3], [0.2, 0.0]])]

    def masks_by(count_rule):
        shares = Shares(("a", "b"), ((3,), (2, 2)), "global", count_rule)
        rule = CompiledMasks(Recipe(OfWeights(magnitude), shares), lambda s: [shares.total(s)])
        return [m.numpy().tolist() for m in rule.choose(weights, rule.counts(4 / 7))]

    assert masks_by("nearest") == [[True, True, False], [[False, True], [False, False]]]
    assert masks_by("original")[1] == [[False, False], [False, False]]
