"""Channels that are zero, and their removal: outputs must stay what they were."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.channels.graph import channel_graph
from keras_ntt.core.channels.resize import Removal, resized


def random_removal(model, seed, share=0.5):
    """Remove a random part of what may be removed: of each axis one index, and not all of them."""
    graph = channel_graph(model)
    rng = np.random.default_rng(seed)
    labels = [label for label in graph.removable().tolist() if label not in graph.inexact]
    removed = {label for label in labels if rng.random() < share}
    for axis in graph.counted():
        mine = sorted(set(labels) & set(axis.tolist()))
        if mine and not removed & set(mine):
            removed.add(mine[rng.integers(len(mine))])
    for axis in graph.counted():
        if removed.issuperset(axis.tolist()):
            removed.discard(int(axis[rng.integers(len(axis))]))
    return Removal(graph, removed)


def set_to_zero(removal):
    """Set all weights of the removed channels to zero."""
    for axis in removal.graph.weights:
        if axis.labels is not None:
            value = host.array_of(axis.variable)
            shape = [-1 if i == axis.axis else 1 for i in range(value.ndim)]
            axis.variable.assign(value * removal.keeps(axis.labels).reshape(shape))


def draw(model, seed):
    """Give each weight a random value: variances positive, kernels by the size of their inputs."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        value = rng.normal(size=variable.shape)
        if "variance" in variable.name:
            value = rng.uniform(0.5, 2, variable.shape)
        elif len(variable.shape) > 1:
            value /= np.sqrt(np.prod(variable.shape) / max(variable.shape[-2:]))
        variable.assign(value)
    return model


def inputs_of(model, seed, n=3):
    """Draw inputs of a model; axes of unknown size get seven entries."""
    rng = np.random.default_rng(seed)
    found = []
    for tensor in host.functional_of(model).inputs:
        shape = (n, *(size or 7 for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            found.append(rng.integers(0, 5, shape))
        else:
            found.append(rng.normal(size=shape).astype(tensor.dtype))
    return found[0] if len(found) == 1 else found


def outputs_of(model, x):
    """Return the outputs as arrays."""
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def assert_outputs(found, expected, tolerance):
    """Compare outputs relative to their largest entry, which must not be zero."""
    for mine, theirs in zip(found, expected, strict=True):
        scale = np.abs(theirs).max()
        assert np.isfinite(scale)
        assert scale > 1e-6
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * scale)


def assert_exact(model, seed=0, *, share=0.5, tolerance=1e-6):
    """Zero random channels, remove them, and compare outputs; return the smaller model."""
    draw(model, seed)
    removal = random_removal(model, seed, share)
    before = outputs_of(model, inputs_of(model, seed))
    smaller = resized(removal)
    again = outputs_of(model, inputs_of(model, seed))
    for mine, theirs in zip(again, before, strict=True):
        np.testing.assert_array_equal(mine, theirs)  # it has been left as it is
    set_to_zero(removal)
    x = inputs_of(model, seed)
    assert_outputs(outputs_of(smaller, x), outputs_of(model, x), tolerance)
    return removal, smaller


def assert_gradients(removal, smaller, x, tolerance):
    """Compare the gradients of the remaining weights, relative to the largest of each weight."""
    mine, theirs = _gradients(smaller, x), _gradients(removal.graph.model, x)
    kept = {}
    for axis in removal.graph.weights:
        path = axis.variable.path
        if path in theirs:
            value = kept.get(path, theirs[path])
            keeps = slice(None) if axis.labels is None else removal.keeps(axis.labels)
            kept[path] = np.moveaxis(np.moveaxis(value, axis.axis, 0)[keeps], 0, axis.axis)
    assert kept
    scaled = {rescale.variable.path for rescale in removal.graph.rescales}
    for path, value in kept.items():
        if path not in scaled:
            limit = tolerance * max(np.abs(value).max(initial=0), 1)
            np.testing.assert_allclose(mine[path], value, rtol=0, atol=limit, err_msg=path)


def _gradients(model, x):
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        outputs = keras.tree.flatten(model(x, training=False))
        loss = sum(keras.ops.sum(keras.ops.sin(y)) for y in outputs)
    found = tape.gradient(loss, [v.value for v in variables])
    return {
        v.path: np.asarray(tf.convert_to_tensor(gradient))
        for v, gradient in zip(variables, found, strict=True)
        if gradient is not None
    }
