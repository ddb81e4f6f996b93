"""What an optimizer's update does when connections are exchanged in it: SET and RigL, compiled.

An update of an optimizer takes one weight after another. Weights that exchange connections by
themselves do so in their turn. Those that do it together, by one threshold for all, wait for the
last of them: until then they keep their values if the exchange replaces the step, and have taken
theirs if it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_ntt.core import host

Masks = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]
"""``masks(value, gradient, mask, step, index)``: the mask after an exchange."""


class Rule(NamedTuple):
    """How connections are exchanged.

    Attributes:
        masks: What a mask becomes.
        due: Function of the number of an update, counted from 0, that tells whether it exchanges.
        replaces: Whether the exchange replaces the optimizer's step, or follows it.
    """

    masks: Masks
    due: Callable[[tf.Tensor], tf.Tensor]
    replaces: bool


class _Turn(NamedTuple):
    """The turn of one weight in an update."""

    optimizer: Any
    gradient: tf.Tensor
    held: tf.Variable
    mask: tf.Variable

    @property
    def step(self) -> tf.Tensor:
        return tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int64)

    @property
    def value(self) -> tf.Tensor:
        """The weight with zeros where it is pruned."""
        kept = tf.convert_to_tensor(self.mask)
        return tf.where(kept, tf.convert_to_tensor(self.held), tf.zeros_like(self.gradient))

    def become(self, new: tf.Tensor) -> None:
        """Take a mask: new entries begin at 0, and so does what the optimizer knows of them."""
        value = self.value
        grown = tf.logical_and(new, tf.logical_not(tf.convert_to_tensor(self.mask)))
        self.mask.assign(new)
        self.held.assign(tf.where(grown, tf.zeros_like(value), value))
        for slot in host.slots_of(self.optimizer, self.held):
            slot.assign(tf.where(grown, tf.zeros_like(slot), slot))


def alone(rule: Rule, index: int) -> Callable[..., None]:
    """Return what an update does to a weight that exchanges connections by itself.

    Args:
        rule: How.
        index: The number of the weight, which random choices depend on.

    Returns:
        A function as `MaskConstraint.exchange` is.
    """

    def exchange(optimizer: Any, gradient: Any, held: Any, mask: Any, take: Any) -> None:
        turn = _Turn(optimizer, tf.convert_to_tensor(gradient), held, mask)

        def move() -> bool:
            if not rule.replaces:
                take()
            old = tf.convert_to_tensor(mask)
            turn.become(rule.masks(turn.value, turn.gradient, old, turn.step, index))
            return True

        tf.cond(rule.due(turn.step), move, lambda: _done(take))

    return exchange


class Together:
    """Weights that exchange connections together, as if they were one.

    Args:
        rule: How.
    """

    def __init__(self, rule: Rule):
        self._rule = rule
        self._update: Any = None
        self._turns: dict[int, list[_Turn]] = {}
        self._members: set[int] = set()

    def member(self, constraint: Any) -> Callable[..., None]:
        """Return what an update does to one of the weights, see `alone`.

        Args:
            constraint: That holds its mask.
        """
        self._members.add(id(constraint))

        def exchange(optimizer: Any, gradient: Any, held: Any, mask: Any, take: Any) -> None:
            turn = _Turn(optimizer, tf.convert_to_tensor(gradient), held, mask)
            turns = self._turns_of_all(constraint, turn)
            due = self._rule.due(turn.step)
            if self._rule.replaces:
                tf.cond(due, lambda: _done(self._move, turns), lambda: _done(take))
                return
            take()
            if turns:
                tf.cond(due, lambda: _done(self._move, turns), _done)

        return exchange

    def _turns_of_all(self, constraint: Any, turn: _Turn) -> list[_Turn]:
        """Return the turns of all weights in an update if this one is the last, and no turns else.

        On several replicas each weight has a turn for each, in the same order.
        """
        if self._update is not constraint.moved_with:
            self._update, self._turns = constraint.moved_with, {}
        members = [id(c) for c in self._update if id(c) in self._members]
        self._turns.setdefault(id(constraint), []).append(turn)
        if not all(self._turns.get(member) for member in members):
            return []
        return [self._turns[member].pop(0) for member in members]

    def _move(self, turns: Sequence[_Turn]) -> None:
        if not turns:
            return
        dtype = turns[0].gradient.dtype
        values, gradients, masks = (
            tf.concat([tf.reshape(tf.cast(x, kind), [-1]) for x in parts], 0)
            for kind, parts in (
                (dtype, [turn.value for turn in turns]),
                (dtype, [turn.gradient for turn in turns]),
                (tf.bool, [tf.convert_to_tensor(turn.mask) for turn in turns]),
            )
        )
        new = self._rule.masks(values, gradients, masks, turns[0].step, 0)
        sizes = [turn.gradient.shape.num_elements() for turn in turns]
        for turn, part in zip(turns, tf.split(new, sizes), strict=True):
            turn.become(tf.reshape(part, turn.gradient.shape))


def _done(act: Callable[..., Any] = lambda: None, *arguments: Any) -> bool:
    act(*arguments)
    return True
