"""Per layer type: how its outputs depend on its inputs and its weights.

`linearize` runs one call of the network and returns an object that pulls derivatives back
through it. Layers without weights need nothing more than a gradient; layers with weights also
give the derivative by them, structured where a rule knows how and exact for all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_ntt.layer_rules import convolution, lookup, recurrent, weightless
from keras_ntt.layer_rules.base import (
    LayerRule,
    Linearization,
    find_rule,
    register_layer_rule,
    registered_rules,
)
from keras_ntt.layer_rules.composite import Composite
from keras_ntt.layer_rules.einsum import Einsum
from keras_ntt.layer_rules.entrywise import Entrywise
from keras_ntt.network import Call

__all__ = [
    "Einsum",
    "Entrywise",
    "LayerRule",
    "Linearization",
    "convolution",
    "find_rule",
    "linearize",
    "lookup",
    "recurrent",
    "register_layer_rule",
    "registered_rules",
    "weightless",
]


def linearize(call: Call, tensors: Sequence[tf.Tensor]) -> Linearization:
    """Run a call and return its linearization, by the best rule there is.

    Args:
        call: The call.
        tensors: Values of its inputs.

    Returns:
        Its outputs, with a way back.
    """
    rule = find_rule(call.operation)
    if rule is not None:
        return rule(call, tensors)
    if call.weights:
        return Composite(call, tensors)
    return weightless.General(call, tensors)
