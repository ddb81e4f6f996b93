"""What is timed in TensorFlow, each in its own process, which `worker.py` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_ntt
from benchmarks.common.networks import SETTINGS, SPARSITY, Network, build, samples, weights_in_order
from benchmarks.speed.floor import graph_flops
from keras_ntt.ntk.empirical import random_directions
from keras_ntt.pruning.neural_tangent.gradient import loss_and_gradient


class Ours:
    """A transfer whose compiled step can be called one by one."""

    def __init__(self, network: Network, *, jit_compile: bool = False):
        self.network = network
        self.x = samples(network, network.batch)
        self.model = build(network)
        self.trainer = transfer(network, self.model)
        self.trainer.compile(
            keras.optimizers.Adam(SETTINGS["learning_rate"]), jit_compile=jit_compile
        )

    def start(self) -> float:
        """Take the first step; return its loss."""
        data = tf.data.Dataset.from_tensors(self.x)
        history = self.trainer.fit(data, verbose=0)
        self._iterator = iter(data.repeat())
        return float(history.history["loss"][0])

    def run(self, repeats: int) -> list[float]:
        """Time steps; each waits for its loss."""
        return [_timed(lambda: self.trainer.train_function(self._iterator)) for _ in range(repeats)]

    def fit(self) -> float:
        """Return the seconds a step of ``fit`` on an array, with all that Keras does around it."""
        n, batches = self.network.batch, self.network.fit_batches
        x = samples(self.network, n * batches)
        self.trainer.fit(x[: 2 * n], batch_size=n, verbose=0)
        return _timed(lambda: self.trainer.fit(x, batch_size=n, verbose=0)) / batches

    def flops(self) -> dict[str, int]:
        """Count the products in the graph of the objective and its gradient."""
        return graph_flops(self.loss_and_gradients, tf.constant(self.x))

    def loss_and_gradients(self, x: tf.Tensor) -> Any:
        """Return the objective and its gradients for a batch."""
        sources = [v.value for v in self.model.trainable_variables]
        pair = self.trainer._state.pair(self.trainer.weighting)
        loss, gradients = loss_and_gradient(pair, x, sources)
        return loss.total, gradients

    def save(self, path: Path) -> None:
        """Write weights, masks and inputs for the other side, before the first step."""
        dense = build(self.network)
        arrays = {"x": self.x}
        for i, (own, v) in enumerate(
            zip(weights_in_order(self.model), weights_in_order(dense), strict=True)
        ):
            arrays[f"weight{i}"] = keras.ops.convert_to_numpy(v)
            if own.path in self.trainer.masks:
                arrays[f"mask{i}"] = self.trainer.masks[own.path]
        np.savez(path, **arrays)

    def kernel(self, path: Path) -> None:
        """Write the teacher's kernel between the halves of the batch."""
        half = self.network.batch // 2
        kernel = keras_ntt.empirical_ntk(build(self.network), self.x[:half], self.x[half:])
        np.save(path, np.asarray(kernel))


class JacobianStep:
    """The step as the definition says it, in TensorFlow: Jacobians, then their product.

    ``tape.jacobian`` of each sample under ``tf.vectorized_map``, in a ``tf.function``.
    """

    def __init__(self, network: Network):
        self._network = network
        self._model = build(network)
        self._x = tf.constant(samples(network, network.batch))
        self._weights = [v.value for v in self._model.trainable_variables]
        self._teacher = [tf.constant(keras.ops.convert_to_numpy(w)) for w in self._weights]
        twin = build(network)
        masks = transfer(network, twin).masks
        order = [v.path for v in twin.trainable_variables]
        self._pruned = [path in masks for path in order]
        self._masks = [
            tf.constant(masks.get(path, np.ones(w.shape)), w.dtype)
            for path, w in zip(order, self._weights, strict=True)
        ]
        self._optimizer = keras.optimizers.Adam(SETTINGS["learning_rate"])
        self._optimizer.build(self._model.trainable_variables)
        self._count = tf.Variable(0, dtype=tf.int64)
        self._step = tf.function(self._take, autograph=False)

    def start(self) -> float:
        """Take the first step; return its loss."""
        return float(self._step())

    def run(self, repeats: int) -> list[float]:
        """Time steps."""
        return [_timed(lambda: float(self._step())) for _ in range(repeats)]

    def _take(self) -> tf.Tensor:
        network = self._network
        n, c, k = network.batch, network.outputs, network.projections
        directions = tf.eye(c, batch_shape=[n])
        if k is not None:
            directions = random_directions([n, k, c], [0, self._count], tf.float32)
        teacher, target = self._kernel(self._teacher, directions)
        with tf.GradientTape() as tape:
            masked = [w * m for w, m in zip(self._weights, self._masks, strict=True)]
            student, outputs = self._kernel(masked, directions)
            kept = [w for w, pruned in zip(masked, self._pruned, strict=True) if pruned]
            loss = (
                SETTINGS["ntk_weight"]
                * tf.reduce_mean((student - teacher) ** 2)
                / (1 if k is None else c**2)
                + tf.reduce_mean((outputs - target) ** 2)
                + SETTINGS["l2"]
                / SETTINGS["density"]
                * tf.add_n([tf.reduce_sum(w**2) for w in kept])
            )
        gradients = tape.gradient(loss, self._weights)
        variables = self._model.trainable_variables
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self._count.assign_add(1)
        return loss

    def _kernel(
        self, weights: Sequence[tf.Tensor], directions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        fixed = [v.value for v in self._model.non_trainable_variables]

        def of_sample(given: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
            x, combinations = given
            with tf.GradientTape() as tape:
                tape.watch(weights)
                y, _ = self._model.stateless_call(weights, fixed, x[None], training=False)
                ends = tf.linalg.matvec(combinations, y[0])
            rows = directions.shape[1]
            jacobians = tape.jacobian(ends, weights)
            return [tf.reshape(tf.convert_to_tensor(j), [rows, -1]) for j in jacobians], y[0]

        n, rows = directions.shape[:2]
        half = n // 2 * rows
        jacobians, outputs = tf.vectorized_map(
            of_sample, (self._x, directions), fallback_to_while_loop=False
        )
        matrices = [tf.reshape(j, [n * rows, j.shape[-1]]) for j in jacobians]
        terms = [tf.matmul(m[:half], m[half:], transpose_b=True) for m in matrices]
        return tf.add_n(terms), outputs

    def bytes_of_jacobians(self) -> int:
        """Return the size of the teacher's, the student's and its gradient's Jacobians."""
        network = self._network
        rows = network.batch * (network.projections or network.outputs)
        return 3 * 4 * rows * sum(int(np.prod(w.shape)) for w in self._weights)


class TrainingStep:
    """An ordinary training step on the same batch: forward, backward and Adam."""

    def __init__(self, network: Network):
        self._x = samples(network, network.batch)
        self._y = np.random.default_rng(1).integers(0, network.outputs, network.batch)
        self._model = build(network)
        self._model.compile(
            keras.optimizers.Adam(SETTINGS["learning_rate"]),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )

    def start(self) -> None:
        """Take the first step."""
        data = tf.data.Dataset.from_tensors((self._x, self._y))
        self._model.fit(data, verbose=0)
        self._iterator = iter(data.repeat())

    def run(self, repeats: int) -> list[float]:
        """Time steps; each waits for its loss."""

        def step() -> None:
            float(self._model.train_function(self._iterator)["loss"])

        return [_timed(step) for _ in range(repeats)]


def transfer(network: Network, model: keras.Model) -> keras_ntt.NeuralTangentTransfer:
    """Return the transfer that is timed, not compiled yet."""
    return keras_ntt.NeuralTangentTransfer(
        model,
        pruning_schedule=SPARSITY,
        ntk_weight=SETTINGS["ntk_weight"],
        l2=SETTINGS["l2"],
        output_projections=network.projections,
        seed=0,
    )


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
