"""The masks of a recipe, updated inside a compiled step from the values of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from keras_ntt.saliency.base import Function
from keras_ntt.saliency.of_weights import OfWeights, magnitude
from keras_ntt.selection.find_masks import Recipe
from keras_ntt.selection.named_patterns import choose
from keras_ntt.selection.patterns import largest


@dataclass(frozen=True)
class CompiledMasks:
    """A recipe for compiled steps: a score of the weights' values, exact counts, and the pattern.

    Attributes:
        recipe: How the masks are chosen. A score that uses the network cannot be computed inside a
            compiled step; magnitude replaces it.
        counts: A function from the sparsity to the number of kept entries: one number per weight,
            or one for all weights together if one threshold decides.
    """

    recipe: Recipe
    counts: Callable[[float], list[int]]

    @property
    def by_threshold(self) -> bool:
        """Whether one threshold decides for all weights."""
        return self.recipe.shares.allocation == "global"

    @property
    def numbers(self) -> int:
        """How many numbers `counts` returns."""
        return 1 if self.by_threshold else len(self.recipe.shares.sizes)

    @property
    def score(self) -> Function:
        """The score: values of the weights to scores of the same shapes."""
        saliency = self.recipe.saliency
        return saliency.function if isinstance(saliency, OfWeights) else magnitude

    def choose(
        self, weights: Sequence[tf.Tensor], counts: Sequence[int] | tf.Tensor
    ) -> list[tf.Tensor]:
        """Return the masks of the highest scores; ties are broken evenly.

        With one threshold for all weights, each weight keeps at least its highest score, unless the
        counts are those of the published code.

        Args:
            weights: Values of the weights.
            counts: The result of `counts`, as integers or an integer tensor.

        Returns:
            Boolean tensors of the weights' shapes.
        """
        shares, pattern = self.recipe.shares, self.recipe.pattern
        scores = self.score(weights)
        flat = [tf.reshape(score, [-1]) for score in scores]
        if self.by_threshold:
            if shares.count_rule == "nearest":
                flat = [_best_first(score) for score in flat]
            chosen = tf.split(largest(tf.concat(flat, axis=0), counts[0]), shares.sizes)
            counts = [tf.math.count_nonzero(c, dtype=tf.int32) for c in chosen]
        elif pattern is None:
            chosen = [largest(score, counts[i]) for i, score in enumerate(flat)]
        if pattern is None:
            return [tf.reshape(m, w.shape) for m, w in zip(chosen, weights, strict=True)]
        return [self._in_pattern(i, score, counts[i]) for i, score in enumerate(scores)]

    def _in_pattern(self, i: int, scores: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
        """Return the mask of weight i in the pattern; a count of 0 prunes all of it."""
        assert self.recipe.pattern is not None
        density = tf.cast(count, tf.float64) / scores.shape.num_elements()
        axes = None if self.recipe.axes is None else self.recipe.axes[i]
        mask = choose(self.recipe.pattern, scores, 1 - density, axes)
        return tf.logical_and(mask, density > 0)


def _best_first(scores: tf.Tensor) -> tf.Tensor:
    """Put the highest score above those of all other weights."""
    best = tf.one_hot(tf.argmax(scores), scores.shape[0], on_value=True, off_value=False)
    return tf.where(best, tf.constant(scores.dtype.max, scores.dtype), scores)
