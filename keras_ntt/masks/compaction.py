"""Remove units that are dead: a smaller model of the same outputs, without any sparse format.

A unit of a Dense or Conv layer is dead if all its incoming weights are zero, so that it is
constant, or if all that reads it weighs it with zero. A constant is added to the bias of the
layer that reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_ntt.core import checks, host
from keras_ntt.core.channels import ACTIVATIONS, PADDING, Chain, chains_of, has_units
from keras_ntt.core.copies import hand_over


@dataclass
class _Weights:
    """Weights by layer, as arrays that may shrink."""

    by_layer: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def of(self, layer: Any) -> list[np.ndarray]:
        if id(layer) not in self.by_layer:
            self.by_layer[id(layer)] = [np.asarray(w) for w in layer.get_weights()]
        return self.by_layer[id(layer)]


def remove_dead_units(model: keras.Model) -> tuple[keras.Model, tuple[tuple[str, int], ...]]:
    """Return a model without its dead units.

    Units of Dense, Conv1D and Conv2D layers are removed where a chain of layers that treat each
    channel by itself (activations, pooling, BatchNormalization, DepthwiseConv2D, Flatten, ...)
    leads to one other such layer. Each layer keeps at least one unit.

    Args:
        model: A built Sequential or functional model. It is left as it is.

    Returns:
        The smaller model, or `model` itself if no unit is dead, and how many units were removed
        by layer name. The outputs are the same up to rounding.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is neither Sequential nor functional.
    """
    checks.check_model(model)
    if host.functional_of(model) is None:
        raise ValueError(
            "Dead units can be removed from Sequential and functional models only, whose layers "
            f"say what reads what. Received: model={model.name!r} of type {type(model).__name__}"
        )
    weights, chains = _Weights(), list(chains_of(model))
    removed: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for chain in chains:
            count = _shrink(chain, weights)
            if count:
                removed[chain.first.name] = removed.get(chain.first.name, 0) + count
                changed = True
    if not removed:
        return model, ()
    return _rebuilt(model, weights), tuple(removed.items())


def _shrink(chain: Chain, weights: _Weights) -> int:
    """Remove the dead units of a chain's first layer.

    Returns:
        How many.
    """
    first, last = weights.of(chain.first), weights.of(chain.last)
    units = first[0].shape[-1]
    constant = ~np.any(first[0] != 0, axis=tuple(range(first[0].ndim - 1)))
    bias = first[1] if chain.first.use_bias else np.zeros(units, first[0].dtype)
    values = _apply(chain.first.activation, bias)
    known = constant.copy()  # units whose constant still is one where it is read
    for layer in chain.between:
        values, exact = _passed_on(layer, weights.of(layer), values)
        known &= exact
    kernel = last[0]  # [..., inputs, outputs], inputs in turns of the units after Flatten
    rows = kernel.reshape(*kernel.shape[:-2], -1, units, kernel.shape[-1])
    unread = ~np.any(rows != 0, axis=tuple(i for i in range(rows.ndim) if i != rows.ndim - 2))
    free = values == 0
    foldable = free | (chain.last.use_bias and getattr(chain.last, "padding", "") not in _BORDERED)
    dead = unread | (known & foldable)
    if dead.all():
        dead[np.argmin(unread)] = False
    if not dead.any():
        return 0
    folded = dead & ~unread & ~free
    if folded.any():
        sums = rows.astype(np.float64).sum(axis=tuple(range(rows.ndim - 2)))
        last[1] = (last[1] + values[folded].astype(np.float64) @ sums[folded]).astype(kernel.dtype)
    last[0] = rows[..., ~dead, :].reshape(*kernel.shape[:-2], -1, kernel.shape[-1])
    first[:] = [w[..., ~dead] for w in first]
    for layer in chain.between:
        own = weights.of(layer)
        depthwise = type(layer) is layers.DepthwiseConv2D
        own[:] = [w[:, :, ~dead] if depthwise and w.ndim == 4 else w[..., ~dead] for w in own]
    return int(dead.sum())


_BORDERED = ("same", "causal")  # paddings that mix zeros into a constant


def _passed_on(
    layer: Any, own: list[np.ndarray], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a layer makes of channels that are constant, and whether they still are."""
    always = np.ones(values.shape, bool)
    if type(layer) in PADDING:
        return values, values == 0
    if type(layer) in ACTIVATIONS:
        return _apply(layer, values), always
    if type(layer) is layers.BatchNormalization:
        *affine, mean, variance = (w.astype(np.float64) for w in own)
        scale = affine.pop(0) if layer.scale else np.ones_like(mean)
        shift = affine.pop(0) if layer.center else np.zeros_like(mean)
        normal = (values - mean) / np.sqrt(variance + layer.epsilon)
        return (normal * scale + shift).astype(values.dtype), always
    if type(layer) is layers.DepthwiseConv2D:
        bias = own[1] if layer.use_bias else 0
        exact = always if layer.padding == "valid" else values == 0
        return _apply(layer.activation, values * own[0].sum(axis=(0, 1))[:, 0] + bias), exact
    return values, always


def _apply(function: Callable[[Any], Any] | None, values: np.ndarray) -> np.ndarray:
    if function is None:
        return values
    return keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(values)))


def _rebuilt(model: keras.Model, weights: _Weights) -> keras.Model:
    """Return a copy of a model whose layers have the sizes of the weights given."""
    pairs: list[tuple[Any, Any]] = []

    def copied(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            new = keras.models.clone_model(layer)
        else:
            config = layer.get_config()
            if id(layer) in weights.by_layer and has_units(layer):
                size = weights.of(layer)[0].shape[-1]
                config["units" if "units" in config else "filters"] = size
            new = type(layer).from_config(config)
        pairs.append((layer, new))
        return new

    clone = keras.models.clone_model(model, clone_function=copied)
    for old, new in pairs:
        if id(old) in weights.by_layer:
            new.set_weights(weights.of(old))
        elif isinstance(old, layers.Layer):  # operations such as those of x + y have learnt nothing
            hand_over(old, new)
    return clone
