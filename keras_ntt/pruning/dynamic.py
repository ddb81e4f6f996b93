"""SET (Mocanu et al., 2018) and RigL (Evci et al., ICML 2020): sparse training from the start.

A network keeps its sparsity while it trains, and moves its connections: every so many updates each
weight drops the entries of smallest magnitude and grows as many others, at random (SET) or where
the gradient is largest (RigL). Both are part of the optimizer's update of a weight. So they see the
gradient of that very batch, which has the entries that are zero too, at no cost; and they hold in
compiled steps, with several steps an execution, accumulated gradients and on several replicas.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.masks.apply import get_masks, hold_masks, retrace
from keras_ntt.masks.filters import Filters, check_filters
from keras_ntt.masks.policies import check_policy, choose_weights
from keras_ntt.pruning.exchange import drop_count, drop_nearest_zero, drop_smallest, grow
from keras_ntt.pruning.exchange_step import Rule, Together, alone
from keras_ntt.pruning.random_masks import random_masks
from keras_ntt.selection.compiled_schedule import Timetable
from keras_ntt.selection.find_masks import paths_of
from keras_ntt.selection.schedules import PruningSchedule

ANNEALS = ("cosine", "constant")
SCOPES = ("layerwise", "global")


class _Exchange(keras.callbacks.Callback, ABC):
    """What SET and RigL share: when, how much, and what happens to a weight and its optimizer."""

    _anneal, _replaces = "cosine", True

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        drop_fraction: float = 0.3,
        anneal: str | None = None,
        scope: str = "layerwise",
        begin_step: int = 0,
        end_step: int,
        frequency: int = 100,
        schedule: PruningSchedule | None = None,
        replace_step: bool | None = None,
        filters: Filters = None,
        pruning_policy: Any = None,
        seed: int = 0,
    ):
        super().__init__()
        self.sparsity = None if sparsity is None else checks.check_sparsity(sparsity)
        if not checks.is_number(drop_fraction) or not 0 < drop_fraction < 1:
            raise ValueError(
                "drop_fraction must be a number between 0 and 1. "
                f"Received: drop_fraction={drop_fraction!r}"
            )
        self.drop_fraction = float(drop_fraction)
        self.anneal = self._anneal if anneal is None else anneal
        checks.check_choice("anneal", self.anneal, ANNEALS)
        self.scope = scope
        checks.check_choice("scope", scope, SCOPES)
        begin = checks.whole(begin_step)
        if begin is None or begin < 0:
            raise ValueError(
                f"begin_step must be a whole number of at least 0. Received: {begin_step=}"
            )
        self.begin_step, self.end_step = begin, checks.check_count("end_step", end_step)
        if self.begin_step >= self.end_step:
            raise ValueError(
                "end_step must be after begin_step. "
                f"Received: begin_step={begin_step!r}, end_step={end_step!r}"
            )
        self.frequency = checks.check_count("frequency", frequency)
        if schedule is not None and not isinstance(schedule, PruningSchedule):
            raise TypeError(
                "schedule must be a PruningSchedule, which says when. "
                f"Received: schedule={schedule!r}"
            )
        self._times = None if schedule is None else Timetable(schedule)
        if replace_step is not None and not isinstance(replace_step, bool | np.bool_):
            raise TypeError(
                f"replace_step must be True, False or None. Received: replace_step={replace_step!r}"
            )
        self.replace_step = self._replaces if replace_step is None else bool(replace_step)
        check_filters(filters)
        check_policy(pruning_policy)
        self._choice = {"filters": filters, "pruning_policy": pruning_policy}
        self._seed = checks.check_seed(seed)
        # The first update that this callback does not look after: an interrupted run does not tell
        # it that it ends, and the compiled step stays in the model.
        self._end_of_batch = tf.Variable(0, dtype=tf.int64, trainable=False)

    # --- when and how much -----------------------------------------------------------------

    def due_at(self, step: Any) -> tf.Tensor:
        """Return whether connections are exchanged in an update, counted from 0."""
        step = tf.cast(step, tf.int64)
        within = tf.logical_and(step >= self.begin_step, step < self.end_step)
        if self._times is not None:
            return tf.logical_and(within, self._times.at(step)[0])
        return tf.logical_and(within, tf.equal((step - self.begin_step) % self.frequency, 0))

    def fraction_at(self, step: Any) -> tf.Tensor:
        """Return the fraction of the kept entries that is dropped in an update, as float64."""
        if self.anneal == "constant":
            return tf.constant(self.drop_fraction, tf.float64)
        progress = tf.cast(step, tf.float64) / self.end_step
        wave = (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0))) / 2
        return self.drop_fraction * wave

    # --- in training -----------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        """Wait for the first epoch: other callbacks may take up the state of an earlier run."""
        self._held: list[Any] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin, when the first epoch does: find the masks, or draw them."""
        if self._held:
            return
        checks.check_model(self.model)
        variables = choose_weights(self.model, **self._choice).weights
        masks = get_masks(self.model)
        paths = paths_of(self.model, variables)
        if not any(path in masks for path in paths):
            hold_masks(self.model, self._drawn(variables, paths))
        moved = [v for v, path in zip(variables, paths, strict=True) if self._moves(v, path)]
        rule = Rule(self._masks, self._due, self.replace_step)
        together = Together(rule)
        for i, variable in enumerate(moved):
            held = variable.constraint
            held.exchange = alone(rule, i) if self.scope == "layerwise" else together.member(held)
            self._held.append(held)
        retrace(self.model)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Allow exchanges in the updates that follow."""
        done = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        self._end_of_batch.assign(done + (self.model.steps_per_execution or 1))

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the model with its masks, which no longer move."""
        for constraint in self._held:
            constraint.exchange = None
        retrace(self.model)
        self._held = []

    def _moves(self, variable: keras.Variable, path: str) -> bool:
        held = variable.constraint
        if getattr(held, "fixed", True) is False:
            raise ValueError(
                "A schedule of prune_low_magnitude moves the mask of a weight that this callback "
                "would move. Call strip_pruning first, or leave the weight out by filters=. "
                f"Received: {path}"
            )
        return hasattr(held, "exchange")

    def _drawn(self, variables: Sequence[Any], paths: Sequence[str]) -> dict[str, np.ndarray]:
        if self.sparsity is None:
            raise ValueError(
                f"{type(self).__name__} moves the connections of a sparse model, and this one "
                "holds no masks. Pass sparsity=, or call keras_ntt.prune_at_init(model, ...) "
                f"first. Received: sparsity=None, model={self.model.name!r}"
            )
        masks = random_masks(self.model, variables, self.sparsity, self._seed)
        return dict(zip(paths, masks, strict=True))

    def _due(self, step: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(self.due_at(step), step < tf.convert_to_tensor(self._end_of_batch))

    @abstractmethod
    def _masks(
        self, value: tf.Tensor, gradient: tf.Tensor, mask: tf.Tensor, step: tf.Tensor, index: int
    ) -> tf.Tensor:
        """Return the mask after an exchange.

        Args:
            value: The weight, with zeros where it is pruned; or all weights as one vector.
            gradient: The gradient by all its entries.
            mask: The mask before.
            step: The number of the update.
            index: The number of the weight, which random choices depend on.
        """


class RigL(_Exchange):
    """Sparse training that grows connections where the gradient is largest.

    In an update t with ``t % frequency == 0`` and ``t < end_step``, each weight that keeps n
    entries drops the ``int(n * f(t))`` of smallest magnitude and grows as many where the gradient
    of the batch is largest, among all that are not kept then. f(t) is ``drop_fraction / 2 * (1 +
    cos(pi * t / end_step))``. An entry that is dropped and grown at once keeps its value. One that
    is new begins at 0, and so does what the optimizer knows of it. The exchange takes the place of
    the gradient step, as in the authors' code (Evci et al., "Rigging the lottery: making all
    tickets winners", ICML 2020, arXiv 1911.11134, algorithm 1).

    The model holds masks of `prune_at_init` or any other, or none, and then gets random ones of a
    sparsity, allocated by ERK. A run that goes on with `keras_ntt.BackupAndRestore` goes on with
    its masks.

    Args:
        sparsity: Fraction of zeros for a model without masks.
        drop_fraction: The fraction of the kept entries that is exchanged, at the beginning.
        anneal: ``"cosine"`` or ``"constant"``, always that fraction. None is cosine.
        scope: ``"layerwise"``: each weight keeps its number of entries. ``"global"``: one threshold
            for dropping and one for growing over all weights that an optimizer updates; all
            together keep their number, and a weight may lose its last entry.
        begin_step: The first update, counted from 0, that may exchange.
        end_step: The update from which nothing is exchanged; the authors take three quarters of the
            training.
        frequency: Updates from one exchange to the next.
        schedule: A `PruningSchedule` that says when instead of `frequency`; its sparsities are not
            used.
        replace_step: Whether an exchange takes the place of the gradient step, or comes after it.
            None is True.
        filters: Which layers, see `keras_ntt.NeuralTangentTransfer`.
        pruning_policy: See `keras_ntt.NeuralTangentTransfer`.
        seed: Seed of random masks.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a setting is out of range; when training begins, if the model holds no masks
            and no sparsity is given, or a schedule moves its masks.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import RigL, sparsity_report
        >>> layers = [keras.layers.Dense(16), keras.layers.Dense(2)]
        >>> model = keras.Sequential([keras.Input((8,)), *layers])
        >>> model.compile("adam", "mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> history = model.fit(
        ...     x, x[:, :2], epochs=2, verbose=0, callbacks=[RigL(0.5, end_step=3, frequency=1)]
        ... )
        >>> sparsity_report(model).sparsity
        0.5
    """

    _anneal, _replaces = "cosine", True

    def _masks(
        self, value: tf.Tensor, gradient: tf.Tensor, mask: tf.Tensor, step: tf.Tensor, index: int
    ) -> tf.Tensor:
        count = drop_count(mask, self.fraction_at(step))
        return grow(drop_smallest(value, mask, count), tf.abs(gradient), count)


class SET(_Exchange):
    """Sparse evolutionary training: connections nearest zero are replaced by random ones.

    Every `frequency` updates each weight drops a fraction of its positive entries, those nearest
    zero, and the same fraction of its negative ones, and grows as many at random, which begin at 0,
    and so does what the optimizer knows of them (Mocanu et al., "Scalable training of artificial
    neural networks with adaptive sparse connectivity inspired by network science", Nature
    Communications, 2018). An entry that was dropped does not come back in the same exchange. The
    gradient step is taken first, as in the authors' code.

    Args:
        sparsity: Fraction of zeros for a model without masks.
        drop_fraction: The fraction of the kept entries that is exchanged.
        anneal: ``"constant"``, or ``"cosine"`` for a fraction that falls to 0 at `end_step`. None
            is constant.
        scope: ``"layerwise"``: each weight by itself. ``"global"``: the fractions are of all
            weights together, and entries grow anywhere among them. A weight may lose its last one.
        begin_step: The first update, counted from 0, that may exchange.
        end_step: The update from which nothing is exchanged.
        frequency: Updates from one exchange to the next; the authors take those of an epoch.
        schedule: A `PruningSchedule` that says when instead of `frequency`; its sparsities are not
            used.
        replace_step: Whether an exchange takes the place of the gradient step, or comes after it.
            None is False.
        filters: Which layers, see `keras_ntt.NeuralTangentTransfer`.
        pruning_policy: See `keras_ntt.NeuralTangentTransfer`.
        seed: Seed of what is drawn.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: As `RigL`.
    """

    _anneal, _replaces = "constant", False

    def _masks(
        self, value: tf.Tensor, gradient: tf.Tensor, mask: tf.Tensor, step: tf.Tensor, index: int
    ) -> tf.Tensor:
        stays = drop_nearest_zero(value, mask, self.fraction_at(step))
        count = tf.math.count_nonzero(mask, dtype=tf.int32) - tf.math.count_nonzero(
            stays, dtype=tf.int32
        )
        seed = tf.stack([tf.constant(self._seed + 7919 * index, tf.int64), step])
        scores = 1 + tf.random.stateless_uniform(mask.shape, seed)  # before what was just dropped
        dropped = tf.logical_and(mask, tf.logical_not(stays))
        return grow(stays, tf.where(dropped, scores - 1, scores), count)
