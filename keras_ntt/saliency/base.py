"""The input of scores of a network, and their base class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.saliency.data import Batches, sample_count

Function = Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to score. Scores do not change it.

    Attributes:
        model: The Keras model.
        variables: Its variables that are scored.
        weights: Their values, without masks.
        masks: 0/1 tensors of their shapes and dtypes: the entries kept so far.
        data: Samples, or None.
        seed: Seed of every random choice.
        round: Number of the round of pruning, from 0.
        counts: How many entries of each are kept in the end; None if the scores decide.
        logits_model: The model without its last softmax or sigmoid, with the same variables; None
            if it is the model itself.
    """

    model: keras.Model
    variables: tuple[keras.Variable, ...]
    weights: tuple[tf.Tensor, ...]
    masks: tuple[tf.Tensor, ...]
    data: Batches | None = None
    seed: int = 0
    round: int = 0
    counts: tuple[int, ...] | None = None
    logits_model: keras.Model | None = None

    @property
    def network(self) -> keras.Model:
        """The model that returns logits."""
        return self.model if self.logits_model is None else self.logits_model

    @property
    def values(self) -> list[tf.Tensor]:
        """The values that the masked network computes with, ``mask * weight``."""
        return [w * m for w, m in zip(self.weights, self.masks, strict=True)]

    def outputs(
        self,
        x: Any,
        values: Sequence[tf.Tensor],
        others: Any = None,
        *,
        logits: bool = False,
    ) -> tf.Tensor:
        """Return the model's outputs ``[n, c]`` in inference mode, with other values.

        Args:
            x: A batch of inputs.
            values: Values of the scored variables.
            others: Values of further variables, ``id(variable) -> (variable, tensor)``.
            logits: Whether to return the inputs of the model's last softmax or sigmoid.

        Returns:
            The outputs, with all axes but the batch axis flattened.
        """
        return flat(self.ends(x, values, others, logits=logits))

    def ends(
        self, x: Any, values: Sequence[tf.Tensor], others: Any = None, *, logits: bool = False
    ) -> Any:
        """Return the model's outputs as it nests them, see `outputs`."""
        own = {id(v): (v, t) for v, t in zip(self.variables, values, strict=True)}
        with host.values_in_place({**(others or {}), **own}):
            return (self.network if logits else self.model)(x, training=False)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Yield the batches of the data.

        Raises:
            ValueError: If there are none.
        """
        count = 0
        assert self.data is not None
        for batch in self.data:
            count += 1
            yield batch
        if not count:
            raise ValueError("data hold no batches. Received: data that ended at once")

    def seed_of(self, *numbers: int) -> list[int]:
        """Return a seed of two integers for one random choice among many.

        Args:
            *numbers: Numbers that identify the choice.

        Returns:
            Two non-negative integers below 2 ** 31.
        """
        state = np.random.SeedSequence([self.seed, self.round, *numbers]).generate_state(2)
        return [int(s) >> 1 for s in state]


class NetworkSaliency(ABC):
    """A score that uses the network, not only the values of its weights.

    Attributes:
        needs_data: Whether samples are needed.
        needs_labels: Whether they need labels.
        takes_data: Whether samples are used if there are any.
        takes_logits: Whether the score uses logits, whatever the model ends in.
        rounds: The default number of rounds, as in its paper.
    """

    needs_data: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    takes_data: ClassVar[bool] = False
    takes_logits: bool = False
    rounds: int = 1

    @property
    def name(self) -> str:
        """The name of the score in messages."""
        return type(self).__name__

    def looks_at_logits(self, model: keras.Model) -> bool:
        """Tell whether the score uses the logits of a model and not its outputs."""
        return self.takes_logits

    @abstractmethod
    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return one tensor of scores for each variable, of its shape."""

    def check(self, data: Any, argument: str = "data") -> None:
        """Raise a ValueError if the data lack what the score needs.

        Args:
            data: The data, or None.
            argument: The name of their argument.
        """
        if data is None and (self.needs_data or self.needs_labels):
            wanted = "(x, y) with labels" if self.needs_labels else "x, without labels"
            raise ValueError(
                f"{self.name} is taken on samples: pass {argument}={wanted}, as arrays or a data "
                f"set of batches. Received: {argument}=None"
            )
        if self.needs_labels and not _has_labels(data):
            raise ValueError(
                f"{self.name} needs labels: pass {argument}=(x, y). Scores that need none are "
                "logit_snip, ntk_sap, ntk_trace, synflow, synflow_l2, magnitude, random and "
                f"balanced. Received: {argument} without labels"
            )


def _has_labels(data: Any) -> bool:
    if isinstance(data, tf.data.Dataset):
        data = data.element_spec
    if isinstance(data, keras.utils.PyDataset):
        data = data[0]
    return isinstance(data, tuple) and len(data) > 1 and data[1] is not None


def flat(outputs: Any) -> tf.Tensor:
    """Return outputs as ``[n, c]``: all axes but the first flattened, tensors concatenated."""
    parts = [tf.convert_to_tensor(t) for t in keras.tree.flatten(outputs)]
    parts = [tf.reshape(t, [tf.shape(t)[0], -1]) for t in parts]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


def gradient(tape: tf.GradientTape, of: tf.Tensor, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return derivatives as dense tensors; zeros if a value has no influence."""
    zero = tf.UnconnectedGradients.ZERO
    found = tape.gradient(of, list(values), unconnected_gradients=zero)
    return [tf.convert_to_tensor(g) for g in found]


def summed_gradient(
    subject: Subject, loss: Callable[[Any, Any], tf.Tensor], *, logits: bool = False
) -> tuple[list[tf.Tensor], int]:
    """Differentiate a loss with respect to the masked values, summed over all samples.

    Args:
        subject: The network and its data.
        loss: The loss of the outputs as the model nests them, summed over the samples of a batch.
        logits: Whether the loss takes logits, see `Subject.outputs`.

    Returns:
        The derivatives and the number of samples.
    """
    values = subject.values
    total, count = [tf.zeros_like(v) for v in values], 0
    for x, y in subject.batches():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            found = loss(subject.ends(x, values, logits=logits), y)
        total = [a + g for a, g in zip(total, gradient(tape, found, values), strict=True)]
        count += sample_count(x)
    return total, count


def sensitivity(
    values: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor], *, signed: bool = False
) -> list[tf.Tensor]:
    """Return ``|value * gradient|``, or with `signed` ``value * gradient``."""
    products = [v * g for v, g in zip(values, gradients, strict=True)]
    return products if signed else [tf.abs(p) for p in products]


def check_scores(scores: Any, weights: Sequence[tf.Tensor]) -> None:
    """Raise a ValueError unless there is one finite score for each entry of each weight.

    Args:
        scores: What a saliency returned.
        weights: The weights that it was called with.
    """
    try:
        found = [tuple(tf.convert_to_tensor(score).shape) for score in scores]
        finite = all(bool(tf.reduce_all(tf.math.is_finite(score))) for score in scores)
    except (TypeError, ValueError, NotImplementedError, tf.errors.OpError) as error:
        raise ValueError(
            "A saliency must return a list with one tensor of scores for each weight. "
            f"Received: {type(scores).__name__} ({error})"
        ) from error
    wanted = [tuple(weight.shape) for weight in weights]
    if found != wanted:
        raise ValueError(
            "A saliency must return one tensor of scores for each weight, of its shape. "
            f"Received: scores of shapes {found} for weights of shapes {wanted}"
        )
    if not finite:
        raise ValueError(
            "A saliency must return finite scores, or there is no order among the weights. "
            "Received: scores with NaN or infinity"
        )
