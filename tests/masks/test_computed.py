"""Zeros of weights that are not zeros of what is computed with, nor of the file."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ntt
from keras_ntt import prune_low_magnitude


class Standardized(layers.Conv2D):
    """A convolution whose kernel is standardized before it is used."""

    def convolution_op(self, inputs, kernel):
        mean = keras.ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, kernel - mean)


class StandardizedByTensorFlow(Standardized):
    """The same by operations that the report does not see."""

    def convolution_op(self, inputs, kernel):
        kernel = tf.convert_to_tensor(kernel)
        return tf.nn.conv2d(inputs, kernel - tf.reduce_mean(kernel, [0, 1, 2]), 1, "VALID")


class Plain(layers.Dense):
    """A subclass that computes with its kernel."""


def with_lora(rng):
    dense = layers.Dense(40, "relu", name="wide")
    model = keras.Sequential([keras.Input((30,)), dense, layers.Dense(4)])
    prune_low_magnitude(model, 0.9)
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(rng.normal(size=(2, 40)))
    return model, dense


def test_the_report_counts_the_sum_with_lora(rng):
    model, dense = with_lora(rng)
    report = keras_ntt.sparsity_report(model)
    (row,) = [row for row in report.rows if row.path == dense._kernel.path]
    assert row.nonzeros == np.count_nonzero(dense.kernel) > 1000
    assert row.masked
    assert "LoRA adds a dense product" in row.reason
    assert "LoRA adds a dense product" in str(report)


@pytest.mark.parametrize(("kind", "zeros"), [(Standardized, 0), (StandardizedByTensorFlow, 0.8)])
def test_the_report_counts_kernels_that_are_standardized(kind, zeros):
    model = keras.Sequential([keras.Input((9, 9, 3)), kind(10, 3), layers.Flatten()])
    prune_low_magnitude(model, 0.8)
    (row,) = keras_ntt.sparsity_report(model).pruned
    assert row.sparsity == pytest.approx(zeros, abs=0.01)
    assert bool(row.reason) == (zeros == 0)


def test_a_subclass_that_computes_with_its_kernel_is_counted_as_it_is():
    model = keras.Sequential([keras.Input((9,)), Plain(10)])
    prune_low_magnitude(model, 0.8)
    (row,) = keras_ntt.sparsity_report(model).pruned
    assert (row.sparsity, row.reason) == (0.8, "")


@pytest.mark.parametrize("make", ["lora", Standardized, StandardizedByTensorFlow])
def test_the_export_names_weights_whose_zeros_the_file_has_not(rng, tmp_path, make):
    pytest.importorskip("ai_edge_litert")
    if make == "lora":
        model, _ = with_lora(rng)
        name, reason = "wide/kernel", "LoRA adds a dense product"
    else:
        model = keras.Sequential([keras.Input((9, 9, 3)), make(10, 3, name="c"), layers.Flatten()])
        prune_low_magnitude(model, 0.8)
        name, reason = "c/kernel", "computes with something else"
    report = keras_ntt.export_tflite(model, tmp_path / "m.tflite")
    (note,) = [note for note in report.warnings if "zeros in the model and" in note]
    assert name in note
    assert reason in note
    if make == "lora":
        assert report.nonzeros > 1000
        assert report.weights == 30 * 40 + 40 + 40 * 4 + 4


def test_the_export_of_a_plain_pruned_model_has_no_such_note(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = keras.Sequential(
        [keras.Input((9, 9, 3)), layers.Conv2D(8, 3), layers.BatchNormalization(), layers.Flatten()]
    )
    prune_low_magnitude(model, 0.8)
    report = keras_ntt.export_tflite(model, tmp_path / "m.tflite")
    assert not [note for note in report.warnings if "zeros in the model and" in note]


# --- dead but for rounding --------------------------------------------------------------------


def test_the_report_says_which_weights_are_dead_but_for_rounding(rng):
    dense = layers.Dense(50, name="dense")
    model = keras.Sequential([keras.Input((20,)), dense], name="net")
    kernel = rng.normal(size=(20, 50))
    kernel[:, :41] *= 1e-20
    dense.set_weights([kernel, np.ones(50)])
    (row,) = keras_ntt.sparsity_report(model).pruned
    assert (row.negligible, row.nonzeros) == (820, 1000)
    assert "82% not zero but below 1e-06 of the largest" in str(keras_ntt.sparsity_report(model))
    assert keras_ntt.sparsity_report(model).to_dict()["weights"][0]["negligible"] == 820


def test_the_report_of_an_ordinary_weight_says_nothing_of_rounding():
    model = keras.Sequential([keras.Input((20,)), layers.Dense(50)])
    assert "not zero but" not in str(keras_ntt.sparsity_report(model))
