"""Whole numbers as inputs: taken where the model looks something up by them or scales them."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import sequential
from keras import layers

import keras_ntt
from keras_ntt.core import input_kinds


class Positions(layers.Layer):
    """An embedding of tokens and one of their positions."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.positions = layers.Embedding(9, 3), layers.Embedding(4, 3)

    def build(self, shape):
        self.tokens.build(shape)
        self.positions.build((shape[1],))
        super().build(shape)

    def call(self, x):
        return self.tokens(x) + self.positions(keras.ops.arange(4))


def words():
    tokens = layers.Embedding(9, 3, mask_zero=True)
    return sequential((4,), tokens, layers.LSTM(5), layers.Dense(2))


def positions():
    return sequential((4,), Positions(), layers.Flatten(), layers.Dense(2))


def images():
    rows = (layers.RandomFlip(), layers.Rescaling(1 / 255), layers.Conv2D(3, 3), layers.Flatten())
    return sequential((6, 6, 1), *rows, layers.Dense(2))


def nested():
    x = keras.Input((6, 6, 1))
    return keras.Model(x, images()(x))


def raw_images():
    return sequential((6, 6, 1), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(2))


def half_scaled():
    x = keras.Input((6,))
    both = layers.Concatenate()([layers.Rescaling(0.1)(x), x])
    return keras.Model(x, layers.Dense(2)(both))


KINDS = {  # whether whole numbers are taken, and whether they are indices
    words: (True, True),
    positions: (True, True),
    images: (True, False),
    nested: (True, False),
    raw_images: (False, False),
    half_scaled: (False, False),
}


def whole_numbers(model, seed=0):
    shape = (16, *model.inputs[0].shape[1:])
    return np.random.default_rng(seed).integers(0, 9, shape).astype("uint8")


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_whole_numbers_are_taken_where_a_model_scales_or_looks_up(make):
    model = make()
    taken, indices = KINDS[make]
    assert input_kinds.accepts_unscaled(model) == [taken]
    x = whole_numbers(model)
    assert input_kinds.are_indices(x.astype("float32"), model) == [indices]
    if taken:
        whole, real = (keras_ntt.empirical_ntk(model, x.astype(t)) for t in ("uint8", "float32"))
        np.testing.assert_array_equal(whole, real)
    else:
        with pytest.raises(ValueError, match="hold whole numbers"):
            keras_ntt.empirical_ntk(model, x)


def test_each_of_several_inputs_by_its_name():
    measured, looked_up = keras.Input((3,), name="z"), keras.Input((4,), name="a")
    found = layers.Flatten()(layers.Embedding(9, 2)(looked_up))
    model = keras.Model([measured, looked_up], layers.Concatenate()([measured, found]))
    assert input_kinds.accepts_unscaled(model) == [False, True]
    arrays = {"z": np.zeros((2, 3), "float32"), "a": np.zeros((2, 4), "float32")}
    assert input_kinds.are_indices([arrays["z"], arrays["a"]], model) == [False, True]
    assert input_kinds.are_indices(arrays, model) == [True, False]  # in the order of the keys


def test_a_model_with_code_of_its_own_tells_nothing():
    class Own(keras.Model):
        def call(self, x):
            return x

    assert input_kinds.are_indices([np.zeros(2), np.zeros(2, "int32")], Own()) == [False, True]


@functools.cache
def masks_after_a_transfer(make, dtype, form):
    keras.utils.set_random_seed(0)
    model = make()
    x = whole_numbers(model).astype(dtype)
    batches = tf.data.Dataset.from_tensor_slices(x).batch(8)
    inputs = {
        "array": x,
        "dataset": batches,
        "generator": (batch.numpy() for batch in batches),
    }[form]
    transfer = keras_ntt.NeuralTangentTransfer(
        model, pruning_schedule=keras_ntt.NTTSchedule(0.5, frequency=1), seed=0
    )
    transfer.compile(keras.optimizers.Adam(1e-2))
    if form == "array":
        transfer.fit(inputs, batch_size=8, shuffle=False, verbose=0)
    else:
        transfer.fit(inputs, steps_per_epoch=2, verbose=0)
    return [np.asarray(mask) for mask in transfer.masks.values()]


@pytest.mark.long
@pytest.mark.parametrize("form", ["array", "dataset", "generator"])
@pytest.mark.parametrize("make", [positions, images])
@pytest.mark.few(1)
def test_a_transfer_on_whole_numbers_is_that_on_floats(make, form):
    wanted = masks_after_a_transfer(make, "float32", "array")
    for a, b in zip(masks_after_a_transfer(make, "uint8", form), wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_scores_with_noise_use_the_samples_where_something_is_looked_up():
    def scores(dtype, data):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((4,), dtype=dtype),
                layers.Embedding(9, 3),
                layers.Flatten(),
                layers.Dense(2),
            ]
        )
        pruned = keras_ntt.prune_at_init(
            model, sparsity=0.5, saliency="ntk_sap", data=data, rounds=1, verbose=0
        )
        return next(iter(keras_ntt.get_masks(pruned).values()))

    x = whole_numbers(words())
    np.testing.assert_array_equal(scores("float32", x), scores("int32", x))
    with pytest.raises(ValueError, match=r"looks something up.*data=x"):
        scores("float32", None)


def test_indices_cannot_be_moved():
    model = words()
    transfer = keras_ntt.NeuralTangentTransfer(
        model, pruning_schedule=0.5, adversarial=keras_ntt.ProjectedGradient(0.1)
    )
    transfer.compile(keras.optimizers.Adam(1e-2))
    with pytest.raises(ValueError, match="indices and integers cannot be"):
        transfer.fit(whole_numbers(model).astype("float32"), verbose=0)


def of_two_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    return keras.Model([a, b], layers.Dense(2)(layers.concatenate([a, b])))


def test_two_inputs_in_a_tuple_are_refused_with_how_to_write_them():
    rng = np.random.default_rng(0)
    pair = [rng.normal(size=(16, n)).astype("float32") for n in (4, 3)]
    model = of_two_inputs()
    options = {"sparsity": 0.5, "epochs": 1, "verbose": 0}
    pairs = tf.data.Dataset.from_tensor_slices(tuple(pair)).batch(8)
    for wrong in (tuple(pair), pairs):
        with pytest.raises(ValueError, match=r"takes 2 input.*read as inputs.*\[a, b\].* 1 array"):
            keras_ntt.prune_neural_tangent(model, wrong, **options)
    # Both ways that the message names.
    for right in (list(pair), tf.data.Dataset.from_tensor_slices((tuple(pair),)).batch(8)):
        sparse = keras_ntt.prune_neural_tangent(model, right, **options)
        assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match=r"takes 2 input.*. Received: .* with 3 array"):
        keras_ntt.prune_neural_tangent(model, [*pair, pair[0]], **options)


def test_of_a_model_with_its_tokenizer_the_part_behind_it_is_pruned():
    texts = np.array(["a b c", "b c d", "c d a", "d a b"] * 4)
    tokenizer = layers.TextVectorization(max_tokens=8, output_sequence_length=3)
    tokenizer.adapt(texts)
    behind = keras.Sequential(
        [
            keras.Input((3,), dtype="int64"),
            layers.Embedding(8, 4),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    words = keras.Input((1,), dtype="string")
    model = keras.Model(words, behind(tokenizer(words)))
    options = {"sparsity": 0.5, "epochs": 1, "verbose": 0}
    with pytest.raises(ValueError, match=r"Text has no derivative.*behind.*TextVectorization"):
        keras_ntt.prune_neural_tangent(model, texts[:, None], **options)
    sparse = keras_ntt.prune_neural_tangent(behind, tokenizer(texts), **options)
    assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.1)
    # Masks that need no derivatives are found in the whole.
    whole = keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude")
    np.testing.assert_array_equal(
        whole(tf.constant(texts[:, None])).shape, model(tf.constant(texts[:, None])).shape
    )
