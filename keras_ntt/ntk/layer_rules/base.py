"""The type of layer rules, and the registry of rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_ntt.core import host
from keras_ntt.core.kinds import rule_for
from keras_ntt.core.network import Call
from keras_ntt.ntk.factors import Factor
from keras_ntt.ntk.layer_rules.stacking import Stacked

Cotangents = Sequence[Stacked | None]


class Linearization(ABC):
    """A call that has run and can be differentiated.

    Attributes:
        outputs: The flat outputs of the call, each ``[n, ...]``.
    """

    outputs: list[tf.Tensor]

    @abstractmethod
    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        """Propagate stacked cotangents back through the call.

        Args:
            cotangents: For each output its stacked cotangent, or None if the network's outputs
                do not depend on it. At least one is not None.
            wanted: For each input of the call, whether its cotangent is needed.

        Returns:
            For each input its stacked cotangent (None where it is not wanted or nothing depends on
            it), and the derivatives with respect to the call's trainable weights.
        """


LayerRule = Callable[[Call, Sequence[tf.Tensor]], Linearization]
"""Run a call on tensors in the order of its inputs and return its `Linearization`."""

_rules: dict[type, LayerRule] = {}


def register_layer_rule(*types: type) -> Callable[[LayerRule], LayerRule]:
    """Register the decorated function as the rule of layer types.

    A rule runs one call of the layer and returns a `Linearization` of it. A layer without a rule is
    also differentiated exactly, but sample by sample, which is slow. A rule makes it fast.

    Args:
        *types: Layer classes. An existing rule of a class is replaced.

    Returns:
        The decorator, which returns the rule unchanged.

    Raises:
        TypeError: If something other than classes is given.

    Examples:
        >>> import keras
        >>> from keras_ntt import layer_rules, register_layer_rule
        >>> class Projection(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.table = self.add_weight(shape=(shape[-1], 3))
        ...
        ...     def call(self, x):
        ...         return keras.ops.matmul(x, self.table)
        >>> @register_layer_rule(Projection)
        ... def projection(call, tensors):
        ...     return layer_rules.Einsum(call, tensors, "nk,ko->no", kernel=call.operation.table)
    """
    if not types or not all(isinstance(t, type) for t in types):
        raise TypeError(
            "register_layer_rule decorates a rule for layer classes: "
            f"@register_layer_rule(MyLayer). Received: {types!r}"
        )

    def register(rule: LayerRule) -> LayerRule:
        if not callable(rule):
            raise TypeError(f"A layer rule must be a function. Received: rule={rule!r}")
        for layer_type in types:
            _rules[layer_type] = rule
        return rule

    return register


def registered_rules() -> dict[type, LayerRule]:
    """Return the rules by layer type."""
    return dict(_rules)


def find_rule(operation: object) -> LayerRule | None:
    """Return the rule for a layer or operation, or None.

    A subclass has the rule of its base only if it computes what its base computes. One that
    overrides more than its constructor and configuration is unknown.
    """
    return rule_for(operation, _rules)


def pass_mask_on(call: Call, tensors: Sequence[tf.Tensor], output: tf.Tensor) -> None:
    """Pass on timestep masks as ``Layer.__call__`` does, for rules that bypass it."""
    if tensors and getattr(call.operation, "supports_masking", False):
        host.set_mask(output, host.get_mask(tensors[0]))
