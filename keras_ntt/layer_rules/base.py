"""What a layer rule is, and the registry of rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_ntt import _host
from keras_ntt.factors import Factor
from keras_ntt.layer_rules.stacking import Stacked
from keras_ntt.network import Call

Cotangents = Sequence[Stacked | None]


class Linearization(ABC):
    """A call that has run, ready to be differentiated.

    Attributes:
        outputs: The flat outputs of the call, each ``[n, ...]``.
    """

    outputs: list[tf.Tensor]

    @abstractmethod
    def backward(
        self, cotangents: Cotangents, wanted: Sequence[bool]
    ) -> tuple[list[Stacked | None], list[Factor]]:
        """Pull stacked cotangents back through the call.

        Args:
            cotangents: For each output its stacked cotangent, or None if the network's outputs
                do not depend on it. At least one is not None.
            wanted: For each input of the call, whether its cotangent is needed.

        Returns:
            For each input its stacked cotangent (None where not wanted or where nothing
            depends on it), and the derivatives by the call's trainable weights.
        """


LayerRule = Callable[[Call, Sequence[tf.Tensor]], Linearization]
"""Run a call on tensors in the order of its inputs and return its `Linearization`."""

_rules: dict[type, LayerRule] = {}

# What a subclass may define and still compute what its base computes.
_HARMLESS = {
    "__annotations__", "__doc__", "__firstlineno__", "__init__", "__module__", "__qualname__",
    "__static_attributes__", "from_config", "get_config",
}  # fmt: skip


def rule_for(*types: type) -> Callable[[LayerRule], LayerRule]:
    """Register the decorated function as the rule of layer types."""

    def register(rule: LayerRule) -> LayerRule:
        for layer_type in types:
            _rules[layer_type] = rule
        return rule

    return register


def find_rule(operation: object) -> LayerRule | None:
    """Return the rule for a layer or operation, or None.

    A subclass has its base's rule only while it must compute what its base computes: one that
    overrides anything but its constructor and configuration is unknown.
    """
    if "call" in vars(operation):
        return None
    for cls in type(operation).__mro__:
        if cls in _rules:
            return _rules[cls]
        if set(vars(cls)) - _HARMLESS:
            return None
    return None


def pass_mask_on(call: Call, tensors: Sequence[tf.Tensor], output: tf.Tensor) -> None:
    """Do what ``Layer.__call__`` does with timestep masks, for rules that bypass it."""
    if tensors and getattr(call.operation, "supports_masking", False):
        _host.set_mask(output, _host.get_mask(tensors[0]))
