"""Neural Tangent Transfer (Liu & Zenke, ICML 2020) as a Keras model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks, host, input_checks, inputs
from keras_ntt.core.logits import logits_of, warn_of_logits, warn_of_probabilities
from keras_ntt.masks.apply import check_no_masks
from keras_ntt.masks.filters import Filters
from keras_ntt.masks.policies import choose_weights
from keras_ntt.pruning.neural_tangent import replicas
from keras_ntt.pruning.neural_tangent.adversarial import Attack, check_attack
from keras_ntt.pruning.neural_tangent.checks import (
    check_callbacks,
    check_fit_options,
    check_heads,
    check_pair,
)
from keras_ntt.pruning.neural_tangent.divergence import watched
from keras_ntt.pruning.neural_tangent.first_masks import initial_masks
from keras_ntt.pruning.neural_tangent.lookahead import Plan, RunLifecycle
from keras_ntt.pruning.neural_tangent.memory import check_room, parts_within, step_memory
from keras_ntt.pruning.neural_tangent.objective import NTTLoss, Weighting
from keras_ntt.pruning.neural_tangent.state import TransferState
from keras_ntt.pruning.neural_tangent.step import evaluation_step, training_step
from keras_ntt.saliency import NetworkSaliency
from keras_ntt.saliency.base import Function
from keras_ntt.saliency.names import as_saliency
from keras_ntt.selection.allocations import Allocation
from keras_ntt.selection.schedules import as_schedule


class NeuralTangentTransfer(host.CompleteModel):
    """Trains a sparse student to match the outputs and the tangent kernel of a dense teacher.

    No labels are used: if a data set yields ``(x, y)``, the y is ignored. The student starts with
    its present weights, with its kernels pruned by `saliency`. Each step is one gradient step on
    the objective of Liu & Zenke, "Finding trainable sparse networks through Neural Tangent
    Transfer" (ICML 2020), see `keras_ntt.ntt_loss`. At the steps of the schedule the masks are
    updated. Masks apply to kernels, never to biases. Gradients flow through the masks, so a pruned
    latent weight stays at its last value and can return at an update. The optimizer is not reset
    then.

    Use it as any Keras model: ``compile(optimizer)``, ``fit(x)``, callbacks, ``save_weights``.
    The student is changed in place, from the first step on. After ``fit`` it holds its masks (see
    `keras_ntt.apply_masks`) and can be compiled and trained on labels.

    Args:
        student: The built Keras model to prune. If it ends in softmax or sigmoid, the transfer
            matches its logits, and the student keeps its activation.
        teacher: A built model with outputs of the same shape, for example a pretrained one.
            None takes the present student, before pruning.
        pruning_schedule: A sparsity in [0, 1), which becomes `NTTSchedule(sparsity)`; or a
            schedule, ``step -> (should_prune, sparsity)``.
        pruning_policy: An object with ``allow_pruning(layer)``, see `keras_ntt.PruningPolicy`.
        filters: Which layers to prune: a regular expression or a list of them on layer names
            and weight paths, or a callable on the layer.
        saliency: The score for the masks. ``"magnitude"``, or a function from a list of weights to
            a list of scores, chooses the first masks and all updates. A score that uses the network
            (another name of `keras_ntt.saliency.SALIENCIES`, or an object such as
            ``keras_ntt.saliency.SynFlow()``) chooses only the first masks, in its default number of
            rounds. Updates are then by latent magnitude.
        saliency_data: Samples for such a score, if it needs them: ``x`` or ``(x, y)``, see
            `keras_ntt.saliency_scores`.
        allocation: ``"layerwise"``: the same sparsity in every kernel. ``"global"``: one threshold
            for all kernels. Or another allocation, see `keras_ntt.prune_at_init`.
        count_rule: How many entries a sparsity keeps. ``"nearest"``:
            ``max(round(size * (1 - sparsity)), 1)``. ``"original"``: as in the published code,
            about one entry fewer, see `keras_ntt.keep_count`.
        pattern: How the entries of a kernel are chosen. None takes the highest scores,
            ``"2:4"`` keeps two of every four consecutive entries along the inputs, ``(4, 1)``
            blocks of four inputs and one output, ``"filters"`` whole output channels; see
            `keras_ntt.as_pattern`.
        ntk_weight: Weight of the kernel distance.
        l2: Weight of the sum of squares of the kernels, divided by the density. The published
            demos use 1e-4 for an MLP and 1e-5 for a CNN.
        wrt: ``"all"`` or ``"kept"``, see `keras_ntt.ntt_loss`.
        outputs: ``"full"`` or ``"trace"``, see `keras_ntt.ntt_loss`.
        output_projections: Number of random combinations that replace the outputs, for models with
            many outputs. They are drawn at each step. At most 10,000.
        normalize: Whether each distance is divided by the teacher's own size on the batch, see
            `keras_ntt.ntt_loss`.
        memory_limit: Bytes that the tensors of a step may take, as `estimate_memory` estimates
            them. If a batch does not fit, the step is computed in blocks, with the same result, and
            takes longer. ``fit`` must then know the size of a batch: pass arrays, or a
            ``tf.data.Dataset`` of batches with ``drop_remainder=True``. None sets no limit. If a
            step then needs more memory than there is, ``fit`` raises an error, if the size of a
            batch is known.
        adversarial: An attack that moves the inputs of each training step before they are used,
            such as ``keras_ntt.ProjectedGradient(epsilon=0.1)``; None does not move them.
        seed: Seed of every random choice: the first masks of a random score, the order of samples
            from arrays in ``fit``, the projections and attacks of each step. None draws one from
            NumPy's global generator. It is saved with the weights, so that a resumed run uses the
            same batches.
        name: Name of the model.

    Raises:
        TypeError: If `student` or `teacher` is not a Keras 3 model, or `adversarial` is not an
            attack.
        ValueError: If models or settings do not fit. Nothing is changed then.

    Attributes:
        student: The student, with exact zeros where it is pruned.
        teacher: The teacher model, or None if it is the student's first state.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import NeuralTangentTransfer
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> transfer = NeuralTangentTransfer(student, pruning_schedule=0.8, seed=0)
        >>> transfer.compile(keras.optimizers.Adam(1e-3))
        >>> [int(mask.sum()) for mask in transfer.masks.values()]  # then fit(inputs)
        [4]
    """

    train_function: Any

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None = None,
        *,
        pruning_schedule: Any,
        pruning_policy: Any = None,
        filters: Filters = None,
        saliency: str | NetworkSaliency | Function = "magnitude",
        saliency_data: Any = None,
        allocation: Allocation = "layerwise",
        count_rule: str = "nearest",
        pattern: Any = None,
        ntk_weight: float = 1e-3,
        l2: float = 1e-5,
        wrt: str = "all",
        outputs: str = "full",
        output_projections: int | None = None,
        normalize: bool = False,
        memory_limit: int | None = None,
        adversarial: Attack | None = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        checks.check_differentiable(student, "student")
        if teacher is not None:
            checks.check_differentiable(teacher, "teacher")
        check_pair(student, teacher)
        student_logits = logits_of(student)
        if teacher is not None:
            check_heads(student_logits, logits_of(teacher))
        check_no_masks(student)
        check_attack(adversarial)
        replicas.check_scope(student, "the transfer")
        weighting = Weighting(ntk_weight, l2, wrt, outputs, output_projections, normalize)
        if memory_limit is not None:
            memory_limit = checks.check_count("memory_limit", memory_limit)
        schedule = as_schedule(pruning_schedule)
        choice = choose_weights(student, filters=filters, pruning_policy=pruning_policy)
        if seed is None:
            seed = int(replicas.agreed(np.random.randint(2**31)))
        seed = checks.check_seed(seed)
        first = initial_masks(
            student,
            choice.weights,
            as_saliency(saliency),
            schedule=schedule,
            allocation=allocation,
            count_rule=count_rule,
            pattern=pattern,
            data=saliency_data,
            seed=seed,
        )
        warn_of_logits(student_logits, "The transfer")
        super().__init__(name=name)
        self.student = student
        self.teacher = teacher
        self.pruning_schedule = schedule
        self.weighting = weighting
        self.memory_limit = memory_limit
        self.adversarial = adversarial
        self._parts = 1
        self._state = TransferState(self, student, teacher, choice.weights, first, seed)
        self._weights = self._state.latent  # its name in files
        self._trackers = [
            keras.metrics.Mean(name=n) for n in ("loss", "ntk_distance", "output_distance")
        ]
        self._plan: Plan | None = None
        self.train_function = None
        self.built = True

    def compile(
        self,
        optimizer: Any = None,
        *,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
        auto_scale_loss: bool = True,
    ) -> None:
        """Set the optimizer.

        Args:
            optimizer: A Keras optimizer or its name. The published demos use
                ``keras.optimizers.Adam(5e-4)``.
            run_eagerly: As in `keras.Model.compile`.
            steps_per_execution: As in `keras.Model.compile`.
            jit_compile: Whether to compile the step with XLA. The default is False, because XLA is
                slower here on CPUs, in particular for convolutions. It does not work for networks
                with an embedding, because the number of rows that a batch reads is not known
                beforehand.
            auto_scale_loss: As in `keras.Model.compile`.

        Raises:
            ValueError: If `optimizer` is missing or is not an optimizer.
        """
        if optimizer is None:
            raise ValueError(
                "compile() needs the optimizer that moves the student's weights, for example "
                "compile(keras.optimizers.Adam(5e-4)). Received: optimizer=None"
            )
        if not isinstance(optimizer, str | keras.optimizers.Optimizer):
            raise ValueError(
                "optimizer must be a Keras optimizer or the name of one. "
                f"Received: optimizer={optimizer!r}"
            )
        super().compile(
            optimizer=optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        self.optimizer.build(self.trainable_variables)
        rule = self._weights.rule
        self._plan = Plan(self.pruning_schedule, steps_per_execution, rule.counts, rule.numbers)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        shuffle: bool = True,
        validation_data: Any = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Run the transfer.

        Args:
            x: Unlabelled inputs: an array, a nest of arrays as the model takes them, a
                ``tf.data.Dataset`` of batches, a ``keras.utils.PyDataset`` or a generator. From
                batches ``(x, y)`` only x is used.
            y: Ignored, if given.
            batch_size: Samples per batch, for arrays; 64 by default. The tangent kernel is computed
                between the two halves of a batch. A single sample is compared with itself.
            epochs: Passes over the inputs.
            shuffle: Whether to draw a new order of arrays in each epoch.
            validation_data: Inputs on which the objective is reported as ``val_loss`` etc.
            callbacks: Keras callbacks.
            **kwargs: As in `keras.Model.fit`, except ``validation_split``, ``sample_weight`` and
                ``class_weight``.

        Returns:
            Keras's history, with loss, ntk_distance, output_distance and sparsity.

        Raises:
            ValueError: If the data or settings do not fit, a step needs more memory than there is
                (without `memory_limit`), or the student's kernels were changed since the transfer
                was made or has run. The student is unchanged then, unless steps were taken before
                the batch that does not fit.
            FloatingPointError: If the loss or its gradient becomes NaN or infinite. Everything is
                then as after the last good step, and the student holds its masks.
        """
        if not self.compiled:
            raise ValueError(
                "The transfer has no optimizer yet. Call compile() first, for example "
                "compile(keras.optimizers.Adam(5e-4)). Received: fit() before compile()"
            )
        check_fit_options(kwargs)
        epochs = checks.check_count("epochs", epochs)
        check_callbacks(callbacks)
        watches = [
            inputs.Watch(self.student, f"batches of {name}")
            for name in ("the inputs", "validation_data")
        ]
        inputs.check(x, self.student, "inputs")
        inputs.check_ends(x, kwargs.get("steps_per_epoch"), "inputs", "steps_per_epoch")
        if validation_data is not None:
            steps = kwargs.get("validation_steps")
            inputs.check_ends(validation_data, steps, "validation_data", "validation_steps")
            inputs.check(inputs.without_labels(validation_data), self.student, "validation_data")
            validation_data = watches[1].over(validation_data)
        if batch_size is not None:
            batch_size = checks.check_count("batch_size", batch_size)
        if self.memory_limit is not None:
            self._divide(inputs.batch_spec(x, batch_size or 64), self.memory_limit)
        elif not self.step:
            self._check_room(x, batch_size or 64)
        networks = [self.student, *([] if self.teacher is None else [self.teacher])]
        warn_of_probabilities(map(logits_of, networks), inputs.some_of(x), "The transfer")
        if input_checks.is_array(x):
            x = inputs.batches(x, batch_size or 64, key=self._state.order, shuffle=shuffle)
            batch_size = None
        else:
            x = watches[0].over(x)
        lifecycle = RunLifecycle(self._state, self._plan, kwargs.get("initial_epoch") or 0)
        try:
            with self._state.restore_on_error():
                return super().fit(
                    x,
                    batch_size=batch_size,
                    epochs=epochs,
                    shuffle=shuffle and isinstance(x, keras.utils.PyDataset),
                    validation_data=validation_data,
                    callbacks=[*keras.tree.flatten(callbacks or []), lifecycle],
                    **kwargs,
                )
        except tf.errors.OpError as error:  # TensorFlow's form of an error in its threads
            refusals = [watch.refusal for watch in watches if watch.refusal is not None]
            if refusals:
                raise refusals[0] from error
            raise

    def _divide(self, batch: Any, memory_limit: int) -> None:
        """Set the number of parts with which a batch fits into memory."""
        parts = parts_within(
            memory_limit,
            keras.tree.flatten(batch)[0].shape[0],
            lambda parts: self.estimate_memory(batch, parts=parts),
        )
        if parts != self._parts:
            self._parts = parts
            self.make_train_function(force=True)

    def _check_room(self, x: Any, batch_size: int) -> None:
        """Raise a ValueError if a step needs more memory than there is, as far as known."""
        try:
            batch = inputs.batch_spec(x, batch_size)
        except ValueError:  # the size of a batch is not known
            return
        check_room(
            self.student,
            batch,
            lambda: self.estimate_memory(batch),
            combinations=self.weighting.output_projections,
        )

    def estimate_memory(self, batch: Any, *, parts: int = 1) -> int:
        """Estimate the memory of a step from its graph, without running it.

        Args:
            batch: A batch of inputs, or ``tf.TensorSpec`` with fully known shapes, nested as the
                model takes them.
            parts: The number of parts of each half of the batch.

        Returns:
            The maximum number of bytes of its tensors at a time, without the weights and the state
            of the optimizer. Buffers inside operations are not included. The estimate is usually
            right within about a third.

        Raises:
            ValueError: If the batch does not fit, or its shape is not fully known.
        """
        inputs.check_batch(batch, self.student)
        parts = checks.check_count("parts", parts)
        sources = [host.first_copy(v) for v in self.student.trainable_variables]
        return step_memory(lambda: self._state.pair(self.weighting), sources, batch, parts)

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return self._state.steps_taken

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks: ``variable path -> boolean array``, true where an entry is kept."""
        return self._state.latent.by_path()

    @property
    def layers(self) -> list[keras.Layer]:
        """Only the student, for callbacks such as TensorBoard: a teacher never changes."""
        return [self.student]

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables that the optimizer updates: latent kernels and unpruned weights."""
        return self._state.latent.trained()

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The same, under the name that Keras uses for the optimizer's averages."""
        return self._state.latent.trained()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The running means that are reset at each epoch."""
        return list(self._trackers)

    def call(self, inputs: Any) -> Any:
        """Return the student's outputs."""
        return self.student(inputs)

    def set_weights(self, weights: Any) -> None:
        """Set the whole state, as returned by `get_weights`, and update the student."""
        with self._state.follow_loaded():
            super().set_weights(weights)

    def load_weights(self, filepath: Any, **kwargs: Any) -> None:
        """Load the whole state from a file of `save_weights`, and update the student.

        Args:
            filepath: The file.
            **kwargs: As in `keras.Model.load_weights`.
        """
        with self._state.follow_loaded():
            super().load_weights(filepath, **kwargs)

    def make_train_function(self, force: bool = False) -> None:
        """Build the compiled step, before which the schedule is called."""
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
        x, counted = self._inputs_of(data)
        loss = training_step(
            self._state,
            x,
            counted,
            weighting=self.weighting,
            optimizer=self.optimizer,
            plan=self._plan,
            attack=self.adversarial,
            parts=self._parts,
        )
        return self._logs(loss, counted)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate the objective on a batch, with the same projections at each call."""
        x, counted = self._inputs_of(data)
        return self._logs(evaluation_step(self._state, x, self.weighting), counted)

    def _inputs_of(self, data: Any) -> tuple[Any, tf.Tensor | float]:
        x = inputs.without_labels(data)
        input_checks.check_structure(x, self.student)
        return replicas.at_least_one(x)

    def _logs(self, loss: NTTLoss, counted: tf.Tensor | float) -> dict[str, Any]:
        for tracker, value in zip(self._trackers, loss[:3], strict=True):
            tracker.update_state(value, counted)
        logs = {tracker.name: tracker.result() for tracker in self._trackers}
        sparsity = host.value_of(self._state.latent.sparsity)
        return replicas.as_logs({**logs, "sparsity": sparsity})
