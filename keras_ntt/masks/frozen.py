"""Freezing instead of pruning (Wimmer et al., "FreezeNet", 2020): entries that keep their values.

A frozen entry is as it was, not zero, and no training moves it: the optimizer's step, its weight
decay and averages of weights do not reach it, and norms of gradients and weights leave it out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, host
from keras_ntt.masks.apply import retrace
from keras_ntt.masks.constraint import EntryConstraint, FrozenConstraint, is_frozen, is_masked
from keras_ntt.masks.names import MaskDict, masks_by_variable, weights_by_name


def freeze_entries(model: keras.Model, masks: MaskDict) -> keras.Model:
    """Train only some entries of weights: the others keep the values that they have now.

    The values do not change. Entries that masks have set to zero are frozen at zero, so weights
    can be pruned first and frozen then; what `masks` says of such an entry does not matter.
    `strip_pruning` ends it.

    Args:
        model: A built model. It is changed in place.
        masks: By variable path, as `get_masks` returns them; true where an entry is trained.

    Returns:
        The same model.

    Raises:
        TypeError: If the model or the masks are of the wrong type.
        ValueError: If the masks do not fit the model, or a schedule still moves its masks.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import freeze_entries
        >>> layer = keras.layers.Dense(2, use_bias=False)
        >>> model = keras.Sequential([keras.Input((2,)), layer])
        >>> layer.set_weights([np.array([[1.0, 2.0], [3.0, 4.0]])])
        >>> model = freeze_entries(model, {layer.kernel.path: np.eye(2)})
        >>> model.compile(keras.optimizers.SGD(1.0), "mse")
        >>> model.train_on_batch(np.ones((1, 2)), np.zeros((1, 2)))
        26.0
        >>> layer.kernel.numpy().tolist()
        [[-3.0, 2.0], [3.0, -2.0]]
    """
    checks.check_model(model)
    return hold_frozen(model, masks)


def hold_frozen(model: keras.Model, masks: MaskDict) -> keras.Model:
    """Do what `freeze_entries` does to a model whose weights have been checked already."""
    matched = list(masks_by_variable(model, masks).values())
    moving = [v.path for v, _ in matched if is_masked(v) and not v.constraint.fixed]
    if moving:
        raise ValueError(
            "A schedule moves the masks of weights that are to be frozen. Call "
            "keras_ntt.strip_pruning(model) first, or keras_ntt.apply_masks(model, masks) with the "
            f"masks that are to stay. Received: {moving}"
        )
    for variable, trained in matched:
        held = variable.constraint
        if is_masked(variable):
            trained = trained & held.mask
        if isinstance(held, EntryConstraint):
            held.detach(variable)
            held = held.inner
        FrozenConstraint(trained, host.array_of(variable), inner=held).attach(variable)
    if matched:
        retrace(model)
    return model


def trained_entries(model: keras.Model) -> dict[str, np.ndarray]:
    """Return which entries are trained of the weights that have frozen ones.

    Args:
        model: A model.

    Returns:
        ``variable path -> boolean array``, true where an entry is trained; empty for a model
        without frozen entries.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not built.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import freeze_entries, trained_entries
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> trained_entries(model)
        {}
        >>> model = freeze_entries(model, {model.weights[0].path: np.eye(2)})
        >>> [mask.tolist() for mask in trained_entries(model).values()]
        [[[True, False], [False, True]]]
    """
    checks.check_built(model)
    named = weights_by_name(model).items()
    return {key: v.constraint.mask for key, v in named if is_frozen(v)}


@contextlib.contextmanager
def freezing_what_is_loaded(model: keras.Model) -> Iterator[None]:
    """Let a file of weights be loaded into frozen entries too, and freeze what it says.

    If the block fails the model is frozen as it was.
    """
    held = [(v, v.constraint) for v in model.weights if is_frozen(v)]
    masks = [constraint.mask for _, constraint in held]
    for _, constraint in held:
        constraint.mask = np.ones_like(constraint.mask)
    done = False
    try:
        yield
        done = True
    finally:
        for (variable, constraint), mask in zip(held, masks, strict=True):
            if done:
                constraint.rest.assign(host.array_of(variable))
            constraint.mask = mask
            if not done:
                variable.assign(tf.convert_to_tensor(host.array_of(variable)))
