"""Copies of models compute what the models compute, also with what set_weights leaves out."""

from __future__ import annotations

import random
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.architectures import sequential
from helpers.expect import warned
from keras import layers

import keras_ntt
from keras_ntt.core.copies import copy_of, redrawn

RNG = np.random.default_rng(0)
X = (5 + 3 * RNG.normal(size=(64, 6))).astype("float32")
TOKENS = np.array([[10, 20], [30, 7], [10, 10]])


def adapted(layer, data):
    layer.adapt(data)
    return layer


def normalized():
    layer = adapted(layers.Normalization(), X)
    return sequential((6,), layer, layers.Dense(16, "relu"), layers.Dense(2)), X


def nested():
    inner, _ = normalized()
    return sequential((6,), inner, layers.Dense(3)), X


def looked_up():
    table = adapted(layers.IntegerLookup(), TOKENS)
    model = [keras.Input((2,), dtype="int64"), table, layers.Embedding(9, 3), layers.Flatten()]
    return keras.Sequential([*model, layers.Dense(2)]), TOKENS


def weighed():
    table = adapted(layers.IntegerLookup(output_mode="tf_idf"), TOKENS)
    return keras.Sequential([keras.Input((2,), dtype="int64"), table, layers.Dense(2)]), TOKENS


def in_bins():
    bins = adapted(layers.Discretization(num_bins=4), X)
    return sequential((6,), bins, layers.Embedding(4, 3), layers.Flatten(), layers.Dense(2)), X


def low_rank():
    model = sequential((6,), layers.Dense(4), layers.Dense(2))
    model.layers[0].enable_lora(2)
    for variable in model.weights:
        variable.assign(RNG.normal(size=variable.shape))
    return model, X


@keras.saving.register_keras_serializable("test_copies")
class Own(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = layers.Normalization()
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.scale(x))


def own():
    model = Own()
    model.scale.adapt(X)
    model(X)
    return model, X


@pytest.mark.parametrize(
    "make",
    [normalized, nested, looked_up, weighed, in_bins, low_rank, own],
    ids=lambda m: m.__name__,
)
def test_a_copy_computes_the_same(make):
    model, x = make()
    expected = keras.ops.convert_to_numpy(model(x))
    copy = copy_of(model, x)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(copy(x)), expected)
    for mine, theirs in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}


@pytest.mark.parametrize("make", [normalized, nested, in_bins], ids=lambda make: make.__name__)
def test_a_pruned_copy_computes_what_its_model_with_the_masks_does(make):
    model, x = make()
    whole = keras_ntt.prune_at_init(model, sparsity=0.0, saliency="magnitude")
    np.testing.assert_array_equal(whole(x), model(x))
    sparse = keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude")
    keras_ntt.apply_masks(model, keras_ntt.get_masks(sparse))
    np.testing.assert_array_equal(sparse(x), model(x))


def test_a_student_that_lost_what_its_teacher_adapted_to():
    teacher, _ = normalized()
    student = keras.models.clone_model(teacher)
    student.set_weights(teacher.get_weights())
    with warned("student does not normalize.*saving and loading.*Received: student with"):
        keras_ntt.NeuralTangentTransfer(student, teacher, pruning_schedule=0.5)
    student = copy_of(teacher)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        keras_ntt.NeuralTangentTransfer(student, teacher, pruning_schedule=0.5)


def test_a_smaller_model_is_normalized_too():
    model, x = normalized()
    kernel, bias = model.layers[1].get_weights()
    kernel[:, :5] = 0
    model.layers[1].set_weights([kernel, bias])
    smaller, removed = keras_ntt.remove_dead_units(model)
    assert removed == ((model.layers[1].name, 5),)
    np.testing.assert_allclose(smaller(x), model(x), rtol=1e-4, atol=1e-5)


def test_new_first_weights_leave_what_was_adapted():
    model, x = normalized()
    other = redrawn(model)
    np.testing.assert_array_equal(other.layers[0](x), model.layers[0](x))
    assert not np.array_equal(other.layers[1].kernel, model.layers[1].kernel)


@keras.saving.register_keras_serializable("test_copies")
class Frozen(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(4)
        self.scale = layers.BatchNormalization()
        self.head = layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.scale(self.first(x), training=training))


def test_layers_of_a_copy_are_frozen_as_those_of_the_model():
    model = Frozen()
    model(X)
    model.first.trainable = model.scale.trainable = False
    copy = copy_of(model, X)
    assert [layer.trainable for layer in copy.layers] == [False, False, True]
    statistics = keras.ops.convert_to_numpy(copy.scale.moving_mean)
    copy.compile("sgd", "mse", jit_compile=False)
    copy.fit(X, X[:, :2], verbose=0)
    np.testing.assert_array_equal(copy.scale.moving_mean, statistics)
    copy.first.trainable = True
    assert [v.trainable for v in copy.first.weights] == [True, True]


def test_a_model_of_code_of_ones_own_is_copied_by_the_shapes_it_was_built_with():
    model = Frozen()
    model(X)
    copy = copy_of(model)
    np.testing.assert_array_equal(copy(X), model(X))
    assert keras_ntt.sparsity_report(
        keras_ntt.prune_at_init(model, sparsity=0.5, saliency="random")
    ).sparsity == pytest.approx(0.5)


# --- names -------------------------------------------------------------------------------------


def wrapped():
    parts = [
        layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="encoder"),
        layers.TimeDistributed(layers.Dense(4), name="steps"),
        layers.Flatten(),
        layers.SpectralNormalization(layers.Dense(3), name="bounded"),
    ]
    return sequential((5, 4), *parts, layers.Dense(2, name="last"))


def steps():
    return np.random.default_rng(0).normal(size=(8, 5, 4)).astype("float32")


def kernels_in(masks):
    return sorted(mask.shape for mask in masks.values())


def test_a_copy_has_the_paths_of_its_model():
    model = wrapped()
    copy = copy_of(model)
    assert [v.path for v in copy.variables] == [v.path for v in model.variables]
    masks = keras_ntt.get_masks(
        keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude", filters="encoder")
    )
    assert len(masks) == 4
    keras_ntt.apply_masks(model, masks)
    for path, mask in keras_ntt.get_masks(model).items():
        np.testing.assert_array_equal(mask, masks[path])


WRAPPED = {
    "encoder": ("encoder", [(3, 12), (3, 12), (4, 12), (4, 12)]),
    "steps": (["^steps$", "^last$"], [(3, 2), (6, 4)]),
    "bounded": ("bounded", [(20, 3)]),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(("filters", "wanted"), WRAPPED.values(), ids=WRAPPED)
@pytest.mark.few(2)
def test_layers_in_wrappers_are_chosen_by_the_wrapper(filters, wanted, loaded, tmp_path):
    model = wrapped()
    if loaded:  # where Keras leaves the wrappers' names out of the paths
        model.save(tmp_path / "m.keras")
        model = keras.models.load_model(tmp_path / "m.keras")
    pruned = keras_ntt.prune_at_init(model, sparsity=0.5, saliency="magnitude", filters=filters)
    assert kernels_in(keras_ntt.get_masks(pruned)) == wanted
    transfer = keras_ntt.NeuralTangentTransfer(
        copy_of(model), pruning_schedule=0.5, filters=filters
    )
    assert kernels_in(transfer.masks) == wanted


@pytest.mark.long
@pytest.mark.parametrize(("name", "loaded"), [("steps", False), ("bounded", True)])
def test_a_transfer_prunes_layers_in_wrappers(name, loaded, tmp_path):
    filters, wanted = WRAPPED[name]
    model = wrapped()
    if loaded:
        model.save(tmp_path / "m.keras")
        model = keras.models.load_model(tmp_path / "m.keras")
    pruned = keras_ntt.prune_neural_tangent(
        model, steps(), sparsity=0.5, filters=filters, epochs=1, verbose=0
    )
    assert kernels_in(keras_ntt.get_masks(pruned)) == wanted


@pytest.mark.long
def test_shares_by_the_name_of_a_wrapper():
    pruned = keras_ntt.prune_neural_tangent(
        wrapped(), steps(), sparsity=0.5, allocation={"encoder": 0.75}, epochs=1, verbose=0
    )
    for path, mask in keras_ntt.get_masks(pruned).items():
        assert mask.mean() == pytest.approx(0.25 if "encoder" in path else 0.5, abs=0.03)


def test_masks_go_to_the_path_that_ends_most_like_theirs(tmp_path):
    model = wrapped()
    masks = keras_ntt.get_masks(
        keras_ntt.prune_at_init(model, sparsity=0.5, saliency="random", filters="encoder")
    )
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    keras_ntt.apply_masks(loaded, masks)
    given = [masks.get(v.path) for v in model.weights]
    found = keras_ntt.get_masks(loaded)
    held = [found.get(v.path) for v in loaded.weights]
    for ours, theirs in zip(held, given, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Unregistered(layers.Dense):
    """A layer that no registry knows."""


def test_layers_that_are_not_registered():
    model = sequential((6,), Unregistered(4), layers.Dense(2))
    copy = copy_of(model)
    assert type(copy.layers[0]) is Unregistered
    np.testing.assert_array_equal(copy(X), model(X))


@pytest.mark.parametrize("saliency", ["magnitude", "ntk_sap", "synflow"])
def test_pruning_leaves_all_random_numbers_as_they_were(saliency):
    model = sequential((6,), layers.Dense(5), layers.Dense(2))
    kernels = []
    for prune in (False, True):
        keras.utils.set_random_seed(1)
        if prune:
            keras_ntt.prune_at_init(model, sparsity=0.5, saliency=saliency, rounds=1)
        drawn = [random.random(), np.random.random(), float(tf.random.uniform(()))]
        layer = layers.Dense(3)
        layer.build((None, 4))
        kernels.append((drawn, keras.ops.convert_to_numpy(layer.kernel)))
    assert kernels[0][0] == kernels[1][0]
    np.testing.assert_array_equal(kernels[0][1], kernels[1][1])
