"""Messages name the cause, and what they advise works when it is done."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ntt


def two_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    return keras.Model([a, b], layers.Dense(4)(layers.Concatenate()([a, b])))


TAKE_TWO = {
    "transfer": lambda model, x: keras_ntt.prune_neural_tangent(
        model, x, sparsity=0.5, epochs=1, verbose=0
    ),
    "score": lambda model, x: keras_ntt.prune_at_init(
        model, sparsity=0.5, saliency="logit_snip", data=x, verbose=0
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("take", TAKE_TWO)
@pytest.mark.few(1)
def test_two_inputs_in_a_tuple(take, rng):
    a, b = (rng.normal(size=(8, n)).astype("float32") for n in (3, 2))
    pairs = tf.data.Dataset.from_tensor_slices((a, b)).batch(4)
    said = r"tuple is read as inputs and labels: write the inputs as a list, \[a, b\]"
    for wrong in ((a, b), pairs):
        with pytest.raises(ValueError, match=said):
            TAKE_TWO[take](two_inputs(), wrong)
    right = tf.data.Dataset.from_tensor_slices(((a, b),)).batch(4)
    for x in ([a, b], right):
        sparse = TAKE_TWO[take](two_inputs(), x)
        assert keras_ntt.sparsity_report(sparse).sparsity == 0.5


def test_pruning_what_a_layer_returned():
    x, layer = keras.Input((8, 8, 1)), layers.Conv2D(4, 3)
    with pytest.raises(TypeError, match=r"prune_low_magnitude\(layer\)\(x\)"):
        keras_ntt.prune_low_magnitude(layer(x), 0.5)
    fresh = layers.Conv2D(4, 3)
    model = keras.Model(x, keras_ntt.prune_low_magnitude(fresh, 0.5)(x))
    assert len(keras_ntt.get_masks(model)) == 1


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have:UserWarning")
def test_quantized_kernels():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(2)])
    keras_ntt.prune_low_magnitude(model, 0.5)  # before: fine
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(2)])
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"Keras has quantized the kernels.*before quantize\(\)"):
        keras_ntt.prune_low_magnitude(model, 0.5)


def test_a_closed_graph(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    inner.export(tmp_path / "served", verbose=False)
    closed = layers.TFSMLayer(str(tmp_path / "served"), call_endpoint="serve")
    model = keras.Sequential([keras.Input((4,)), closed])
    with pytest.raises(ValueError, match=r"inside TFSMLayer, a closed graph.*load_model\(folder\)"):
        keras_ntt.prune_low_magnitude(model, 0.5)
    # Keras 3 wrote that folder, so the advice leads to the other message, which has the cause.
    with pytest.raises(ValueError, match=r"as model\.export\(\).*Take the file that the model was"):
        keras_ntt.load_model(tmp_path / "served")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_probabilities_in_code_of_ones_own(rng):
    class Own(keras.Model):
        def __init__(self, head):
            super().__init__()
            self.dense, self.head = layers.Dense(3), head

        def call(self, x):
            return self.head(self.dense(x))

    x, y = rng.normal(size=(8, 4)).astype("float32"), np.arange(8) % 3
    model = Own(keras.ops.softmax)
    model(x)
    with pytest.raises(ValueError, match=r"Leave out the softmax"):
        keras_ntt.saliency_scores(model, saliency="snip", data=(x, y))
    logits = Own(lambda z: z)
    logits(x)
    assert len(keras_ntt.saliency_scores(logits, saliency="snip", data=(x, y))) == 1
