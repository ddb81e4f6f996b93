"""Gradual magnitude pruning (Zhu & Gupta, 2017) during training, with tfmot's function."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_ntt.core import checks, host
from keras_ntt.core.axes import axes_of
from keras_ntt.masks.apply import retrace
from keras_ntt.masks.constraint import is_masked
from keras_ntt.masks.filters import Filters
from keras_ntt.masks.pending import when_built
from keras_ntt.masks.policies import check_policy, choose_weights, weights_by_magnitude
from keras_ntt.masks.restore import warn_if_unheld
from keras_ntt.pruning.scheduled_mask import ScheduledMask, hold
from keras_ntt.selection import schedules
from keras_ntt.selection.compiled_schedule import Timetable
from keras_ntt.selection.named_patterns import check_structure, pattern_of
from keras_ntt.selection.schedules import identity_of

Chosen = list[tuple[keras.layers.Layer, ScheduledMask]]


def prune_low_magnitude(
    model: Any,
    pruning_schedule: Any = None,
    block_size: Any = (1, 1),
    block_pooling_type: str = "AVG",
    pruning_policy: Any = None,
    sparsity_m_by_n: Any = None,
    *,
    filters: Filters = None,
    count_updates: bool = False,
) -> Any:
    """Prune the entries of smallest magnitude in each weight while a model trains.

    A step of the schedule is a batch for which an optimizer updates the weight. Each weight counts
    its own steps. A weight that two models share and both train counts twice as fast, and a weight
    that the loss does not use does not count (see `UpdatePruningStep` and `advance_pruning`).

    The argument is changed in place and returned. No layer is wrapped or renamed, a compiled model
    stays compiled, and no callback is needed. From the next batch on, the training step updates the
    masks when the schedule asks for it, and keeps every zero. The masks and the number of batches
    are saved with the weights. To continue a run, build and prune the same model and load its
    weights, or let `keras.callbacks.BackupAndRestore` load them.

    The mask of step t is chosen from the weights with which batch t starts; the first batch is step
    1. If the schedule prunes at step 0 or 1, this happens in the call, so load weights first.

    Args:
        model: A built model of any kind, a Sequential model that is not built yet, a layer, or a
            list of layers. What is not built is pruned as soon as it is; a layer of a model that
            was trained already takes effect when the model is compiled again. Layers without
            weights to prune, and weights that are already pruned with the same settings, are not
            changed. If there are fixed masks, as `restore_masks` and `apply_masks` hold them, the
            schedule continues from these.
        pruning_schedule: A `PruningSchedule`, a schedule of tfmot, or a function
            ``step -> (should_prune, sparsity)``. A number prunes at once to that sparsity, and
            updates the masks every 100 steps. None is ``ConstantSparsity(0.5, 0)``, which first
            prunes at step 100.
        block_size: Rows and columns of the blocks that become zero as a whole. A kernel with more
            axes is treated as a matrix of inputs, at each position of a filter, and outputs.
        block_pooling_type: ``"AVG"`` or ``"MAX"``: how a block is scored.
        pruning_policy: An object with ``allow_pruning(layer)``; see `keras_ntt.PruningPolicy`.
            ``KernelPolicy(depthwise=True)`` prunes depthwise kernels as well.
        sparsity_m_by_n: ``(m, n)``: m zeros in every n consecutive entries along the input
            channels, chosen at once; the schedule has no effect then, and weights of one axis stay
            dense, as in tfmot.
        filters: Which layers to prune: a regular expression, a list of them, or a callable.
        count_updates: With gradient accumulation (``gradient_accumulation_steps``): whether only
            batches count after which the optimizer updates the weights. Otherwise all batches
            count, as in tfmot.

    Returns:
        What was given: the model, the layer or the list.

    Raises:
        TypeError: If it is none of these, or belongs to tf_keras.
        ValueError: If a setting does not fit, or nothing is selected. Nothing has changed then.

    Examples:
        >>> import keras
        >>> from keras_ntt import PolynomialDecay, prune_low_magnitude, sparsity_report
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> pruned = prune_low_magnitude(model, PolynomialDecay(0.5, 0.9, 0, 1000))
        >>> pruned.compile("adam", "mse")  # and fit: the masks are chosen in training
    """
    if isinstance(pruning_schedule, Mapping):
        raise ValueError(
            "The parameters were passed as one dictionary in the place of pruning_schedule. Write "
            "prune_low_magnitude(model, **pruning_params). "
            f"Received: a dictionary of {sorted(map(str, pruning_schedule))}"
        )
    if pruning_schedule is None:
        pruning_schedule = schedules.ConstantSparsity(0.5, 0)
    check_policy(pruning_policy)
    block, group = check_structure(block_size, block_pooling_type, sparsity_m_by_n)
    settings = _Settings(
        Timetable(schedules.as_schedule(pruning_schedule)) if group is None else None,
        block,
        block_pooling_type,
        group,
        pruning_policy,
        filters,
        count_updates,
    )
    if isinstance(model, list | tuple):
        _prune_layers(list(model), settings)
    elif isinstance(model, keras.layers.Layer) and not isinstance(model, keras.Model):
        _prune_layers([model], settings)
    else:
        if _is_unbuilt_sequential(model):
            when_built(model, functools.partial(_prune_made, settings, True))
            return model
        if keras.backend.is_keras_tensor(model):
            raise TypeError(
                "prune_low_magnitude takes a layer, and this is what a layer returned. Prune the "
                "layer, and call it then: prune_low_magnitude(layer)(x). "
                f"Received: a symbolic tensor of shape {tuple(model.shape)}"
            )
        checks.check_model(model)
        _hold(settings.masks_for(model))
        retrace(model)
        warn_if_unheld(model)
    return model


def _is_unbuilt_sequential(model: Any) -> bool:
    return isinstance(model, keras.Sequential) and not model.built


@dataclass(frozen=True)
class _Settings:
    """What is pruned and how."""

    timetable: Timetable | None
    block_size: tuple[int, int]
    pooling: str
    group: tuple[int, int] | None
    policy: Any
    filters: Filters
    count_updates: bool

    @property
    def identity(self) -> tuple[Any, ...]:
        """What two calls must have in common to prune a weight alike."""
        schedule = None if self.timetable is None else identity_of(self.timetable.schedule)
        return (schedule, self.block_size, self.pooling, self.group, self.count_updates)

    def weights_of(self, layer: keras.layers.Layer) -> list[keras.Variable]:
        """Return the weights of one layer that may be pruned."""
        return weights_by_magnitude(layer, self.policy)

    def owners(self, part: keras.layers.Layer) -> dict[int, keras.layers.Layer]:
        """Return the layer of each weight that could be pruned, by the weight's id."""
        owners: dict[int, keras.layers.Layer] = {}
        for layer in host.layers_of(part):
            for variable in self.weights_of(layer):
                owners.setdefault(id(variable), layer)
        return owners

    def has_part_in(self, layer: keras.layers.Layer, alone: bool) -> bool:
        """Return whether a layer is pruned, or has weights of which it should say why not.

        Layers of Keras without kernels, such as Dropout and normalizations, are ignored, and so are
        layers of a list. A layer of Keras around a custom one, such as an RNN with a custom cell,
        is not ignored.
        """
        if self.owners(layer):
            return True
        if isinstance(layer, keras.Model):
            return alone
        inner = host.layers_of(layer)
        return alone and any(not host.is_of_keras(x) and x.trainable_variables for x in inner)

    def masks_for(self, part: keras.layers.Layer) -> Chosen:
        """Return a mask, not attached yet, for each weight that is selected and has none."""
        owners, policy = self.owners(part), self.policy
        if policy is not None and not isinstance(part, keras.Model):
            # Of a layer by itself no policy can say whether the model is supported.
            policy = types.SimpleNamespace(allow_pruning=getattr(policy, "allow_pruning", None))
        weights = choose_weights(
            part, filters=self.filters, pruning_policy=policy, weights_of=self.weights_of
        ).weights
        if self.group is not None:
            weights = self._with_channels(weights)
        free = [v for v in weights if not is_masked(v) or v.constraint.fixed]
        ours = [v.constraint for v in weights if is_masked(v) and not v.constraint.fixed]
        if not free and any(mask.settings != self.identity for mask in ours):
            raise ValueError(
                "Everything that is selected is pruned already, with other settings. Call "
                "keras_ntt.strip_pruning(model) first, or begin with a dense model. "
                f"Received: {part.name!r} with masks on {[v.path for v in weights]}"
            )
        layer_of = {id(v): x for x in host.layers_of(part) for v in host.own_variables(x)}
        patterns = [
            pattern_of(
                tuple(v.shape),
                block_size=self.block_size,
                pooling=self.pooling,
                sparsity_m_by_n=self.group,
                name=v.path,
                axes=axes_of(layer_of.get(id(v)), len(v.shape)),
            )
            for v in free
        ]
        masks = [
            ScheduledMask(v, pattern, self.timetable, count_updates=self.count_updates)
            for v, pattern in zip(free, patterns, strict=True)
        ]
        for mask in masks:
            mask.settings = self.identity
        return [(owners[id(mask.variable)], mask) for mask in masks]

    def _with_channels(self, weights: tuple[keras.Variable, ...]) -> tuple[keras.Variable, ...]:
        """Return the weights in which m of n can be; the others stay dense, as in tfmot."""
        flat = [v for v in weights if len(v.shape) < 2]
        if flat and len(flat) < len(weights):
            warnings.warn(
                "sparsity_m_by_n is for kernels, of 2 axes at least; other weights stay dense. "
                f"Received: {', '.join(f'{v.path} of shape {tuple(v.shape)}' for v in flat)}",
                stacklevel=5,
            )
            return tuple(v for v in weights if len(v.shape) >= 2)
        return weights


def _hold(chosen: Chosen) -> None:
    for layer, mask in chosen:
        hold(layer, mask)


def _prune_layers(layers: list[Any], settings: _Settings) -> None:
    """Prune layers that have kernels."""
    for layer in layers:
        _check_layer(layer)
    layers = list({id(layer): layer for layer in layers}.values())  # one may be given twice
    alone = len(layers) == 1
    built = [layer for layer in layers if layer.built and settings.has_part_in(layer, alone)]
    for chosen in [settings.masks_for(layer) for layer in built]:
        _hold(chosen)
    for layer in layers:
        if not layer.built:
            when_built(layer, functools.partial(_prune_made, settings, alone))


def _prune_made(settings: _Settings, alone: bool, layer: keras.layers.Layer) -> None:
    if settings.has_part_in(layer, alone):
        for owner, mask in settings.masks_for(layer):
            host.when_initialized(mask.variable, functools.partial(hold, owner, mask))


def _check_layer(layer: Any) -> None:
    host.require_tensorflow_backend()
    if host.is_legacy_keras(layer):
        raise TypeError(
            "This is a layer of tf_keras (Keras 2), and keras_ntt works on Keras 3. Build it with "
            "`import keras`, or make a whole model again by keras_ntt.tfmot.to_keras3(model). "
            f"Received: {type(layer).__module__}.{type(layer).__name__}"
        )
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(
            "prune_low_magnitude takes a keras.Model, a keras.layers.Layer or a list of layers. "
            f"Received: a {type(layer).__name__}"
        )


def prune_scope() -> Any:
    """Return a scope in which the schedules of this package can be loaded by their names.

    It is there for programs that were written for tfmot. A model that was pruned saves as the
    plain model that it is, and loads without any scope.

    Returns:
        A `keras.saving.CustomObjectScope`.
    """
    classes = (
        schedules.ConstantSparsity,
        schedules.PolynomialDecay,
        schedules.NTTSchedule,
    )
    return keras.saving.custom_object_scope({cls.__name__: cls for cls in classes})
