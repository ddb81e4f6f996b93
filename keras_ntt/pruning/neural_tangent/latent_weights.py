"""Pruned weights during a transfer: latent values and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.masks.names import names_by_id
from keras_ntt.saliency.base import check_scores
from keras_ntt.selection.compiled_masks import CompiledMasks
from keras_ntt.selection.named_patterns import warn_if_sparsity_missed


def state_of(layer: keras.layers.Layer, name: str, value: Any, dtype: str) -> keras.Variable:
    """Add a variable to a layer, which is saved with the layer and not trained by gradients.

    Args:
        layer: The layer that owns the variable.
        name: Its name.
        value: Its value, an array or a number.
        dtype: Its dtype.

    Returns:
        The variable.
    """
    value = np.asarray(value)
    return layer.add_weight(
        name=name,
        shape=value.shape,
        dtype=dtype,
        initializer=lambda shape, dtype: tf.cast(value, dtype),
        trainable=False,
    )


class LatentWeights(keras.layers.Layer):
    """The state of a sparse student: dense latent kernels and their masks.

    The student's own kernels hold ``mask * latent``. The optimizer updates the latent kernels. A
    masked entry keeps its value, and can return when the masks are updated.

    Args:
        model: The student.
        variables: Its variables to prune.
        rule: How masks are chosen.
        sparsity: Fraction of zeros at the start; with None the student begins dense.
        masks: The first masks; with None the rule chooses them.

    Attributes:
        variables_of_student: The student's pruned variables.
        latent: One variable for each, with its dense value.
        masks: One boolean variable for each.
        density: The density of the schedule, a scalar.
        sparsity: The fraction of zeros in the masks, a scalar.
    """

    def __init__(
        self,
        model: keras.Model,
        variables: Sequence[keras.Variable],
        rule: CompiledMasks,
        sparsity: float | None,
        masks: Sequence[Any] | None = None,
    ):
        super().__init__(name="latent_weights", trainable=False)
        self.rule = rule
        self._model = [model]  # in a list, so that the student is not a part of this layer
        self._pruned = [list(variables)]
        values = [keras.ops.convert_to_numpy(v) for v in variables]
        if masks is not None:
            masks = [tf.constant(m, tf.bool) for m in masks]
        elif sparsity is None:
            masks = [tf.ones(v.shape, tf.bool) for v in values]
        else:
            weights = [tf.constant(v) for v in values]
            check_scores(rule.score(weights), weights)
            counts = rule.counts(sparsity)
            masks = rule.choose(weights, counts)
            found = [m.numpy() for m in masks]
            names = [v.path for v in variables]
            if rule.by_threshold:
                found, names = [np.concatenate([m.ravel() for m in found])], ["all weights"]
            warn_if_sparsity_missed(rule.recipe.pattern, names, found, counts)
        self.density = state_of(self, "density", 1 - (sparsity or 0.0), "float64")
        self.sparsity = state_of(self, "sparsity", _sparsity_of(masks), "float32")
        self.latent = [
            state_of(self, f"latent_{i}", value, variable.dtype)
            for i, (value, variable) in enumerate(zip(values, variables, strict=True))
        ]
        for latent, variable in zip(self.latent, variables, strict=True):
            latent.constraint = variable.constraint
        self.masks = [
            state_of(self, f"mask_{i}", mask.numpy(), "bool") for i, mask in enumerate(masks)
        ]
        self.built = True

    @property
    def pruned(self) -> list[keras.Variable]:
        """The student's pruned variables."""
        return self._pruned[0]

    def trained(self) -> list[keras.Variable]:
        """Return what the optimizer updates: latent kernels and the student's other weights."""
        latent = {id(v): m for v, m in zip(self.pruned, self.latent, strict=True)}
        return [latent.get(id(v), v) for v in self._model[0].trainable_variables]

    def by_id(self) -> dict[int, tf.Tensor]:
        """Return ``id(student variable) -> mask`` with the present values of the masks."""
        pairs = zip(self.pruned, self.masks, strict=True)
        return {id(v): host.value_of(mask) for v, mask in pairs}

    def by_path(self) -> dict[str, np.ndarray]:
        """Return ``path of the student's variable -> mask``."""
        names = names_by_id(self._model[0].weights)
        return {
            names[id(v)]: keras.ops.convert_to_numpy(mask).astype(bool)
            for v, mask in zip(self.pruned, self.masks, strict=True)
        }

    def write(self) -> None:
        """Write ``mask * latent`` to the student."""
        for variable, latent, mask in zip(self.pruned, self.latent, self.masks, strict=True):
            value = host.value_of(latent)
            variable.assign(tf.where(host.value_of(mask), value, tf.zeros_like(value)))

    def check_untouched(self) -> None:
        """Raise a ValueError if the student's kernels were changed from outside.

        They must be the latent or the masked kernels. The transfer would undo assignments to
        kernels, but keep assignments to other weights.
        """
        for variable, latent, mask in zip(self.pruned, self.latent, self.masks, strict=True):
            now, dense, kept = (keras.ops.convert_to_numpy(v) for v in (variable, latent, mask))
            sparse = np.where(kept, dense, np.zeros_like(dense))
            if not any(np.array_equal(now, known, equal_nan=True) for known in (dense, sparse)):
                raise ValueError(
                    "The student's kernels were changed since the transfer was made, or since its "
                    "last run, so its masks and latent weights are those of another network. Set "
                    "or train the student's weights first, and make a new NeuralTangentTransfer "
                    f"then. Received: other values in {variable.path!r}"
                )

    def refresh(self, counts: tf.Tensor, density: tf.Tensor) -> None:
        """Update the masks from the latent kernels.

        Args:
            counts: How many entries to keep, as in `CompiledMasks.counts`; negative numbers do not
                change the masks.
            density: The density of the counts.
        """

        def chosen() -> list[tf.Tensor]:
            masks = self.rule.choose([host.value_of(v) for v in self.latent], counts)
            return [*masks, tf.cast(density, self.density.dtype), _sparsity_of(masks)]

        state = [*self.masks, self.density, self.sparsity]
        values = tf.cond(counts[0] >= 0, chosen, lambda: [host.value_of(v) for v in state])
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)


def gate(
    variables: Sequence[keras.Variable],
    gradients: Sequence[tf.Tensor | None],
    masks: Mapping[int, tf.Tensor],
) -> list[tf.Tensor | None]:
    """Return gradients of latent weights from those of ``mask * latent``: zero where masked."""
    return [
        gradient
        if gradient is None or id(variable) not in masks
        else tf.where(masks[id(variable)], gradient, tf.zeros_like(gradient))
        for variable, gradient in zip(variables, gradients, strict=True)
    ]


def _sparsity_of(masks: Sequence[tf.Tensor]) -> tf.Tensor:
    kept = tf.add_n([tf.math.count_nonzero(mask) for mask in masks])
    return tf.cast(1 - kept / sum(int(np.prod(mask.shape)) for mask in masks), tf.float32)
