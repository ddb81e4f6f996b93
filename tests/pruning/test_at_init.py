"""How masks come of scores: allocations, exact counts, rounds, drawing, and first masks of NTT."""

from __future__ import annotations

import functools
import itertools

import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.expect import warned
from hypothesis import strategies as st
from keras import layers

import keras_ntt
from keras_ntt import (
    NeuralTangentTransfer,
    NTTSchedule,
    PolynomialDecay,
    get_masks,
    prune_at_init,
    prune_neural_tangent,
)
from keras_ntt.masks.policies import choose_weights
from keras_ntt.saliency import NTKSAP, SynFlow
from keras_ntt.saliency.names import SALIENCIES
from keras_ntt.saliency.of_weights import OfWeights, magnitude
from keras_ntt.selection.allocations import Shares, erdos_renyi
from keras_ntt.selection.choices import ALLOCATIONS
from keras_ntt.selection.compiled_masks import CompiledMasks
from keras_ntt.selection.counts import counts_by_threshold, round_to_total
from keras_ntt.selection.find_masks import Recipe, find_masks, recipe_of, subject_of
from keras_ntt.selection.patterns import whole_filters

LENET_300_100 = [(784, 300), (300, 100), (100, 10)]
LENET_5 = [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]


def mlp(sizes=(6, 8, 5, 3), **options):
    return keras.Sequential(
        [keras.Input(sizes[:1]), *(layers.Dense(n, **options) for n in sizes[1:])]
    )


def data(n=12, size=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, size)).astype("float32"), rng.integers(0, classes, n)


def counts_of(model):
    return [int(m.sum()) for m in get_masks(model).values()]


def kernels(model):
    return [keras.ops.convert_to_numpy(v) for v in choose_weights(model).weights]


# --- allocations ------------------------------------------------------------------------------


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
def test_allocations_that_are_none(allocation, message):
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


# --- rounds, drawing, patterns -----------------------------------------------------------------


class Recorder(SynFlow):
    """Notes the masks of each round."""

    def __init__(self):
        super().__init__(rounds=4)
        self.kept = []

    def __call__(self, subject):
        self.kept.append([np.asarray(m).astype(bool) for m in subject.masks])
        return super().__call__(subject)


@pytest.mark.parametrize("allocation", ["global", "layerwise", "erk"])
def test_rounds_are_exponential_and_nested(allocation):
    model, recorder = mlp(), Recorder()
    pruned = prune_at_init(model, sparsity=0.9, saliency=recorder, allocation=allocation, verbose=0)
    history = [*recorder.kept, list(get_masks(pruned).values())]
    totals = [sum(int(m.sum()) for m in masks) for masks in history]
    assert len(history) == 5
    if allocation == "global":
        assert totals == [103, *(int(np.ceil(103 * (10 / 103) ** (k / 4))) for k in (1, 2, 3)), 10]
    for before, after in itertools.pairwise(history):
        for a, b in zip(before, after, strict=True):
            assert not (b & ~a).any()
            assert b.sum() < a.sum() or b.sum() == a.sum() == 1 or allocation != "layerwise"


def test_one_round_of_synflow_is_the_top_of_its_scores():
    model = mlp((6, 6, 6))
    scores = keras_ntt.saliency_scores(model, "synflow")
    pruned = prune_at_init(model, sparsity=0.5, saliency="synflow", rounds=1)
    chosen = np.concatenate([m.ravel() for m in get_masks(pruned).values()])
    values = np.concatenate([s.ravel() for s in scores.values()])
    assert values[chosen].min() > values[~chosen].max()


def test_drawing_by_score_has_the_right_probabilities():
    """One entry of four is drawn, with probabilities 1, 2, 3, 4 tenths."""
    model = mlp((2, 2), use_bias=False)
    model.set_weights([np.array([[1, -2], [3, 4]], "float32")])
    counts = np.zeros((2, 2))
    trials = 300
    for seed in range(trials):
        subject = subject_of(model, model.weights, None, seed=seed)
        recipe = recipe_of(
            model, model.weights, keras_ntt.saliency.as_saliency("magnitude"), randomize=True
        )
        (mask,) = find_masks(subject, recipe, 0.75)
        assert mask.sum() == 1
        counts += mask
    wanted = trials * np.array([[0.1, 0.2], [0.3, 0.4]])
    assert ((counts - wanted) ** 2 / wanted).sum() < 16.3  # one in a thousand of 3 degrees


def test_drawing_takes_scores_of_zero_last():
    model = mlp((4, 4), use_bias=False)
    kernel = np.zeros((4, 4), "float32")
    kernel[1], kernel[3, :2] = 1e-30, 5
    model.set_weights([kernel])
    for seed in range(5):
        pruned = prune_at_init(model, sparsity=0.5, saliency="magnitude", randomize=True, seed=seed)
        (mask,) = get_masks(pruned).values()
        assert mask.sum() == 8
        assert mask[kernel > 0].all()


def test_drawing_depends_on_the_seed_alone():
    model = mlp((20, 20))
    masks = [
        next(
            iter(
                get_masks(
                    prune_at_init(
                        model, sparsity=0.5, saliency="magnitude", randomize=True, seed=seed
                    )
                ).values()
            )
        )
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def columns(scores, sparsity, *, axis):
    """Keep whole columns (or rows) of a matrix by the sum of their scores."""
    sums = tf.reduce_sum(scores, axis=axis)
    count = round(sums.shape[0] * (1 - sparsity))
    best = tf.reduce_max(tf.one_hot(tf.argsort(-sums)[:count], sums.shape[0]), axis=0)
    return tf.broadcast_to(tf.expand_dims(best, axis), scores.shape)


def test_rounds_without_end_are_refused():
    with pytest.raises(ValueError, match=r"rounds must be at most.*Received: rounds=2147483648"):
        prune_at_init(mlp(), sparsity=0.5, saliency="random", rounds=2**31)


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_pattern_of_ones_own(rounds):
    model = mlp((6, 8, 4))
    pattern = functools.partial(columns, axis=0)
    pruned = prune_at_init(
        model,
        sparsity=0.5,
        saliency="logit_snip",
        data=data()[0],
        allocation="layerwise",
        pattern=pattern,
        rounds=rounds,
        verbose=0,
    )
    scores = keras_ntt.saliency_scores(model, "logit_snip", data=data()[0])
    for mask, score in zip(get_masks(pruned).values(), scores.values(), strict=True):
        whole = mask.all(axis=0)
        assert (whole == mask.any(axis=0)).all()
        assert whole.sum() == mask.shape[1] // 2
        if rounds == 1:
            sums = score.sum(axis=0)
            assert sums[whole].min() > sums[~whole].max()


def test_whole_filters():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    scores = keras_ntt.saliency_scores(model, "magnitude", filters="conv")
    pruned = prune_at_init(
        model,
        sparsity=0.5,
        saliency="magnitude",
        allocation="layerwise",
        pattern=whole_filters,
        filters="conv",
    )
    masks = get_masks(pruned)
    assert len(masks) == 2
    for mask, score in zip(masks.values(), scores.values(), strict=True):
        kept = mask.all(axis=(0, 1, 2))
        assert (kept == mask.any(axis=(0, 1, 2))).all()
        assert kept.sum() == mask.shape[-1] // 2
        sums = score.sum(axis=(0, 1, 2))
        assert sums[kept].min() > sums[~kept].max()


def test_whole_filters_of_a_vector():
    with pytest.raises(ValueError, match="Whole filters: only kernels of at least 2 axes"):
        whole_filters(tf.ones([3]), 0.5)


# --- the model that comes back -----------------------------------------------------------------


def test_the_copy_is_sparse_and_trains_sparse():
    model, (x, y) = mlp(), data()
    before = model.get_weights()
    sparse = prune_at_init(model, sparsity=0.8, saliency="snip", data=(x, y), allocation="erk")
    for new, old, mask in zip(
        kernels(sparse), kernels(model), get_masks(sparse).values(), strict=True
    ):
        np.testing.assert_array_equal(new, old * mask)
    sparse.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    sparse.fit(x, y, epochs=2, verbose=0)
    assert keras_ntt.sparsity_report(sparse).sparsity >= 0.79
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_filters_leave_layers_dense():
    model = mlp()
    pruned = prune_at_init(
        model, sparsity=0.5, saliency="random", filters=lambda layer: layer is not model.layers[0]
    )
    assert len(get_masks(pruned)) == 2
    assert sum(counts_of(pruned)) == round(55 / 2)


def test_the_progress_is_shown(capsys):
    prune_at_init(mlp(), sparsity=0.5, saliency="synflow", rounds=3, verbose=1)
    assert "3/3" in capsys.readouterr().out
    prune_at_init(mlp(), sparsity=0.5, saliency="synflow", rounds=3, verbose=0)
    prune_at_init(mlp(), sparsity=0.5, saliency="magnitude", verbose=1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is the fraction of zeros"),
        ({"rounds": 0}, "rounds must be a positive integer"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"seed": 0.5}, "seed must be an integer of at least 0"),
        ({"pattern": "4:2"}, "pattern must be None, .n:m. with n < m"),
        ({"count_rule": "other"}, "count_rule must be one of"),
        ({"batch_size": 0, "data": data()}, "batch_size must be a positive integer"),
        ({"saliency": lambda weights: weights[:1]}, "A saliency must return"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        prune_at_init(mlp(), **{"sparsity": 0.5, "saliency": "random", **options})


def test_a_model_that_is_pruned_already():
    pruned = prune_at_init(mlp(), sparsity=0.5, saliency="random")
    with pytest.raises(ValueError, match="pruned already"):
        prune_at_init(pruned, sparsity=0.5, saliency="random")


# --- the first masks of a transfer --------------------------------------------------------------


@pytest.mark.parametrize(
    ("saliency", "allocation"),
    [
        *((name, "global") for name in SALIENCIES if name not in ("magnitude", "ntk_sap")),
        *(("grasp", kind) for kind in (*ALLOCATIONS, {".*": 0.6})),
        ("magnitude", "plsr"),
        (NTKSAP(rounds=2, batches=2), "erk"),
    ],
)
def test_a_transfer_begins_with_the_masks_of_pruning_at_init(saliency, allocation):
    model = mlp()
    wanted = prune_at_init(
        model,
        sparsity=0.8,
        saliency=saliency,
        data=data(),
        allocation=allocation,
        seed=3,
        verbose=0,
    )
    transfer = NeuralTangentTransfer(
        model,
        pruning_schedule=0.8,
        saliency=saliency,
        saliency_data=data(),
        allocation=allocation,
        seed=3,
    )
    for a, b in zip(transfer.masks.values(), get_masks(wanted).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("allocation", [*ALLOCATIONS, {".*": 0.6}])
def test_refreshed_masks_are_by_latent_magnitude(allocation):
    """After steps with refreshes the masks are the largest latent weights, in the same shares."""
    model = mlp((6, 12, 10, 3))
    transfer = NeuralTangentTransfer(
        model,
        pruning_schedule=lambda step: (True, 0.8),
        saliency="logit_snip",
        saliency_data=data(size=6)[0],
        allocation=allocation,
        seed=0,
    )
    first = [int(m.sum()) for m in transfer.masks.values()]
    transfer.compile(keras.optimizers.Adam(0.05))
    transfer.fit(data(n=64)[0], epochs=2, batch_size=16, verbose=0)
    latent = [np.abs(keras.ops.convert_to_numpy(v)) for v in transfer._weights.latent]
    masks = list(transfer.masks.values())
    if allocation == "global":
        chosen = np.concatenate([m.ravel() for m in masks])
        values = np.concatenate([v.ravel() for v in latent])
        assert values[chosen].min() >= values[~chosen].max()
        assert chosen.sum() == sum(first)
    else:
        assert [int(m.sum()) for m in masks] == first
        for mask, value in zip(masks, latent, strict=True):
            assert value[mask].min() >= value[~mask].max(initial=0)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_whole_job_takes_its_inputs_for_the_score(labelled):
    x, y = data(n=32)
    inputs = tf.data.Dataset.from_tensor_slices((x, y)).batch(8) if labelled else x
    sparse = prune_neural_tangent(
        mlp(),
        inputs,
        sparsity=0.8,
        epochs=1,
        saliency="snip" if labelled else "logit_snip",
        allocation="erk",
        verbose=0,
    )
    assert sum(counts_of(sparse)) == round(103 * 0.2)


def test_a_score_without_what_it_needs():
    model = mlp()
    with pytest.raises(ValueError, match=r"pass saliency_data=\(x, y\) with labels"):
        NeuralTangentTransfer(model, pruning_schedule=0.5, saliency="snip")
    with pytest.raises(ValueError, match="needs labels: pass saliency_data="):
        prune_neural_tangent(model, data()[0], sparsity=0.5, epochs=1, saliency="grasp")
    with pytest.raises(ValueError, match="this schedule begins dense"):
        NeuralTangentTransfer(
            model, pruning_schedule=lambda step: (step > 3, 0.5), saliency="synflow"
        )
    with pytest.raises(ValueError, match="begins dense"):
        NeuralTangentTransfer(
            model, pruning_schedule=lambda step: (step > 3, 0.5), allocation="plsr"
        )
    assert get_masks(model) == {}


def test_generators_are_not_read_for_a_score():
    batches = iter([data(n=8)[0]] * 2)
    sparse = prune_neural_tangent(
        mlp(), batches, sparsity=0.5, epochs=1, steps_per_epoch=2, saliency="synflow", verbose=0
    )
    assert sum(counts_of(sparse)) == sum(max(round(s / 2), 1) for s in (48, 40, 15))


def test_one_threshold_leaves_every_weight_an_entry():
    weights = [tf.constant([5.0, 4.0, 3.0]), tf.constant([[0.1, 0.3], [0.2, 0.0]])]

    def masks_by(count_rule):
        shares = Shares(("a", "b"), ((3,), (2, 2)), "global", count_rule)
        rule = CompiledMasks(Recipe(OfWeights(magnitude), shares), lambda s: [shares.total(s)])
        return [m.numpy().tolist() for m in rule.choose(weights, rule.counts(4 / 7))]

    assert masks_by("nearest") == [[True, True, False], [[False, True], [False, False]]]
    assert masks_by("original")[1] == [[False, False], [False, False]]
