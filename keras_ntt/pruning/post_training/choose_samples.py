"""Which inputs to calibrate on: norm and Gram-Schmidt sampling (Bar & Giryes, arXiv 2406.01086).

Inputs are chosen by the features that a trained network has of them, without labels.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, host, input_checks
from keras_ntt.core import inputs as inputs_
from keras_ntt.masks.policies import choose_weights
from keras_ntt.saliency.data import sample_count

METHODS = ("norm", "gram_schmidt")


def choose_samples(
    model: keras.Model,
    inputs: Any,
    n: int,
    *,
    method: str = "norm",
    layer: str | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> np.ndarray:
    """Choose a few of many unlabelled inputs by the features that a model has of them.

    Args:
        model: A built Sequential or functional model, trained.
        inputs: Arrays ``[N, ...]``, nested as the model takes them.
        n: How many to choose, at most N.
        method: ``"norm"`` draws them with probabilities proportional to the norms of their
            features. ``"gram_schmidt"`` takes next the one with the largest norm after what the
            chosen ones span is projected out, and begins again when they span all.
        layer: The name of the layer whose inputs are the features. None is the last one with a
            kernel.
        batch_size: Inputs at a time.
        seed: Seed of the draw; the other method draws nothing.

    Returns:
        Indices ``[n]``, none twice, in the order in which they were chosen.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If the features cannot be found, are not finite, or something does not fit.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import choose_samples
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> x = np.array([[3.0, 0.0], [2.9, 0.1], [0.0, 1.0]])
        >>> choose_samples(model, x, 2, method="gram_schmidt").tolist()
        [0, 2]
    """
    checks.check_model(model)
    checks.check_choice("method", method, METHODS)
    x = inputs_.without_labels(inputs)
    if not input_checks.is_array(x):
        raise ValueError(
            "inputs must be arrays, because all of them are looked at before some are chosen. "
            f"Received: inputs of type {type(inputs).__name__}"
        )
    inputs_.check(x, model, "inputs")
    total, count = sample_count(x), checks.check_count("n", n)
    if count > total:
        raise ValueError(f"n must be at most the number of inputs, {total}. Received: n={n!r}")
    number, size = checks.check_seed(seed), checks.check_count("batch_size", batch_size)
    features = _features(_feature_model(model, layer), x, total, size)
    if method == "norm":
        return norm_sample(features, count, seed=number)
    return gram_schmidt_sample(features, count)


def norm_sample(features: np.ndarray, n: int, *, seed: int) -> np.ndarray:
    """Draw rows with probabilities proportional to their norms, without replacement.

    Args:
        features: Rows ``[N, d]``.
        n: How many to draw.
        seed: Seed of the draw.

    Returns:
        Their indices ``[n]`` in the order of the draw. Rows of zeros come after all others.
    """
    sizes = np.linalg.norm(features.astype("float64"), axis=1)
    rng = np.random.default_rng(seed)
    some = min(n, int(np.count_nonzero(sizes)))
    found = np.array([], "int64")
    if some:
        found = rng.choice(len(sizes), some, replace=False, p=sizes / sizes.sum())
    rest = rng.permutation(np.setdiff1d(np.flatnonzero(sizes == 0), found))
    return np.concatenate([found, rest[: n - some]])


def gram_schmidt_sample(features: np.ndarray, n: int) -> np.ndarray:
    """Take rows one after the other, each with the largest part that those before do not span.

    Args:
        features: Rows ``[N, d]``.
        n: How many to take. When what is left is rounding alone, the rows that were not taken
            begin again as they were.

    Returns:
        Their indices ``[n]`` in the order in which they are taken; of equal ones the first.
    """
    left = features.astype("float64")
    free = np.ones(len(left), bool)
    found: list[int] = []
    rest, first = left, 0.0
    while len(found) < n:
        squares = np.where(free, np.einsum("nd,nd->n", rest, rest), -1.0)
        best = int(np.argmax(squares))
        if rest is left:
            first = max(float(squares[best]), 0.0)
        if squares[best] <= 1e-20 * first and rest is not left:
            rest = left
            continue
        found.append(best)
        free[best] = False
        if squares[best] > 0:
            direction = rest[best] / np.sqrt(squares[best])
            rest = rest - np.outer(rest @ direction, direction)
    return np.array(found, "int64")


def _feature_model(model: keras.Model, layer: str | None) -> keras.Model:
    """Return a model of the features: what goes into a layer."""
    functional = host.functional_of(model)
    if functional is None:
        raise ValueError(
            "The features of a model with a custom call() are not known. Pass a Sequential or "
            "functional model whose last layer reads them. "
            f"Received: model={model.name!r} of type {type(model).__name__}"
        )
    if layer is None:
        kernels = {id(v) for v in choose_weights(model).weights}
        names = [x.name for x in model.layers if kernels & {id(v) for v in x.weights}]
        layer = names[-1]
    named = {x.name: x for x in model.layers}
    if layer not in named:
        raise ValueError(
            f"layer must be the name of one of the model's layers, {', '.join(named)}. "
            f"Received: layer={layer!r}"
        )
    try:
        return keras.Model(host.input_structure(functional), named[layer].input)
    except (AttributeError, ValueError) as error:
        raise ValueError(
            "The inputs of the layer are not known: it has none in this model. Pass another one as "
            f"layer=. Received: layer={layer!r} ({error})"
        ) from error


def _features(model: keras.Model, x: Any, total: int, batch_size: int) -> np.ndarray:
    """Return features ``[N, d]``: all that goes into the layer, side by side."""
    rows = []
    for start in range(0, total, batch_size):
        part = keras.tree.map_structure(lambda a, s=start: a[s : s + batch_size], x)
        found = [np.asarray(t) for t in keras.tree.flatten(model(part, training=False))]
        rows.append(np.concatenate([t.reshape(len(t), -1) for t in found], axis=1))
    features = np.concatenate(rows)
    if not np.isfinite(features).all():
        raise ValueError(
            "The features of some inputs are NaN or infinite, so they have no norm. Look for such "
            f"inputs. Received: {int((~np.isfinite(features)).any(axis=1).sum())} of {total}"
        )
    return features
