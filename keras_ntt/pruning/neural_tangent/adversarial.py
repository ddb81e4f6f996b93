"""Projected gradient descent on inputs, without labels (Madry et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import checks, host, input_kinds
from keras_ntt.pruning.neural_tangent.objective import Pair

Attack = Callable[[Any, Callable[[Any], tf.Tensor], tf.Tensor], Any]
"""Inputs, a function of inputs to maximize, and a seed ``[2]`` -> other inputs."""


@dataclass(frozen=True)
class ProjectedGradient:
    """Moves inputs, within a box around them, to increase a distance.

    It starts at a random point of the box and takes steps of a fixed size along the signs of the
    gradient. After each step it projects back onto the box (Madry et al., "Towards deep learning
    models resistant to adversarial attacks", ICLR 2018, section 2.1). In a transfer the distance is
    between the student's outputs at the moved inputs and the teacher's outputs at the clean inputs,
    so no labels are needed. Shi et al. ("Finding dynamics preserving adversarial winning tickets",
    AISTATS 2022) match outputs and kernels at such inputs.

    Args:
        epsilon: Half the side of the box, in units of the inputs.
        steps: Number of steps.
        step_size: Size of a step. None takes `epsilon` for one step, and ``2.5 * epsilon / steps``
            for several.
        bounds: The smallest and the largest value of an input, such as ``(0.0, 1.0)``, or None.

    Raises:
        ValueError: If a setting does not fit.

    Examples:
        >>> attack = ProjectedGradient(0.1, step_size=0.2, bounds=(0.0, 1.0))
        >>> moved = attack(tf.constant([[0.95, 0.5]]), tf.reduce_sum, tf.constant([0, 0]))
        >>> moved.numpy().tolist()
        [[1.0, 0.6000000238418579]]
    """

    epsilon: float
    steps: int = 1
    step_size: float | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        checks.check_number("epsilon", self.epsilon)
        if self.step_size is not None:
            checks.check_number("step_size", self.step_size)
        checks.check_count("steps", self.steps)
        if self.bounds is not None and not _are_bounds(self.bounds):
            raise ValueError(
                "bounds are the least and the largest value of an input, such as (0.0, 1.0). "
                f"Received: bounds={self.bounds!r}"
            )

    def __call__(self, x: Any, distance: Callable[[Any], tf.Tensor], seed: tf.Tensor) -> Any:
        """Return inputs with a larger distance, nested as `x`.

        Args:
            x: Inputs, floats.
            distance: A function from inputs to a scalar.
            seed: Two integers, the seed of the start.
        """
        clean = [tf.convert_to_tensor(leaf) for leaf in keras.tree.flatten(x)]
        size = self.step_size
        if size is None:
            size = self.epsilon if self.steps == 1 else 2.5 * self.epsilon / self.steps
        moved = []
        for i, leaf in enumerate(clean):
            noise = tf.random.stateless_uniform(tf.shape(leaf), seed + i, -1.0, 1.0, leaf.dtype)
            moved.append(self._inside(leaf + self.epsilon * noise, leaf))
        for _ in range(self.steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(moved)
                value = distance(keras.tree.pack_sequence_as(x, moved))
            slopes = tape.gradient(value, moved, unconnected_gradients="zero")
            moved = [
                self._inside(m + size * tf.sign(slope), leaf)
                for m, slope, leaf in zip(moved, slopes, clean, strict=True)
            ]
        return keras.tree.pack_sequence_as(x, [tf.stop_gradient(m) for m in moved])

    def _inside(self, moved: tf.Tensor, clean: tf.Tensor) -> tf.Tensor:
        moved = tf.clip_by_value(moved, clean - self.epsilon, clean + self.epsilon)
        return moved if self.bounds is None else tf.clip_by_value(moved, *self.bounds)


def _are_bounds(value: Any) -> bool:
    pair = isinstance(value, tuple | list) and len(value) == 2
    return pair and all(map(checks.is_number, value)) and value[0] < value[1]


def check_attack(attack: Any) -> None:
    """Raise a TypeError unless an attack is None or callable."""
    if attack is not None and not callable(attack):
        raise TypeError(
            "adversarial must be a keras_ntt.ProjectedGradient, or a function of inputs, a "
            "distance and a seed that returns inputs. "
            f"Received: adversarial={attack!r}"
        )


def attacked(attack: Attack, pair: Pair, x: Any) -> Any:
    """Return inputs where a student is far from its teacher's outputs at the clean inputs.

    Args:
        attack: The attack.
        pair: Student and teacher.
        x: Clean inputs ``[n, ...]``.

    Returns:
        Inputs of the same structure.

    Raises:
        ValueError: If inputs are integers, or are used as indices.
    """
    if any(input_kinds.are_indices(x, pair.teacher.model)):
        raise ValueError(
            "adversarial inputs are moved by small steps, which indices and integers cannot be. "
            "Pass pixels as floats, embed indices first, or leave adversarial out. "
            f"Received: model={pair.teacher.model.name!r}"
        )
    target = [tf.stop_gradient(out) for out in _outputs(pair.teacher, pair.teacher_values, x)]

    def distance(moved: Any) -> tf.Tensor:
        found = _outputs(pair.student, pair.student_values, moved)
        return tf.add_n(
            [tf.reduce_sum(tf.square(a - b)) for a, b in zip(found, target, strict=True)]
        )

    return attack(x, distance, tf.cast(pair.seed, tf.int32))


def _outputs(network: Any, values: Any, x: Any) -> list[tf.Tensor]:
    with host.values_in_place(values):
        outputs = keras.tree.flatten(network.model(x, training=False))
    return [tf.cast(out, tf.float64 if out.dtype == tf.float64 else tf.float32) for out in outputs]
