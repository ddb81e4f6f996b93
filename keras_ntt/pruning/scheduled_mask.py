"""A mask that a schedule moves: chosen anew by magnitude inside the training step.

The optimizer calls a variable's constraint once after each batch, however the step is compiled.
So the mask, and the count of batches that the schedule is asked about, are variables of the
constraint: no callback, no wrapper and no train step of one's own is needed.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.masks.constraint import MaskConstraint
from keras_ntt.selection.compiled_schedule import Timetable
from keras_ntt.selection.patterns import Pattern

_STATE = "_pruning_state"


class ScheduledMask(MaskConstraint):
    """Keep the zeros of a variable, and choose them anew when a schedule says so.

    As tfmot does, the mask for batch t is chosen from the weights that batch t starts with: at
    the end of batch t - 1. Masked weights are moved by that one update before they are masked
    again, so one that a single update lifts above the others comes back.

    Args:
        variable: The variable to be pruned.
        pattern: Magnitudes and a sparsity to a mask.
        timetable: When and how much; None keeps the first mask.

    Attributes:
        layer: The layer that its state is saved with, see `hold`.
    """

    fixed = False

    def __init__(self, variable: keras.Variable, pattern: Pattern, timetable: Timetable | None):
        self.inner = variable.constraint
        self.pattern = pattern
        self.timetable = timetable
        self.variable = variable
        self.layer: Any = None
        self._dropped: np.ndarray | None = None
        shape = tuple(variable.shape)
        self._mask = _state_beside(variable, np.ones(shape, bool), tf.bool)
        self._done = _state_beside(variable, 0, tf.int64)

    def __call__(self, w: Any) -> tf.Tensor:
        """Count a batch and return the value of `w` with zeros where the new mask says."""
        value = tf.convert_to_tensor(w)
        if self.inner is not None:
            value = tf.convert_to_tensor(self.inner(value))
        self._done.assign_add(1)
        mask = tf.convert_to_tensor(self._mask)
        if self.timetable is not None:
            due, sparsity = self.timetable.at(tf.convert_to_tensor(self._done) + 1)
            kept = mask
            mask = tf.cond(due, lambda: self.pattern(tf.abs(value), sparsity), lambda: kept)
            self._mask.assign(mask)
        return tf.where(mask, value, tf.zeros_like(value))

    def begin(self) -> None:
        """Choose the mask for the first batch, if it is to be sparse, and set the zeros."""
        value = keras.ops.convert_to_numpy(self.variable)
        sparsity: Any = 0.0
        if self.timetable is not None:
            # Step 0 is the moment before training, step 1 the first batch.
            answers = [self.timetable.at(tf.constant(step, tf.int64)) for step in (1, 0)]
            due = [sparsity for fires, sparsity in answers if bool(fires)]
            if not due:
                return
            sparsity = due[0]
        self.mask = self.pattern(tf.abs(tf.constant(value)), sparsity).numpy()
        self.variable.assign(np.where(self.mask, value, np.zeros_like(value)))

    def attach(self, variable: keras.Variable) -> None:
        """Keep the zeros of the variable from now on."""
        super().attach(variable)
        held = host.raw(variable)
        masked_assign = held.assign

        def assign(value: Any, *args: Any, **kwargs: Any) -> Any:
            # Weights that are loaded come before their masks: what the present mask takes away
            # of them is kept until it is known whether theirs does.
            if tf.executing_eagerly():
                given = tf.convert_to_tensor(value, held.dtype).numpy()
                self._dropped = given if given[~self.mask].any() else None
            return masked_assign(value, *args, **kwargs)

        held.assign = assign

    def detach(self, variable: keras.Variable) -> None:
        """Let go of the variable, and save no more of it with its layer."""
        super().detach(variable)
        state = getattr(self.layer, _STATE, None)
        if state is not None:
            state.masks = [mask for mask in state.masks if mask is not self]
            if not state.masks:
                object.__delattr__(self.layer, _STATE)

    @property
    def idle(self) -> bool:
        """Whether training went by and nothing was pruned."""
        return self.step > 0 and bool(self.mask.all())

    @property
    def step(self) -> int:
        """The number of batches trained since pruning began."""
        return int(tf.convert_to_tensor(self._done).numpy())

    @property
    def mask(self) -> np.ndarray:
        """The mask as a boolean array."""
        return tf.convert_to_tensor(self._mask).numpy()

    @mask.setter
    def mask(self, value: np.ndarray) -> None:
        self._mask.assign(value)

    def restore(self, mask: np.ndarray, step: int) -> None:
        """Take up a saved mask and step, after the weights that were saved with them."""
        given = self._dropped
        self.mask = mask
        self._done.assign(step)
        if given is not None:
            self.variable.assign(np.where(mask, given, np.zeros_like(given)))


class PruningState(keras.layers.Layer):
    """What of the pruning of one layer is saved with it: masks and the count of batches.

    It hangs on the layer where Keras's savers find it and nothing else does: the layer has no
    weights more, and a file of it loads into a plain model too.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: keras.layers.Layer):
        super().__init__(name="pruning_state", trainable=False)
        self.masks: list[Any] = []
        self.built = True
        object.__setattr__(layer, _STATE, self)

    def save_own_variables(self, store: Any) -> None:
        """Write the masks and steps."""
        for i, mask in enumerate(self.masks):
            store[f"mask_{i}"] = mask.mask.astype("uint8")
            store[f"step_{i}"] = np.int64(mask.step)

    def load_own_variables(self, store: Any) -> None:
        """Read the masks and steps; a file of a plain model has none and changes nothing.

        Raises:
            ValueError: If they are those of other weights.
        """
        found = set(store.keys())
        if not found:
            return
        saved = []
        for i, mask in enumerate(self.masks):
            name = f"mask_{i}"
            value = np.asarray(store[name]).astype(bool) if name in found else None
            if value is None or value.shape != mask.mask.shape:
                raise ValueError(
                    "The file holds the pruning state of other weights. Prune the model with the "
                    "settings of the saved one before its weights are loaded. Received: "
                    f"{'none' if value is None else value.shape} for a mask of {mask.mask.shape}"
                )
            saved.append((value, int(np.asarray(store[f"step_{i}"]))))
        for mask, (value, step) in zip(self.masks, saved, strict=True):
            mask.restore(value, step)


def hold(layer: keras.layers.Layer, mask: ScheduledMask) -> None:
    """Begin to prune a variable and save its state with a layer.

    Args:
        layer: The layer to save it with.
        mask: The mask of one of its variables.
    """
    mask.layer = layer
    mask.attach(mask.variable)
    state = getattr(layer, _STATE, None) or PruningState(layer)
    state.masks = [*state.masks, mask]
    mask.begin()


def scheduled_masks(layer: keras.layers.Layer) -> list[ScheduledMask]:
    """Return the masks that schedules move in a layer or a model."""
    return [v.constraint for v in layer.weights if isinstance(v.constraint, ScheduledMask)]


def _state_beside(variable: keras.Variable, value: Any, dtype: tf.DType) -> tf.Variable:
    """Return a variable of its own on each replica, where they all compute the same."""
    strategy = getattr(host.raw(variable), "distribute_strategy", None)
    with (strategy or tf.distribute.get_strategy()).scope():
        return tf.Variable(
            value,
            dtype=dtype,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            name="pruning_state",
        )
