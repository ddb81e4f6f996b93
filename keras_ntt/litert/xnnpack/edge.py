"""Estimate what pruning can gain in latency on edge devices, before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
from keras import layers

from keras_ntt.core import checks
from keras_ntt.core.tables import table
from keras_ntt.litert.convert import convert
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import storage
from keras_ntt.litert.format.weights import Weight, weights_of
from keras_ntt.litert.xnnpack import verdict as verdicts

# What to change in a graph that is computed densely, by a part of the reason.
_CHANGES = (
    (
        "the first convolution",
        "begin with ZeroPadding2D(1) and Conv2D(filters, 3, strides=2) with padding='valid' on "
        "three channels, and take an even input size",
    ),
    (
        "1x1 convolution of stride",
        "give 1x1 convolutions stride 1; let a depthwise convolution take the stride",
    ),
    (
        "depthwise convolution of stride 2 that pads SAME",
        "put ZeroPadding2D(1) before DepthwiseConv2D(3, strides=2) with padding='valid', on even "
        "sizes",
    ),
    (
        "that begins the network",
        "make convolutions larger than 1x1 a depthwise convolution and a 1x1 convolution, and "
        "begin with a 3x3 convolution of stride 2 on three channels",
    ),
    ("POOL_2D", "replace pooling by depthwise convolutions of stride 2"),
    ("no global average pooling", "end the convolutions with GlobalAveragePooling2D"),
    ("PRELU", "take another activation than PReLU, such as ReLU, LeakyReLU or hard_silu"),
)


@dataclass(frozen=True)
class LayerAdvice:
    """What zeros in one weight can gain in latency.

    Attributes:
        name: The weight's name in the converted model.
        kind: The operation that uses it.
        shape: Its shape there.
        arm: What zeros gain on ARM (and WebAssembly, and x86 without AVX).
        x86: What zeros gain on x86 with AVX.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    arm: str
    x86: str


@dataclass(frozen=True)
class EdgeAdvice:
    """What pruning a model can gain in latency; its ``str()`` is a table.

    Attributes:
        verdict: What XNNPACK would do with the model if 90 % of its 1x1 convolutions were pruned.
        layers: The gain of zeros in each weight.
        changes: What to change so that 1x1 convolutions gain on ARM.
    """

    verdict: verdicts.Verdict
    layers: tuple[LayerAdvice, ...]
    changes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as plain numbers and strings."""
        rows = [asdict(layer) for layer in self.layers]
        return {
            "xnnpack": self.verdict.to_dict(),
            "layers": rows,
            "changes": list(self.changes),
        }

    def __str__(self) -> str:
        """Return the advice as text."""
        body = [[a.name, a.kind, "x".join(map(str, a.shape)), a.arm, a.x86] for a in self.layers]
        head = ["weight", "read by", "shape", "zeros gain on ARM", "on x86 with AVX"]
        lines = [table(head, body), ""] if body else []
        lines.append(f"XNNPACK, were 90% of each weight zero: {self.verdict}")
        return "\n".join([*lines, *(f"change: {change}" for change in self.changes)])


def explain_edge_latency(model: keras.Model) -> EdgeAdvice:
    """Report which weights of a model get faster with zeros, on which CPUs, and what to change.

    The model is converted, and its graph is analysed as the runtime would do it. The values of the
    weights do not matter.

    Args:
        model: A built model of any kind that converts to LiteRT.

    Returns:
        The advice.

    Raises:
        ExportError: If the model cannot be converted.
        TypeError: If `model` is not a Keras 3 model.
        ValueError: If it is not built.
    """
    checks.check_model(model)
    graph = fb.read(convert(model, [None])[0])
    verdict = verdicts.predict(graph, hint=True, sparsity=0.9)
    sparse = verdict.tensors if verdict.kind == "sparse" else frozenset[tuple[int, int]]()
    rows = tuple(_advice(w, (w.subgraph, w.tensor) in sparse) for w in weights_of(graph))
    pointwise = any(w.is_pointwise for w in weights_of(graph))
    changes = tuple(_changes(verdict.reasons)) if pointwise and verdict.kind != "sparse" else ()
    return EdgeAdvice(verdict, rows, changes)


def _advice(weight: Weight, sparse: bool) -> LayerAdvice:
    arm, x86 = "nothing: no sparse kernel", "nothing: no sparse kernel"
    if weight.may_be_direct:
        levels = [storage.break_even(weight, cpu) for cpu in ("arm", "x86")]
        arm, x86 = (f"from {level:.0%} zeros at batch 1" for level in levels)
    elif weight.is_pointwise:
        arm = "from 66.7% zeros of all 1x1" if sparse else "nothing in this graph"
        x86 = "nothing: switched off"
    kind = "+".join(weight.operators)
    return LayerAdvice(weight.name.split(";")[0], kind, weight.array.shape, arm, x86)


def _changes(reasons: Iterable[str]) -> Iterator[str]:
    text = "; ".join(reasons)
    for words, change in _CHANGES:
        if words in text:
            yield change


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else []


def _are_blocks(blocks: Any) -> bool:
    pairs = [_listed(block) for block in _listed(blocks)]
    whole = [[checks.whole(number) for number in pair] for pair in pairs]
    return bool(pairs) and all(
        len(pair) == 2 and 1 <= (pair[0] or 0) <= 2**16 and pair[1] in (1, 2) for pair in whole
    )


_MOBILENET_V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *[(512, 1)] * 5,
    *((1024, 2), (1024, 1)),
)


def edge_mobilenet(
    input_shape: tuple[int, int, int] = (96, 96, 3),
    classes: int = 10,
    *,
    width: float = 1.0,
    blocks: Sequence[tuple[int, int]] = _MOBILENET_V1,
) -> keras.Model:
    """Return a MobileNet whose pruned 1x1 convolutions XNNPACK computes sparsely on ARM.

    It differs from MobileNetV1 only in its padding: ``ZeroPadding2D(1)`` where a stride is 2.

    Args:
        input_shape: Height, width and 3 channels; the sizes must be even wherever a stride is 2.
        classes: Number of outputs, which are logits.
        width: Factor for all numbers of filters.
        blocks: Filters and stride of each block.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: If the channels are not 3, a size is odd where it is halved, or another argument
            is out of range.
    """
    classes = checks.check_count("classes", classes)
    if not 0 < checks.check_number("width", width) <= 100 or classes > 2**24:
        raise ValueError(
            "width must be above 0 and at most 100, and classes below 2 ** 24. "
            f"Received: width={width!r}, classes={classes!r}"
        )
    if not _are_blocks(blocks):
        raise ValueError(
            "blocks must be pairs of the filters and the stride, 1 or 2, of each block. "
            f"Received: blocks={blocks!r}"
        )
    halvings = 1 + sum(stride == 2 for _, stride in blocks)
    sizes = [checks.whole(size) for size in _listed(input_shape)]
    if (
        len(sizes) != 3
        or sizes[2] != 3
        or any(not s or not 0 < s < 2**16 or s % 2**halvings for s in sizes[:2])
    ):
        raise ValueError(
            "input_shape must be (height, width, 3) with sizes that can be halved "
            f"{halvings} times, multiples of {2**halvings}: of odd sizes the converter makes "
            f"another padding, which is not computed sparsely. Received: {input_shape=}"
        )

    def normalized(x: Any) -> Any:
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))

    def filters(count: int) -> int:
        return max(8, int(count * width))

    inputs = keras.Input(input_shape)
    stem = layers.Conv2D(filters(32), 3, strides=2, use_bias=False)
    x = normalized(stem(layers.ZeroPadding2D(1)(inputs)))
    for count, stride in blocks:
        padding = "same"
        if stride == 2:
            x, padding = layers.ZeroPadding2D(1)(x), "valid"
        depthwise = layers.DepthwiseConv2D(3, strides=stride, padding=padding, use_bias=False)
        x = normalized(depthwise(x))
        x = normalized(layers.Conv2D(filters(count), 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name="edge_mobilenet")
