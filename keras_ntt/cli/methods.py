"""The methods that commands know by name, readable without TensorFlow."""

from __future__ import annotations

# Method -> score and allocation; None takes the allocation of the option.
SCORES: dict[str, tuple[str, str | None]] = {
    "magnitude": ("magnitude", None),
    "random": ("random", None),
    "erk": ("random", "erk"),
    "balanced": ("balanced", "erk"),
    "snip": ("snip", None),
    "logit_snip": ("logit_snip", None),
    "grasp": ("grasp", None),
    "synflow": ("synflow", None),
    "ntk_sap": ("ntk_sap", None),
    "ntk_trace": ("ntk_trace", None),
}
# Methods that begin with random masks, by ERK, and move them in training on the labels.
MOVING = ("set", "rigl")
METHODS = ("dense", "ntt", *SCORES, *MOVING)
DEFAULT = ("dense", "ntt", "magnitude", "random", "erk", "balanced", "snip", "synflow")

# The scores of keras_ntt.saliency.SALIENCIES that need no labels; those of them that need inputs.
LABEL_FREE = (
    *("magnitude", "random", "balanced", "logit_snip"),
    *("synflow", "synflow_l2", "ntk_sap", "ntk_trace"),
)
ON_INPUTS = ("ntt", "logit_snip", "ntk_trace")
