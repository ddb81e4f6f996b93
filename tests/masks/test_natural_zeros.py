"""Zeros that a weight begins with are not taken for pruned ones."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from helpers.expect import warned
from keras import layers

import keras_ntt
from keras_ntt import PolynomialDecay, prune_low_magnitude
from keras_ntt.masks.natural_zeros import pruned_entries
from keras_ntt.masks.restore import unheld_zeros


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def table(rng, empty=12):
    vectors = rng.normal(size=(40, 8)).astype("float32")
    vectors[:empty] = 0
    layer = layers.Embedding(40, 8)
    model = keras.Sequential(
        [keras.Input((6,), dtype="int32"), layer, layers.GlobalAveragePooling1D(), layers.Dense(16)]
    )
    layer.set_weights([vectors])
    return model, layer


def dirac(shape, dtype=None):
    """Return a filter that passes its input on."""
    kernel = np.zeros(shape, "float32")
    kernel[shape[0] // 2, shape[1] // 2] = np.eye(*shape[2:])
    return kernel


def gates(shape, dtype=None):
    return 0.5 * np.tile(np.eye(shape[0]), (1, shape[1] // shape[0]))


FRESH = {
    "identity": lambda: [
        keras.Input((5, 4)),
        layers.SimpleRNN(16, recurrent_initializer="identity"),
    ],
    "gates": lambda: [keras.Input((5, 4)), layers.LSTM(8, recurrent_initializer=gates)],
    "filter": lambda: [keras.Input((8, 8, 6)), layers.Conv2D(6, 3, kernel_initializer=dirac)],
    "wider": lambda: [keras.Input((6,)), layers.Dense(9, kernel_initializer="identity")],
    "zeros": lambda: [keras.Input((6,)), layers.Dense(9, kernel_initializer="zeros")],
}


@pytest.mark.parametrize("name", FRESH)
def test_a_fresh_model_does_not_look_pruned(name):
    model = keras.Sequential([*FRESH[name](), layers.Dense(3)])
    assert unheld_zeros(model) == {}
    prune_low_magnitude(model, 0.5, filters=model.layers[-1].name)


def test_an_identity_that_was_trained_and_pruned_looks_pruned(rng):
    layer = layers.Dense(9, use_bias=False)
    model = keras.Sequential([keras.Input((9,)), layer])
    layer.set_weights([np.diag(rng.normal(size=9))])
    assert unheld_zeros(model) == {layer.kernel.path: pytest.approx(8 / 9)}


def test_empty_rows_of_a_table_are_no_pruned_entries(rng):
    model, layer = table(rng)
    assert unheld_zeros(model) == {}
    value = layer.get_weights()[0]
    value[20:, :2] = 0
    layer.set_weights([value])
    assert pruned_entries(layer, layer.embeddings).sum() == 12 * 8 + 20 * 2


def test_the_report_counts_what_was_pruned_and_no_empty_rows(rng):
    model, _ = table(rng)
    pruned = keras_ntt.prune_at_init(model, sparsity=0.6, saliency="magnitude", verbose=0)
    assert keras_ntt.sparsity_report(pruned).sparsity == pytest.approx(0.6, abs=0.01)


def test_a_table_that_was_pruned_counts(rng):
    model, _ = table(rng, empty=0)
    keras_ntt.strip_pruning(prune_low_magnitude(model, 0.5))
    assert keras_ntt.sparsity_report(model).sparsity == pytest.approx(0.5, abs=0.01)


def test_what_is_left_out_is_named_and_can_be_chosen(rng):
    model, layer = table(rng)
    dense = model.layers[-1]
    keras_ntt.strip_pruning(prune_low_magnitude(model, 0.5, filters=dense.name))
    with warned(
        f"from the beginning get no mask.*filters=.*Received: '(.*/)?{layer.name}/embeddings'"
    ):
        keras_ntt.restore_masks(model)
    assert list(keras_ntt.get_masks(model)) == [dense.kernel.path]
    keras_ntt.strip_pruning(model)
    keras_ntt.restore_masks(model, filters=layer.name)
    (mask,) = keras_ntt.get_masks(model).values()
    np.testing.assert_array_equal(mask, layer.get_weights()[0] != 0)
    keras_ntt.strip_pruning(model)
    with pytest.raises(ValueError, match="no zeros to restore masks from"):
        keras_ntt.restore_masks(model, filters="nothing")


# --- from one sparsity to a higher one --------------------------------------------------------


def sparse():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(32, "relu"), layers.Dense(3)])
    return keras_ntt.strip_pruning(prune_low_magnitude(model, 0.7))


FURTHER = PolynomialDecay(0.7, 0.9, 1, 16, frequency=2)


@pytest.mark.parametrize("restored", [False, True])
def test_a_sparse_model_is_pruned_further_without_a_complaint(restored):
    model = sparse()
    zeros = [w == 0 for w in model.get_weights()[::2]]
    if restored:
        keras_ntt.restore_masks(model)
    prune_low_magnitude(model, FURTHER)
    for mask, before in zip(keras_ntt.get_masks(model).values(), zeros, strict=True):
        assert not mask[before].any()
        assert mask.mean() == pytest.approx(0.3, abs=0.01)


def test_a_schedule_that_begins_later_goes_on_from_restored_masks():
    model = keras_ntt.restore_masks(sparse())
    masks = keras_ntt.get_masks(model)
    prune_low_magnitude(model, PolynomialDecay(0.7, 0.9, 10, 16, frequency=2))
    for path, mask in keras_ntt.get_masks(model).items():
        np.testing.assert_array_equal(mask, masks[path])


@pytest.mark.parametrize("restored", [False, True])
def test_a_schedule_that_begins_with_fewer_zeros_is_warned_of(restored):
    model = sparse()
    if restored:
        keras_ntt.restore_masks(model)
    with warned("begin with no fewer zeros than there are"):
        prune_low_magnitude(model, PolynomialDecay(0.2, 0.9, 1, 16, frequency=2))
