"""One call of a network and its backward pass, by the best available rule."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_ntt.core.network import Call
from keras_ntt.ntk.layer_rules import weightless
from keras_ntt.ntk.layer_rules.base import (
    Linearization,
    find_rule,
)
from keras_ntt.ntk.layer_rules.composite import Composite


def linearize(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Run a call and return its linearization, by the best available rule.

    Args:
        call: The call.
        tensors: Values of its inputs.

    Returns:
        Its outputs, with the backward pass.
    """
    rule = find_rule(call.operation)
    if rule is not None:
        return rule(call, tensors)
    if call.weights:
        return Composite(call, tensors)
    return weightless.General(call, tensors)
