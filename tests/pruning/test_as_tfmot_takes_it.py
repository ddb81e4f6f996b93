"""What tfmot's users give to prune_low_magnitude: unbuilt models, any layer, a cell run twice."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import keras_ntt
from keras_ntt import ConstantSparsity, get_masks, is_pruned_m_by_n, prune_low_magnitude

NOW = ConstantSparsity(0.5, 1, frequency=1)


def unbuilt():
    inner = keras.Sequential([layers.Dense(6, "relu"), layers.Dropout(0.1)])
    return keras.Sequential([inner, layers.BatchNormalization(), layers.Dense(4)])


@pytest.mark.parametrize("way", ["build", "call", "fit", "add"])
@pytest.mark.few(2)
def test_a_sequential_that_is_not_built_is_pruned_when_it_is(rng, way):
    model = prune_low_magnitude(unbuilt(), NOW)
    x, y = rng.normal(size=(8, 6)).astype("float32"), rng.normal(size=(8, 4)).astype("float32")
    if way == "build":
        model.build((None, 6))
    elif way == "call":
        model(x)
    elif way == "add":
        model = keras.Sequential([keras.Input((6,)), model])
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0)
    masks = get_masks(model)
    assert [int(mask.sum()) for mask in masks.values()] == [18, 12]
    for weight in model.weights:
        if weight.path in masks:
            assert not np.asarray(weight)[~masks[weight.path]].any()


def test_filters_and_policies_choose_in_a_model_that_is_not_built():
    model = unbuilt()
    prune_low_magnitude(model, NOW, filters=model.layers[-1].name)
    model.build((None, 6))
    assert [mask.shape for mask in get_masks(model).values()] == [(6, 4)]
    model = prune_low_magnitude(keras.Sequential([layers.Flatten()]), NOW)
    with pytest.raises(ValueError, match="There is nothing to prune"):
        model.build((None, 6))


SAME = {
    "number": lambda: 0.5,
    "constant": lambda: ConstantSparsity(0.5, 1),
    "polynomial": lambda: keras_ntt.PolynomialDecay(0.1, 0.5, 0, 9),
    "function": lambda: lambda step: (step < 9, 0.5),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_cell_twice_changes_nothing(mlp, name):
    def cell():
        return prune_low_magnitude(model, SAME[name]())

    model = mlp()
    masks, weights = get_masks(cell()), model.get_weights()
    held = [v.constraint for v in model.weights]
    assert cell() is model
    assert [v.constraint for v in model.weights] == held
    for mask, again in zip(masks.values(), get_masks(model).values(), strict=True):
        np.testing.assert_array_equal(mask, again)
    for value, again in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, again)
    with pytest.raises(ValueError, match="pruned already, with other settings"):
        prune_low_magnitude(model, 0.75)


# --- structures in all kernels that prune_at_init takes ----------------------------------------

KERNELS = {
    "dense": lambda: [keras.Input((8,)), layers.Dense(8)],
    "conv1d": lambda: [keras.Input((20, 8)), layers.Conv1D(8, 3)],
    "conv2d": lambda: [keras.Input((9, 9, 8)), layers.Conv2D(8, 3)],
    "conv3d": lambda: [keras.Input((5, 5, 5, 8)), layers.Conv3D(8, 3)],
    "transposed": lambda: [keras.Input((9, 9, 8)), layers.Conv2DTranspose(4, 3)],
    "transposed1d": lambda: [keras.Input((9, 8)), layers.Conv1DTranspose(4, 3)],
    "einsum": lambda: [keras.Input((5, 8)), layers.EinsumDense("abc,cde->abde", (None, 2, 4))],
    "einsum-back": lambda: [
        keras.Input((5, 2, 4)),
        layers.EinsumDense("abde,dec->abc", (None, 6)),
    ],
    "lstm": lambda: [keras.Input((5, 8)), layers.LSTM(8)],
    "separable": lambda: [keras.Input((9, 9, 8)), layers.SeparableConv2D(8, 3)],
}


def made(name):
    return keras.Sequential(KERNELS[name]())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.few(4)
def test_m_of_n_is_that_of_prune_at_init(name):
    model = made(name)
    options = {"sparsity": 0.5, "saliency": "magnitude", "allocation": "layerwise", "verbose": 0}
    wanted = get_masks(keras_ntt.prune_at_init(model, pattern="2:4", **options))
    prune_low_magnitude(model, sparsity_m_by_n=(2, 4))
    found = get_masks(model)
    assert len(found) == len(wanted) > 0
    for a, b in zip(found.values(), wanted.values(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.mean() == 0.5


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.few(4)
def test_blocks_are_those_of_prune_at_init(name):
    model = made(name)
    options = {"sparsity": 0.5, "saliency": "magnitude", "allocation": "layerwise", "verbose": 0}
    wanted = get_masks(keras_ntt.prune_at_init(model, pattern=(4, 1), **options))
    prune_low_magnitude(model, NOW, block_size=(4, 1))
    for a, b in zip(get_masks(model).values(), wanted.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_attention_is_pruned_in_groups_along_its_inputs():
    attention = layers.MultiHeadAttention(2, 4)
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, attention(inputs, inputs))
    prune_low_magnitude(model, sparsity_m_by_n=(2, 4))
    masks = get_masks(model)
    assert len(masks) == 4
    for path, mask in masks.items():
        matrix = mask.reshape(8, 8)  # [8, 2, 4] from the inputs, [2, 4, 8] to the outputs
        assert is_pruned_m_by_n(matrix), path


# --- names -------------------------------------------------------------------------------------

# mask, (m, n), last channel, whether
M_BY_N = [
    ([[1, 1], [0, 1], [1, 0], [0, 0]], (2, 4), "C_OUT", True),
    ([[1, 1], [0, 1], [1, 1], [0, 0]], (2, 4), "C_OUT", False),
    ([[1, 0, 1, 0], [0, 0, 2, 3]], (2, 4), "C_IN", True),
    ([[1, 0, 1, 0], [0, 0, 2, 3]], (2, 4), "C_OUT", True),  # two rows are filled up with two zeros
    ([[1, 0, 1, 0, 1, 1, 1], [0, 0, 2, 3, 0, 0, 9]], (2, 4), "C_IN", False),
    ([[1, 0, 1, 0, 1, 1, 0], [0, 0, 2, 3, 0, 0, 9]], (2, 4), "C_IN", True),
    ([[1, 0], [0, 1]], (1, 2), "C_OUT", True),
    (np.ones((3, 3, 4, 2)), (1, 4), "C_OUT", False),
    (np.zeros((3, 3, 4, 2)), (3, 4), "C_OUT", True),
]


@pytest.mark.parametrize(("mask", "group", "last", "wanted"), M_BY_N)
def test_whether_a_mask_has_m_zeros_in_n(mask, group, last, wanted):
    assert is_pruned_m_by_n(mask, m_by_n=group, last_channel=last) is wanted


@pytest.mark.parametrize(
    ("mask", "options", "match"),
    [
        ([1, 0], {}, "2 axes at least"),
        ([[1, 0]], {"m_by_n": (4, 4)}, "m must be less"),
        ([[1, 0]], {"last_channel": "IN"}, "last_channel must be one of"),
    ],
)
def test_what_no_group_can_be_found_in(mask, options, match):
    with pytest.raises(ValueError, match=match):
        is_pruned_m_by_n(mask, **options)


class Named(layers.Dense, keras_ntt.PrunableLayer):
    """A layer in tfmot's way."""

    def get_prunable_weights(self):
        return [self.kernel]


def test_a_layer_that_derives_from_prunable_layer():
    model = keras.Sequential([keras.Input((4,)), Named(4)])
    prune_low_magnitude(model, NOW)
    assert [int(mask.sum()) for mask in get_masks(model).values()] == [8]


def test_a_schedule_that_tfmot_has_saved():
    config = {"target_sparsity": 0.5, "begin_step": 0, "end_step": -1, "frequency": 100}
    with keras_ntt.prune_scope():
        found = keras.saving.deserialize_keras_object(
            {"class_name": "ConstantSparsity", "config": config}
        )
    assert isinstance(found, ConstantSparsity)
    assert found.get_config() == config
