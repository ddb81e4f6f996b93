"""The rule of each kind of layer, and rules of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_ntt.core import host
from keras_ntt.core.channels.call import ChannelCall
from keras_ntt.core.channels.labels import Axes
from keras_ntt.core.channels.rules import (
    attention,
    kernels,
    normalizations,
    operations,
    recurrent,
    shapes,
)
from keras_ntt.core.kinds import rule_for

Rule = Callable[[ChannelCall], Axes | list[Axes]]

_OWN: dict[type, Rule] = {}
_RULES: dict[type, Rule] = {
    **kernels.RULES,
    **normalizations.RULES,
    **shapes.RULES,
    **attention.RULES,
    **recurrent.RULES,
}


def register_channel_rule(layer_class: type) -> Callable[[Rule], Rule]:
    """Register what layers of a class do with channels.

    The rule is called with a `ChannelCall`, once for each call of such a layer. It returns the
    labels of the output's axes (None for an axis that has no channels to remove), and says which
    axes of the weights and which entries of ``get_config()`` go along.

    Args:
        layer_class: The class. A subclass that changes nothing but the constructor and the
            configuration has the rule, too.

    Returns:
        A decorator that gives the rule back.

    Raises:
        TypeError: If `layer_class` is not a class of layers, or the rule not a function.

    >>> class Gain(keras.layers.Layer):
    ...     def build(self, shape):
    ...         self.gain = self.add_weight(shape=(shape[-1],), initializer="ones")
    ...     def call(self, x):
    ...         return self.gain * x
    >>> @register_channel_rule(Gain)
    ... def rule(call):
    ...     x = call.inputs[0]
    ...     call.weight(call.layer.gain, {0: x.axes[-1]})
    ...     return x.axes
    """
    if not isinstance(layer_class, type) or not issubclass(layer_class, keras.layers.Layer):
        raise TypeError(
            "register_channel_rule needs a class of Keras layers. "
            f"Received: layer_class={layer_class!r}"
        )

    def register(rule: Rule) -> Rule:
        if not callable(rule):
            raise TypeError(
                "A channel rule is a function of a call of the layer. "
                f"Received: {rule!r} of type {type(rule).__name__}"
            )
        _OWN[layer_class] = rule
        return rule

    return register


def rule_of(operation: Any) -> Rule | None:
    """Return the rule of a layer or operation, None if there is none."""
    own = rule_for(operation, _OWN)
    if own is not None:
        return own
    if not isinstance(operation, keras.layers.Layer):
        if host.is_of_keras(operation, "ops"):
            return operations.RULES.get(type(operation).__name__)
        return None
    for holder in (operation, operation.dtype_policy):  # older releases have it in the policy only
        if getattr(holder, "quantization_mode", None) is not None:
            return None
    if getattr(operation, "lora_enabled", False):
        return None
    wrapper = rule_for(operation, recurrent.WRAPPERS)
    if wrapper is not None:
        return lambda call: wrapper(call, apply)
    return rule_for(operation, _RULES)


def apply(call: ChannelCall) -> list[Axes]:
    """Apply the rule of a call's layer, and return the axes of each output."""
    rule = rule_of(call.layer)
    if rule is None:
        kind = type(call.layer).__name__
        found: Any = call.opaque(f"is a {kind}, for which there is no channel rule")
    else:
        found = rule(call)
    axes = [found] if isinstance(found, tuple) else list(found)
    if len(axes) == 1 and len(call.output_shapes) == 0:
        return []
    for some, shape in zip(axes, call.output_shapes, strict=True):
        sizes = [(s, len(a)) for s, a in zip(shape, some, strict=True) if a is not None]
        if any(size is not None and size != count for size, count in sizes):
            raise ValueError(
                f"The channel rule of {type(call.layer).__name__} gives labels for an axis of "
                f"another size. Received: sizes and labels {sizes} of {call.name!r}"
            )
    return axes
