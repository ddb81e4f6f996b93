"""What the products of a step take alone, each in its fastest form, next to the whole step.

    python -m benchmarks.speed.products_alone [--networks NAME ...] [--rounds N] [--output FILE]

The floor of ntt_step.py supposes that every product runs at the speed of one large square product.
No kernel of TensorFlow does so for every shape. Here each matrix product and convolution of the
step's graph is timed alone at its own shape: products with either operand stored transposed, and
the result too, convolutions with the channels last and first. Of the products only the largest
count, which do 99 % of the operations, and what it takes to call a function of TensorFlow is taken
off. Their sum tells how much of the step is products; it is no strict bound, because a product
alone may wait for fresh memory that the step has at hand. Step and sum take turns. Prints a table
and writes JSON. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import tensorflow as tf

from benchmarks.common import networks
from benchmarks.common.paths import RESULTS
from benchmarks.common.table import machine
from benchmarks.speed.contestants import Ours
from benchmarks.speed.floor import MatrixProducts, Shapes, flops_of, graph_products
from keras_ntt.core.tables import table

TRIALS = 7  # of each form, to find the fastest
STEPS = 5  # a round
SHARE = 0.99  # of the operations, done by the products that count

Form = tuple[str, Callable[[], Any]]


class Alone:
    """A product of the graph, and the ways to take it.

    Args:
        op: The operation.
        shapes: Those of its inputs and of its result.
        times: How often a step takes it.

    Attributes:
        name: Its type and shapes.
        flops: Its floating point operations.
        form: Name of the fastest form.
        seconds: The times of that form.
    """

    def __init__(self, op: tf.Operation, shapes: Shapes, times: int):
        self.name = product_name(op, shapes)
        self.flops, self.times = flops_of(op, shapes), times
        of = matrix_forms if "MatMul" in op.type else convolution_forms
        trials = {}
        for name, run in of(op, shapes):
            run()
            trials[name] = statistics.median(_timed(run) for _ in range(TRIALS)), run
        self.form = min(trials, key=lambda name: trials[name][0])
        self._run = trials[self.form][1]
        self.seconds: list[float] = []

    def run(self, overhead: float) -> float:
        """Time it; return the seconds that a step spends on it.

        Args:
            overhead: Seconds that the call of a function takes.
        """
        self.seconds.append(statistics.median(_timed(self._run) for _ in range(3)) - overhead)
        return self.times * self.seconds[-1]


def product_name(op: tf.Operation, shapes: Shapes) -> str:
    """Return the type of a product, its shapes and what is transposed or padded."""
    found = [op.type, *("x".join(map(str, s)) for s in shapes if len(s) > 1)]
    for attribute in ("transpose_a", "transpose_b", "adj_x", "adj_y"):
        if attribute in op.node_def.attr and op.get_attr(attribute):
            found.append(attribute)
    if "padding" in op.node_def.attr:
        found.append(op.get_attr("padding").decode().lower())
        found += [f"stride {s}" for s in op.get_attr("strides")[1:3] if s > 1]
    return " ".join(found)


def matrix_forms(op: tf.Operation, shapes: Shapes) -> Iterator[Form]:
    """Yield a matrix product with its operands and its result stored as they are or transposed."""
    names = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
    transposed = [op.get_attr(name) for name in names]
    first, second = (
        tf.random.normal((*s[:-2], s[-1], s[-2]) if flip else s)
        for s, flip in zip(shapes[:2], transposed, strict=True)
    )
    for flip1, flip2, swap in itertools.product((False, True), repeat=3):
        a = tf.linalg.matrix_transpose(first) if flip1 else first
        b = tf.linalg.matrix_transpose(second) if flip2 else second
        if swap:
            a, b, flips = b, a, (not flip2, not flip1)
        else:
            flips = (flip1, flip2)
        product = tf.function(
            lambda a, b, flips=flips: tf.matmul(a, b, transpose_a=flips[0], transpose_b=flips[1]),
            autograph=False,
        )
        name = f"{'transposed ' * flip1}a, {'transposed ' * flip2}b{', swapped' * swap}"
        yield name, _bound(product, a, b)


def convolution_forms(op: tf.Operation, shapes: Shapes) -> Iterator[Form]:
    """Yield a convolution, or its gradient, with the channels last and first.

    Raises:
        ValueError: If the operation is another.
    """
    if op.type not in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
        raise ValueError(f"No form is known of {op.type}")
    padding, strides = op.get_attr("padding").decode(), op.get_attr("strides")
    if op.type == "Conv2D":
        image, kernel, result = shapes
    elif op.type == "Conv2DBackpropInput":
        _, kernel, result, image = shapes
    else:
        image, _, result, kernel = shapes
    for order, name in ((None, "channels last"), ((0, 3, 1, 2), "channels first")):

        def at(sizes: Any, order: Any = order) -> list[int]:
            return list(sizes) if order is None else [sizes[i] for i in order]

        options = {
            "strides": at(strides),
            "padding": padding,
            "data_format": "NHWC" if order is None else "NCHW",
        }
        x, w, d = (tf.random.normal(s) for s in (at(image), kernel, at(result)))
        takes: dict[str, Callable] = {
            "Conv2D": lambda x, w, d, o=options: tf.raw_ops.Conv2D(input=x, filter=w, **o),
            "Conv2DBackpropInput": lambda x, w, d, o=options: tf.raw_ops.Conv2DBackpropInput(
                input_sizes=x.shape, filter=w, out_backprop=d, **o
            ),
            "Conv2DBackpropFilter": lambda x, w, d, o=options: tf.raw_ops.Conv2DBackpropFilter(
                input=x, filter_sizes=w.shape, out_backprop=d, **o
            ),
        }
        yield name, _bound(tf.function(takes[op.type], autograph=False), x, w, d)


def _bound(function: Callable, *arguments: tf.Tensor) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def largest(found: Sequence[tuple[tf.Operation, Shapes]]) -> list[Alone]:
    """Return the products that do most of the operations, each of its kind once."""
    kinds: dict[str, list[tuple[tf.Operation, Shapes]]] = {}
    for one in found:
        kinds.setdefault(product_name(*one), []).append(one)
    order = sorted(kinds.values(), key=lambda kind: -len(kind) * flops_of(*kind[0]))
    chosen, left = [], (1 - SHARE) * sum(flops_of(*one) for one in found)
    for kind in reversed(order):
        left -= len(kind) * flops_of(*kind[0])
        if left < 0:
            chosen.append(Alone(*kind[0], len(kind)))
    return chosen


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Time the step of a network and its products in turns.

    Args:
        name: The network, of `networks.NETWORKS`.
        rounds: Number of rounds.

    Returns:
        The figures for the JSON file.
    """
    ours = Ours(networks.NETWORKS[name])
    ours.start()
    ours.run(3)
    found = graph_products(ours.loss_and_gradients, tf.constant(ours.x))
    square, steps, sums = MatrixProducts(), [], []
    products = largest(found)
    call = _bound(tf.function(tf.negative, autograph=False), tf.constant(1.0))
    call()
    for _ in range(rounds):
        steps.append(statistics.median(ours.run(STEPS)))
        overhead = statistics.median(_timed(call) for _ in range(50))
        sums.append(sum(product.run(overhead) for product in products))
        square.run(1)
    products.sort(key=lambda product: -product.times * statistics.median(product.seconds))
    flops = sum(flops_of(*one) for one in found)
    return {
        "step_seconds": statistics.median(steps),
        "products_seconds": statistics.median(sums),
        "floor_seconds": flops / square.rate(),
        "products_over_step_by_round": [a / b for a, b in zip(sums, steps, strict=True)],
        "flops": flops,
        "products": [
            {
                "product": product.name,
                "form": product.form,
                "times": product.times,
                "flops": product.flops,
                "seconds": statistics.median(product.seconds),
            }
            for product in products
        ],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", choices=networks.NETWORKS, default=["lenet-5-caffe"]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "products_alone.json")
    options = parser.parse_args()
    found = {name: measure(name, options.rounds) for name in options.networks}
    for name, one in found.items():
        step, alone, floor = (1000 * one[f"{key}_seconds"] for key in ("step", "products", "floor"))
        ratios = one["products_over_step_by_round"]
        print(f"\n{name}: the step {step:.1f} ms, its products alone {alone:.1f} ms, ", end="")
        print(f"at the speed of a large one {floor:.1f} ms")
        print(f"  products alone / step, by round: {min(ratios):.2f} - {max(ratios):.2f}")
        body = [
            [
                f"{1000 * p['times'] * p['seconds']:.2f}",
                f"{p['times'] * p['flops'] / 1e9:.2f}",
                f"{p['flops'] / p['seconds'] / 1e9:.0f}",
                f"{p['times']} x {p['product']}",
                p["form"],
            ]
            for p in one["products"]
        ]
        head = ["ms", "GFLOP", "GFLOP/s", "product", "fastest form"]
        print(table(head, body, right=(0, 1, 2)))
    options.output.write_text(
        json.dumps({"machine": machine(), "networks": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
