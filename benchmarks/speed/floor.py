"""The floor of a step: the time that its products would take at the speed of one large product."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from benchmarks.common.networks import Layer, Network, block_parts

_COUNTED = ("conv", "block", "pool", "mean", "flatten", "dense")

Shapes = Sequence[tuple[int, ...]]


class Product(NamedTuple):
    """A matrix product: its operations and how many of its operands depend on the weights."""

    flops: int
    operands: int


class Term(NamedTuple):
    """A layer with weights, as the floor sees it.

    Attributes:
        dense: Whether it is a dense layer.
        positions: Pixels of the result; 1 for a dense layer.
        k: Inputs a position: filter area x channels.
        o: Channels of the result.
        first: Whether its input is the network's.
        last: Whether its result is the network's.
    """

    dense: bool
    positions: int
    k: int
    o: int
    first: bool
    last: bool


def step_flops(network: Network) -> dict[str, int] | None:
    """Count the floating point operations of the matrix products of one step, from the layers.

    A multiply-add counts as 2. With n samples in halves of h1 and h2, c outputs, and for a layer
    P positions (pixels of the result; 1 for a dense layer), K inputs a position (filter area x
    channels) and o channels:

        forward pass                         2 n P K o
        c backward passes to the input       2 n c P K o                 not for the first layer
        dense layer: its term of the kernel  2 h1 h2 K + 2 (h1 c)(h2 c) o
        convolution: its Jacobian            2 n c P (K + 1) o           1 for the bias
        convolution: its term of the kernel  2 (h1 c)(h2 c) (K + 1) o

    The dense term is ``(x1 . x2 + 1) * (delta1 . delta2)``. The teacher needs each product once.
    The student's gradient needs, for each, one more product of the same size an operand that
    depends on the weights: three times in all, less where an operand is the network's input
    or the seed of the backward passes. Entry-by-entry work (activations, pooling, Adam) is not
    counted, nor is anything saved where weights are zero.

    Args:
        network: The network.

    Returns:
        Operations: teacher, student (with its gradient) and total; None for a network of which
        the layers are not known or have no such formula.
    """
    if not network.layers or any(layer.kind not in _COUNTED for layer in network.layers):
        return None
    n, c = network.batch, network.projections or network.outputs
    products = [p for term in _terms(network) for p in _products(term, n, c)]
    teacher = sum(p.flops for p in products)
    student = sum(p.flops * (1 + p.operands) for p in products)
    return {"teacher": teacher, "student": student, "total": teacher + student}


def _terms(network: Network) -> Iterator[Term]:
    shape = network.input_shape
    for i, layer in enumerate(network.layers):
        first, last = i == 0, i == len(network.layers) - 1
        if layer.kind == "conv":
            term, shape = _convolution(layer, shape, first)
            yield term
        elif layer.kind == "block":
            start, second, shortcut = block_parts(layer, shape[2])
            term, inner = _convolution(start, shape, first)
            yield term
            if shortcut is not None:
                yield _convolution(shortcut, shape, first)[0]
            term, shape = _convolution(second, inner, False)
            yield term
        elif layer.kind == "pool":
            shape = (shape[0] // layer.size, shape[1] // layer.size, shape[2])
        elif layer.kind == "mean":
            shape = (shape[-1],)
        elif layer.kind == "flatten":
            shape = (math.prod(shape),)
        else:
            yield Term(True, 1, shape[0], layer.units, first, last)
            shape = (layer.units,)


def _convolution(layer: Layer, shape: tuple[int, ...], first: bool) -> tuple[Term, tuple[int, ...]]:
    rows, columns = (
        -(-(side if layer.same else side - layer.size + 1) // layer.stride) for side in shape[:2]
    )
    k = layer.size**2 * shape[2]
    return Term(False, rows * columns, k, layer.units, first, False), (rows, columns, layer.units)


def _products(term: Term, n: int, c: int) -> list[Product]:
    halves = (n - n // 2) * (n // 2)
    positions, k, o = term.positions, term.k, term.o
    inputs, deltas = not term.first, not term.last  # which of them depend on the weights
    products = [Product(2 * n * positions * k * o, inputs + 1)]
    if not term.first:
        products.append(Product(2 * n * c * positions * k * o, deltas + 1))
    if term.dense:
        products.append(Product(2 * halves * k, 2 * inputs))
        products.append(Product(2 * halves * c * c * o, 2 * deltas))
    else:
        products.append(Product(2 * n * c * positions * (k + 1) * o, inputs + deltas))
        products.append(Product(2 * halves * c * c * (k + 1) * o, 2 * (inputs or deltas)))
    return products


def graph_flops(function: Callable, *arguments: Any) -> dict[str, int]:
    """Count the operations of the products in a function's graph that its results depend on.

    A multiply-add counts as 2, those with zeros of a padding included.

    Args:
        function: A function of tensors.
        *arguments: The tensors.

    Returns:
        Operations by kind of product, and their total.

    Raises:
        ValueError: If products may be hidden in a function or loop.
    """
    counts: dict[str, int] = {}
    for op, sizes in graph_products(function, *arguments):
        counts[op.type] = counts.get(op.type, 0) + flops_of(op, sizes)
    return {**dict(sorted(counts.items())), "total": sum(counts.values())}


def graph_products(function: Callable, *arguments: Any) -> list[tuple[tf.Operation, Shapes]]:
    """Return the products in a function's graph that its results depend on.

    The function is run once, because some shapes are only known then.

    Args:
        function: A function of tensors.
        *arguments: The tensors.

    Returns:
        Each operation with the shapes of its inputs and of its result.

    Raises:
        ValueError: If products may be hidden in a function or loop.
    """
    operations: list[tf.Operation] = []

    def shapes(*tensors: tf.Tensor) -> list[Any]:
        results = [t for t in tf.nest.flatten(function(*tensors)) if t is not None]
        operations[:] = [op for op in _needed(results) if op.type in {*_FLOPS, *_OPAQUE}]
        for op in operations:
            if op.type in _OPAQUE:
                raise ValueError(f"The products inside of {op.name} ({op.type}) cannot be counted")
        return [[tf.shape(t) for t in [*op.inputs, op.outputs[0]]] for op in operations]

    found = tf.function(shapes, autograph=False)(*arguments)
    sizes = [[tuple(int(n) for n in size) for size in one] for one in found]
    return list(zip(operations, sizes, strict=True))


def flops_of(op: tf.Operation, shapes: Shapes) -> int:
    """Count the floating point operations of a product."""
    return _FLOPS[op.type](op, shapes)


def _needed(results: Sequence[tf.Tensor]) -> set[tf.Operation]:
    todo = [t.op for t in results]
    found: set[tf.Operation] = set()
    while todo:
        op = todo.pop()
        if op not in found:
            found.add(op)
            todo += [t.op for t in op.inputs] + list(op.control_inputs)
    return found


def _matmul(op: tf.Operation, shapes: Shapes) -> int:
    transposed = "transpose_a" if op.type == "MatMul" else "adj_x"
    return 2 * math.prod(shapes[-1]) * shapes[0][-2 if op.get_attr(transposed) else -1]


def _einsum(op: tf.Operation, shapes: Shapes) -> int:
    terms = op.get_attr("equation").decode().split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=False):
        if "..." in term:
            raise ValueError(f"The products of {op.name} have axes without names")
        sizes.update(zip(term, shape, strict=True))
    return 2 * math.prod(sizes.values())


def _convolution_of(kernel: int, result: int) -> Callable[[tf.Operation, Shapes], int]:
    """Return a counter: 2 x entries of the convolution's result x inputs of each.

    Args:
        kernel: Which of the shapes is the kernel's.
        result: Which is that of the convolution's result.
    """

    def count(op: tf.Operation, shapes: Shapes) -> int:
        rows, columns, channels, _ = shapes[kernel]
        inputs = rows * columns * (1 if op.type.startswith("Depthwise") else channels)
        return 2 * math.prod(shapes[result]) * inputs

    return count


# Each takes an operation and the shapes of its inputs and of its result.
_FLOPS: dict[str, Callable[[tf.Operation, Shapes], int]] = {
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "Einsum": _einsum,
    "Conv2D": _convolution_of(kernel=1, result=-1),
    "Conv2DBackpropInput": _convolution_of(kernel=1, result=2),
    "Conv2DBackpropFilter": _convolution_of(kernel=-1, result=2),
    "DepthwiseConv2dNative": _convolution_of(kernel=1, result=-1),
    "DepthwiseConv2dNativeBackpropInput": _convolution_of(kernel=1, result=2),
    "DepthwiseConv2dNativeBackpropFilter": _convolution_of(kernel=-1, result=2),
}
_OPAQUE = {
    "Case", "Conv3D", "If", "PartitionedCall", "StatefulPartitionedCall", "StatelessIf",
    "StatelessWhile", "While",
}  # fmt: skip


class MatrixProducts:
    """Large float32 products in TensorFlow, the yardstick of the floor."""

    sizes = (2048, 4096)

    def __init__(self) -> None:
        self._pairs = {
            n: (tf.random.normal([n, n], seed=1), tf.random.normal([n, n], seed=2))
            for n in self.sizes
        }
        self.seconds: dict[int, list[float]] = {n: [] for n in self.sizes}
        for a, b in self._pairs.values():
            tf.matmul(a, b).numpy()

    def run(self, _: int) -> list[float]:
        """Time each size and remember it."""
        for n, (a, b) in self._pairs.items():
            for _ in range(3 if n < 4096 else 1):
                begin = time.perf_counter()
                tf.matmul(a, b)
                self.seconds[n].append(time.perf_counter() - begin)
        return [self.seconds[n][-1] for n in self.sizes]

    def rate(self) -> float:
        """Return the operations a second: the best of the sizes' medians."""
        return max(2 * n**3 / statistics.median(self.seconds[n]) for n in self.sizes)
