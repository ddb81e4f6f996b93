"""The list of layer rules in the documentation, generated from the registry.

python -m keras_ntt.ntk.layer_rules.table > docs/layers.md
"""

from __future__ import annotations

import inspect
import sys

from keras_ntt.ntk.layer_rules.base import LayerRule, registered_rules

_HEAD = """# Layers

This page says how the tangent kernel treats each layer. It is generated from the registry of rules
by `python -m keras_ntt.ntk.layer_rules.table > docs/layers.md`; a test compares the two.

A rule applies to the layer type itself, and to subclasses that change only their constructor and
configuration. All other layers are computed exactly too:

- A layer or model with a custom `call()` is run as it is. A layer inside it keeps its rule if it
  gets one row per sample in each call. A weight that the code uses as `keras.ops.matmul(x, weight)`
  is structured too. This covers MultiHeadAttention, GroupedQueryAttention, TimeDistributed,
  transformer blocks and subclassed models.
- Weights that such code uses in other ways are differentiated sample by sample, by
  `tf.vectorized_map`. This is exact, and slow if there are many.
- Some recurrent layers are run step by step, over sequences of a known length, because TensorFlow
  cannot differentiate its loops twice. These are layers with custom cells, ConvLSTM, a GRU with
  `reset_after=False`, layers with activations that are not elementwise, and recurrent layers in a
  model with a custom `call()` that has weights to differentiate sample by sample. A transfer traces
  each step once, before the first batch, so with long sequences training begins late.
- Unlisted layers without trainable weights take one gradient, on the batch repeated once per
  output.

Stateful layers are refused, because their outputs depend on earlier batches.

Frozen weights (`trainable=False`) are not part of the kernel. Layers with LoRA enabled are
differentiated with respect to their LoRA weights, sample by sample.
"""


def markdown() -> str:
    """Return the page."""
    by_rule: dict[LayerRule, list[str]] = {}
    for layer_type, rule in registered_rules().items():
        if layer_type.__module__.startswith("keras."):
            by_rule.setdefault(rule, []).append(layer_type.__name__)
    parts = {True: ["\n## With weights\n"], False: ["\n## Without weights\n"]}
    for rule, names in by_rule.items():
        weighted = rule.__module__ != "keras_ntt.ntk.layer_rules.weightless"
        parts[weighted].append(f"- {', '.join(sorted(names))}.\n  {inspect.getdoc(rule)}")
    return _HEAD + "\n".join([*parts[True], *parts[False]]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
