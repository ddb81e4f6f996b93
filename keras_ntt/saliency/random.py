"""Random scores."""

from __future__ import annotations

import tensorflow as tf

from keras_ntt.saliency.base import NetworkSaliency, Subject


class Random(NetworkSaliency):
    """Score every weight by an independent uniform number, so that all masks are as likely.

    The numbers follow from the seed alone.
    """

    def __call__(self, subject: Subject) -> list[tf.Tensor]:
        """Return the random numbers, in [0, 1)."""
        return [
            tf.random.stateless_uniform(w.shape, subject.seed_of(i), dtype=tf.float64)
            for i, w in enumerate(subject.weights)
        ]
