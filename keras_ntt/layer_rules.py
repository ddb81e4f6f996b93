"""Rules of layers for the tangent kernel, by the name that users import them from."""

from keras_ntt.ntk.layer_rules import (
    Einsum,
    Entrywise,
    LayerRule,
    Linearization,
    convolution,
    find_rule,
    linearize,
    lookup,
    recurrent,
    register_layer_rule,
    registered_rules,
    weightless,
)

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
