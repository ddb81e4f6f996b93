"""One step of Neural Tangent Transfer, as Keras compiles and runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host, input_checks, inputs
from keras_ntt.core.network import Network
from keras_ntt.masks.apply import apply_masks, get_masks, strip_pruning
from keras_ntt.pruning.neural_tangent import replicas
from keras_ntt.pruning.neural_tangent.adversarial import Attack, attacked
from keras_ntt.pruning.neural_tangent.gradient import loss_and_gradient
from keras_ntt.pruning.neural_tangent.latent_weights import LatentWeights, gate
from keras_ntt.pruning.neural_tangent.lookahead import Plan
from keras_ntt.pruning.neural_tangent.objective import NTTLoss, Pair, Weighting, objective
from keras_ntt.pruning.neural_tangent.update import Update, check_scale, watched


class TransferStep(keras.Model):
    """The training and the test step of a transfer, on the state that a subclass sets up.

    Attributes:
        student: The student, with exact zeros where it is pruned.
        weighting: Settings of the objective.
        adversarial: An attack on the inputs of a training step, or None.
    """

    student: keras.Model
    weighting: Weighting
    adversarial: Attack | None
    _weights: LatentWeights
    _update: Update
    _networks: tuple[Network, Network]
    _first_ids: list[int]
    _first_state: list[keras.Variable]
    _seed: keras.Variable
    _step: keras.Variable
    _order: tf.Variable
    _parts: int
    _running: bool
    _plan: Plan | None
    _trackers: list[keras.metrics.Metric]
    train_function: Any

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return int(keras.ops.convert_to_numpy(self._step))

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks: ``variable path -> boolean array``, true where an entry is kept."""
        return self._weights.by_path()

    @property
    def layers(self) -> list[keras.Layer]:
        """The student alone: what callbacks such as TensorBoard show. A teacher never changes."""
        return [self.student]

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables that the optimizer moves: latent kernels and unpruned weights."""
        return self._weights.trained()

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The same, under the name by which Keras hands the optimizer's averages over."""
        return self._weights.trained()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The running means that are reset at each epoch."""
        return list(self._trackers)

    def call(self, inputs: Any) -> Any:
        """Return the student's outputs."""
        return self.student(inputs)

    def begin(self) -> None:
        """Make the student sparse, as the first step wants it.

        Raises:
            ValueError: If its kernels are others than at the start, or than a run left them.
        """
        self._weights.check_untouched()
        self._update.begin()
        strip_pruning(self.student)  # of the masks of an earlier run
        self._weights.write()
        self._running = True

    def begin_epoch(self) -> None:
        """Fix the order of this epoch's samples, by the seed and the step it begins at."""
        check_scale(self.optimizer)
        self._order.assign(tf.stack([host.value_of(self._seed), host.value_of(self._step)]))

    def finish(self) -> None:
        """Let the student hold its masks by itself."""
        self._running = False
        self._weights.write()  # the optimizer's averages, with use_ema=True
        apply_masks(self.student, self.masks)

    @contextlib.contextmanager
    def restore_on_error(self) -> Iterator[None]:
        """Leave the student as it was, or from the first step on with its masks, at any end."""
        step, weights, masks = self.step, self.student.get_weights(), get_masks(self.student)
        try:
            yield
        except BaseException:  # Ctrl-C, too
            self._running = False
            if self.step == step:
                strip_pruning(self.student)
                self.student.set_weights(weights)
                apply_masks(self.student, masks)
            else:
                with contextlib.suppress(ValueError):  # of weights that overflowed
                    self.finish()
            raise

    def set_weights(self, weights: Any) -> None:
        """Set the whole state, as `get_weights` returned it, and let the student follow it."""
        with self._following():
            super().set_weights(weights)

    def load_weights(self, filepath: Any, **kwargs: Any) -> None:
        """Read the whole state from a file of `save_weights`, and let the student follow it.

        Args:
            filepath: The file.
            **kwargs: As in `keras.Model.load_weights`.
        """
        with self._following():
            super().load_weights(filepath, **kwargs)

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Let the student have the weights and masks of the state that is set meanwhile."""
        held = get_masks(self.student)
        strip_pruning(self.student)  # masks of now would cut what is loaded
        try:
            yield
        except BaseException:
            apply_masks(self.student, held)
            raise
        if self.step > 0:
            self._weights.write()
            if not self._running:
                self.finish()

    def make_train_function(self, force: bool = False) -> None:
        """Build the compiled step, before which the schedule is asked."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        run = watched(self.train_function, self)

        def planned(iterator: Any) -> Any:
            assert self._plan is not None
            self._plan.look_ahead(self.step)
            return run(iterator)

        self.train_function = planned

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take one step of the transfer on a batch."""
        assert self._plan is not None
        variables = self.student.trainable_variables
        sources = [host.raw(v) for v in variables]
        x, counted = replicas.at_least_one(self._inputs_of(data))
        pair = self._pair()
        if self.adversarial is not None:
            x = attacked(self.adversarial, pair, x)
        loss, gradients = loss_and_gradient(
            pair, x, sources, parts=self._parts, scale=self.optimizer.scale_loss
        )
        gradients = gate(variables, gradients, self._weights.by_id())
        # Nothing is counted before the batch is there: at the end of data of unknown length the
        # step is begun and finds none.
        with tf.control_dependencies([loss.total]):
            moved = self.trainable_variables
            sound = self._update.apply(self.optimizer, loss.total, gradients, moved, counted)
            self._step.assign_add(tf.cast(sound, tf.int64))
            counts, density = self._plan.at(host.value_of(self._step))
            self._weights.refresh(tf.where(sound, counts, -1), density)
            self._weights.write()
        total = tf.where(sound, loss.total, tf.constant(np.nan, loss.total.dtype))
        return self._logs(loss._replace(total=total), counted)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate the objective on a batch, with the same projections at each call."""
        x, counted = replicas.at_least_one(self._inputs_of(data))
        return self._logs(objective(self._pair(step=-1), x), counted)

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        """Build nothing: all is built, and Keras would need parts of equal size for it."""

    def _pair(self, step: int | None = None) -> Pair:
        student, teacher = self._networks
        first = dict(zip(self._first_ids, self._first_state, strict=False))
        now = host.value_of(self._step) if step is None else tf.constant(step, tf.int64)
        return Pair(
            student,
            teacher,
            pruned=self._weights.pruned,
            masks=self._weights.by_id(),
            density=host.value_of(self._weights.density),
            weighting=self.weighting,
            seed=replicas.seed_of_step(host.value_of(self._seed), now),
            teacher_values={
                id(v): (v, host.value_of(first[id(v)]))
                for v in self.student.weights
                if id(v) in first
            },
        )

    def _inputs_of(self, data: Any) -> Any:
        x = inputs.without_labels(data)
        input_checks.check_structure(x, self.student)
        return x

    def _logs(self, loss: NTTLoss, counted: tf.Tensor | float) -> dict[str, Any]:
        for tracker, value in zip(self._trackers, loss[:3], strict=True):
            tracker.update_state(value, counted)
        logs = {tracker.name: tracker.result() for tracker in self._trackers}
        return replicas.as_logs({**logs, "sparsity": host.value_of(self._weights.sparsity)})
