"""GraNet (Liu et al., NeurIPS 2021): prune and regrow while a network trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.core.checks import check_sparsity
from keras_ntt.masks.apply import get_masks, hold_masks
from keras_ntt.masks.filters import Filters, check_filters
from keras_ntt.masks.policies import check_policy, choose_weights
from keras_ntt.pruning.exchange import drop_count, drop_smallest, grow
from keras_ntt.saliency.data import Batches
from keras_ntt.saliency.loss_gradient import loss_gradient
from keras_ntt.saliency.losses import check_loss
from keras_ntt.selection.allocations import Shares
from keras_ntt.selection.counts import counts_by_threshold, keep_count
from keras_ntt.selection.find_masks import paths_of, select
from keras_ntt.selection.schedules import PolynomialDecay


class GraNet(keras.callbacks.Callback):
    """Prunes gradually while a network trains, and regrows where the gradient is large.

    Every `frequency` steps from `begin_step` to `end_step` the network is pruned, by magnitude and
    one threshold for all weights, to the sparsity

        final + (initial - final) * (1 - progress)^3 ;

    then each weight loses a further fraction p of what it keeps, its smallest magnitudes, and
    regrows as many entries where the gradient by all its entries, kept or not, is largest. p goes
    by half a cosine from `regrow` to `regrow_end` (Liu et al., "Sparse training via boosting
    pruning plasticity with neuroregeneration", NeurIPS 2021). Entries that are regrown begin
    at 0; the optimizer is not reset. The gradient is that of the loss in inference mode, and its
    batches are not counted in the model's metrics.

    The model may hold masks already, which the callback then changes; at `begin_step` it is
    pruned to at least its own sparsity. It ends with its masks held. A run that is ended and goes
    on with `keras_ntt.BackupAndRestore` goes on with its masks.

    Args:
        sparsity: The final fraction of zeros, in [0, 1).
        data: Samples ``(x, y)`` for the gradient: arrays, a ``tf.data.Dataset`` or a
            ``keras.utils.PyDataset``. Each time the next batch is used.
        begin_step: The first step after which to prune.
        end_step: The last one.
        frequency: Steps from one time to the next.
        initial_sparsity: Fraction of zeros at `begin_step`.
        regrow: Fraction of the kept entries that is exchanged, at the beginning.
        regrow_end: And at the end.
        batch_size: Samples a batch, for arrays.
        filters: Which layers, see `keras_ntt.NeuralTangentTransfer`.
        pruning_policy: See `keras_ntt.NeuralTangentTransfer`.
        loss: The loss, see `keras_ntt.effective_gradient_flow`. None is that of the model.

    Raises:
        ValueError: If a setting is out of range; when training begins, and before anything is
            changed, if the data do not fit the model or its loss, or if so few entries are to be
            kept that some weight would have none.
    """

    def __init__(
        self,
        sparsity: float,
        data: Any,
        *,
        begin_step: int = 0,
        end_step: int,
        frequency: int = 100,
        initial_sparsity: float = 0.0,
        regrow: float = 0.5,
        regrow_end: float = 0.005,
        batch_size: int = 128,
        filters: Filters = None,
        pruning_policy: Any = None,
        loss: Any = None,
    ):
        super().__init__()
        self.sparsity = check_sparsity(sparsity)
        self.initial_sparsity = check_sparsity(initial_sparsity)
        if self.initial_sparsity > self.sparsity:
            raise ValueError(
                "The network is pruned more and more, so initial_sparsity must be at most "
                f"sparsity. Received: initial_sparsity={initial_sparsity!r}, sparsity={sparsity!r}"
            )
        self.begin_step = _check_step("begin_step", begin_step)
        self.end_step = checks.check_count("end_step", end_step)
        if self.begin_step >= self.end_step:
            raise ValueError(
                "end_step must be after begin_step. "
                f"Received: begin_step={begin_step!r}, end_step={end_step!r}"
            )
        self.frequency = checks.check_count("frequency", frequency)
        # The last time is the last multiple of the frequency; the sparsity is final there.
        last = self.end_step - (self.end_step - self.begin_step) % self.frequency
        self.schedule = PolynomialDecay(
            self.initial_sparsity,
            self.sparsity,
            self.begin_step,
            max(last, self.begin_step + 1),
            power=3,
            frequency=self.frequency,
        )
        self.regrow, self.regrow_end = (
            _check_fraction(name, value)
            for name, value in (("regrow", regrow), ("regrow_end", regrow_end))
        )
        if not isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)) and not (
            isinstance(data, tuple) and len(data) > 1 and data[1] is not None
        ):
            raise ValueError(
                "data must be labelled, (x, y), because entries are regrown by the gradient of the "
                f"loss. Received: data of type {type(data).__name__}"
            )
        self._data = data
        self._batch_size = checks.check_count("batch_size", batch_size)
        check_filters(filters)
        check_policy(pruning_policy)
        self._choice = {"filters": filters, "pruning_policy": pruning_policy}
        self._loss = loss
        check_loss(loss)
        self._step = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Wait for the first epoch: other callbacks may take up the state of an earlier run."""
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Find the weights, when training begins, and give them masks, if they have none."""
        if self._begun:
            return
        self._begun = True
        checks.check_model(self.model)
        self._variables = choose_weights(self.model, **self._choice).weights
        self._paths = paths_of(self.model, self._variables)
        shapes = tuple(tuple(v.shape) for v in self._variables)
        Shares(tuple(self._paths), shapes, "global").check_room(self.sparsity)
        self._batches = Batches(self._data, self.model, self._batch_size)
        self._coming: Iterator[tuple[Any, Any]] = iter(())
        first = self._dense_gradient()  # before anything is changed: labels may not fit
        self._step = self._iterations()
        held = get_masks(self.model)
        masks = {
            path: held.get(path, self._first_mask(v))
            for path, v in zip(self._paths, self._variables, strict=True)
        }
        hold_masks(self.model, masks)
        self._last = self._step
        if self._step == self.begin_step:
            self._update(lambda: first)
        else:
            self._coming = iter(self._batches)

    def _first_mask(self, variable: keras.Variable) -> np.ndarray:
        """Return the mask of a weight that holds none: in a run that goes on, its zeros."""
        nonzero = keras.ops.convert_to_numpy(variable) != 0
        goes_on = self._step > self.begin_step and nonzero.any()
        return nonzero if goes_on else np.ones_like(nonzero)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Prune and regrow, if it is time."""
        self._step = self._iterations()
        if any(self.schedule(step)[0] for step in range(self._last + 1, self._step + 1)):
            self._update(self._dense_gradient)
        self._last = self._step

    def on_train_end(self, logs: Any = None) -> None:
        """Warn if training ended before the last step of the schedule."""
        last = self.schedule.end_step
        if self._step < last:
            warnings.warn(
                f"Training ended at step {self._step}, before GraNet's last one, {last}: the "
                f"sparsity is not the final one. Received: end_step={self.end_step}",
                stacklevel=2,
            )

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity that the network is pruned to at a step."""
        return self.schedule(step)[1]

    def regrow_at(self, step: int) -> float:
        """Return the fraction of the kept entries that is exchanged at a step."""
        begin, end = self.schedule.begin_step, self.schedule.end_step
        progress = min(max((step - begin) / (end - begin), 0.0), 1.0)
        wave = (1 + math.cos(math.pi * progress)) / 2
        return self.regrow_end + (self.regrow - self.regrow_end) * wave

    def _iterations(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _update(self, gradients: Callable[[], list[np.ndarray]]) -> None:
        held = get_masks(self.model)
        old = [held[path] for path in self._paths]
        values = [keras.ops.convert_to_numpy(v).astype("float64") for v in self._variables]
        step = min(self._step, self.end_step)
        size = sum(m.size for m in old)
        total = min(keep_count(size, self.sparsity_at(step)), sum(int(m.sum()) for m in old))
        masks = exchange(values, old, gradients, total=total, fraction=self.regrow_at(step))
        hold_masks(self.model, dict(zip(self._paths, masks, strict=True)))

    def _dense_gradient(self) -> list[np.ndarray]:
        """Return the gradient of the loss by all entries, on the next batch."""
        batch = next(self._coming, None)
        if batch is None:
            self._coming = iter(self._batches)
            batch = next(self._coming, None)
        if batch is None:
            raise ValueError("data hold no batches. Received: data that ended at once")
        found = loss_gradient(self.model, self._variables, *batch, self._loss)
        return [np.asarray(tf.cast(g, tf.float64)) for g in found]


def exchange(
    values: list[np.ndarray],
    masks: list[np.ndarray],
    gradients: Callable[[], list[np.ndarray]],
    *,
    total: int,
    fraction: float,
) -> list[np.ndarray]:
    """Prune by magnitude to a total, then exchange a fraction of each weight's entries.

    Args:
        values: Values of the weights.
        masks: What they keep.
        gradients: Function that returns the gradients by all entries.
        total: How many entries are kept of all together; at most as many as are kept now.
        fraction: The fraction of each weight's kept entries that is dropped and regrown.

    Returns:
        Masks with `total` entries.
    """
    magnitudes = [np.where(m, np.abs(v), -1.0) for v, m in zip(values, masks, strict=True)]
    least = [1] * len(masks) if total >= len(masks) else [0] * len(masks)
    kept = select(magnitudes, counts_by_threshold(magnitudes, total, least))
    moved = [drop_count(tf.constant(mask), fraction) for mask in kept]
    if not any(moved):
        return kept
    found = []
    for value, mask, gradient, count in zip(values, kept, gradients(), moved, strict=True):
        stays = drop_smallest(tf.constant(value), tf.constant(mask), count)
        found.append(grow(stays, tf.abs(tf.constant(gradient)), count).numpy())
    return found


def _check_fraction(name: str, value: Any) -> float:
    if not checks.is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1). Received: {name}={value!r}")
    return float(value)


def _check_step(name: str, value: Any) -> int:
    return 0 if checks.whole(value) == 0 else checks.check_count(name, value)
