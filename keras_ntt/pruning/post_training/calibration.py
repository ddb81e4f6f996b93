"""The unlabelled inputs that statistics are taken on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, input_checks
from keras_ntt.core import inputs as inputs_
from keras_ntt.saliency.data import Batches, sample_count

BATCH_SIZE = 128
"""Samples a batch of arrays; results depend on it by rounding only."""


def calibration_batches(
    model: keras.Model,
    inputs: Any,
    *,
    samples: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> list[Any]:
    """Return batches of inputs without labels.

    Args:
        model: The model that takes them.
        inputs: Arrays, a ``tf.data.Dataset`` of batches or a ``keras.utils.PyDataset``.
        samples: The most samples that are taken: of arrays a random part, of data sets the first.
            None takes all.
        batch_size: Samples a batch, for arrays.
        seed: Seed of the random part.

    Returns:
        A list of batches, nested as the model takes its inputs.

    Raises:
        ValueError: If the inputs do not fit the model, or are none.
    """
    x = inputs_.without_labels(inputs)
    if isinstance(x, list):
        x = keras.tree.map_structure(np.asarray, x)
    if samples is not None:
        samples = checks.check_count("samples", samples)
        if input_checks.is_array(x):
            inputs_.check(x, model, "inputs")
            n = sample_count(x)
            if n > samples:
                order = np.random.default_rng(checks.check_seed(seed)).permutation(n)[:samples]
                x = keras.tree.map_structure(lambda a: np.asarray(a)[order], x)
    found: list[Any] = []
    count = 0
    for batch, _ in Batches(x if input_checks.is_array(x) else inputs, model, batch_size):
        found.append(batch)
        count += sample_count(batch)
        if samples is not None and count >= samples:
            found = first_samples(found, samples)
            break
    if not found:
        raise ValueError("inputs hold no batches. Received: an empty data set")
    return found


def first_samples(batches: Sequence[Any], most: int) -> list[Any]:
    """Return the first samples of batches, no more than `most`, in batches again."""
    found, left = [], most
    for batch in batches:
        if left <= 0:
            break
        taken = min(left, sample_count(batch))
        found.append(keras.tree.map_structure(lambda a, end=taken: a[:end], batch))
        left -= taken
    return found
