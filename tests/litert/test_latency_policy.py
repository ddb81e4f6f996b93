"""The policy for XNNPACK on Keras 3 graphs: what it takes, what it refuses, and what is pruned."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ntt
from keras_ntt import PruneForLatencyOnXNNPack


def network(middle=(), *, first=None, last=(), channels=3):
    """Return a small MobileNet with other layers in the middle, at the start or at the end."""
    x = keras.Input((16, 16, channels))
    start = first or [layers.ZeroPadding2D(1), layers.Conv2D(4, 3, strides=2)]
    y = x
    for layer in [*start, layers.BatchNormalization(), layers.ReLU(6.0)]:
        y = layer(y)
    for layer in middle:
        y = layer(y)
    y = layers.Conv2D(8, 1, name="point")(y)
    for layer in last or [layers.GlobalAveragePooling2D(), layers.Dense(2)]:
        y = layer(y)
    return keras.Model(x, y)


def pad(n):
    return layers.ZeroPadding2D(n)


def block():
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 1), layers.ReLU()])
    return lambda y: layers.Add()([y, inner(y)])


SUPPORTED = {
    "nothing": lambda: network(),
    "depthwise same": lambda: network([layers.DepthwiseConv2D(3, padding="same")]),
    "depthwise stride": lambda: network([pad(1), layers.DepthwiseConv2D(3, strides=2)]),
    "depthwise 5": lambda: network([layers.DepthwiseConv2D(5, padding="same")]),
    "depthwise 5 stride": lambda: network([pad(2), layers.DepthwiseConv2D(5, strides=2)]),
    "nested residual": lambda: network([block()]),
    "operators": lambda: network([lambda y: (y + 1.0) * 2.0 - 3.0]),
    "sum": lambda: network([lambda y: y + layers.Conv2D(4, 1)(y)]),
    "activation": lambda: network([layers.Activation("relu6"), layers.Activation("sigmoid")]),
    "as XNNPACK was measured": lambda: network(
        [layers.Activation("hard_silu"), layers.Activation("silu"), keras.ops.gelu]
    ),
    "activation of a convolution": lambda: network([layers.Conv2D(4, 1, activation="hard_silu")]),
    "function": lambda: network([keras.ops.relu]),
    "nothing at inference": lambda: network(
        [layers.Identity(), layers.GaussianNoise(0.1), layers.SpatialDropout2D(0.1)]
    ),
    "upsampling": lambda: network([layers.UpSampling2D(interpolation="bilinear")]),
    "squeeze": lambda: network(
        [lambda y: layers.Multiply()([y, layers.GlobalAveragePooling2D(keepdims=True)(y)])]
    ),
}
REFUSED = {
    "stride 1": (lambda: network(first=[pad(1), layers.Conv2D(4, 3)]), "begins with a 3x3"),
    "no padding": (lambda: network(first=[layers.Conv2D(4, 3, strides=2)]), "begins with a 3x3"),
    "same padding": (
        lambda: network(first=[pad(1), layers.Conv2D(4, 3, strides=2, padding="same")]),
        "begins with a 3x3",
    ),
    "padded by 2": (
        lambda: network(first=[pad(2), layers.Conv2D(4, 3, strides=2)]),
        "begins with a 3x3",
    ),
    "one channel": (lambda: network(channels=1), "begins with a 3x3"),
    "flatten": (lambda: network(last=[layers.Flatten(), layers.Dense(2)]), "ends in Global"),
    "conv 3x3": (lambda: network([layers.Conv2D(4, 3)]), "class Conv2D"),
    "conv stride": (lambda: network([layers.Conv2D(4, 1, strides=2)]), "class Conv2D"),
    "conv groups": (lambda: network([layers.Conv2D(4, 1, groups=2)]), "class Conv2D"),
    "depthwise valid": (lambda: network([layers.DepthwiseConv2D(3)]), "class DepthwiseConv2D"),
    "depthwise same stride": (
        lambda: network([layers.DepthwiseConv2D(3, strides=2, padding="same")]),
        "class DepthwiseConv2D",
    ),
    "depthwise 5 padded 1": (
        lambda: network([pad(1), layers.DepthwiseConv2D(5)]),
        "class DepthwiseConv2D",
    ),
    "multiplier": (
        lambda: network([layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)]),
        "class DepthwiseConv2D",
    ),
    "tanh": (lambda: network([layers.Activation("tanh")]), "class Activation"),
    "first activation": (
        lambda: network(first=[pad(1), layers.Conv2D(4, 3, strides=2, activation="softmax")]),
        "class Conv2D with activation 'softmax'",
    ),
    "conv activation": (
        lambda: network([layers.Conv2D(4, 1, activation="softplus")]),
        "class Conv2D with activation 'softplus'",
    ),
    "depthwise activation": (
        lambda: network([layers.DepthwiseConv2D(3, padding="same", activation="selu")]),
        "class DepthwiseConv2D with activation 'selu'",
    ),
    "pooling": (lambda: network([layers.MaxPooling2D()]), "class MaxPooling2D"),
    "nearest": (lambda: network([layers.UpSampling2D()]), "class UpSampling2D"),
    "exp": (lambda: network([keras.ops.exp]), "class Exp"),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_models_that_run_sparse(name):
    model = SUPPORTED[name]()
    PruneForLatencyOnXNNPack().ensure_model_supports_pruning(model)
    keras_ntt.prune_low_magnitude(model, 0.5, pruning_policy=PruneForLatencyOnXNNPack())
    pruned = {path.rsplit("/", 1)[0] for path in keras_ntt.get_masks(model)}
    pointwise = {
        layer.kernel.path.rsplit("/", 1)[0]
        for layer in model._flatten_layers()
        if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1)
    }
    assert pruned == pointwise


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not(name):
    make, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        keras_ntt.prune_low_magnitude(make(), 0.5, pruning_policy=PruneForLatencyOnXNNPack())


def test_a_model_with_code_of_its_own():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = layers.Conv2D(2, 1)

        def call(self, x):
            return self.layer(x)

    model = Own()
    model(np.zeros((1, 4, 4, 3), "float32"))
    with pytest.raises(ValueError, match="has a custom call"):
        PruneForLatencyOnXNNPack().ensure_model_supports_pruning(model)


def test_neural_tangent_transfer_takes_the_policy():
    transfer = keras_ntt.NeuralTangentTransfer(
        network(), pruning_schedule=0.5, pruning_policy=PruneForLatencyOnXNNPack()
    )
    assert [path.split("/")[-2] for path in transfer.masks] == ["point"]
