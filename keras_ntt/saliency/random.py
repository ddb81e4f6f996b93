"""Random scores."""

from __future__ import annotations

import tensorflow as tf

from keras_ntt.saliency.base import NetworkSaliency, Subject


class Random(NetworkSaliency):
    """Score every weight by an independent uniform number: all masks are equally likely.

    The numbers depend only on the seed.
    """

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the random numbers, in [0, 1)."""
        return [
            tf.random.stateless_uniform(w.shape, subject.seed_of(i), dtype=tf.float64)
            for i, w in enumerate(subject.weights)
        ]
