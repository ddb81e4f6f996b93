"""Neural Tangent Transfer in one call (Liu & Zenke, ICML 2020)."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import checks, input_checks
from keras_ntt.core.copies import copy_of
from keras_ntt.core.inputs import is_generator
from keras_ntt.pruning.neural_tangent.transfer import NeuralTangentTransfer
from keras_ntt.saliency import NetworkSaliency
from keras_ntt.saliency.base import Function
from keras_ntt.saliency.names import as_saliency

_INSTEAD = "Or prune it in place: NeuralTangentTransfer(student=model, pruning_schedule=sparsity). "


def prune_neural_tangent(
    model: keras.Model,
    inputs: Any,
    *,
    sparsity: Any,
    epochs: int,
    batch_size: int = 64,
    optimizer: Any = None,
    teacher: keras.Model | None = None,
    saliency: str | NetworkSaliency | Function = "magnitude",
    saliency_data: Any = None,
    steps_per_epoch: int | None = None,
    callbacks: Any = None,
    verbose: Any = "auto",
    **settings: Any,
) -> keras.Model:
    """Prune a model before training, without labels, with Neural Tangent Transfer.

    Args:
        model: A built model, usually with its initial weights. It is not changed.
        inputs: Unlabelled inputs: arrays, or a data set of batches; see
            `NeuralTangentTransfer.fit`.
        sparsity: Fraction of zeros in the pruned kernels, in [0, 1), or a schedule.
        epochs: Passes over the inputs. A few thousand steps are usually enough.
        batch_size: Samples per batch, for arrays.
        optimizer: None is ``keras.optimizers.Adam(5e-4)``, as in the published demos.
        teacher: A dense model to match instead of `model`, see `NeuralTangentTransfer`.
        saliency: The score for the masks, see `NeuralTangentTransfer`.
        saliency_data: Samples for a score that uses samples. None takes `inputs`, if they can be
            read more than once, unlike a generator. Of a ``tf.data.Dataset`` it takes the first
            `steps_per_epoch` batches, if that is given.
        steps_per_epoch: As in `keras.Model.fit`.
        callbacks: As in `keras.Model.fit`.
        verbose: As in `keras.Model.fit`.
        **settings: Further settings of `NeuralTangentTransfer`, which describes them:
            ``pruning_policy``, ``filters``, ``allocation``, ``count_rule``, ``pattern``,
            ``ntk_weight``, ``l2``, ``wrt``, ``outputs``, ``output_projections``, ``normalize``,
            ``memory_limit``, ``adversarial`` and ``seed``.

    Returns:
        A sparse copy of the model, which keeps its zeros when it is trained.

    Raises:
        TypeError: If a model is not a Keras 3 model.
        ValueError: If an argument does not fit.
        FloatingPointError: If the loss becomes NaN or infinite.

    Warns:
        UserWarning: If balanced masks cannot take the inputs' deviations into account, because the
            inputs can be read only once.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import prune_neural_tangent, sparsity_report
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> inputs = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
        >>> sparse = prune_neural_tangent(model, inputs, sparsity=0.8, epochs=2, verbose=0)
        >>> sparsity_report(sparse).sparsity
        0.8
    """
    checks.check_built(model)
    score = as_saliency(saliency)
    if saliency_data is None:
        saliency_data = _readable_again(inputs, steps_per_epoch)
        if saliency_data is None and score.takes_data:
            warnings.warn(
                f"{score.name} counts all inputs alike, because these can be read only once. Pass "
                "samples as saliency_data to let those that vary more have more connections. "
                f"Received: inputs of type {type(inputs).__name__}",
                stacklevel=2,
            )
    student = copy_of(model, inputs, instead=_INSTEAD)
    transfer = NeuralTangentTransfer(
        student,
        teacher,
        pruning_schedule=sparsity,
        saliency=score,
        saliency_data=saliency_data,
        **settings,
    )
    transfer.compile(keras.optimizers.Adam(5e-4) if optimizer is None else optimizer)
    transfer.fit(
        inputs,
        batch_size=batch_size if input_checks.is_array(inputs) else None,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        callbacks=callbacks,
        verbose=verbose,
    )
    return student


def _readable_again(data: Any, steps: int | None) -> Any:
    """Return data that can be read more than once and are finite, else None."""
    if isinstance(data, tf.data.Dataset):
        if steps is not None:
            return data.take(steps)
        return None if data.cardinality() == tf.data.INFINITE_CARDINALITY else data
    return None if is_generator(data) else data
