"""Convert Dense layers to Monarch matrices (Dao et al., ICML 2022), without labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.core.copies import hand_over
from keras_ntt.layers.monarch import MonarchDense, blocks_of, project
from keras_ntt.masks.filters import Filters, as_predicate, check_filters
from keras_ntt.pruning.post_training.calibration import calibration_batches

DAMPING = 0.01
SAMPLES = 1024


def to_monarch(
    model: keras.Model,
    inputs: Any = None,
    *,
    blocks: int = 4,
    filters: Filters = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> keras.Model:
    """Return a copy of a model whose Dense layers are products of two block matrices.

    Each kernel is projected by singular values. With `inputs`, the second factor and the bias are
    fitted to the outputs of the dense layer, layer by layer. Square matrices are seldom close to a
    Monarch matrix: train the copy afterwards, on labels or on the outputs of `model`.

    Args:
        model: A built Sequential or functional model. It is not changed.
        inputs: Unlabelled inputs for the fit, see `keras_ntt.prune_post_training`; None for none.
        blocks: Number of blocks of each factor. Layers that would not become smaller are not
            changed.
        filters: Which Dense layers to replace, see `NeuralTangentTransfer`.
        samples: The maximum number of inputs to use.
        seed: Seed of their choice.

    Returns:
        The copy, with `MonarchDense` layers of the same names.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If no layer can be replaced, or something does not fit.

    Examples:
        >>> import keras
        >>> from keras_ntt import to_monarch
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu")])
        >>> to_monarch(model, blocks=4).count_params(), model.count_params()
        (2112, 4160)
    """
    checks.check_model(model)
    number = checks.check_count("blocks", blocks)
    check_filters(filters)
    functional = host.functional_of(model)
    found = [] if functional is None else _chosen(model, filters, number)
    if not found:
        raise ValueError(
            "No layer can be replaced: Dense layers of a Sequential or functional model, called "
            "once and outside of nested models, that would have fewer weights. Lower blocks, or "
            f"see filters=. Received: model={model.name!r}, blocks={blocks!r}, filters={filters!r}"
        )
    batches = None
    if inputs is not None:
        batches = calibration_batches(model, inputs, samples=samples, seed=seed)

    def made(layer: Any) -> Any:
        if layer.name not in found:
            return type(layer).from_config(layer.get_config())
        return MonarchDense(
            layer.units,
            number,
            layer.activation,
            layer.use_bias,
            name=layer.name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
        )

    copy = keras.models.clone_model(model, clone_function=made)
    for old, new in zip(model.layers, copy.layers, strict=True):
        if old.name in found:
            kernel = host.array_of(old.kernel).astype("float64")
            for factor, value in zip(
                (new.first, new.second), project(kernel, new.sizes), strict=True
            ):
                factor.assign(value)
            if old.bias is not None:
                new.bias.assign(host.array_of(old.bias))
        else:
            hand_over(old, new)
    if batches is not None:
        for name in found:
            _fit(model, copy, name, batches)
    return copy


def _chosen(model: keras.Model, filters: Filters, blocks: int) -> list[str]:
    """Return the names of the Dense layers that become smaller, in the order of the model."""
    accepts = as_predicate(filters, model)
    nodes = host.nodes_in_order(host.functional_of(model))
    calls = Counter(id(node.operation) for node in nodes)
    found = []
    for layer in model.layers:
        if type(layer) is not keras.layers.Dense or not accepts(layer):
            continue
        if calls[id(layer)] != 1:
            continue
        rows, columns = layer.kernel.shape
        if blocks_of(rows, columns, blocks).parameters < rows * columns:
            found.append(layer.name)
    return found


def _fit(dense: keras.Model, copy: keras.Model, name: str, batches: list[Any]) -> None:
    """Fit the second factor and the bias of a layer to the outputs of the dense layer."""
    theirs, mine = dense.get_layer(name), copy.get_layer(name)
    read, wanted = (_before(m, layer) for m, layer in ((copy, mine), (dense, theirs)))
    kernel = host.array_of(theirs.kernel).astype("float64")
    _, (l, s, r) = mine.sizes  # noqa: E741, the letters of the paper
    rows = [np.asarray(mine.middle(read(x, training=False)), "float64") for x in batches]
    z = np.concatenate(rows, axis=1).transpose(1, 0, 2)  # [n, l, r]
    targets = [np.asarray(wanted(x, training=False), "float64") for x in batches]
    y = np.concatenate([t.reshape(-1, t.shape[-1]) for t in targets]) @ kernel
    y = np.pad(y, [(0, 0), (0, l * s - mine.units)]).reshape(-1, s, l)
    centred = mine.bias is not None
    mean_z, mean_y = (v.mean(axis=0) if centred else np.zeros(v.shape[1:]) for v in (z, y))
    z, y = z - mean_z, y - mean_y
    second = host.array_of(mine.second).astype("float64")
    for j in range(l):
        hessian = z[:, j].T @ z[:, j]
        ridge = DAMPING * np.trace(hessian) / r
        if not ridge > 0:
            continue
        right = z[:, j].T @ y[:, :, j] + ridge * second[j].T
        second[j] = np.linalg.solve(hessian + ridge * np.eye(r), right).T
    mine.second.assign(second)
    if centred:
        shift = mean_y - np.einsum("lsr,lr->sl", second, mean_z)
        bias = host.array_of(theirs.bias).astype("float64")
        mine.bias.assign(bias + shift.reshape(-1)[: mine.units])


def _before(model: keras.Model, layer: Any) -> keras.Model:
    """Return a model whose outputs are the inputs of a layer."""
    return keras.Model(host.input_structure(host.functional_of(model)), layer.input)
