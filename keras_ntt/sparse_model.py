"""Masks held in a model: a constraint on each pruned variable, nothing else.

No layer is wrapped or renamed and no weight is added, so a pruned model saves, loads and trains
like the plain one. The optimizer applies a variable's constraint after each of its updates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt import _host, checks
from keras_ntt.policies import prunable_weights

MaskDict = Mapping[str, Any]
"""``variable path -> array of the variable's shape``, true where an entry is kept."""


class MaskConstraint(keras.constraints.Constraint):
    """Set the masked entries of a variable to zero, after its own constraint if it has one.

    Args:
        mask: Boolean array of the variable's shape, true where an entry is kept.
        inner: The constraint that the variable had before, applied first.
    """

    fixed = True
    """Whether nothing but `apply_masks` moves the mask."""

    def __init__(self, mask: np.ndarray, inner: Any = None):
        self.inner = inner
        # A variable, not a constant: a compiled training step then sees later changes.
        self._mask = tf.Variable(mask, dtype=tf.bool, trainable=False, name="pruning_mask")

    def __call__(self, w: Any) -> tf.Tensor:
        """Return the value of `w` with zeros at the masked entries."""
        value = tf.convert_to_tensor(w)
        if self.inner is not None:
            value = tf.convert_to_tensor(self.inner(value))
        return tf.where(self._mask, value, tf.zeros_like(value))

    def attach(self, variable: keras.Variable) -> None:
        """Keep the zeros of a variable from now on.

        The optimizer applies a constraint after each update. What else is assigned, such as the
        averages of ``use_ema=True`` when training ends, weights that are restored, or what a
        training step of the user's own assigns, passes through the mask too.
        """
        for held in _host.copies(variable):
            held.assign = self._through_mask(held, held.assign)
        variable.constraint = self

    def detach(self, variable: keras.Variable) -> None:
        """Let go of a variable, which then has the constraint that it had before."""
        for held in _host.copies(variable):
            del held.assign
        variable.constraint = self.inner

    def _through_mask(self, held: tf.Variable, assign: Callable[..., Any]) -> Callable[..., Any]:
        def masked_assign(value: Any, *args: Any, **kwargs: Any) -> Any:
            value = tf.convert_to_tensor(value, held.dtype)
            value = tf.where(self._mask, value, tf.zeros_like(value))
            return assign(value, *args, **kwargs)

        return masked_assign

    @property
    def idle(self) -> bool:
        """Whether training went by and nothing was pruned, which a fixed mask is never."""
        return False

    @property
    def mask(self) -> np.ndarray:
        """The mask as a boolean array."""
        return _host.array_of(self._mask)

    @mask.setter
    def mask(self, value: np.ndarray) -> None:
        self._mask.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Return an empty configuration: masks belong to a variable, not to a layer."""
        return {}


def keys_of(variables: Iterable[keras.Variable]) -> list[str]:
    """Return one name a variable: its path, numbered where paths repeat.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a")], name="m")
    >>> keys_of(model.weights)
    ['m/a/kernel', 'm/a/bias']
    """
    seen: dict[str, int] = {}
    keys = []
    for variable in variables:
        path = variable.path
        seen[path] = seen.get(path, 0) + 1
        keys.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return keys


def is_masked(variable: keras.Variable) -> bool:
    """Tell whether a mask keeps the zeros of a variable."""
    return isinstance(variable.constraint, MaskConstraint)


def _named_weights(model: keras.Model) -> dict[str, keras.Variable]:
    return dict(zip(keys_of(model.weights), model.weights, strict=True))


def masks_by_variable(
    model: keras.Model, masks: MaskDict | None
) -> dict[int, tuple[keras.Variable, np.ndarray]]:
    """Match masks with the variables of a model, checking names, shapes and values.

    Args:
        model: The model.
        masks: Masks by variable path.

    Returns:
        ``id(variable) -> (variable, boolean mask)``.

    Raises:
        TypeError: If `masks` is no mapping.
        ValueError: If a name is not one of the model's weights, or a mask has the wrong shape
            or entries other than 0 and 1.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(
            "masks must map paths of variables to arrays, as keras_ntt.get_masks returns them. "
            f"Received: masks of type {type(masks).__name__}"
        )
    named = _named_weights(model)
    masks = renamed(masks, named)
    unknown = [key for key in masks if key not in named]
    if unknown:
        raise ValueError(
            f"masks are for other weights than the model {model.name!r} has. Build the model as "
            "it was when the masks were made, with the same layer names. "
            f"Received: masks for {unknown}, weights {list(named)}"
        )
    matched = {}
    for key, mask in masks.items():
        variable, array = named[key], _as_array(key, mask)
        if array.shape != tuple(variable.shape):
            raise ValueError(
                f"The mask of {key!r} must have the weight's shape {tuple(variable.shape)}. "
                f"Received: a mask of shape {array.shape}"
            )
        if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"The mask of {key!r} must be boolean or hold only 0 and 1. "
                f"Received: dtype {array.dtype} with other entries"
            )
        matched[id(variable)] = (variable, array.astype(bool))
    return matched


def _as_array(key: str, mask: Any) -> np.ndarray:
    try:
        return np.asarray(mask)
    except ValueError as error:
        raise ValueError(
            f"The mask of {key!r} must be an array. Received: {type(mask).__name__} ({error})"
        ) from error


def renamed(masks: MaskDict, names: Iterable[str]) -> dict[str, Any]:
    """Give masks the names that a model's weights have now.

    Keras drops the model's name from the paths of a model that is loaded or rebuilt from its
    configuration. A mask whose path is not among the names goes to the one weight that ends in
    the same ``layer/weight``, if there is exactly one.

    Args:
        masks: Masks by path.
        names: Paths of the model's weights.

    Returns:
        The masks by the model's paths; those that fit none keep their own.

    >>> renamed({"sequential/dense/kernel": 1}, ["dense/kernel", "dense_1/kernel"])
    {'dense/kernel': 1}
    """
    names = list(names)
    ends: dict[str, list[str]] = {}
    for name in names:
        ends.setdefault(_end(name), []).append(name)
    found = {key: mask for key, mask in masks.items() if key in names}
    for key, mask in masks.items():
        if key not in names:
            ending = ends.get(_end(key), []) if isinstance(key, str) else []
            candidates = [name for name in ending if name not in found]
            found[candidates[0] if len(candidates) == 1 else key] = mask
    return found


def _end(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def apply_masks(model: keras.Model, masks: MaskDict) -> keras.Model:
    """Set the masked entries to zero and keep them zero in any training that follows.

    Weights that `keras_ntt.prune_low_magnitude` prunes by a schedule leave it and keep these masks.

    Args:
        model: A built model. It is changed in place.
        masks: Masks by variable path, as `get_masks` returns them; true where an entry is kept.

    Returns:
        The same model.

    Raises:
        TypeError: If the model or the masks are of the wrong type.
        ValueError: If the masks do not fit the model.
    """
    checks.check_model(model)
    attached = False
    for variable, mask in masks_by_variable(model, masks).values():
        held = variable.constraint
        if isinstance(held, MaskConstraint) and held.fixed:
            held.mask = mask
        else:
            inner = held
            if isinstance(held, MaskConstraint):  # a schedule would choose other masks
                held.detach(variable)
                inner = held.inner
            MaskConstraint(mask, inner=inner).attach(variable)
            attached = True
        value = keras.ops.convert_to_numpy(variable)
        variable.assign(np.where(mask, value, np.zeros_like(value)))
    if attached:
        retrace(model)
    return model


def strip_pruning(model: keras.Model) -> keras.Model:
    """Let go of the masks: the zeros stay, and later training may change them.

    Args:
        model: A model with masks. It is changed in place.

    Returns:
        The same model, as free of masks as before pruning.

    Examples:
        >>> import keras
        >>> from keras_ntt import get_masks, prune_at_init, sparsity_report, strip_pruning
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> stripped = strip_pruning(prune_at_init(model, sparsity=0.9, saliency="magnitude"))
        >>> get_masks(stripped), sparsity_report(stripped).sparsity
        ({}, 0.9)
    """
    checks.check_built(model)
    held = [variable for variable in model.weights if is_masked(variable)]
    if held and all(variable.constraint.idle for variable in held):
        warnings.warn(
            "No weight was pruned: the model was trained, but the schedule never fired. Steps are "
            "batches; train longer, or lower begin_step or frequency. "
            f"Received: {model.name!r} without zeros in {len(held)} weights",
            stacklevel=2,
        )
    for variable in held:
        variable.constraint.detach(variable)
    if held:
        retrace(model)
    return model


def retrace(model: keras.Model) -> None:
    """Make a compiled model build its training step anew, with the constraints it has now."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)


def get_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the masks that a model holds.

    Args:
        model: A model.

    Returns:
        ``variable path -> boolean array``, true where an entry is kept; empty for a model that
        was never pruned or was stripped.

    Raises:
        TypeError: If `model` is not a Keras 3 model.

    Examples:
        >>> import keras
        >>> from keras_ntt import get_masks, prune_at_init
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> get_masks(model)
        {}
        >>> (mask,) = get_masks(prune_at_init(model, sparsity=0.9, saliency="magnitude")).values()
        >>> mask.dtype, int(mask.sum())
        (dtype('bool'), 2)
    """
    checks.check_built(model)
    return {
        key: variable.constraint.mask
        for key, variable in _named_weights(model).items()
        if is_masked(variable)
    }


def fixed_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the masks that no schedule moves, by variable path."""
    named = _named_weights(model)
    return {key: m for key, m in get_masks(model).items() if named[key].constraint.fixed}


def kept_entries(model: keras.Model) -> dict[int, np.ndarray]:
    """Return the entries of a model that are kept: by its masks, else by its exact zeros.

    Args:
        model: A model.

    Returns:
        ``id(variable) -> boolean mask`` for its pruned variables.
    """
    held = {id(v): v.constraint.mask for v in model.weights if is_masked(v)}
    if held:
        return held
    kernels = [v for layer in model._flatten_layers() for v in prunable_weights(layer)]
    return {id(v): _host.array_of(v) != 0 for v in kernels}


def check_no_masks(model: keras.Model) -> None:
    """Raise a ValueError if a model holds masks already."""
    held = [key for key, v in _named_weights(model).items() if is_masked(v)]
    if held:
        raise ValueError(
            "The model is pruned already. Call keras_ntt.strip_pruning(model) first, or begin "
            f"with a dense model. Received: model={model.name!r} with masks on {held}"
        )
