"""The mask of one variable, held by the variable's constraint.

The optimizer applies a constraint after each of its updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.masks import kept_updates


class EntryConstraint(keras.constraints.Constraint):
    """Train some entries of a variable, and keep its other constraint if it has one.

    Args:
        mask: Boolean array of the variable's shape, true where an entry is trained.
        inner: The constraint that the variable had before. It is applied to the masked value.

    Attributes:
        rest: A ``tf.Variable`` with the values of the other entries, None for zeros.
        optimizer: The optimizer that updated the variable last, if any.
        exchange: None, or a function that does an optimizer's update of the variable and may update
            the mask: ``exchange(optimizer, gradient, variable, mask, take)``, with tf.Variables,
            where ``take()`` takes the optimizer's own step.
        moved_with: The constraints with an `exchange`, this one among them, whose variables the
            optimizer updates in the step that it takes; a new list for each step that is traced.
    """

    rest: tf.Variable | None = None

    def __init__(self, mask: np.ndarray, inner: Any = None):
        self.inner = inner
        self.optimizer: Any = None
        self.exchange: Callable[..., None] | None = None
        self.moved_with: list[Any] = []
        # A variable, not a constant: a compiled training step then sees later changes.
        self._mask = tf.Variable(mask, dtype=tf.bool, trainable=False, name="pruning_mask")

    def __call__(self, w: Any) -> tf.Tensor:
        """Return the value of `w`, with fixed values for the entries that are not trained."""
        return under_both(tf.convert_to_tensor(w), self.tensor, self.inner, self.rest)

    def attach(self, variable: keras.Variable) -> None:
        """Hold the entries of a variable from now on.

        The optimizer applies a constraint after each update. Other assigned values pass through the
        mask as well: the averages of ``use_ema=True`` when training ends, restored weights, or what
        a custom training step assigns.
        """
        for held in host.copies(variable):
            held.assign = self._through_mask(held, held.assign)
            kept_updates.note(held, self)
        variable.constraint = self

    def detach(self, variable: keras.Variable) -> None:
        """Remove the mask from a variable, which then has the constraint that it had before."""
        for held in host.copies(variable):
            del held.assign
            kept_updates.note(held, None)
        variable.constraint = self.inner

    def _through_mask(self, held: tf.Variable, assign: Callable[..., Any]) -> Callable[..., Any]:
        def masked_assign(value: Any, *args: Any, **kwargs: Any) -> Any:
            value = tf.convert_to_tensor(value, held.dtype)
            value = tf.where(self._mask, value, _rest_of(value, self.rest))
            return assign(value, *args, **kwargs)

        return masked_assign

    @property
    def tensor(self) -> tf.Tensor:
        """The mask as a tensor, also inside a compiled training step."""
        return tf.convert_to_tensor(self._mask)

    @property
    def held_mask(self) -> tf.Variable:
        """The variable that holds the mask."""
        return self._mask

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


class MaskConstraint(EntryConstraint):
    """Set the masked entries of a variable to zero, and keep its own constraint if it has one.

    Args:
        mask: Boolean array of the variable's shape, true where an entry is kept.
        inner: The constraint that the variable had before.
    """

    fixed = True
    """Whether nothing but `apply_masks` moves the mask."""

    @property
    def progress(self) -> str:
        """Where the schedule of the mask stands, if it has one and is not at its end."""
        return ""

    @property
    def behind(self) -> bool:
        """Whether the weight was trained, or another value given, and the schedule not ended."""
        return False


class FrozenConstraint(EntryConstraint):
    """Keep entries of a variable at given values, and keep its other constraint if it has one.

    Args:
        mask: Boolean array of the variable's shape, true where an entry is trained.
        values: The values of the other entries, an array of the variable's shape and dtype.
        inner: The constraint that the variable had before.
    """

    def __init__(self, mask: np.ndarray, values: np.ndarray, inner: Any = None):
        super().__init__(mask, inner)
        self.rest = tf.Variable(values, trainable=False, name="frozen_values")


_ROUNDS = 200


def _rest_of(value: tf.Tensor, rest: Any) -> tf.Tensor:
    """Return the values of the entries that a mask leaves out."""
    return tf.zeros_like(value) if rest is None else tf.cast(rest, value.dtype)


def under_both(value: tf.Tensor, mask: tf.Tensor, inner: Any, rest: Any = None) -> tf.Tensor:
    """Return the value that satisfies both a mask and another constraint.

    The constraint is applied to the masked value. Most constraints do not change zeros, and then
    nothing more is needed. If one fills masked entries, as a constraint on sums does, the two are
    applied in turn until they agree, at most 200 times (von Neumann, "Functional operators II",
    1950, for two subspaces). The mask is applied last.

    Args:
        value: The value of a weight.
        mask: Booleans of its shape, true where an entry is kept.
        inner: The other constraint, or None.
        rest: What the masked entries are, zeros if None.

    Returns:
        A tensor of the same shape.
    """
    held = _rest_of(value, rest)
    value = tf.where(mask, value, held)
    if inner is None:
        return value

    def both(value: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        found = tf.convert_to_tensor(inner(value))
        masked = tf.where(mask, found, held)
        limit = tf.cast(1e-6, value.dtype) * tf.reduce_max(tf.abs(found))
        return masked, number + 1, tf.reduce_any(tf.abs(found - masked) > limit)

    return tf.while_loop(
        lambda value, number, apart: tf.logical_and(apart, number < _ROUNDS),
        lambda value, number, apart: both(value, number),
        (value, tf.constant(0), tf.constant(True)),
    )[0]


def is_masked(variable: keras.Variable) -> bool:
    """Tell whether a mask keeps the zeros of a variable."""
    return isinstance(variable.constraint, MaskConstraint)


def is_frozen(variable: keras.Variable) -> bool:
    """Tell whether entries of a variable are frozen."""
    return isinstance(variable.constraint, FrozenConstraint)


def check_not_frozen(variables: Iterable[keras.Variable]) -> None:
    """Raise a ValueError if entries of some variables are frozen, and so cannot be pruned."""
    found = [variable.path for variable in variables if is_frozen(variable)]
    if found:
        raise ValueError(
            "Weights with frozen entries cannot be pruned: an entry is either frozen or zero. Call "
            "keras_ntt.strip_pruning(model) first; or prune before you freeze, and the zeros are "
            f"frozen too. Received: frozen entries in {found}"
        )
