"""The mask of one variable, held by the variable's constraint.

The optimizer applies a constraint after each of its updates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host


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
        for held in host.copies(variable):
            held.assign = self._through_mask(held, held.assign)
        variable.constraint = self

    def detach(self, variable: keras.Variable) -> None:
        """Let go of a variable, which then has the constraint that it had before."""
        for held in host.copies(variable):
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
        return host.array_of(self._mask)

    @mask.setter
    def mask(self, value: np.ndarray) -> None:
        self._mask.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Return an empty configuration: masks belong to a variable, not to a layer."""
        return {}


def is_masked(variable: keras.Variable) -> bool:
    """Tell whether a mask keeps the zeros of a variable."""
    return isinstance(variable.constraint, MaskConstraint)
