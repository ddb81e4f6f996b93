"""Callbacks that report on models that are pruned during training."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import LossScaleOptimizer

from keras_ntt.masks.apply import get_masks
from keras_ntt.masks.names import weights_by_name
from keras_ntt.masks.restore import warn_if_unheld, warn_of_lora
from keras_ntt.pruning.neural_tangent.transfer import NeuralTangentTransfer
from keras_ntt.pruning.scheduled_mask import scheduled_masks
from keras_ntt.selection.compiled_schedule import warn_if_idle


class UpdatePruningStep(keras.callbacks.Callback):
    """Checks the schedule when training begins, and counts batches that no optimizer has counted.

    In tfmot the callback of this name does the counting. Here a weight counts when an optimizer
    updates it, and the callback is optional. With it, a weight that is not updated also counts
    every batch: one that the loss does not use, or one that a custom ``train_step`` updates without
    a Keras optimizer. It warns of a model that has zeros but no masks, of LoRA in a model with
    masks, and of a schedule that will not prune, or not reach its end, in the given epochs.

    In a loop without ``fit`` call ``set_model(model)`` and ``on_train_begin()`` first, then
    ``on_train_batch_begin(batch)`` before each batch and ``on_epoch_end()`` after each epoch.
    `keras_ntt.advance_pruning` is an alternative.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looks_ahead = False
        self._first_batch: int | None = None
        self._expected: dict[int, int] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Warn of problems of the model."""
        self._looks_ahead = not isinstance(self.model, NeuralTangentTransfer)  # which does itself
        self._first_batch, self._expected = None, {}
        if not self._looks_ahead:
            return
        warn_of_lora(self.model)
        masks = scheduled_masks(self.model)
        self._expected = {id(mask): mask.step for mask in masks}
        if not masks:
            warn_if_unheld(self.model)

    def on_epoch_begin(self, epoch: int = 0, logs: Any = None) -> None:
        """Warn of the schedule, at the first epoch: now the number of epochs is known."""
        looks_ahead, self._looks_ahead = self._looks_ahead, False
        params = self.params or {}
        steps = params.get("steps")
        if not looks_ahead or steps is None or "epochs" not in params:
            return
        left = (params["epochs"] - epoch) * steps
        masks = scheduled_masks(self.model)
        plans = {id(m.timetable): (m.timetable, m.step) for m in masks if m.timetable}
        for timetable, done in plans.values():
            warn_if_idle(timetable.schedule, done + 1 if done else 0, done + left + 1)

    def on_train_batch_begin(self, batch: int = 0, logs: Any = None) -> None:
        """Begin a batch, and end the one before."""
        self._end_batch()
        self._first_batch = batch

    def on_train_batch_end(self, batch: int = 0, logs: Any = None) -> None:
        """Count the batches that one execution has trained, if no optimizer did."""
        self._end_batch(batch)

    def on_epoch_end(self, epoch: int | None = None, logs: Any = None, **kwargs: Any) -> None:
        """Count the last batch; loops written for tfmot pass a ``batch`` here."""
        self._end_batch()

    def on_train_end(self, logs: Any = None) -> None:
        """Count the last batch."""
        self._end_batch()

    def _end_batch(self, last: int | None = None) -> None:
        first, self._first_batch = self._first_batch, None
        if first is None or not self._expected:
            return
        number = 1 if last is None else max(last - first, 0) + 1
        masks = [m for m in scheduled_masks(self.model) if not m.count_updates]
        steps = {id(m): m.step for m in masks}
        if isinstance(getattr(self.model, "optimizer", None), LossScaleOptimizer):
            # It skips steps whose gradients overflow: these change nothing.
            moved = [steps[i] - self._expected.get(i, steps[i]) for i in steps]
            number = min(number, max(moved, default=0))
        for mask in masks:
            expected = self._expected.get(id(mask), steps[id(mask)]) + number
            mask.catch_up(expected)
            self._expected[id(mask)] = max(expected, steps[id(mask)])


class PruningSummaries(keras.callbacks.TensorBoard):
    """TensorBoard, with the sparsity of each pruned weight by its path.

    The scalars ``<path>/sparsity``, and ``sparsity`` for all weights together, are written to
    ``<log_dir>/pruning`` at the beginning of each epoch and at the end of training, by the number
    of batches that the optimizer has seen. With `histogram_freq` it adds, per epoch, to what Keras
    writes: ``<path>/kept/histogram`` of the kept entries, which the zeros would hide otherwise, and
    with `write_images` the mask of each matrix, ``<path>/mask/image``.

    Args:
        log_dir: The folder of the event files.
        update_freq: As in `keras.callbacks.TensorBoard`.
        **kwargs: As in `keras.callbacks.TensorBoard`.

    Raises:
        ImportError: If TensorBoard is not installed.
        ValueError: If `log_dir` is not a path.
    """

    def __init__(self, log_dir: str | os.PathLike, update_freq: Any = "epoch", **kwargs: Any):
        if not isinstance(log_dir, str | os.PathLike) or not os.fspath(log_dir):
            raise ValueError(
                "log_dir must be the path of a folder for TensorBoard's event files. "
                f"Received: log_dir={log_dir!r}"
            )
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "PruningSummaries writes TensorBoard's files and needs that package: "
                "pip install tensorboard. Received: no module named 'tensorboard'"
            )
        super().__init__(log_dir=os.fspath(log_dir), update_freq=update_freq, **kwargs)
        self._sparsity_writer: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Write the sparsities at the beginning of the epoch."""
        super().on_epoch_begin(epoch, logs)
        self._write_sparsities()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write what Keras writes, and the histograms of the kept entries."""
        super().on_epoch_end(epoch, logs)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            self._write_kept(epoch)

    def on_train_end(self, logs: Any = None) -> None:
        """Write the sparsities at the end of training."""
        self._write_sparsities()
        if self._sparsity_writer is not None:
            self._sparsity_writer.close()
            self._sparsity_writer = None
        super().on_train_end(logs)

    def _masks(self) -> dict[str, np.ndarray]:
        transfer = isinstance(self.model, NeuralTangentTransfer)
        return self.model.masks if transfer else get_masks(self.model)

    def _writer(self) -> Any:
        if self._sparsity_writer is None:
            folder = os.path.join(self.log_dir, "pruning")
            self._sparsity_writer = tf.summary.create_file_writer(folder)
        return self._sparsity_writer

    def _write_kept(self, epoch: int) -> None:
        masks, transfer = self._masks(), isinstance(self.model, NeuralTangentTransfer)
        if not masks:
            return
        values = weights_by_name(self.model.student if transfer else self.model)
        with self._writer().as_default(step=epoch):
            for path, mask in masks.items():
                kept = keras.ops.convert_to_numpy(values[path])[mask]
                tf.summary.histogram(f"{path}/kept/histogram", kept)
                if self.write_images and mask.ndim == 2:
                    picture = mask if mask.shape[0] <= mask.shape[1] else mask.T  # as Keras's
                    pixels = picture[None, :, :, None].astype("float32")
                    tf.summary.image(f"{path}/mask/image", pixels)
        self._writer().flush()

    def _write_sparsities(self) -> None:
        masks = self._masks()
        if not masks:
            return
        step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        zeros = sum(np.count_nonzero(~mask) for mask in masks.values())
        size = sum(mask.size for mask in masks.values())
        with self._writer().as_default(step=step):
            for path, mask in masks.items():
                tf.summary.scalar(f"{path}/sparsity", 1 - np.mean(mask))
            tf.summary.scalar("sparsity", zeros / size)
        self._writer().flush()
