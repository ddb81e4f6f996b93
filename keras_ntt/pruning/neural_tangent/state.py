"""The state of a transfer: its networks, latent weights, seed, step, and the student's masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.logits import logits_of
from keras_ntt.core.network import unroll
from keras_ntt.masks.apply import get_masks, hold_masks, strip_pruning
from keras_ntt.pruning.neural_tangent import replicas
from keras_ntt.pruning.neural_tangent.divergence import Update
from keras_ntt.pruning.neural_tangent.first_masks import FirstMasks
from keras_ntt.pruning.neural_tangent.latent_weights import LatentWeights, state_of
from keras_ntt.pruning.neural_tangent.objective import Pair, Weighting


class TransferState:
    """The state of a transfer between two steps.

    Args:
        owner: The layer with which the variables of the state are saved.
        student: The student.
        teacher: The teacher; None takes the present student.
        pruned: The student's variables to prune.
        first: The start of the transfer.
        seed: Seed of every random choice.

    Attributes:
        student: The student, with exact zeros where it is pruned.
        latent: The dense latent weights and the masks over them.
        seed: The seed, a variable.
        step: The number of steps taken, a variable.
        order: The seed and the step that determine the order of the samples in an epoch, a
            variable.
        update: Applies gradients while they are finite.
    """

    def __init__(
        self,
        owner: keras.layers.Layer,
        student: keras.Model,
        teacher: keras.Model | None,
        pruned: Sequence[keras.Variable],
        first: FirstMasks,
        seed: int,
    ):
        self.student = student
        self.latent = LatentWeights(student, pruned, *first)
        self.seed = state_of(owner, "seed", seed, "int64")
        self.step = state_of(owner, "step", 0, "int64")
        self.order = tf.Variable([0, 0], dtype=tf.int64, trainable=False)
        self.update = Update()
        self._running = False
        first_of_all = student if teacher is None else teacher
        self._networks = tuple(unroll(logits_of(m).model) for m in (student, first_of_all))
        # By id, because the trainable variables may change before or between runs.
        self._teacher_values: dict[int, keras.Variable] = {}
        if teacher is None:
            self._teacher_values = {
                id(v): state_of(owner, f"teacher_{i}", keras.ops.convert_to_numpy(v), v.dtype)
                for i, v in enumerate(student.trainable_variables)
            }

    @property
    def steps_taken(self) -> int:
        """The number of steps taken."""
        return int(keras.ops.convert_to_numpy(self.step))

    def begin(self) -> None:
        """Make the student sparse for the first step.

        Raises:
            ValueError: If its kernels have changed since the start or the last run.
        """
        self.latent.check_untouched()
        self.update.begin()
        strip_pruning(self.student)  # removes the masks of an earlier run
        self.latent.write()
        self._running = True

    def begin_epoch(self) -> None:
        """Fix the order of an epoch's samples, from the seed and the first step of the epoch."""
        self.order.assign(tf.stack([host.value_of(self.seed), host.value_of(self.step)]))

    def finish(self) -> None:
        """Apply the masks to the student."""
        self._running = False
        self.latent.write()  # the optimizer's averages, with use_ema=True
        hold_masks(self.student, self.latent.by_path())

    @contextlib.contextmanager
    def restore_on_error(self) -> Iterator[None]:
        """At any end, restore the student if no step was taken, or else apply its masks."""
        step, weights = self.steps_taken, self.student.get_weights()
        masks = get_masks(self.student)
        try:
            yield
        except BaseException:  # also Ctrl-C
            if self.steps_taken == step:
                self._running = False
                strip_pruning(self.student)
                self.student.set_weights(weights)
                hold_masks(self.student, masks)
            else:
                self.finish()
            raise

    @contextlib.contextmanager
    def follow_loaded(self) -> Iterator[None]:
        """Let the student have the weights and masks of a state that is loaded in this context."""
        held = get_masks(self.student)
        strip_pruning(self.student)  # the present masks would prune the loaded weights
        try:
            yield
        except BaseException:
            hold_masks(self.student, held)
            raise
        if self.steps_taken > 0:
            self.latent.write()
            if not self._running:
                self.finish()

    def pair(self, weighting: Weighting, step: int | None = None) -> Pair:
        """Return both networks with their present values and masks, for the objective.

        Args:
            weighting: Settings of the objective.
            step: The step of the random choices; None takes the present step.
        """
        student, teacher = self._networks
        now = host.value_of(self.step) if step is None else tf.constant(step, tf.int64)
        return Pair(
            student,
            teacher,
            pruned=self.latent.pruned,
            masks=self.latent.by_id(),
            density=host.value_of(self.latent.density),
            weighting=weighting,
            seed=replicas.seed_of_step(host.value_of(self.seed), now),
            teacher_values={
                id(v): (v, host.value_of(self._teacher_values[id(v)]))
                for v in self.student.weights
                if id(v) in self._teacher_values
            },
        )
