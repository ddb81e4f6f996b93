"""The operators of a LiteRT graph as XNNPACK's layout rewrite sees them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import Source, source_of

# Elementwise operators of one input that work in any layout.
_UNARY = """
    ABS CEIL COS ELU EXP FLOOR GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC NEG RELU RELU6 RELU_N1_TO_1
    RELU_0_TO_1 ROUND RSQRT SIGN SIN SQRT SQUARE TANH
"""
UNARY = frozenset(_UNARY.split())
PREPARED = frozenset(("DENSIFY", "DEQUANTIZE"))  # of constants: done before, not nodes


@dataclass
class Node:
    """An operator.

    Attributes:
        operator: The ``OperatorT``.
        name: A name for people.
        role: ``"entry"``, ``"inside"``, ``"exit"`` or ``"none"`` of a channel-first cluster.
        why: For ``"none"``: what keeps it out.
        inputs: Tensors that it reads and that are not constant.
        outputs: Tensors that it computes.
        weight: The constant of its weight that counts for sparsity, -1 for none.
        weight_count: Number of entries of that weight.
        zeros: Number of zeros among them.
        keeps_axes: Whether it is a mean whose result keeps the axes of height and width.
    """

    operator: Any
    name: str
    role: str
    why: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weight: int = -1
    weight_count: int = 0
    zeros: int = 0
    keeps_axes: bool = False

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, depthwise or not."""
        return "CONV_2D" in self.name


class Graph:
    """One graph of a model.

    Args:
        model: A ``ModelT``.
        number: Which of its graphs.
    """

    def __init__(self, model: Any, number: int):
        self.model, self.number = model, number
        self.subgraph = model.subgraphs[number]
        self.producers = fb.producers(self.subgraph)
        self.uses = fb.uses(self.subgraph)
        self._outputs = {int(i) for i in self.subgraph.outputs}
        self._pads = dict(self._fused_pads())
        fused = {id(pad) for pad, _ in self._pads.values()}
        self._by_output: dict[int, Node] = {}
        self._nodes = []
        for operator in self.subgraph.operators:
            if id(operator) not in fused and not self._is_prepared(operator):
                node = self._node(operator)
                self._nodes.append(node)
                self._by_output.update(dict.fromkeys(node.outputs, node))

    def nodes(self) -> list[Node]:
        """Return the operators that XNNPACK sees as nodes."""
        return self._nodes

    def node_of(self, index: int) -> Any:
        """Return the node that computes a tensor, or None for an input of the graph."""
        return self._by_output.get(index)

    def is_inside(self, index: int) -> bool:
        """Tell whether a tensor is channel-first if the node that computes it is.

        A mean that keeps its axes ends a cluster or goes on in it: one pixel has no layout.
        """
        producer = self.node_of(index)
        if producer is None or producer.role == "none":
            return False
        return producer.role != "exit" or (producer.keeps_axes and self._rank(index) == 4)

    def readers_outside(self, node: Node, members: set[int]) -> Iterator[str]:
        """Yield the names of what reads a node's output from outside a cluster."""
        for output in node.outputs:
            if output in self._outputs:
                yield "the graph's output"
            for reader in self._nodes:
                if output in reader.inputs and (
                    id(reader) not in members or reader.role == "entry"
                ):
                    yield f"{reader.name}: {reader.why or 'another cluster begins there'}"

    def has_hint(self) -> bool:
        """Tell whether a weight of a node comes through DENSIFY."""
        return any(fb.operator_name(self.model, op) == "DENSIFY" for op in self.subgraph.operators)

    # --- what is what -------------------------------------------------------------------------

    def _fused_pads(self) -> Iterator[tuple[int, tuple[Any, np.ndarray]]]:
        """Yield ``id(convolution) -> (pad, amounts)`` where XNNPACK merges the two."""
        for pad in self.subgraph.operators:
            if fb.operator_name(self.model, pad) != "PAD" or len(pad.inputs) < 2:
                continue
            output = int(pad.outputs[0])
            amounts = fb.constant(self.model, self.subgraph.tensors[int(pad.inputs[1])])
            places = self.uses.get(output, [])
            if amounts is None or len(places) != 1 or output in self._outputs:
                continue
            reader = places[0].operator
            fits = fb.operator_name(self.model, reader) in ("CONV_2D", "DEPTHWISE_CONV_2D")
            fits = fits and amounts.shape == (4, 2) and not amounts[[0, 3]].any()
            if fits and places[0].position == 0 and self._padding(reader) == "VALID":
                yield id(reader), (pad, amounts[1:3])

    def _is_prepared(self, operator: Any) -> bool:
        name = fb.operator_name(self.model, operator)
        if name not in PREPARED:
            return False
        return self._source(int(operator.outputs[0])).tensor >= 0

    def _padding(self, operator: Any) -> str:
        return fb.option_name("Padding", getattr(operator.builtinOptions, "padding", -1))

    @functools.cache  # noqa: B019 - a graph lives as long as one prediction
    def _source(self, index: int) -> Source:
        return source_of(self.model, self.subgraph, self.producers, index)

    def _is_constant(self, index: int) -> bool:
        if index < 0:
            return True
        if index not in self.producers:
            return self.model.buffers[self.subgraph.tensors[index].buffer].data is not None
        return self._source(index).tensor >= 0

    def _node(self, operator: Any) -> Node:
        kind = fb.operator_name(self.model, operator)
        outputs = tuple(int(i) for i in operator.outputs)
        given = [int(i) for i in operator.inputs]
        if id(operator) in self._pads:
            given[0] = int(self._pads[id(operator)][0].inputs[0])
        inputs = tuple(i for i in given if not self._is_constant(i))
        label = fb.name_of(self.subgraph.tensors[outputs[0]]).split(";")[0] if outputs else ""
        node = Node(operator, f"{kind} {label!r}", "none", "", inputs, outputs)
        if not all(self._is_float(i) for i in (*inputs, *outputs)):
            node.why = "it does not compute in float32"
            return node
        node.role, node.why = self._role(kind, node)
        return node

    def _is_float(self, index: int) -> bool:
        return self.subgraph.tensors[index].type == fb.type_of(np.float32)

    def _rank(self, index: int) -> int:
        return len(self.subgraph.tensors[index].shape)

    def _role(self, kind: str, node: Node) -> tuple[str, str]:
        operator = node.operator
        if kind == "CONV_2D":
            return self._convolution(node)
        if kind == "DEPTHWISE_CONV_2D":
            return self._depthwise(operator)
        if kind == "FULLY_CONNECTED":
            source = self._source(int(operator.inputs[1]))
            if source.array is None or (
                not source.is_densified and fb.operator_version(self.model, operator) == 8
            ):
                return "none", "it is not delegated to XNNPACK"
            self._count(node, source)
            return "inside", ""
        if kind in ("ADD", "MUL"):
            return self._binary(operator)
        if kind in UNARY:
            return "inside", ""
        if kind == "RESIZE_BILINEAR":
            return "inside", ""
        if kind == "DEPTH_TO_SPACE":
            return "exit", ""
        if kind == "MEAN":
            axes = fb.constant(self.model, self.subgraph.tensors[int(operator.inputs[1])])
            plane = axes is not None and sorted(int(a) % 4 for a in axes.ravel()) == [1, 2]
            if plane and self._rank(int(operator.inputs[0])) == 4:
                node.keeps_axes = bool(operator.builtinOptions.keepDims)
                return "exit", ""
            return "none", "it is not a mean over height and width"
        return "none", f"{kind} has no channel-first form"

    def _count(self, node: Node, source: Source) -> None:
        if source.array is not None:
            node.weight = source.tensor
            node.weight_count = source.array.size
            node.zeros = source.array.size - int(np.count_nonzero(source.array))

    def _binary(self, operator: Any) -> tuple[str, str]:
        for index in map(int, operator.inputs):
            if self._rank(index) != 4:
                return "none", "one of its operands is not four-dimensional"
            shape = self.subgraph.tensors[index].shape
            if self._is_constant(index) and sum(int(s) != 1 for s in shape) > 1:
                return "none", "its constant operand is neither a scalar nor a vector"
        return "inside", ""

    def _convolution(self, node: Node) -> tuple[str, str]:
        operator, options = node.operator, node.operator.builtinOptions
        source = self._source(int(operator.inputs[1]))
        if source.array is None or source.array.ndim != 4:
            return "none", "its weight is not constant"
        _, height, width, channels = source.array.shape
        strides = (options.strideH, options.strideW)
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            return "none", "it is dilated"
        if channels != int(self.subgraph.tensors[int(operator.inputs[0])].shape[-1]):
            return "none", "it is grouped"
        pads = self._pads.get(id(operator))
        if (height, width) == (1, 1):
            if strides != (1, 1):
                return "none", f"it is a 1x1 convolution of stride {strides[0]}"
            if pads is not None and pads[1].any():
                return "none", "it is a padded 1x1 convolution"
            self._count(node, source)
            return "inside", ""
        if (height, width) != (3, 3) or strides != (2, 2) or channels != 3:
            return "none", (
                f"it is a {height}x{width} convolution of stride {strides[0]} on {channels} "
                "channels, and only the 3x3 one of stride 2 on 3 channels that begins the network "
                "has a channel-first form"
            )
        if self._padding(operator) == "SAME":
            return "none", (
                "the first convolution pads SAME (the converter also makes SAME of explicit "
                "padding where the input size is odd)"
            )
        if pads is None or not (pads[1] == 1).all():
            return "none", "the first convolution is not padded by 1 on each side"
        return "entry", ""

    def _depthwise(self, operator: Any) -> tuple[str, str]:
        options, source = operator.builtinOptions, self._source(int(operator.inputs[1]))
        if source.array is None or source.array.ndim != 4:
            return "none", "its weight is not constant"
        size = source.array.shape[1:3]
        if size not in ((3, 3), (5, 5)):
            return "none", f"it is a {size[0]}x{size[1]} depthwise convolution"
        if options.depthMultiplier != 1:
            return "none", f"its depth multiplier is {options.depthMultiplier}"
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            return "none", "it is dilated"
        strides = (options.strideH, options.strideW)
        if strides not in ((1, 1), (2, 2)):
            return "none", f"its stride is {strides[0]}x{strides[1]}"
        pads = self._pads.get(id(operator))
        if self._padding(operator) == "SAME":
            if strides == (1, 1):
                return "inside", ""
            return "none", "it is a depthwise convolution of stride 2 that pads SAME"
        if pads is None or not (pads[1] == size[0] // 2).all():
            return "none", f"it is not zero-padded by {size[0] // 2} on each side"
        return "inside", ""
