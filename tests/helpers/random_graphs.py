"""Random functional models of convolutions, branches and dense layers."""

from __future__ import annotations

import random

import keras
from keras import layers


def random_graph(seed):
    """Return a model of 3 to 12 layers, with residuals, concatenations, gates and a head."""
    rng = random.Random(seed)
    x = inputs = layers.Input((8, 8, 3))
    tensors = [layers.Conv2D(rng.choice((3, 4, 6)), 3, padding="same")(x)]
    for _ in range(rng.randint(2, 11)):
        source = rng.choice(tensors[-3:])
        tensors.append(rng.choice(_STEPS)(rng, source, tensors))
    ends = [tensors[-1]]
    if rng.random() < 0.3:
        ends.append(rng.choice(tensors))
    heads = [_head(rng, end) for end in ends]
    return keras.Model(inputs, heads if len(heads) > 1 else heads[0])


def _head(rng, x):
    kind = rng.randrange(4)
    if kind == 0:
        x = layers.Flatten()(x)
    elif kind == 1:
        x = layers.GlobalAveragePooling2D()(x)
    elif kind == 2:
        height, width, channels = x.shape[1:]
        x = layers.Reshape((height * width, channels))(x)
        x = layers.Dense(4, "relu")(x)
        x = layers.Permute((2, 1))(x)
        x = layers.Dense(3, "tanh")(x)
        x = layers.Flatten()(x)
    else:
        x = layers.Flatten()(x)
        x = layers.Dense(2 * 2 * 4, "relu")(x)
        x = layers.Reshape((2, 2, 4))(x)
        x = layers.Conv2DTranspose(3, 2)(x)
        x = layers.GlobalMaxPooling2D()(x)
    return layers.Dense(3)(layers.Dense(5, "gelu")(x))


def _conv(rng, x, _):
    padding = rng.choice(("same", "valid")) if x.shape[1] > 4 else "same"
    width, activation = rng.choice((3, 4, 6)), rng.choice((None, "relu", "tanh"))
    return layers.Conv2D(
        width, 3, padding=padding, activation=activation, use_bias=rng.random() < 0.7
    )(x)


def _strided(rng, x, _):
    return layers.Conv2D(rng.choice((4, 6)), 2, strides=2)(x) if x.shape[1] > 3 else x * 2.0


def _grouped(rng, x, _):
    channels = x.shape[-1]
    groups = rng.choice([g for g in range(1, channels + 1) if channels % g == 0])
    return layers.Conv2D(groups * rng.choice((1, 2)), 3, padding="same", groups=groups)(x)


def _depthwise(rng, x, _):
    return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=rng.choice((1, 2)))(x)


def _separable(rng, x, _):
    return layers.SeparableConv2D(rng.choice((3, 5)), 3, padding="same", depth_multiplier=2)(x)


def _normalized(rng, x, _):
    kinds = (layers.BatchNormalization, lambda: layers.GroupNormalization(x.shape[-1]))
    return layers.ReLU()(rng.choice(kinds)()(x))


def _joined(rng, x, tensors):
    alike = [t for t in tensors if t.shape == x.shape]
    kind = rng.choice((layers.Add, layers.Multiply, layers.Average, layers.Maximum))
    other = rng.choice(alike) if alike else x
    return rng.choice((kind()([x, other]), x + other, keras.ops.maximum(x, other)))


def _concatenated(rng, x, tensors):
    alike = [t for t in tensors if t.shape[:-1] == x.shape[:-1]]
    parts = [x, *(rng.choice(alike) for _ in range(rng.randint(1, 2)))]
    if sum(part.shape[-1] for part in parts) > 30:
        return layers.Conv2D(4, 1)(x)
    return layers.Concatenate()(parts)


def _gated(rng, x, _):
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Dense(3, "relu")(gate)
    gate = layers.Dense(x.shape[-1], "sigmoid")(gate)
    return layers.Multiply()([x, layers.Reshape((1, 1, x.shape[-1]))(gate)])


def _pooled(rng, x, _):
    if x.shape[1] < 4:
        return layers.Activation("silu")(x)
    return rng.choice((layers.MaxPooling2D, layers.AveragePooling2D))(2)(x)


def _split(rng, x, _):
    if x.shape[-1] % 2:
        return layers.ZeroPadding2D(1)(x)
    first, second = keras.ops.split(x, 2, axis=-1)
    return layers.Add()([first, second])


def _spatial_attention(rng, x, _):
    gate = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)
    return layers.Multiply()([x, gate]) if x.shape[-1] > 1 else x + 1.0


def _sliced(rng, x, _):
    return x[..., :2] if rng.random() < 0.3 else x[:, 1:]


def _transposed(rng, x, _):
    return layers.Conv2DTranspose(4, 2, padding="same")(x)


_STEPS = (
    *(_conv, _strided, _grouped, _depthwise, _separable, _normalized, _joined, _joined, _gated),
    *(_concatenated, _concatenated, _pooled, _split, _spatial_attention, _sliced, _transposed),
)
