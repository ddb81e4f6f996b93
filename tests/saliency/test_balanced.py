"""Balanced random masks: degrees by definition, units left out, shares by deviation."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import OwnCode, sequential
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import keras_ntt
from keras_ntt.saliency import Balanced
from keras_ntt.saliency.balanced import degrees
from keras_ntt.selection.allocations import erdos_renyi


def masks_of(model, sparsity, *, saliency="balanced", allocation="erk", data=None, seed=0):
    pruned = keras_ntt.prune_at_init(
        model, sparsity=sparsity, saliency=saliency, allocation=allocation, data=data, seed=seed
    )
    return list(keras_ntt.get_masks(pruned).values())


def mlp():
    return sequential((40,), layers.Dense(60, "relu"), layers.Dense(30, "relu"), layers.Dense(5))


def spread(numbers):
    return int(max(numbers) - min(numbers))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=12),
    st.integers(1, 9),
    st.floats(0, 1),
    st.integers(0, 2**16),
)
def test_degrees_have_the_sum_and_keep_the_limit(share, most, fraction, seed):
    total = int(fraction * most * len(share))
    found = degrees(np.array(share), total, most, np.random.default_rng(seed))
    assert found.sum() == total
    assert found.min() >= 0
    assert found.max() <= most


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 60), st.integers(0, 2**16))
def test_degrees_are_even_alone_and_by_group(groups, size, total, seed):
    group = np.arange(groups * size) % groups
    found = degrees(np.ones(groups * size), total, 100, np.random.default_rng(seed), group)
    assert spread(found) <= 1
    assert spread(np.bincount(group, found)) <= 1


def test_degrees_are_in_proportion_on_average():
    share = np.array([0.5, 1.0, 2.5])
    rng = np.random.default_rng(0)
    mean = np.mean([degrees(share, 6, 10, rng) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(mean, share * 1.5, atol=0.03)


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
def test_every_output_and_input_keeps_as_many_entries(sparsity):
    masks = masks_of(mlp(), sparsity, saliency=Balanced(min_fan_out=0))
    shapes = [m.shape for m in masks]
    wanted = [d * m.size for d, m in zip(erdos_renyi(shapes, 1 - sparsity), masks, strict=True)]
    for mask, count in zip(masks, wanted, strict=True):
        assert abs(mask.sum() - count) < 1
        assert spread(mask.sum(0)) <= 1
        assert spread(mask.sum(1)) <= 2
    assert sum(m.sum() for m in masks) == round((1 - sparsity) * sum(m.size for m in masks))


def test_units_that_few_could_read_are_left_out():
    model = mlp()
    first, second, third = masks_of(model, 0.96, saliency=Balanced(min_fan_out=4))
    for writes, reads in ((first, second), (second, third)):
        connected = writes.any(0)
        np.testing.assert_array_equal(connected, reads.any(1))
        assert connected.sum() == reads.sum() // 4 < connected.size
        assert spread(writes.sum(0)[connected]) <= 1
        assert spread(reads.sum(1)[connected]) <= 1
    assert third.any(0).all()
    pruned = keras_ntt.prune_at_init(
        model, sparsity=0.96, saliency=Balanced(min_fan_out=4), allocation="erk"
    )
    smaller, _ = keras_ntt.remove_dead_units(keras_ntt.strip_pruning(pruned))
    assert [w.shape for w in smaller.weights if len(w.shape) > 1] == [
        (40, second.any(1).sum()),
        (second.any(1).sum(), third.any(1).sum()),
        (third.any(1).sum(), 5),
    ]


def test_a_uniform_draw_leaves_units_half_connected_that_this_one_does_not():
    def half_connected(masks):
        return sum((a.any(0) != b.any(1)).sum() for a, b in itertools.pairwise(masks))

    assert half_connected(masks_of(mlp(), 0.96, saliency="random")) > 10
    assert half_connected(masks_of(mlp(), 0.96)) == 0


def test_units_of_convolutions_that_a_dense_layer_reads_through_flatten():
    model = sequential(
        (8, 8, 2),
        layers.Conv2D(12, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(4),
    )
    one, two, three = masks_of(model, 0.95, saliency=Balanced(min_fan_out=9))
    assert 0 < one.any((0, 1, 2)).sum() < 12
    np.testing.assert_array_equal(one.any((0, 1, 2)), two.any((0, 1, 3)))
    by_unit = three.reshape(-1, 16, 4).sum((0, 2))
    assert spread(by_unit[by_unit > 0]) <= 2
    by_unit = by_unit > 0
    assert 0 < by_unit.sum() < 16
    np.testing.assert_array_equal(two.any((0, 1, 2)), by_unit)
    channels = two.sum((0, 1, 3))
    assert spread(channels[channels > 0]) <= 2


@pytest.mark.parametrize("share", [0.6, 0.95])
def test_depthwise_filters_of_units_that_are_left_out_keep_no_entries(share):
    model = sequential(
        (8, 8, 6),
        layers.Conv2D(20, 1, activation="relu"),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3, activation="relu"),
        layers.Conv2D(30, 1),
        layers.Flatten(),
        layers.Dense(3),
    )
    shares = {model.layers[2].name: share, ".*": 0.9}
    pruned = keras_ntt.prune_at_init(
        model,
        sparsity=0.9,
        saliency="balanced",
        allocation=shares,
        pruning_policy=keras_ntt.KernelPolicy(depthwise=True),
    )
    one, depthwise, two, _ = keras_ntt.get_masks(pruned).values()
    connected = one.any((0, 1, 2))
    assert depthwise.sum() == round((1 - share) * 180)
    assert connected.sum() == max(60 // 6, -(-depthwise.sum() // 9)) < 20
    np.testing.assert_array_equal(connected, two.any((0, 1, 3)))
    assert not depthwise[..., ~connected, :].any()
    assert spread(depthwise.sum((0, 1, 3))[connected]) <= 1


def test_units_stay_where_a_weight_needs_the_room():
    model = mlp()
    shares = {model.layers[0].name: 0.5, model.layers[1].name: 0.99, model.layers[2].name: 0.0}
    first, second, third = masks_of(model, 0.5, allocation=shares)
    assert [m.sum() for m in (first, second, third)] == [1200, 18, 150]
    assert first.any(0).sum() == 30  # of 60; 18 entries alone would be read from 3
    assert second.any(0).sum() == 18  # as many as there are entries
    assert third.all()


def test_inputs_are_connected_by_their_deviation():
    rng = np.random.default_rng(0)
    deviation = np.repeat([0.0, 1.0, 3.0], [10, 20, 10])
    x = (5 + rng.normal(size=(4000, 40)) * deviation).astype("float32")
    first, second, _ = masks_of(mlp(), 0.9, saliency=Balanced(min_fan_out=0), data=x)
    rows = first.sum(1)
    assert rows[:10].sum() == 0
    assert spread(rows[10:30]) <= 2
    assert rows[30:].mean() / rows[10:30].mean() == pytest.approx(3, rel=0.1)
    assert spread(first.sum(0)) <= 1
    assert spread(second.sum(1)) <= 1


def test_constant_inputs_say_nothing():
    x = np.full((100_000, 40), 1 / 3, "float32") * np.arange(1, 41, dtype="float32")
    first, _, _ = masks_of(mlp(), 0.9, data=x)
    assert spread(first.sum(1)) <= 1


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_channels_of_images_are_connected_by_their_deviation(data_format):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 6, 6, 3)) * [0.0, 1.0, 2.0]).astype("float32")
    shape = (6, 6, 3)
    if data_format == "channels_first":
        x, shape = np.moveaxis(x, -1, 1), (3, 6, 6)
    model = sequential(
        shape,
        layers.Rescaling(0.5),
        layers.Conv2D(16, 3, data_format=data_format),
        *(layers.Flatten(), layers.Dense(3)),
    )
    kernel, _ = masks_of(model, 0.8, data=x)
    zero, one, two = kernel.sum((0, 1, 3))
    assert zero == 0
    assert two / one == pytest.approx(2, rel=0.1)


def test_batches_make_no_difference():
    x = np.random.default_rng(0).normal(size=(30, 40)).astype("float32") * np.arange(40)
    batches = tf.data.Dataset.from_tensor_slices(x).batch(7)
    whole = masks_of(mlp(), 0.9, data=x)
    for a, b in zip(whole, masks_of(mlp(), 0.9, data=batches), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (whole[0] != masks_of(mlp(), 0.9)[0]).any()


def test_drawing_by_score_takes_the_same_entries():
    options = {"sparsity": 0.9, "saliency": "balanced", "allocation": "erk"}
    taken, drawn = (
        keras_ntt.get_masks(keras_ntt.prune_at_init(mlp(), randomize=r, **options)).values()
        for r in (False, True)
    )
    for a, b in zip(taken, drawn, strict=True):
        np.testing.assert_array_equal(a, b)


def test_values_make_no_difference_and_the_seed_does():
    model = mlp()
    first = masks_of(model, 0.9)
    model.set_weights([w * 0 + (w.ndim > 1) for w in model.get_weights()])  # biases stay zero
    for a, b, c in zip(first, masks_of(model, 0.9), masks_of(model, 0.9, seed=1), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def half_constant():
    x = np.random.default_rng(0).normal(size=(32, 40)).astype("float32")
    x[:, :20] = 0.5
    return x


def endless(x):
    return x.repeat(), {"steps_per_epoch": 2}


READABLE = {
    "array": lambda x: (x, {}),
    "data set": lambda x: (tf.data.Dataset.from_tensor_slices(x).batch(16), {}),
    "unknown length": lambda x: (
        tf.data.Dataset.from_tensor_slices(x).batch(16).filter(lambda batch: True),
        {},
    ),
    "endless": lambda x: endless(tf.data.Dataset.from_tensor_slices(x).batch(16)),
    "endless, of unknown length": lambda x: endless(
        tf.data.Dataset.from_tensor_slices(x).batch(16).filter(lambda batch: True)
    ),
}


def transferred(inputs, **options):
    pruned = keras_ntt.prune_neural_tangent(
        mlp(),
        inputs,
        sparsity=keras_ntt.NTTSchedule(0.8, frequency=None),
        saliency="balanced",
        epochs=1,
        seed=0,
        verbose=0,
        **options,
    )
    return next(iter(keras_ntt.get_masks(pruned).values()))


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
@pytest.mark.parametrize("name", READABLE)
@pytest.mark.few(1)
def test_a_transfer_shows_its_inputs_to_the_score(name):
    inputs, options = READABLE[name](half_constant())
    mask = transferred(inputs, **options)
    assert not mask[:20].any()
    assert mask[20:].any()


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.long
def test_inputs_that_can_be_read_once_are_told_of():
    x = half_constant()
    with pytest.warns(UserWarning, match="Balanced counts all inputs alike.*of type generator"):
        mask = transferred(batch for batch in np.split(x, 2))
    assert mask[:20].any()
    mask = transferred((batch for batch in np.split(x, 2)), saliency_data=x)
    assert not mask[:20].any()


def test_depthwise_filters_keep_as_many_taps():
    model = sequential(
        (8, 8, 6), layers.DepthwiseConv2D(3, depth_multiplier=2), layers.Flatten(), layers.Dense(2)
    )
    pruned = keras_ntt.prune_at_init(
        model,
        sparsity=0.5,
        saliency="balanced",
        allocation="layerwise",
        pruning_policy=keras_ntt.KernelPolicy(depthwise=True),
    )
    depthwise = next(iter(keras_ntt.get_masks(pruned).values()))
    assert depthwise.shape == (3, 3, 6, 2)
    assert set(depthwise.sum((0, 1)).ravel()) == {4, 5}


def heads():
    x = keras.Input((7, 12))
    return keras.Model(x, layers.MultiHeadAttention(3, 5)(x, x))


def upsampling():
    return sequential((4, 4, 6), layers.Conv2DTranspose(9, 3))


@pytest.mark.parametrize(
    ("model", "outputs"),
    [(heads, [(1, 2), (1, 2), (1, 2), (2,)]), (upsampling, [(2,)])],
)
@pytest.mark.parametrize("allocation", ["erk", "global"])
def test_outputs_of_other_kernels_keep_as_many_entries(model, outputs, allocation):
    masks = masks_of(model(), 0.7, allocation=allocation)
    assert len(masks) == len(outputs)
    for mask, axes in zip(masks, outputs, strict=True):
        inputs = tuple(axis for axis in range(mask.ndim) if axis not in axes)
        assert spread(mask.sum(inputs).ravel()) <= 1


def test_with_one_threshold_the_outputs_are_balanced():
    for mask in masks_of(mlp(), 0.8, allocation="global"):
        assert spread(mask.sum(0)) <= 1
        assert 0.1 < mask.mean() < 0.3


def test_models_with_code_of_their_own_keep_all_units():
    model = OwnCode()
    x = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    model(x)
    for mask in masks_of(model, 0.7, data=x):
        assert spread(mask.sum(0)) <= 1


@pytest.mark.parametrize("frequency", [None, 1])
@pytest.mark.few(1)
def test_a_transfer_that_holds_them(frequency):
    x = np.random.default_rng(0).normal(size=(64, 40)).astype("float32")
    model = mlp()
    wanted = masks_of(model, 0.9, data=x)
    before = model.get_weights()
    ntt = keras_ntt.NeuralTangentTransfer(
        model,
        pruning_schedule=keras_ntt.NTTSchedule(0.9, frequency=frequency),
        allocation="erk",
        saliency="balanced",
        saliency_data=x,
        seed=0,
    )
    ntt.compile(keras.optimizers.Adam(1e-3))
    ntt.fit(x, batch_size=16, epochs=2, verbose=0)
    pairs = zip(wanted, keras_ntt.get_masks(model).values(), strict=True)
    assert all((a == b).all() for a, b in pairs) == (frequency is None)
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("value", [-1, 1.5, "six", None])
def test_a_fan_out_that_is_none(value):
    with pytest.raises(ValueError, match=r"min_fan_out must be a whole number.*Received: min_fan"):
        Balanced(min_fan_out=value)
