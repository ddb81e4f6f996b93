"""NTK-SAP (Wang et al., ICLR 2023): how much a weight's removal changes the kernel's spectrum."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import checks, host, input_kinds
from keras_ntt.saliency.base import NetworkSaliency, Subject, gradient
from keras_ntt.saliency.synflow import example


class NTKSAP(NetworkSaliency):
    """Score weights by the sensitivity of the tangent kernel's trace, by finite differences.

    The score is the absolute derivative, with respect to each entry of the mask m, of the mean over
    samples z of ``||f(z; w * m) - f(z; (w + dw) * m)||^2``, summed over batches. dw is Gaussian.
    Every batch has Gaussian inputs and new weights from the initializers, so the score depends on
    the architecture, not on the weights (Wang, Li & Sun, "NTK-SAP: Improving neural network pruning
    by aligning training dynamics", ICLR 2023). No data are needed, unless the model takes integers:
    then the given samples replace the Gaussian inputs. Rescaling and Normalization at the inputs do
    not change the Gaussian inputs. A weight keeps its value if its layer has no initializer for it,
    or a custom initializer without a seed: its values would depend on more than `seed`.

    Args:
        rounds: The default number of rounds in which to prune.
        batches: Batches per round.
        batch_size: Samples per batch.
        epsilon: Standard deviation of dw.
        redraw: Whether new weights are drawn for each batch.
    """

    takes_logits = True

    def __init__(
        self,
        *,
        rounds: int = 20,
        batches: int = 5,
        batch_size: int = 64,
        epsilon: float = 0.01,
        redraw: bool = True,
    ):
        self.rounds = checks.check_count("rounds", rounds)
        self.batches = checks.check_count("batches", batches)
        self.batch_size = checks.check_count("batch_size", batch_size)
        self.epsilon = checks.check_number("epsilon", epsilon)
        self.redraw = redraw

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the scores."""
        shape = example(subject, self.batch_size, self.name)
        masks = list(subject.masks)
        total = [tf.zeros_like(m) for m in masks]
        for batch in range(self.batches):
            weights, others = list(subject.weights), {}
            if self.redraw:
                others = redrawn(subject.model, subject, batch)
                weights = [
                    others.pop(id(v))[1] if id(v) in others else w
                    for v, w in zip(subject.variables, weights, strict=True)
                ]
            x = _noise(shape, subject, batch)
            moved = [
                w + self.epsilon * tf.random.stateless_normal(w.shape, seed, dtype=w.dtype)
                for w, seed in ((w, subject.seed_of(2, batch, i)) for i, w in enumerate(weights))
            ]
            with (
                input_kinds.taken_as_scaled(subject.model),
                tf.GradientTape(watch_accessed_variables=False) as tape,
            ):
                tape.watch(masks)
                here, there = (
                    subject.outputs(
                        x, [w * m for w, m in zip(ws, masks, strict=True)], others, logits=True
                    )
                    for ws in (weights, moved)
                )
                distance = tf.reduce_mean(tf.reduce_sum(tf.square(here - there), axis=1))
            total = [t + g for t, g in zip(total, gradient(tape, distance, masks), strict=True)]
        return [tf.abs(t) for t in total]


def _noise(x: Any, subject: Subject, batch: int) -> Any:
    """Return Gaussian inputs of a shape."""

    def noise(position: int, tensor: tf.Tensor, indices: bool) -> tf.Tensor:
        if indices:
            if subject.data is None:
                raise ValueError(
                    "NTK-SAP draws Gaussian inputs, but this model looks something up by its "
                    "inputs, which takes whole numbers. Pass data=x, whose samples are used "
                    f"instead. Received: model={subject.model.name!r}, data=None"
                )
            return tensor
        seed = subject.seed_of(1, batch, position)
        return tf.random.stateless_normal(tf.shape(tensor), seed, dtype=tensor.dtype)

    known = zip(keras.tree.flatten(x), input_kinds.are_indices(x, subject.model), strict=True)
    leaves = [noise(i, t, indices) for i, (t, indices) in enumerate(known)]
    return keras.tree.pack_sequence_as(x, leaves)


def redrawn(
    model: keras.Model, subject: Subject, number: int
) -> dict[int, tuple[keras.Variable, tf.Tensor]]:
    """Draw new weights for a model from the initializers of its layers.

    Args:
        model: The model; it is not changed.
        subject: The source of the seed.
        number: The number of the drawing.

    Returns:
        ``id(variable) -> (variable, value)`` for the variables whose initializer is known.
    """
    found: dict[int, tuple[keras.Variable, tf.Tensor]] = {}
    for layer in host.layers_of(model):
        for variable in host.own_variables(layer):
            initializer = host.initializer_of(layer, variable)
            if initializer is None or id(variable) in found:
                continue
            seeded = _with_seed(initializer, subject.seed_of(3, number, len(found))[0])
            if seeded is None:
                continue
            value = seeded(variable.shape, variable.dtype)
            found[id(variable)] = (variable, tf.cast(value, variable.dtype))
    return found


def _with_seed(initializer: Any, seed: int) -> Any | None:
    """Return an initializer with another seed, None if it cannot have one."""
    initializer = keras.initializers.get(initializer)
    config: Any = {}
    if isinstance(initializer, keras.initializers.Initializer):
        with contextlib.suppress(NotImplementedError):
            config = initializer.get_config()
    if "seed" in config:
        with contextlib.suppress(TypeError, ValueError):  # a class whose constructor takes no seed
            return type(initializer).from_config({**config, "seed": seed})
    # Keras's initializers without a seed are constants.
    return initializer if host.is_of_keras(initializer) else None
