"""Layers as linear problems: rows times the matrix of a kernel are what the layer computes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from keras_ntt import KernelPolicy
from keras_ntt.masks.policies import prunable_weights
from keras_ntt.pruning.post_training.moments import Moments
from keras_ntt.pruning.post_training.problems import problems_of
from keras_ntt.pruning.post_training.walk import Arguments, Walk

POLICY = KernelPolicy(depthwise=True, embeddings=True)


def problems(layer):
    return problems_of(layer, prunable_weights(layer, POLICY))


def outputs_of(problem, x, **kwargs):
    """Return what rows and matrix give, without a bias, ``[groups, n, outputs]``."""
    kernel = np.asarray(problem.variable, np.float64)
    matrix = problem.layout.matrix(kernel)
    np.testing.assert_array_equal(problem.layout.kernel(matrix), kernel)
    x = keras.ops.convert_to_tensor(x)
    return problem.rows(Arguments((x,), kwargs)).astype(np.float64) @ matrix


CONVOLUTIONS = [
    *(
        layers.Conv1D(4, 3, padding=padding, strides=strides, dilation_rate=dilation)
        for padding in ("valid", "same", "causal")
        for strides, dilation in ((1, 1), (2, 1), (1, 2))
    ),
    *(
        layers.Conv2D(4, size, padding=padding, strides=strides, dilation_rate=dilation)
        for size in ((1, 1), (3, 2))
        for padding in ("valid", "same")
        for strides, dilation in ((1, 1), (2, 1), (3, 1), (1, 2))
    ),
    layers.Conv2D(6, 3, padding="same", groups=2),
    layers.Conv2D(4, (2, 3), strides=2, groups=4),
    layers.Conv3D(3, (2, 3, 1), padding="same", strides=2),
    layers.DepthwiseConv1D(3, depth_multiplier=2),
    layers.DepthwiseConv2D(3, padding="same", strides=2, depth_multiplier=2),
    layers.DepthwiseConv2D((2, 3), dilation_rate=2),
    *(
        layers.Conv1DTranspose(3, size, strides=strides, padding=padding)
        for size in (2, 3, 4)
        for strides in (1, 2, 3)
        for padding in ("valid", "same")
    ),
    layers.Conv2DTranspose(3, (3, 2), strides=2, padding="same"),
    layers.Conv2DTranspose(3, 3, strides=2, padding="valid", output_padding=1),
    layers.Conv2DTranspose(3, 2, dilation_rate=2),
    layers.Conv3DTranspose(2, 2, strides=2, padding="same"),
    layers.SeparableConv1D(5, 3, padding="same", depth_multiplier=2),
    layers.SeparableConv2D(5, 3, strides=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=lambda layer: type(layer).__name__)
@pytest.mark.few(20)
def test_convolutions(layer, rng):
    layer = type(layer).from_config(layer.get_config())
    rank = layer.rank
    x = rng.normal(size=(*(2, 9, 8, 7)[: rank + 1], 4)).astype("float32")
    layer.build(x.shape)
    expected = np.asarray(layer(x))
    last = problems(layer)[-1]
    found = outputs_of(last, x)
    if len(found) > 1:  # groups
        found = np.concatenate(list(found), axis=-1)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)


def test_hessian_of_a_convolution_is_that_of_the_unfolded_dense_layer(rng):
    x = rng.normal(size=(3, 6, 5, 2)).astype("float32")
    layer = layers.Conv2D(4, 3, padding="same", strides=2)
    layer.build(x.shape)
    (problem,) = problems(layer)
    moments = Moments()
    rows = problem.rows(Arguments((keras.ops.convert_to_tensor(x),), {}))
    moments.add(rows, rows @ problem.layout.matrix(np.asarray(layer.kernel)))
    found = moments.statistics(centred=False).hessian[0]
    unfolded = np.asarray(keras.ops.image.extract_patches(x, 3, strides=2, padding="same"))
    dense = unfolded.reshape(-1, 18).astype(np.float64)
    np.testing.assert_allclose(found, dense.T @ dense / len(dense), atol=1e-6)


def test_depthwise_of_a_separable_convolution(rng):
    layer = layers.SeparableConv2D(5, 3)
    x = rng.normal(size=(2, 6, 6, 4)).astype("float32")
    layer.build(x.shape)
    first, _ = problems(layer)
    alone = layers.DepthwiseConv2D(3, use_bias=False)
    alone.build(x.shape)
    alone.kernel.assign(layer.depthwise_kernel)
    found = np.concatenate(list(outputs_of(first, x)), axis=-1)
    np.testing.assert_allclose(found.reshape(2, 4, 4, 4), np.asarray(alone(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "shape", "bias", "sizes"),
    [
        ("abc,cde->abde", (None, 2, 3), "de", (2, 5, 4)),
        ("abcd,cde->abe", (None, 6), "e", (2, 5, 3, 4)),
        ("...x,xy->...y", 6, "y", (2, 5, 4)),
        ("abc,dc->abd", (None, 6), "d", (2, 5, 4)),
        ("abc,bcd->abd", (5, 6), None, (2, 5, 4)),
        ("abc,bd->adc", (3, 4), None, (2, 5, 4)),
    ],
)
def test_einsum(equation, shape, bias, sizes, rng):
    x = rng.normal(size=sizes).astype("float32")
    layer = layers.EinsumDense(equation, shape, bias_axes=bias)
    layer.build(x.shape)
    (problem,) = problems(layer)
    found, expected = outputs_of(problem, x), np.asarray(layer(x))
    assert (problem.bias is not None) == (bias is not None)
    # Outputs may be in another order of axes: the sums of squares by column do not care.
    labels = equation.partition("->")[2].replace("...", "ab")
    kernel = equation.partition(",")[2].partition("->")[0]
    keep = [labels.index(a) for a in kernel if a in labels]
    rest = tuple(i for i in range(expected.ndim) if i not in keep)
    squares = (expected.astype(np.float64) ** 2).sum(axis=rest).ravel()
    np.testing.assert_allclose(np.sort((found**2).sum(axis=1).ravel()), np.sort(squares), rtol=1e-4)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    "make", [layers.SimpleRNN, layers.LSTM, layers.GRU], ids=lambda kind: kind.__name__
)
def test_states_of_recurrent_layers(make, backwards, rng):
    layer = make(3, go_backwards=backwards)
    x = rng.normal(size=(2, 5, 4)).astype("float32")
    layer.build(x.shape)
    inputs, states = problems(layer)
    cell, state = layer.cell, [np.zeros((2, 3), "float32")] * len(layer.cell.get_initial_state(2))
    seen = []
    for step in reversed(range(5)) if backwards else range(5):
        seen.append(np.asarray(state[0]))
        _, state = cell(x[:, step], state)
    found = states.rows(Arguments((keras.ops.convert_to_tensor(x),), {}))
    np.testing.assert_allclose(found[0], np.stack(seen, axis=1).reshape(-1, 3), atol=1e-6)
    found = inputs.rows(Arguments((keras.ops.convert_to_tensor(x),), {}))
    np.testing.assert_array_equal(found[0], x.reshape(-1, 4))


def test_masked_steps_are_left_out(rng):
    model = keras.Sequential(
        [keras.Input((4, 2)), layers.Masking(), layers.LSTM(3, return_sequences=True)]
    )
    model.add(layers.Dense(2))
    x = rng.normal(size=(2, 4, 2)).astype("float32")
    x[0, 1:] = 0
    walk = Walk(model, [x])
    lstm, dense = model.layers[-2:]
    for layer, rows in ((lstm, 5), (dense, 5)):
        while not walk.reached([layer]):
            walk.advance()
        (batch,) = walk.inputs_of(layer)
        for problem in problems(layer):
            assert problem.rows(batch.own[0]).shape[1] == rows


def test_subclasses_with_a_custom_call_are_not_known():
    class Doubled(layers.Dense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs)

    class Plain(layers.Dense):
        pass

    for kind, known in ((Doubled, False), (Plain, True)):
        layer = kind(3)
        layer.build((None, 2))
        assert [problem.rows is not None for problem in problems(layer)] == [known]


def test_counts_of_a_table():
    layer = layers.Embedding(5, 2)
    layer.build((None,))
    (problem,) = problems(layer)
    x = keras.ops.convert_to_tensor(np.array([[0, 1, 1], [4, 1, 0]]))
    assert problem.counts(Arguments((x,), {})).tolist() == [2, 3, 0, 0, 1]
