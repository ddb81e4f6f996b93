"""Weights of few levels: the best levels by brute force, biases by means, whole files."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from helpers.litert_graphs import empty_model
from helpers.micro_graphs import MicroGraph, conv, dense, transposed
from keras import layers

from keras_ntt import export_tflite, inspect_tflite
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro.levels import few_levels, levels_of, rounded_to
from keras_ntt.litert.micro.refit import refit_biases
from keras_ntt.litert.micro.report import effect_of
from keras_ntt.litert.runtime import micro as runtime


def error_of(values, levels):
    kept = values[values != 0].astype(int)
    return int(np.min((kept[:, None] - np.array(levels)) ** 2, axis=1).sum())


@pytest.mark.parametrize("seed", range(12))
def test_levels_are_the_best_ones(seed):
    rng = np.random.default_rng(seed)
    values = rng.choice([-3, -1, 1, 2, 4, 7, 8], rng.integers(2, 9)) * rng.integers(0, 2, 1)
    values = np.concatenate([values, rng.integers(-7, 8, rng.integers(1, 9))]).astype(np.int8)
    for count in (1, 2, 3):
        found = levels_of(values, count)
        assert len(found) <= count
        assert 0 not in found
        choices = itertools.combinations([n for n in range(-8, 9) if n], count)
        best = min((error_of(values, levels) for levels in choices), default=0)
        if len(np.unique(values[values != 0])) > count:
            assert error_of(values, found) == best
        rounded = rounded_to(values, found)
        assert rounded.dtype == np.int8
        np.testing.assert_array_equal(rounded == 0, values == 0)
        if len(found):
            assert ((rounded - values.astype(int)) ** 2).sum() == error_of(values, found)


def test_few_values_stay_as_they_are():
    values = np.array([0, 3, -3, 3], np.int8)
    assert levels_of(values, 2).tolist() == [-3, 3]
    assert levels_of(np.zeros(4, np.int8), 2).tolist() == []
    assert rounded_to(np.zeros(4, np.int8), np.array([])).tolist() == [0, 0, 0, 0]


def mixed_model(kind):
    """Return a chain of all kinds of layers, each large enough to be rounded."""
    rng, model = np.random.default_rng(0), empty_model()
    graph = MicroGraph(model, (1, 6, 6, 8), kind)
    index, _ = conv(graph, rng, 0, 6, 8, 16, 0.2)
    options = {"padding": 0, "strideH": 2, "strideW": 2, "dilationHFactor": 1, "dilationWFactor": 1}
    weight = graph.weight(rng.integers(-99, 99, (24, 3, 3, 16)).astype(np.int8), 0, False)
    shift = graph.bias(weight, np.zeros(24))
    index = graph.layer("CONV_2D", [index, weight, shift], (1, 3, 3, 24), **options)
    weight = graph.weight(rng.integers(-99, 99, (8, 3, 3, 24)).astype(np.int8), 0)
    sizes, shift = (
        graph.constant("sizes", np.array((1, 6, 6, 8), np.int32)),
        graph.bias(weight, np.ones(8)),
    )
    options = {"padding": 0, "strideH": 2, "strideW": 2}
    index = graph.layer("TRANSPOSE_CONV", [sizes, weight, index, shift], (1, 6, 6, 8), **options)
    index = transposed(graph, rng, index, 6, 8, 16, 0.3)
    index, _ = dense(graph, rng, index, 1024, 12, 0.5)
    graph.finish(index)
    return model


def pre_activations(model, samples, folder):
    """Return the mean of each layer's outputs before rounding, a channel, from all its inputs."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    path = folder / "m.tflite"
    path.write_bytes(fb.write(model))
    loaded = Interpreter(
        str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    loaded.allocate_tensors()
    graph, found = model.subgraphs[0], {}
    for sample in samples:
        loaded.set_tensor(graph.inputs[0], sample[None])
        loaded.invoke()
        for number, operator in enumerate(graph.operators):
            name = fb.operator_name(model, operator)
            source = int(operator.inputs[2 if name == "TRANSPOSE_CONV" else 0])
            weight = graph.tensors[int(operator.inputs[1])]
            bias = graph.tensors[int(operator.inputs[3 if name == "TRANSPOSE_CONV" else 2])]
            zero = int(graph.tensors[source].quantization.zeroPoint[0])
            x = loaded.get_tensor(source).astype("float64") - zero
            w, scale = fb.constant(model, weight).astype("float64"), weight.quantization.scale
            y = by_keras(name, operator.builtinOptions, x, w, graph.tensors[operator.outputs[0]])
            y = (y + fb.constant(model, bias)) * scale
            found.setdefault(number, []).append(y.reshape(-1, y.shape[-1]).mean(axis=0))
    return [np.mean(rows, axis=0) for rows in found.values()]


def by_keras(name, options, x, w, output):
    if name == "FULLY_CONNECTED":
        return x.reshape(1, -1) @ w.T
    padding = "valid" if options.padding == 1 else "same"
    if name == "TRANSPOSE_CONV":
        layer = layers.Conv2DTranspose(
            len(w), w.shape[1:3], options.strideH, padding, use_bias=False, dtype="float64"
        )
        layer.build(x.shape)
        layer.kernel.assign(w.transpose(1, 2, 0, 3))
    else:
        layer = layers.Conv2D(
            len(w), w.shape[1:3], options.strideH, padding, use_bias=False, dtype="float64"
        )
        layer.build(x.shape)
        layer.kernel.assign(w.transpose(1, 2, 3, 0))
    found = keras.ops.convert_to_numpy(layer(x))
    assert found.shape == tuple(output.shape)
    return found


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_refitted_biases_keep_the_mean_of_each_layer(kind, tmp_path):
    model = mixed_model(kind)
    rng, limits = np.random.default_rng(1), np.iinfo(kind)
    samples = rng.integers(limits.min, limits.max, (6, 6, 6, 8)).astype(kind)
    rounded = few_levels(model, 4)
    assert len(rounded.keys) == rounded.candidates == 5
    before = pre_activations(model, samples, tmp_path)
    after = pre_activations(
        refit_biases(model, rounded.model, rounded.keys, [samples]), samples, tmp_path
    )
    for ours, theirs, operator in zip(
        after,
        before,
        [op for op in model.subgraphs[0].operators if len(op.inputs) > 1],
        strict=True,
    ):
        scale = np.max(model.subgraphs[0].tensors[int(operator.inputs[1])].quantization.scale)
        np.testing.assert_allclose(ours, theirs, atol=0.51 * 1.1 * scale, rtol=1e-6)
    moved = pre_activations(rounded.model, samples, tmp_path)
    assert np.abs(moved[-1] - before[-1]).max() > 10 * np.abs(after[-1] - before[-1]).max()


def test_scales_fit_each_channel_by_least_squares():
    model = mixed_model("int8")
    rounded = few_levels(model, 4)
    tensor = rounded.model.subgraphs[0].tensors[rounded.keys[0][1]]
    new = fb.constant(rounded.model, tensor).reshape(16, -1).astype("float64")
    source = model.subgraphs[0].tensors[rounded.keys[0][1]]
    old = fb.constant(model, source).reshape(16, -1) * source.quantization.scale[:, None]
    assert len(np.unique(new[new != 0])) == 4
    for row, target, scale in zip(new, old, tensor.quantization.scale, strict=True):
        (best,), *_ = np.linalg.lstsq(row[:, None], target, rcond=None)
        assert abs(scale - best) < 1e-6 * best


def test_the_effect_is_of_all_outputs():
    before = [np.array([[1.0, 2.0], [4.0, 0.0]]), np.array([[5.0], [1.0]])]
    after = [np.array([[1.0, 1.5], [4.0, 0.0]]), np.array([[5.0], [1.5]])]
    found = effect_of(3, 1, 2, before, after)
    assert (found.difference, found.agreement) == (0.125, 1.0)
    assert effect_of(3, 1, 2, before, [after[0][::-1], after[1]]).agreement == 0.0


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    found = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.Conv2D(64, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
    kernel = found.layers[2].kernel
    kept = np.random.default_rng(0).random(kernel.shape) < 0.2
    kernel.assign(keras.ops.convert_to_numpy(kernel) * kept)
    return found


def test_files_of_few_levels_are_smaller_and_say_what_it_costs(model, tmp_path):
    x = np.random.default_rng(1).normal(size=(40, 8, 8, 3)).astype("float32")
    sizes, path = {}, tmp_path / "m.tflite"
    for levels in (None, 15, 7):
        report = export_tflite(
            model,
            path,
            target="micro",
            representative_data=x,
            huffman=True,
            levels=levels,
            tolerance=1,
        )
        sizes[levels] = report.size
        weights = inspect_tflite(path).weights
        (row,) = [w for w in weights if w.shape == (64, 3, 3, 32)]
        assert row.nonzeros <= keras.ops.count_nonzero(model.layers[2].kernel)
        if levels is None:
            assert report.micro.levels is None
            continue
        effect = report.micro.levels
        assert row.storage == "huffman"
        assert row.size - 12 * 64 < (0.23 if levels == 15 else 0.2) * 64 * 9 * 32 + 64
        assert effect.rounded >= 2
        assert 0 < effect.difference < 0.5
        assert 0.5 < effect.agreement <= 1
        assert f"rounded to {levels}" in str(report)
        assert report.to_dict()["micro"]["levels"]["levels"] == levels
        assert (report.micro.runs > 0) == runtime.is_installed()
    assert sizes[7] < sizes[15] < sizes[None]
