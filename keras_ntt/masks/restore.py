"""Recover masks from a model's zeros."""

from __future__ import annotations

import warnings

import keras

from keras_ntt.core import checks, host
from keras_ntt.masks.apply import apply_masks
from keras_ntt.masks.constraint import is_masked
from keras_ntt.masks.names import names_by_id
from keras_ntt.masks.policies import all_kernels, choose_weights

_SHARE = 0.1


def restore_masks(model: keras.Model) -> keras.Model:
    """Take up the masks again from the exact zeros of a loaded model.

    Constraints are not saved with a model, so one that was pruned, saved and loaded would lose
    its zeros in training. All exact zeros of its kernels are masked, those of frozen layers too. If
    they are less than a tenth of every kernel, a warning says that the model seems to have lost
    them. A kernel of zeros only is left out with a warning: it may be one that begins so.

    Args:
        model: A built model. It is changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: If no kernel holds zeros beside other values.

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
    named = names_by_id(model.weights)
    masks, empty = {}, []
    kernels = all_kernels(model) or choose_weights(model).weights  # which says why there are none
    for variable in kernels:
        mask = keras.ops.convert_to_numpy(variable) != 0
        if mask.any() and not mask.all():
            masks[named[id(variable)]] = mask
        elif not mask.any():
            empty.append(named[id(variable)])
    if not masks:
        raise ValueError(
            "The model holds no zeros to restore masks from. Load the weights of the pruned "
            f"model first, or prune it. Received: model={model.name!r}, all kernels "
            f"{'dense or ' if empty else ''}{'zero' if empty else 'dense'}"
        )
    if empty:
        warnings.warn(
            "Kernels of zeros only get no mask, because they may begin so. If they were pruned to "
            "nothing, load their masks from a file of save_masks: keras_ntt.load_masks(model, "
            f"path). Received: {', '.join(map(repr, empty))}",
            stacklevel=2,
        )
    if (most := max(1 - mask.mean() for mask in masks.values())) < _SHARE:
        warnings.warn(
            f"No kernel of {model.name!r} holds more than {most:.1%} zeros, which are masked now. "
            "If it was pruned, it was trained without its masks since, and has lost most zeros: "
            "load the pruned file again and restore its masks before training.",
            stacklevel=2,
        )
    return apply_masks(model, masks)


def unheld_zeros(model: keras.Model) -> dict[str, float]:
    """Return the kernels that look pruned and hold no mask.

    A kernel looks pruned if at least a tenth of it, and not all, is exactly zero, which training
    and random initialisation do not bring about.

    Args:
        model: A built model.

    Returns:
        ``variable path -> fraction of zeros``.
    """
    found = {}
    for variable in all_kernels(model):
        if variable.trainable and not is_masked(variable):
            value = keras.ops.convert_to_numpy(variable)
            share = float((value == 0).mean()) if value.size else 0.0
            if _SHARE <= share < 1:
                found[variable.path] = share
    return found


def warn_if_unheld(model: keras.Model) -> None:
    """Warn that training would fill the zeros of kernels that hold no mask."""
    found = unheld_zeros(model)
    if found:
        path, share = next(iter(found.items()))
        warnings.warn(
            "The model looks pruned but nothing keeps its zeros, so training will fill them. If "
            "it was loaded, or is to be trained on after strip_pruning, call "
            "keras_ntt.restore_masks(model), or load_masks(model, path), first. "
            f"Received: {path!r} with {share:.0%} zeros and {len(found) - 1} more",
            stacklevel=3,
        )


def warn_of_lora(model: keras.Model) -> None:
    """Warn of LoRA beside masks: Keras saves the sum of the two, which has no zeros."""
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
