"""Wrappers, schedules and policies of tensorflow-model-optimization on models of tf_keras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.core.kinds import rule_for
from keras_ntt.keras2.to_keras3 import to_keras3
from keras_ntt.keras2.twins import (
    check_unwrapped,
    copy_weights,
    leaves_of,
    named_weights,
    paired,
    translate_masks,
    value_of,
)
from keras_ntt.masks import policies
from keras_ntt.masks.apply import get_masks as _masks_of_keras3
from keras_ntt.pruning.neural_tangent import prune
from keras_ntt.selection import schedules

try:
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import (
        PruneRegistry,
    )
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import (
        PruneLowMagnitude,
    )
except ImportError as error:
    raise ImportError(
        "keras_ntt.tfmot needs tf_keras and tensorflow-model-optimization: "
        f"pip install 'keras-ntt[tfmot]'. Received: {error}"
    ) from error

# A step that no training reaches: the masks of a wrapper with this begin_step do not change.
_NEVER = 2**31 - 1


class NTTSchedule(tfmot.sparsity.keras.PruningSchedule):
    """`keras_ntt.NTTSchedule` as a schedule of tfmot, for its wrappers.

    Args:
        sparsity: Fraction of zeros, in [0, 1).
        frequency: Steps from one update of the masks to the next; None keeps the first masks.
        end_step: The last step of the run. The masks are not updated in the last interval. None for
            none.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, sparsity: float, frequency: int | None = 100, end_step: int | None = None):
        self._native = schedules.NTTSchedule(sparsity, frequency, end_step)

    def __call__(self, step: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Return whether the masks are updated at `step`, and the sparsity.

        tfmot's first step is 1, so the masks are chosen first at step 1.
        """
        native, step = self._native, tf.cast(step, tf.int64)
        first, sparsity = step <= 1, tf.constant(native.sparsity, tf.float32)
        if native.frequency is None:
            return first, sparsity
        due = tf.equal(step % native.frequency, 0)
        if native.end_step is not None:
            due &= step + native.frequency < native.end_step
        return first | due, sparsity

    def get_config(self) -> dict[str, Any]:
        """Return the class name and the arguments, as tfmot's wrappers save them."""
        return {"class_name": "NTTSchedule", "config": self._native.get_config()}


class PruneSupportedLayers(tfmot.sparsity.keras.PruningPolicy):
    """A policy of tfmot that wraps the layers that tfmot can wrap, and no others.

    Without a policy tfmot refuses the whole model if it does not know one layer.

    Args:
        layers: The layers to prune; None for all supported ones.
    """

    def __init__(self, layers: Any = None):
        self._allowed = None if layers is None else {id(layer) for layer in layers}

    def allow_pruning(self, layer: Any) -> bool:
        """Return whether `layer` is one of the layers, and tfmot can wrap it."""
        if self._allowed is not None and id(layer) not in self._allowed:
            return False
        return hasattr(layer, "get_prunable_weights") or PruneRegistry.supports(layer)

    def ensure_model_supports_pruning(self, model: Any) -> None:
        """Accept every model."""


def as_tfmot_schedule(schedule: Any) -> Any:
    """Return a schedule of this package as one of tfmot.

    Args:
        schedule: A `keras_ntt.ConstantSparsity`, `PolynomialDecay` or `NTTSchedule`, a number, or
            a schedule of tfmot, which is returned as it is.

    Returns:
        The schedule of tfmot. Its `PolynomialDecay`, unlike that of this package, misses the final
        sparsity if `frequency` does not divide the interval.

    Raises:
        ValueError: If there is no equivalent one.
    """
    if isinstance(schedule, tfmot.sparsity.keras.PruningSchedule):
        return schedule
    native = schedules.as_schedule(schedule)
    names: dict[type, Any] = {
        schedules.ConstantSparsity: tfmot.sparsity.keras.ConstantSparsity,
        schedules.PolynomialDecay: tfmot.sparsity.keras.PolynomialDecay,
        schedules.NTTSchedule: NTTSchedule,
    }
    made = rule_for(native, names)
    if made is None:
        raise ValueError(
            "Only ConstantSparsity, PolynomialDecay and NTTSchedule have a counterpart in tfmot. "
            f"Received: {schedule!r}"
        )
    return made(**native.get_config())


def prune_scope() -> Any:
    """Return tfmot's scope to load wrapped models in, with the schedules of this module.

    Returns:
        A `tf_keras.utils.custom_object_scope`.
    """
    return tf_keras.utils.custom_object_scope(
        {"PruneLowMagnitude": PruneLowMagnitude, "NTTSchedule": NTTSchedule}
    )


def prune_neural_tangent(
    model: Any,
    inputs: Any,
    *,
    sparsity: Any,
    epochs: int,
    wrapped: bool = True,
    twin: keras.Model | None = None,
    teacher: Any = None,
    pruning_policy: Any = None,
    **settings: Any,
) -> Any:
    """Prune a tf_keras model before training, without labels, by Neural Tangent Transfer.

    Args:
        model: A built tf_keras model. It is not changed.
        inputs: Unlabelled inputs, see `keras_ntt.prune_neural_tangent`.
        sparsity: Fraction of zeros, or a schedule, also one of tfmot.
        epochs: Passes over the inputs.
        wrapped: Whether the result has tfmot's wrappers around its pruned layers, with fixed masks:
            train it with tfmot's ``UpdatePruningStep()``, then call ``strip_pruning``. False
            returns plain layers, whose zeros training would fill.
        twin: A Keras 3 model that computes the same, if it cannot be made automatically; the
            weights are copied from `model`.
        teacher: A dense model to match instead of `model`, of tf_keras or Keras 3.
        pruning_policy: A policy of tfmot, which gets the tf_keras layers, or one of this package,
            which gets the layers of the twin.
        **settings: As in `keras_ntt.prune_neural_tangent`; ``filters=`` gets the twin's layers.

    Returns:
        A sparse copy of the model, of tf_keras.

    Raises:
        TypeError: If `model` is not of tf_keras.
        ValueError: If something does not fit, or tfmot cannot wrap a layer that would be pruned.
    """
    if twin is None:
        twin = to_keras3(model)
    else:
        check_unwrapped(model)
        checks.check_built(twin, "twin")
        copy_weights(model, twin)
    if teacher is not None and not isinstance(teacher, keras.Model):
        teacher = to_keras3(teacher)
    if isinstance(pruning_policy, tfmot.sparsity.keras.PruningPolicy):
        pruning_policy.ensure_model_supports_pruning(model)
        pruning_policy = _OnTwin(pruning_policy, model, twin)
    if wrapped:  # a trial, so that layers that tfmot cannot wrap are known before the training
        filters = settings.get("filters")
        choice = policies.choose_weights(twin, filters=filters, pruning_policy=pruning_policy)
        chosen = {id(v) for v in choice.weights}
        pairs = [(name, v) for name, _, _, v in paired(model, twin) if id(v) in chosen]
        wrap_with_masks(model, {name: np.ones(v.shape, bool) for name, v in pairs})
    sparse = prune.prune_neural_tangent(
        twin,
        inputs,
        sparsity=sparsity,
        epochs=epochs,
        teacher=teacher,
        pruning_policy=pruning_policy,
        **settings,
    )
    result = tf_keras.models.clone_model(model)
    copy_weights(sparse, result)
    if not wrapped:
        return result
    return wrap_with_masks(result, translate_masks(_masks_of_keras3(sparse), sparse, result))


class _OnTwin:
    """A policy of tfmot, called with the tf_keras layer of each layer of the twin."""

    def __init__(self, policy: Any, model: Any, twin: keras.Model):
        theirs = {id(v): layer for layer in leaves_of(model) for v in layer.weights}
        self._policy = policy
        # By path, because the layer belongs to a copy of the twin.
        self._layers = {b.path: theirs[id(a)] for _, a, _, b in paired(model, twin)}

    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return the answer of the policy for the tf_keras layer with the same weights."""
        return all(self._policy.allow_pruning(self._layers[v.path]) for v in layer.weights)


def get_masks(model: Any) -> dict[str, np.ndarray]:
    """Return the masks in a tf_keras model with tfmot's wrappers.

    Args:
        model: The model.

    Returns:
        ``"layer/weight" -> boolean array``, true where an entry is kept.

    Raises:
        ValueError: If there is no wrapper in it.
    """
    names = {id(v): name for name, v in named_weights(model).items()}
    masks = {
        names[id(weight)]: value_of(mask) != 0
        for wrapper in _wrappers(model)
        for weight, mask, _ in wrapper.pruning_vars
    }
    if not masks:
        raise ValueError(
            "The model has no pruning wrapper of tfmot that holds a mask. "
            f"Received: {model.name!r} of class {type(model).__name__}"
        )
    return masks


def _wrappers(model: Any) -> list[Any]:
    return [layer for layer in leaves_of(model) if hasattr(layer, "pruning_vars")]


def wrap_with_masks(model: Any, masks: Mapping[str, Any]) -> Any:
    """Wrap the layers that have a mask in tfmot's wrappers, with fixed masks.

    The schedule of the wrappers begins at a step that no training reaches. So tfmot's
    ``UpdatePruningStep``, ``strip_pruning``, ``prune_scope`` and saving code work, and every zero
    is kept.

    Args:
        model: A built tf_keras model without wrappers. It is not changed.
        masks: Masks by ``layer/weight``, see `translate_masks`; true where an entry is kept.

    Returns:
        A copy of the model with wrappers and zeros. Compile it, and train it with tfmot's
        ``UpdatePruningStep()``.

    Raises:
        ValueError: If a mask fits no weight, tfmot cannot wrap its layer, or there are wrappers
            already.
    """
    check_unwrapped(model)
    copy = tf_keras.models.clone_model(model)
    copy_weights(model, copy)
    named = named_weights(copy)
    for name, mask in masks.items():
        if name not in named or tuple(named[name].shape) != np.shape(mask):
            raise ValueError(
                "A mask fits no weight of the model. Received: a mask of shape "
                f"{np.shape(mask)} for {name!r}, weights "
                f"{ {k: tuple(v.shape) for k, v in named.items()} }"
            )
    by_id = {id(named[name]): np.asarray(mask).astype(bool) for name, mask in masks.items()}
    chosen = [layer for layer in leaves_of(copy) if any(id(v) in by_id for v in layer.weights)]
    policy = PruneSupportedLayers(chosen)
    zeros = sum(int((~mask).sum()) for mask in by_id.values())
    share = zeros / max(sum(mask.size for mask in by_id.values()), 1)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(
        copy,
        tfmot.sparsity.keras.ConstantSparsity(share, begin_step=_NEVER),
        pruning_policy=policy,
    )
    waiting = dict(by_id)
    for wrapper in _wrappers(wrapped):
        for weight, mask, _ in wrapper.pruning_vars:
            value = waiting.pop(id(weight), None)
            if value is not None:
                mask.assign(value.astype(mask.dtype.as_numpy_dtype))
                weight.assign(np.where(value, value_of(weight), 0))
    if waiting:
        left = [name for name, v in named.items() if id(v) in waiting]
        raise ValueError(
            "tfmot cannot wrap the layers of some masks, such as Bidirectional, EinsumDense or "
            "custom layers without get_prunable_weights(). Leave them out by filters=, or "
            f"use the plain model, wrapped=False. Received: masks for {left}"
        )
    return wrapped
