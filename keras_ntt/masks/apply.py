"""Masks held in a model: a constraint on each pruned variable, nothing else.

No layer is wrapped or renamed and no weight is added, so a pruned model saves, loads and trains
like the plain one. The optimizer applies a variable's constraint after each of its updates.
"""

from __future__ import annotations

import warnings

import keras
import numpy as np

from keras_ntt.core import checks, host
from keras_ntt.masks.constraint import (
    EntryConstraint,
    MaskConstraint,
    check_not_frozen,
    is_frozen,
    is_masked,
)
from keras_ntt.masks.names import MaskDict, masks_by_variable, weights_by_name
from keras_ntt.masks.pending import cancel
from keras_ntt.masks.policies import prunable_weights


def apply_masks(model: keras.Model, masks: MaskDict) -> keras.Model:
    """Set the masked entries to zero and keep them zero in any training that follows.

    Weights that follow a schedule of `keras_ntt.prune_low_magnitude` leave the schedule and keep
    these masks.

    Args:
        model: A built model. It is changed in place.
        masks: Masks by variable path, as `get_masks` returns them; true where an entry is kept.

    Returns:
        The same model.

    Raises:
        TypeError: If the model or the masks are of the wrong type.
        ValueError: If the masks do not fit the model, or the weights have frozen entries.
    """
    checks.check_model(model)
    return hold_masks(model, masks)


def hold_masks(model: keras.Model, masks: MaskDict) -> keras.Model:
    """Do what `apply_masks` does, without checks."""
    attached = False
    matched = list(masks_by_variable(model, masks).values())
    check_not_frozen(variable for variable, _ in matched)
    for variable, mask in matched:
        held = variable.constraint
        if isinstance(held, MaskConstraint) and held.fixed:
            held.mask = mask
        else:
            inner = held
            if isinstance(held, MaskConstraint):  # a schedule would replace the masks
                held.detach(variable)
                inner = held.inner
            MaskConstraint(mask, inner=inner).attach(variable)
            attached = True
        value = keras.ops.convert_to_numpy(variable)
        variable.assign(np.where(mask, value, np.zeros_like(value)))
    if attached:
        retrace(model)
    return model


def strip_pruning(model: keras.Model) -> keras.Model:
    """Remove the masks from a model. The zeros stay, but later training may change them.

    Entries that are frozen, see `freeze_entries`, keep their values and are trained again.

    Args:
        model: A model with masks. It is changed in place.

    Returns:
        The same model, without masks.

    Raises:
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not built and nothing waits for it to be.

    Warns:
        UserWarning: If a schedule did not end, or entries that a mask leaves out are not zero.

    Examples:
        >>> import keras
        >>> from keras_ntt import get_masks, prune_at_init, sparsity_report, strip_pruning
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> stripped = strip_pruning(prune_at_init(model, sparsity=0.9, saliency="magnitude"))
        >>> get_masks(stripped), sparsity_report(stripped).sparsity
        ({}, 0.9)
    """
    if isinstance(model, keras.Sequential) and not model.built and cancel(model):
        return model
    checks.check_built(model)
    held = [v for v in model.weights if isinstance(v.constraint, EntryConstraint)]
    warn_if_behind(model)
    warn_if_leaking(model)
    for variable in held:
        variable.constraint.detach(variable)
    if held:
        retrace(model)
    return model


def schedules_behind(model: keras.Model) -> list[str]:
    """Return the weights that were trained and whose schedules did not end, with their steps.

    Args:
        model: A built model.

    Returns:
        A text for each, such as ``"dense/kernel (step 3 of 8)"``.
    """
    named = weights_by_name(model).items()
    held = [(key, v.constraint) for key, v in named if is_masked(v) and v.constraint.behind]
    return [f"{key} ({constraint.progress})" for key, constraint in held]


def warn_if_behind(model: keras.Model) -> None:
    """Warn of weights that were trained but not pruned to the end of their schedules."""
    behind = schedules_behind(model)
    if not behind:
        return
    held = [variable for variable in model.weights if is_masked(variable)]
    never = all(variable.constraint.mask.all() for variable in held)
    what = "No weight was pruned: the schedule never fired" if never else "The schedule did not end"
    warnings.warn(
        f"{what} in {len(behind)} of {len(held)} weights with masks. A step is an update of the "
        "weight by a Keras optimizer. Train longer, or lower begin_step, end_step or frequency. A "
        "weight that the loss does not use is not updated, and a loop without a Keras optimizer "
        "counts none: call keras_ntt.advance_pruning(model) after each of its updates, or use "
        f"UpdatePruningStep. Received: {', '.join(behind[:10])}"
        f"{' and more' if len(behind) > 10 else ''}",
        stacklevel=3,
    )


def leaking_masks(model: keras.Model) -> list[str]:
    """Return the weights with entries that a mask leaves out and that are not zero.

    So it is where a training step was compiled before the layer by itself was pruned.

    Args:
        model: A built model.

    Returns:
        A text for each, such as ``"dense/kernel (3 of 20)"``.
    """
    found = []
    for key, variable in weights_by_name(model).items():
        if is_masked(variable):
            left_out = ~variable.constraint.mask
            lost = np.count_nonzero(host.array_of(variable)[left_out])
            if lost:
                found.append(f"{key} ({lost:,} of {np.count_nonzero(left_out):,})")
    return found


def warn_if_leaking(model: keras.Model) -> None:
    """Warn of weights that have other values than their masks say."""
    lost = leaking_masks(model)
    if lost:
        warnings.warn(
            "Entries that a mask leaves out are not zero. A training step that was compiled before "
            "a layer was pruned does not know of its mask: call compile() again after pruning "
            "layers of a model that was trained, or prune the model itself. "
            f"Received: {', '.join(lost[:10])}{' and more' if len(lost) > 10 else ''}",
            stacklevel=3,
        )


def retrace(model: keras.Model) -> None:
    """Make a compiled model build its training step again, with its present constraints."""
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)


def get_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the masks that a model holds.

    Args:
        model: A model.

    Returns:
        ``variable path -> boolean array``, true where an entry is kept; empty for a model that
        was never pruned or was stripped.

    Raises:
        TypeError: If `model` is not a Keras 3 model.

    Examples:
        >>> import keras
        >>> from keras_ntt import get_masks, prune_at_init
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> get_masks(model)
        {}
        >>> (mask,) = get_masks(prune_at_init(model, sparsity=0.9, saliency="magnitude")).values()
        >>> mask.dtype, int(mask.sum())
        (dtype('bool'), 2)
    """
    checks.check_built(model)
    return {
        key: variable.constraint.mask
        for key, variable in weights_by_name(model).items()
        if is_masked(variable)
    }


def fixed_masks(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the masks that no schedule updates, by variable path."""
    named = weights_by_name(model)
    return {key: m for key, m in get_masks(model).items() if named[key].constraint.fixed}


def kept_entries(model: keras.Model) -> dict[int, np.ndarray]:
    """Return the entries of a model that are kept: by its masks, else by its exact zeros.

    Of weights with frozen entries, those that are trained.

    Args:
        model: A model.

    Returns:
        ``id(variable) -> boolean mask`` for its pruned variables.
    """
    held = {id(v): v.constraint.mask for v in model.weights if is_masked(v) or is_frozen(v)}
    if held:
        return held
    kernels = [v for layer in host.layers_of(model) for v in prunable_weights(layer)]
    return {id(v): host.array_of(v) != 0 for v in kernels}


def check_no_masks(model: keras.Model) -> None:
    """Raise a ValueError if a model holds masks already, or has frozen entries."""
    check_not_frozen(model.weights)
    held = [key for key, v in weights_by_name(model).items() if is_masked(v)]
    if held:
        raise ValueError(
            "The model is pruned already. Call keras_ntt.strip_pruning(model) first, or begin "
            f"with a dense model. Received: model={model.name!r} with masks on {held}"
        )
