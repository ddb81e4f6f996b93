"""For each layer type: how its outputs depend on its inputs and weights.

`linearize` runs one call of the network and returns an object that propagates derivatives back
through it. Layers without weights need only a gradient. Layers with weights also give the
derivative with respect to them: structured where a rule knows how, and exact for all others.
"""

from __future__ import annotations

from keras_ntt.ntk.layer_rules import convolution, lookup, recurrent, weightless
from keras_ntt.ntk.layer_rules.base import (
    LayerRule,
    Linearization,
    find_rule,
    register_layer_rule,
    registered_rules,
)
from keras_ntt.ntk.layer_rules.dispatch import linearize
from keras_ntt.ntk.layer_rules.einsum import Einsum
from keras_ntt.ntk.layer_rules.entrywise import Entrywise

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
