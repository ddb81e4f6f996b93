"""The networks that are timed.

All but one are lists of layers, which the peer reads too; one is a model that only Keras builds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

SPARSITY = 0.97
SETTINGS = {"learning_rate": 5e-4, "ntk_weight": 1e-3, "l2": 1e-5, "density": 1 - SPARSITY}
VOCABULARY, LENGTH = 2_000, 40


class Layer(NamedTuple):
    """A layer: kind is conv, pool, flatten, dense, mean, block, embed or encoder.

    A conv has no padding, unless `same`. mean is the average over pixels or tokens. A block is
    residual: two convolutions, the first with the stride, and a sum with its input or, where the
    shapes differ, with a 1x1 convolution of it; relu after the first and after the sum. embed is
    the sum of embeddings of tokens (`size` of them) and places; an encoder is attention (with
    `size` heads of `units` each) and two dense layers, each followed by a sum with its input and
    a layer normalization.
    """

    kind: str
    units: int = 0
    size: int = 0
    relu: bool = False
    stride: int = 1
    same: bool = False


class Network(NamedTuple):
    """A network and how to time it.

    Attributes:
        input_shape: Shape of a sample.
        outputs: Number of outputs.
        layers: The layers, or None if only `model` describes it.
        model: Builds the Keras model, if there are no layers.
        batch: Samples in a batch.
        projections: Random combinations of the outputs, or None for all outputs.
        inputs: ``"normal"``, ``"pixels"`` or ``"tokens"``.
        repeats: Steps a round; slow contestants take one.
        fit_batches: Batches in one timed `fit`; 0 leaves it out.
        no_peer: Why neural-tangents cannot run it, if so.
    """

    input_shape: tuple[int, ...]
    outputs: int = 10
    layers: tuple[Layer, ...] = ()
    model: Callable[[], keras.Model] | None = None
    batch: int = 64
    projections: int | None = None
    inputs: str = "normal"
    repeats: int = 3
    fit_batches: int = 0
    no_peer: str = ""


def build(network: Network) -> keras.Model:
    """Return the network as a Keras model, with the same weights each time."""
    keras.utils.set_random_seed(0)
    if network.model is not None:
        return network.model()
    tokens = network.inputs == "tokens"
    inputs = keras.Input(network.input_shape, dtype="int32" if tokens else None)
    x = inputs
    for i, layer in enumerate(network.layers):
        x = _BUILDERS[layer.kind](layer, x, f"{i:02d}")
    return keras.Model(inputs, x)


def weights_in_order(model: keras.Model) -> list[keras.Variable]:
    """Return the weights of a network of layers, in the order of these."""
    return [w for layer in sorted(model.layers, key=lambda one: one.name) for w in layer.weights]


def _conv(layer: Layer, x: Any, name: str) -> Any:
    return keras.layers.Conv2D(
        layer.units,
        layer.size,
        strides=layer.stride,
        padding="same" if layer.same else "valid",
        activation="relu" if layer.relu else None,
        name=f"{name}_conv",
    )(x)


def _block(layer: Layer, x: Any, name: str) -> Any:
    first, second, shortcut = block_parts(layer, x.shape[-1])
    y = _conv(second, _conv(first, x, f"{name}_0"), f"{name}_1")
    if shortcut is not None:
        x = _conv(shortcut, x, f"{name}_2")
    total = keras.layers.Add(name=f"{name}_3_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_4_relu")(total)


def block_parts(layer: Layer, channels: int) -> tuple[Layer, Layer, Layer | None]:
    """Return the convolutions of a residual block: first, second, and the shortcut's if any."""
    first = layer._replace(kind="conv", relu=True, same=True)
    second = first._replace(relu=False, stride=1)
    plain = layer.stride == 1 and channels == layer.units
    return first, second, None if plain else first._replace(relu=False, size=1)


def _embed(layer: Layer, x: Any, name: str) -> Any:
    places = keras.ops.cumsum(keras.ops.ones_like(x), axis=1) - 1
    tokens = keras.layers.Embedding(layer.size, layer.units, name=f"{name}_0_tokens")(x)
    order = keras.layers.Embedding(x.shape[1], layer.units, name=f"{name}_1_places")(places)
    return tokens + order


def _encoder(layer: Layer, x: Any, name: str) -> Any:
    layers = keras.layers
    y = layers.MultiHeadAttention(layer.size, layer.units, name=f"{name}_0_attention")(x, x)
    x = layers.LayerNormalization(epsilon=1e-6, name=f"{name}_1_norm")(x + y)
    y = layers.Dense(layer.units, activation="relu", name=f"{name}_2_dense")(x)
    y = layers.Dense(layer.units, name=f"{name}_3_dense")(y)
    return layers.LayerNormalization(epsilon=1e-6, name=f"{name}_4_norm")(x + y)


def _pool(layer: Layer, x: Any, name: str) -> Any:
    return keras.layers.MaxPooling2D(layer.size, name=f"{name}_pool")(x)


def _mean(layer: Layer, x: Any, name: str) -> Any:
    layers = keras.layers
    kind = layers.GlobalAveragePooling2D if len(x.shape) == 4 else layers.GlobalAveragePooling1D
    return kind(name=f"{name}_mean")(x)


def _flatten(layer: Layer, x: Any, name: str) -> Any:
    return keras.layers.Flatten(name=f"{name}_flatten")(x)


def _dense(layer: Layer, x: Any, name: str) -> Any:
    activation = "relu" if layer.relu else None
    return keras.layers.Dense(layer.units, activation=activation, name=f"{name}_dense")(x)


_BUILDERS = {
    "conv": _conv,
    "block": _block,
    "pool": _pool,
    "mean": _mean,
    "flatten": _flatten,
    "dense": _dense,
    "embed": _embed,
    "encoder": _encoder,
}


def samples(network: Network, count: int) -> np.ndarray:
    """Return random inputs; their values do not matter for the time."""
    random = np.random.default_rng(0)
    shape = (count, *network.input_shape)
    if network.inputs == "tokens":
        return random.integers(0, VOCABULARY, shape, dtype=np.int32)
    if network.inputs == "pixels":
        return random.uniform(0, 255, shape).astype(np.float32)
    return random.standard_normal(shape, dtype=np.float32)


def mobilenet() -> keras.Model:
    """Return MobileNetV3Small with 1,000 outputs and random weights."""
    return keras.applications.MobileNetV3Small(
        input_shape=(96, 96, 3), weights=None, classes=1_000, classifier_activation=None
    )


NETWORKS = {
    "lenet-300-100": Network(
        (784,),
        layers=(
            Layer("dense", 300, relu=True),
            Layer("dense", 100, relu=True),
            Layer("dense", 10),
        ),
        repeats=20,
        fit_batches=300,
    ),
    "lenet-5-caffe": Network(
        (28, 28, 1),
        layers=(
            Layer("conv", 20, 5, relu=True),
            Layer("pool", size=2),
            Layer("conv", 50, 5, relu=True),
            Layer("pool", size=2),
            Layer("flatten"),
            Layer("dense", 500, relu=True),
            Layer("dense", 10),
        ),
        repeats=4,
        fit_batches=10,
    ),
    "conv-4": Network(
        (32, 32, 3),
        layers=(
            Layer("conv", 64, 3, relu=True),
            Layer("conv", 64, 3, relu=True),
            Layer("pool", size=2),
            Layer("conv", 128, 3, relu=True),
            Layer("conv", 128, 3, relu=True),
            Layer("pool", size=2),
            Layer("flatten"),
            Layer("dense", 512, relu=True),
            Layer("dense", 10),
        ),
        batch=16,
        repeats=2,
    ),
    "resnet-8": Network(
        (32, 32, 3),
        layers=(
            Layer("conv", 16, 3, relu=True, same=True),
            Layer("block", 16, 3),
            Layer("block", 32, 3, stride=2),
            Layer("block", 64, 3, stride=2),
            Layer("mean"),
            Layer("dense", 10),
        ),
        batch=16,
        repeats=2,
    ),
    "mobilenet-v3-small": Network(
        (96, 96, 3),
        outputs=1_000,
        model=mobilenet,
        batch=8,
        projections=8,
        inputs="pixels",
        no_peer="it takes no random combinations of outputs, and all 1,000 do not fit in memory",
    ),
    "transformer": Network(
        (LENGTH,),
        outputs=2,
        layers=(
            Layer("embed", 32, VOCABULARY),
            Layer("encoder", 32, 2),
            Layer("encoder", 32, 2),
            Layer("mean"),
            Layer("dense", 20, relu=True),
            Layer("dense", 2),
        ),
        inputs="tokens",
        repeats=10,
    ),
}
