"""The static prediction of XNNPACK's sparse inference, case by case, and against the real one."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.paths import ROOT
from keras import layers

from keras_ntt import edge_mobilenet, explain_edge_latency
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.reencode import reencode
from keras_ntt.litert.xnnpack import verdict as verdicts


def network(
    size=16,
    *,
    stem="explicit",
    channels=3,
    downsample="explicit",
    middle=(),
    activation=lambda: layers.ReLU(6.0),
    head=layers.GlobalAveragePooling2D,
):
    """Return a small network that qualifies, but for what the arguments change."""
    inputs = keras.Input((size, size, channels))
    if stem == "explicit":
        x = layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(1)(inputs))
    elif stem == "keras":
        x = layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(inputs))
    else:
        x = layers.Conv2D(8, 3, strides=1 if stem == "stride 1" else 2, padding="same")(inputs)
    x = layers.Conv2D(16, 1)(activation()(x))
    if downsample == "explicit":
        x = layers.DepthwiseConv2D(3, strides=2)(layers.ZeroPadding2D(1)(activation()(x)))
    elif downsample == "same":
        x = layers.DepthwiseConv2D(3, strides=2, padding="same")(activation()(x))
    for apply in middle:
        x = apply(x)
    x = layers.Conv2D(16, 1)(activation()(x))
    return keras.Model(inputs, layers.Dense(3)(head()(activation()(x))))


def pruned(model, sparsity, seed=0):
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.Dense):
            mask = rng.random(layer.kernel.shape) >= sparsity
            layer.kernel.assign(rng.normal(size=mask.shape) * mask)
    return model


def residual(x):
    return layers.Add()([x, layers.Conv2D(16, 1)(x)])


def squeeze(x):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Multiply()([x, layers.Conv2D(16, 1, activation="sigmoid")(gate)])


def squeeze_by_dense(x):
    gate = layers.Dense(16, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    return layers.Multiply()([x, layers.Reshape((1, 1, 16))(gate)])


def concatenated(x):
    return layers.Concatenate()([x, layers.Conv2D(16, 1)(x)])


def convolutional_head(x):
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Flatten()(layers.Conv2D(8, 1)(pooled))


def depthwise_5(x):
    return layers.DepthwiseConv2D(5, padding="same")(x)


# What XNNPACK does with each was measured on CPUs where its sparse inference is compiled in.
CASES = {
    "base": ({}, "sparse", "as XNNPACK needs"),
    "residual": ({"middle": (residual,)}, "sparse", "as XNNPACK needs"),
    "5x5 depthwise": ({"middle": (depthwise_5,)}, "sparse", "as XNNPACK needs"),
    "upsampled": (
        {"middle": (lambda x: layers.UpSampling2D(interpolation="bilinear")(x),)},
        "sparse",
        "as XNNPACK needs",
    ),
    "leaky relu": ({"activation": layers.LeakyReLU}, "sparse", "as XNNPACK needs"),
    "silu": ({"activation": lambda: layers.Activation("silu")}, "sparse", "as XNNPACK needs"),
    "hard silu": (
        {"activation": lambda: layers.Activation("hard_silu")},
        "sparse",
        "as XNNPACK needs",
    ),
    "stem same": ({"stem": "same"}, "dense", "first convolution pads SAME"),
    "stem padded as Keras does": ({"stem": "keras"}, "dense", "the first convolution"),
    "stem stride 1": ({"stem": "stride 1"}, "dense", "of stride 1 on 3 channels"),
    "one channel": ({"channels": 1}, "dense", "of stride 2 on 1 channels"),
    "flatten": ({"head": layers.Flatten}, "dense", "no global average pooling"),
    "prelu": ({"activation": layers.PReLU}, "dense", "PRELU has no channel-first form"),
    "squeeze and excite": ({"middle": (squeeze,)}, "sparse", "as XNNPACK needs"),
    "squeeze and max pooling": (
        {"middle": (squeeze, lambda x: layers.MaxPooling2D()(x))},
        "wrong",
        "MAX_POOL_2D",
    ),
    "convolutional head": ({"head": lambda: convolutional_head}, "wrong", "RESHAPE"),
    "squeeze by Dense": ({"middle": (squeeze_by_dense,)}, "dense", "RESHAPE"),
    "concatenation": ({"middle": (concatenated,)}, "wrong", "CONCATENATION"),
    "downsampled same": ({"downsample": "same"}, "wrong", "stride 2 that pads SAME"),
    "1x1 of stride 2": (
        {"middle": (lambda x: layers.Conv2D(16, 1, strides=2)(x),)},
        "wrong",
        "1x1 convolution of stride 2",
    ),
    "3x3 in the middle": (
        {"middle": (lambda x: layers.Conv2D(16, 3, padding="same")(x),)},
        "wrong",
        "it is a 3x3 convolution",
    ),
    "max pooling": ({"middle": (lambda x: layers.MaxPooling2D()(x),)}, "wrong", "MAX_POOL_2D"),
    "average pooling": (
        {"middle": (lambda x: layers.AveragePooling2D(2)(x),)},
        "wrong",
        "AVERAGE_POOL_2D",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.few(4)
def test_the_verdict_and_its_reason(name):
    options, kind, words = CASES[name]
    model = fb.read(convert(pruned(network(**options), 0.9), [None])[0])
    verdict = verdicts.predict(model, hint=True)
    assert verdict.kind == kind, verdict
    assert words in str(verdict)
    # Without the hint nothing is computed sparsely, whatever the graph is like.
    assert verdicts.predict(model).kind == "dense"
    found = reencode(model, target="size")
    stored = {fb.operator_name(found.model, op) for op in found.model.subgraphs[0].operators}
    if kind == "wrong":
        assert "DENSIFY" not in stored
        assert found.verdict.kind == "dense"
        assert "wrong outputs on ARM" in found.notes[0]
    elif kind == "sparse":
        assert found.verdict.kind == "sparse"
        assert found.verdict.sparsity == pytest.approx(verdict.sparsity)
    fast = reencode(model, target="latency")
    storages = {c.storage for w, c in fast.choices.values() if w.is_pointwise}
    assert storages == ({"densify"} if kind == "sparse" else {"dense"})
    assert fast.verdict.kind == ("sparse" if kind == "sparse" else "dense")


@pytest.mark.parametrize(("zeros", "kind"), [(256, "dense"), (257, "sparse")])
def test_more_than_two_thirds_of_the_cluster_must_be_zero(zeros, kind):
    # The 1x1 convolutions have 8 x 16 + 16 x 16 = 384 weights, of which 256 are two thirds.
    model = network(downsample="none")
    pointwise = [x for x in model.layers if getattr(x, "kernel_size", None) == (1, 1)]
    values = np.ones(384, "float32")
    values[:zeros] = 0
    for layer, part in zip(pointwise, (values[:128], values[128:]), strict=True):
        layer.kernel.assign(part.reshape(layer.kernel.shape))
    verdict = verdicts.predict(fb.read(convert(model, [None])[0]), hint=True)
    assert verdict.kind == kind
    assert verdict.sparsity == pytest.approx(zeros / 384)


def test_odd_sizes_are_lost_where_the_converter_merges_their_padding():
    model = fb.read(convert(pruned(network(17), 0.9), [None])[0])
    names = [fb.operator_name(model, op) for op in model.subgraphs[0].operators]
    verdict = verdicts.predict(model, hint=True)
    if "PAD" in names:  # as TensorFlow 2.16 leaves it
        assert verdict.kind == "sparse"
    else:
        assert verdict.kind == "dense"
        assert "input size is odd" in str(verdict)


def test_a_mobilenet_that_qualifies_and_its_advice():
    model = edge_mobilenet((32, 32, 3), 4, width=0.25, blocks=((32, 1), (64, 2), (64, 1)))
    assert model.output_shape == (None, 4)
    advice = explain_edge_latency(model)
    assert advice.verdict.kind == "sparse"
    assert advice.changes == ()
    by_kind = {row.kind + str(row.shape[1:3]): row for row in advice.layers}
    assert by_kind["CONV_2D(1, 1)"].arm == "from 66.7% zeros of all 1x1"
    assert by_kind["CONV_2D(1, 1)"].x86 == "nothing: switched off"
    assert by_kind["CONV_2D(3, 3)"].arm == "nothing: no sparse kernel"
    assert "from 80% zeros" in next(r.arm for r in advice.layers if r.kind == "FULLY_CONNECTED")
    assert str(advice).count("\n") >= len(advice.layers)
    assert advice.to_dict()["xnnpack"]["kind"] == "sparse"


def test_the_default_mobilenet_has_the_weights_of_mobilenet_v1():
    # As many as keras.applications.MobileNet counts, and as were published: 4.2 million.
    assert edge_mobilenet((224, 224, 3), 1000).count_params() == 4_253_864


@pytest.mark.parametrize("shape", [(33, 32, 3), (32, 32, 1), (32, 32)])
def test_sizes_that_would_not_qualify_are_refused(shape):
    with pytest.raises(ValueError, match=r"halved.*Received: input_shape="):
        edge_mobilenet(shape, blocks=((8, 2),))


def test_advice_says_what_to_change():
    model = network(stem="same", middle=(lambda x: layers.MaxPooling2D()(x),))
    text = str(explain_edge_latency(model))
    assert "change: begin with ZeroPadding2D(1)" in text
    text = str(explain_edge_latency(network(middle=(lambda x: layers.MaxPooling2D()(x),))))
    assert "change: replace pooling by depthwise convolutions" in text


def test_advice_for_a_model_with_a_call_of_its_own():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(40)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 30), "float32"))
    (row,) = explain_edge_latency(model).layers
    assert row.shape == (40, 30)


def test_advice_for_a_model_with_two_inputs():
    a, b = keras.Input((30,), name="a"), keras.Input((20,), name="b")
    joined = layers.Concatenate()([layers.Dense(40)(a), layers.Dense(10)(b)])
    model = keras.Model({"a": a, "b": b}, joined)
    assert sorted(row.shape for row in explain_edge_latency(model).layers) == [(10, 20), (40, 30)]


@pytest.mark.long
def test_the_real_kernels_agree_where_the_cpu_lets_us_hide_avx():
    program = ("-m", "benchmarks.export.sparse_inference")
    result = subprocess.run(
        [sys.executable, *program, "--cases", "max pooling", "--size", "32", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if result.returncode == 77:
        pytest.skip(result.stderr.strip().split("\n")[-1])
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
