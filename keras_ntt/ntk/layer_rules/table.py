"""The list of layer rules in the documentation, made from the registry.

python -m keras_ntt.ntk.layer_rules.table > docs/layers.md
"""

from __future__ import annotations

import inspect
import sys

from keras_ntt.ntk.layer_rules.base import LayerRule, registered_rules

_HEAD = """# Layers

How the tangent kernel treats each layer. This page is made from the registry of rules by
`python -m keras_ntt.ntk.layer_rules.table > docs/layers.md`; a test compares the two.

A rule holds for the layer type itself and for subclasses that change nothing but their
constructor and configuration. Everything else is exact too:

- A layer or model with code of its own (`call`) is run as it is. Layers inside it that have a
  rule, and see one row a sample each time they are called, keep their rules, and so do weights
  of which the code takes `keras.ops.matmul(x, weight)`. MultiHeadAttention, GroupedQueryAttention,
  TimeDistributed, transformer blocks and subclassed models are structured so.
- Weights that such code uses in other ways are differentiated sample by sample, by
  `tf.vectorized_map`: exact, and slow if there are many.
- Recurrent layers of cells of one's own, ConvLSTM, a GRU with `reset_after=False` and activations
  that are not applied entry by entry are run step by step over sequences of a known length,
  because TensorFlow cannot differentiate its loops twice. So are those in a model
  with code of its own that has weights to be differentiated sample by sample. A transfer traces
  each step once, before the first batch, so that long sequences begin late.
- Layers without trainable weights that are not listed take one gradient on the batch repeated once
  an output.

Stateful layers are refused: their outputs depend on the batches before.

Frozen weights (`trainable=False`) are no part of the kernel. Layers with LoRA enabled are
differentiated by their LoRA weights, sample by sample.
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
