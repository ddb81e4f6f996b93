"""Statistics of BatchNormalization from unlabelled inputs: exact moments, layer after layer.

The mean and the variance are those of all inputs together, ``E[x]`` and ``E[x^2] - E[x]^2``, not
moving averages and not means of the variances of batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from keras_ntt.core import checks, host
from keras_ntt.pruning.post_training.calibration import BATCH_SIZE, calibration_batches
from keras_ntt.pruning.post_training.walk import Arguments, Walk


class Normalization(NamedTuple):
    """Mean and variance of the channels that a layer normalizes.

    Attributes:
        mean: Means.
        variance: Variances, those of all values (not corrected for their number).
    """

    mean: np.ndarray
    variance: np.ndarray


def reestimate_batch_norm(model: keras.Model, inputs: Any, *, batch_size: int = BATCH_SIZE) -> None:
    """Set the statistics of a model's BatchNormalization layers to those of some inputs.

    Useful after any change of the weights, such as pruning, and where the inputs of use differ
    from those of training. The moments are exact: those of all inputs together, in float64. Each
    layer sees what the layers before it return with *their* new statistics. No label is needed and
    no other weight changes.

    Args:
        model: A built model. It is changed in place.
        inputs: Unlabelled inputs, preprocessed as for training: arrays, a ``tf.data.Dataset`` of
            batches or a ``keras.utils.PyDataset``. Labels in it are not used. Some hundred samples
            are enough for most convolutional networks.
        batch_size: Samples a batch, for arrays; the statistics depend on it by rounding only.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not built, has no BatchNormalization, or the inputs do not fit or
            are not finite. The model is unchanged then.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import reestimate_batch_norm
        >>> layer = keras.layers.BatchNormalization()
        >>> model = keras.Sequential([keras.Input((1,)), layer])
        >>> reestimate_batch_norm(model, np.array([[1.0], [3.0], [5.0], [7.0]]), batch_size=2)
        >>> float(layer.moving_mean[0]), float(layer.moving_variance[0])
        (4.0, 5.0)
    """
    checks.check_model(model)
    if not batch_norms(model):
        raise ValueError(
            "There are no statistics to estimate: the model has no BatchNormalization. "
            f"Received: model={model.name!r}"
        )
    reestimate(model, calibration_batches(model, inputs, batch_size=batch_size))


def reestimate(model: keras.Model, batches: Sequence[Any]) -> None:
    """Do what `reestimate_batch_norm` does, on batches that are checked already.

    Args:
        model: The model, changed in place.
        batches: Batches of inputs, nested as the model takes them.
    """
    found = batch_norms(model)
    walk = Walk(model, batches)
    before = [(v, host.array_of(v)) for layer in found for v in _statistics_of(layer)]
    try:
        while walk.index < len(walk.calls):
            for layer in walk.reached(found):
                estimate(walk, layer)  # by all its calls, those further on, too
                found = [other for other in found if other is not layer]
            walk.advance()
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise


def batch_norms(model: keras.Model) -> list[Any]:
    """Return the layers of a model that keep statistics of batches."""
    return [
        layer for layer in host.layers_of(model) if isinstance(layer, layers.BatchNormalization)
    ]


def estimate(walk: Walk, layer: Any) -> None:
    """Set the statistics of a layer that a walk has reached to those of what it is called with.

    Args:
        walk: The walk.
        layer: A BatchNormalization layer.

    Raises:
        ValueError: If what it is called with is not finite.
    """
    calls = (call for batch in walk.inputs_of(layer) for call in batch.own)
    mean, variance = moments_of(calls, layer.axis)
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        raise ValueError(
            "What a BatchNormalization layer is called with is NaN or infinite, so it has no "
            "statistics. Check the weights of the layers before it, and the scale of the inputs. "
            f"Received: layer {layer.name!r}"
        )
    for variable, value in zip(_statistics_of(layer), (mean, variance), strict=True):
        walk.assign(variable, value)


def moments_of(calls: Iterable[Arguments], axis: int) -> Normalization:
    """Return the moments of the channels over everything else.

    Args:
        calls: What the layer is called with.
        axis: The axis of the channels.

    Returns:
        The `Normalization`, in float64.

    Raises:
        ValueError: If there are no values.
    """
    count = 0
    start, total, squares = np.zeros(1), np.zeros(1), np.zeros(1)
    for given in calls:
        x = np.moveaxis(np.asarray(given.first, np.float64), axis, -1)
        if given.mask is not None:
            x = x[np.asarray(given.mask, bool)]
        x = x.reshape(-1, x.shape[-1])
        if not len(x):
            continue
        if not count:
            start = x.mean(axis=0)  # about it, large means do not drown the variance
        count += len(x)
        total = total + (x - start).sum(axis=0)
        squares = squares + ((x - start) ** 2).sum(axis=0)
    if not count:
        raise ValueError("There are no values to take moments of. Received: 0 values")
    shift = total / count
    return Normalization(start + shift, np.maximum(squares / count - shift**2, 0.0))


def _statistics_of(layer: Any) -> tuple[Any, Any]:
    return layer.moving_mean, layer.moving_variance
