"""A mask that a schedule updates, by magnitude, inside the training step.

The optimizer calls a variable's constraint once after each batch, however the step is compiled.
So the mask, and the number of batches that the schedule is called with, are variables of the
constraint. No callback, no wrapper and no custom train step is needed.
"""

from __future__ import annotations

import zlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, host
from keras_ntt.masks.constraint import MaskConstraint, check_not_frozen, under_both
from keras_ntt.selection.compiled_schedule import Timetable
from keras_ntt.selection.patterns import Pattern
from keras_ntt.selection.schedules import last_step

_STATE = "_pruning_state"


class ScheduledMask(MaskConstraint):
    """Keep the zeros of a variable, and update them when a schedule asks for it.

    As in tfmot, the mask for batch t is chosen at the end of batch t - 1, from the weights with
    which batch t starts. This single update also changes masked entries before they are masked
    again. An entry that it makes larger than the others returns.

    Args:
        variable: The variable to prune.
        pattern: A function from magnitudes and a sparsity to a mask.
        timetable: The schedule as tensors; None keeps the first mask.
        count_updates: Whether to leave out batches whose gradients are only accumulated.

    Attributes:
        layer: The layer with which its state is saved, see `hold`.
        settings: A value that is equal for two calls that prune the variable in the same way.
    """

    fixed = False

    def __init__(
        self,
        variable: keras.Variable,
        pattern: Pattern,
        timetable: Timetable | None,
        *,
        count_updates: bool = False,
    ):
        check_not_frozen([variable])
        held = variable.constraint
        self.inner = held.inner if isinstance(held, MaskConstraint) else held
        self.settings: Any = None
        self.optimizer: Any = None
        self.exchange: Any = None
        self.moved_with: list[Any] = []
        self.pattern = pattern
        self.timetable = timetable
        self.variable = variable
        self.count_updates = count_updates
        self.layer: Any = None
        self._dropped: np.ndarray | None = None
        shape = tuple(variable.shape)
        self._mask = _state_beside(variable, np.ones(shape, bool), tf.bool)
        self._done = _state_beside(variable, 0, tf.int64)
        self._seen = _state_beside(variable, 0, tf.int64)
        self._start: int | None = None

    def __call__(self, w: Any) -> tf.Tensor:
        """Count a batch and return the value of `w` under the new mask."""
        counts: Any = True
        if self.count_updates and self.optimizer is not None:
            counts = host.ends_accumulation(self.optimizer)
        self._done.assign_add(tf.cast(counts, tf.int64))
        return self._after_step(tf.convert_to_tensor(w), counts)

    def _after_step(self, value: tf.Tensor, counts: Any) -> tf.Tensor:
        """Update the mask for the next step, if it is due, and return the value under it."""
        mask = self.tensor
        if self.timetable is not None:
            due, sparsity = self.timetable.at(tf.convert_to_tensor(self._done) + 1)
            kept = mask
            due = tf.logical_and(due, counts)
            mask = tf.cond(due, lambda: self._chosen(value, sparsity), lambda: kept)
            self._mask.assign(mask)
        return under_both(value, mask, self.inner)

    def advance(self) -> None:
        """Count an update that no optimizer has counted, see `advance_pruning`."""
        if self.count_updates and self.optimizer is not None:
            return  # the optimizer has counted
        counted = tf.convert_to_tensor(self._done) > tf.convert_to_tensor(self._seen)
        tf.cond(counted, lambda: False, self._count)
        self._seen.assign(tf.convert_to_tensor(self._done))

    def catch_up(self, step: int) -> None:
        """Count updates that no optimizer has counted, up to a step."""
        while self.step < step:
            self._count()
        self._seen.assign(tf.convert_to_tensor(self._done))

    def _count(self) -> bool:
        self._done.assign(tf.convert_to_tensor(self._done) + 1)
        self.variable.assign(self._after_step(host.value_of(self.variable), True))
        return True

    def _chosen(self, value: tf.Tensor, sparsity: Any) -> tf.Tensor:
        """Return the mask of the largest magnitudes under the variable's own constraint."""
        if self.inner is not None:
            value = tf.convert_to_tensor(self.inner(value))
        return self.pattern(tf.abs(value), sparsity)

    def begin(self) -> None:
        """Choose the mask for the first batch, if it is due, and set the zeros."""
        self._choose_first()
        self._start = self._fingerprint()

    def _choose_first(self) -> None:
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
            # Weights are loaded before their masks: entries that the present mask removes are kept
            # until their mask is known.
            if tf.executing_eagerly():
                given = tf.convert_to_tensor(value, held.dtype).numpy()
                self._dropped = given if given[~self.mask].any() else None
            return masked_assign(value, *args, **kwargs)

        held.assign = assign

    def detach(self, variable: keras.Variable) -> None:
        """Remove the mask from the variable, and no longer save it with the layer."""
        super().detach(variable)
        state = getattr(self.layer, _STATE, None)
        if state is not None:
            state.masks = [mask for mask in state.masks if mask is not self]
            if not state.masks:
                object.__delattr__(self.layer, _STATE)

    def _fingerprint(self) -> int:
        return zlib.crc32(np.ascontiguousarray(host.array_of(self.variable)).tobytes())

    @property
    def progress(self) -> str:
        """The position of the schedule, if it has not ended."""
        if self.timetable is None:
            return ""
        last = last_step(self.timetable.schedule)
        if last is not None and self.step + 1 < last:
            return f"step {self.step} of {last}"
        never = self.mask.all() and last is None and self.mask.size > 1
        return f"step {self.step}, nothing pruned yet" if never else ""

    @property
    def behind(self) -> bool:
        """Whether the weight was trained or set to another value before the schedule ended."""
        return bool(self.progress) and (self.step > 0 or self._fingerprint() != self._start)

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
        """Restore a saved mask and step, after the weights that were saved with them."""
        given = self._dropped
        self.mask = mask
        self._done.assign(step)
        self._seen.assign(step)
        if given is not None:
            self.variable.assign(np.where(mask, given, np.zeros_like(given)))


class PruningState(keras.layers.Layer):
    """The pruning state that is saved with one layer: masks and the number of batches.

    It is attached to the layer where only Keras's saving code finds it: the layer has no additional
    weights, and its file also loads into a plain model.

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
            ValueError: If they belong to other weights.
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
    held = mask.variable.constraint
    if isinstance(held, MaskConstraint):  # the schedule continues from the present mask
        mask.mask = held.mask
        held.detach(mask.variable)
    mask.attach(mask.variable)
    state = getattr(layer, _STATE, None) or PruningState(layer)
    state.masks = [*state.masks, mask]
    mask.begin()


def scheduled_masks(layer: keras.layers.Layer) -> list[ScheduledMask]:
    """Return the masks that schedules update in a layer or a model."""
    held = {id(v): v for v in layer.weights}.values()
    return [v.constraint for v in held if isinstance(v.constraint, ScheduledMask)]


def advance_pruning(model: keras.Model) -> None:
    """Count one update of a training loop, for weights that no Keras optimizer has updated in it.

    `keras_ntt.prune_low_magnitude` counts a step when a Keras optimizer updates a weight. If a loop
    updates weights otherwise, by ``assign`` or an optimizer of another library, call this function
    after each update: it updates the masks when the schedule asks for it. It also counts for a
    weight without a gradient. A weight that an optimizer has updated since the last call is not
    counted again. The function may be called inside a ``tf.function``.

    Args:
        model: A model that `keras_ntt.prune_low_magnitude` prunes.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not built, or no schedule prunes it.

    Examples:
        >>> import keras
        >>> from keras_ntt import ConstantSparsity, advance_pruning, get_masks, prune_low_magnitude
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, use_bias=False)])
        >>> model = prune_low_magnitude(model, ConstantSparsity(0.5, begin_step=3, frequency=1))
        >>> for batch in range(2):
        ...     kernel = model.trainable_variables[0]
        ...     _ = kernel.assign_sub(0.1 * kernel)  # a custom update
        ...     advance_pruning(model)
        >>> [int(mask.sum()) for mask in get_masks(model).values()]
        [10]
    """
    checks.check_built(model)
    masks = scheduled_masks(model)
    if not masks:
        raise ValueError(
            "No schedule prunes this model, so there is nothing to count. Call "
            f"keras_ntt.prune_low_magnitude(model, schedule) first. Received: model={model.name!r}"
        )
    for mask in masks:
        mask.advance()


def _state_beside(variable: keras.Variable, value: Any, dtype: tf.DType) -> tf.Variable:
    """Return a variable with a copy on each replica, where all replicas compute the same."""
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
