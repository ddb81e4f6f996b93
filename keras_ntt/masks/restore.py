"""Recover masks from a model's zeros."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_ntt.core import checks, host
from keras_ntt.masks.apply import hold_masks
from keras_ntt.masks.constraint import is_masked
from keras_ntt.masks.filters import Filters, as_predicate
from keras_ntt.masks.names import names_by_id
from keras_ntt.masks.natural_zeros import kernels_with_layers, pruned_entries, was_pruned
from keras_ntt.masks.policies import check_policy, choose_weights

_SHARE = 0.1


def restore_masks(
    model: keras.Model, *, filters: Filters = None, pruning_policy: Any = None
) -> keras.Model:
    """Restore the masks of a loaded model from its exact zeros.

    Constraints are not saved with a model, so a model that was pruned, saved and loaded would lose
    its zeros in training. This masks the exact zeros of its kernels, also those of frozen layers.

    Zeros that a weight may have without pruning are left out, with a warning: a kernel of zeros
    only, an identity, and an Embedding whose zeros are whole rows. To mask these zeros as well,
    select them with `filters` or `pruning_policy`: selected weights are masked without exception.
    If every kernel has less than a tenth of zeros, a warning says that the model seems to have lost
    them. `sparsity_report` shows the result.

    Args:
        model: A built model. It is changed in place.
        filters: Which layers to mask: a regular expression, a list of them, or a callable, see
            `keras_ntt.NeuralTangentTransfer`.
        pruning_policy: An object with ``allow_pruning(layer)``, for the same purpose.

    Returns:
        The same model.

    Raises:
        ValueError: If no selected kernel holds both zeros and other values.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_ntt import get_masks, restore_masks
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        >>> model.set_weights([np.array([[1.0, 0.0], [0.0, 4.0]])])  # as loaded from a file
        >>> (mask,) = get_masks(restore_masks(model)).values()
        >>> mask.astype(int).tolist()
        [[1, 0], [0, 1]]
    """
    checks.check_model(model)
    check_policy(pruning_policy)
    chosen = filters is not None or pruning_policy is not None
    accepts = as_predicate(filters, model)
    allows = getattr(pruning_policy, "allow_pruning", lambda layer: True)
    named = names_by_id(model.weights)
    kernels = list(kernels_with_layers(model))
    if not kernels:
        choose_weights(model)  # which says why there are none
    masks, left = {}, []
    for layer, variable in kernels:
        if not accepts(layer) or not allows(layer):
            continue
        zeros = host.array_of(variable) == 0
        if chosen or (zeros.any() and was_pruned(layer, variable)):
            if zeros.any():
                masks[named[id(variable)]] = ~zeros
        elif zeros.any():
            left.append(named[id(variable)])
    if not masks:
        natural = f" or may begin with their zeros: {', '.join(left)}" if left else ""
        raise ValueError(
            "The model holds no zeros to restore masks from. Load the weights of the pruned "
            "model first, or prune it. Zeros that a weight may begin with are masked only if "
            f"filters= selects it. Received: model={model.name!r}, all kernels dense{natural}"
        )
    if left:
        warnings.warn(
            "Zeros that weights may have from the beginning get no mask: kernels of zeros only, "
            "identities, and empty rows of an Embedding. If they were pruned, select them, "
            "keras_ntt.restore_masks(model, filters=...), or load their masks from a file of "
            "save_masks: keras_ntt.load_masks(model, path). "
            f"Received: {', '.join(map(repr, left))}",
            stacklevel=2,
        )
    if (most := max(1 - mask.mean() for mask in masks.values())) < _SHARE:
        warnings.warn(
            f"No kernel of {model.name!r} holds more than {most:.1%} zeros, which are masked now. "
            "If it was pruned, it was later trained without its masks, and has lost most zeros: "
            "load the pruned file again and restore its masks before training.",
            stacklevel=2,
        )
    return hold_masks(model, masks)


def unheld_zeros(model: keras.Model) -> dict[str, float]:
    """Return the kernels that look pruned and have no mask for their zeros.

    A kernel looks pruned if at least a tenth of its entries are zeros that only pruning can
    explain, see `pruned_entries`.

    Args:
        model: A built model.

    Returns:
        ``variable path -> fraction of zeros without a mask``.
    """
    found = {}
    for layer, variable in kernels_with_layers(model):
        held = variable.constraint if is_masked(variable) else None
        if not variable.trainable or (held is not None and held.fixed):
            continue
        zeros = pruned_entries(layer, variable)
        if held is not None:  # a schedule may begin with fewer zeros than the kernel has
            zeros = zeros & held.mask
        share = float(zeros.mean()) if zeros.size else 0.0
        if share >= _SHARE:
            found[variable.path] = share
    return found


def warn_if_unheld(model: keras.Model) -> None:
    """Warn that training would fill the zeros of kernels without masks."""
    found = unheld_zeros(model)
    if found:
        path, share = next(iter(found.items()))
        warnings.warn(
            "The model looks pruned but nothing keeps its zeros, so training will fill them. If "
            "it was loaded, or is to be trained on after strip_pruning, call "
            "keras_ntt.restore_masks(model), or load_masks(model, path), first; and let a schedule "
            "begin with no fewer zeros than there are. "
            f"Received: {path!r} with {share:.0%} zeros and {len(found) - 1} more",
            stacklevel=3,
        )


def warn_of_lora(model: keras.Model) -> None:
    """Warn of LoRA in a model with masks: Keras saves their sum, which has no zeros."""
    layers = [layer for layer in host.layers_of(model) if getattr(layer, "lora_enabled", False)]
    found = [v.path for layer in layers for v in layer.weights if is_masked(v)]
    if found:
        warnings.warn(
            "LoRA adds a dense product to kernels with masks, and Keras saves their sum: the "
            "zeros are not in the file. Save the masks too, and call keras_ntt.load_masks(loaded, "
            "path) to prune the sum. "
            f"Received: LoRA on {found[0]!r} and {len(found) - 1} more",
            stacklevel=3,
        )
