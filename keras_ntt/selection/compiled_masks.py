"""From scores to binary masks with exact counts.

scores -> allocation (how many entries each tensor keeps) -> the largest scores
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.core.axes import Axes
from keras_ntt.selection.counts import COUNT_RULES, keep_count
from keras_ntt.selection.named_patterns import choose
from keras_ntt.selection.patterns import Pattern, largest

ALLOCATIONS: tuple[str, ...] = ("layerwise", "global")


Saliency = Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]
"""Values of weights -> scores of the same shapes; the highest are kept."""


@dataclass(frozen=True)
class MaskRule:
    """How masks are chosen from the values of weights.

    Attributes:
        sizes: Numbers of entries of the weights.
        saliency: The score.
        allocation: ``"layerwise"``: the same sparsity in each weight. ``"global"``: the largest
            scores of all weights together.
        count_rule: See `keep_count`.
        own_counts: Sparsity to what `counts` returns, where that is not by `allocation` alone.
        pattern: How the entries of a weight are chosen; None takes the highest scores.
        axes: What the axes of each weight stand for.
    """

    sizes: tuple[int, ...]
    saliency: Saliency
    allocation: str = "layerwise"
    count_rule: str = "nearest"
    own_counts: Callable[[float], list[int]] | None = None
    pattern: Pattern | None = None
    axes: tuple[Axes, ...] | None = None

    def __post_init__(self) -> None:
        checks.check_choice("allocation", self.allocation, ALLOCATIONS)
        checks.check_choice("count_rule", self.count_rule, COUNT_RULES)

    @property
    def numbers(self) -> int:
        """How many numbers `counts` returns."""
        return 1 if self.allocation == "global" else len(self.sizes)

    def counts(self, sparsity: float) -> list[int]:
        """Return how many entries are kept: one number a weight, or one for all of them.

        >>> from keras_ntt.saliency import magnitude
        >>> MaskRule((100, 20), magnitude).counts(0.9)
        [10, 2]
        >>> MaskRule((100, 20), magnitude, "global").counts(0.9)
        [12]
        """
        if self.own_counts is not None:
            return self.own_counts(sparsity)
        sizes = [sum(self.sizes)] if self.allocation == "global" else self.sizes
        return [keep_count(size, sparsity, self.count_rule) for size in sizes]

    def choose(
        self, weights: Sequence[tf.Tensor], counts: Sequence[int] | tf.Tensor
    ) -> list[tf.Tensor]:
        """Return the masks of the highest scores; of equal scores the first are taken.

        With one threshold for all weights, each keeps its highest score at the least, unless the
        counts are those of the published code.

        Args:
            weights: Values of the weights.
            counts: What `counts` returned, as integers or an integer tensor.

        Returns:
            Boolean tensors of the weights' shapes.
        """
        scores = self.saliency(weights)
        flat = [tf.reshape(score, [-1]) for score in scores]
        if self.allocation == "global":
            if self.count_rule == "nearest":
                flat = [_best_first(score) for score in flat]
            chosen = tf.split(largest(tf.concat(flat, axis=0), counts[0]), self.sizes)
            counts = [tf.math.count_nonzero(c, dtype=tf.int32) for c in chosen]
        elif self.pattern is None:
            chosen = [largest(score, counts[i]) for i, score in enumerate(flat)]
        if self.pattern is None:
            return [tf.reshape(m, w.shape) for m, w in zip(chosen, weights, strict=True)]
        return [self._in_pattern(i, score, counts[i]) for i, score in enumerate(scores)]

    def _in_pattern(self, i: int, scores: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
        """Return the mask of weight i by the pattern; a count of 0 prunes all of it."""
        assert self.pattern is not None
        density = tf.cast(count, tf.float64) / scores.shape.num_elements()
        axes = None if self.axes is None else self.axes[i]
        mask = choose(self.pattern, scores, 1 - density, axes)
        return tf.logical_and(mask, density > 0)


def _best_first(scores: tf.Tensor) -> tf.Tensor:
    """Put the highest score above those of all other weights."""
    best = tf.one_hot(tf.argmax(scores), scores.shape[0], on_value=True, off_value=False)
    return tf.where(best, tf.constant(scores.dtype.max, scores.dtype), scores)
