"""Compute what integer inputs and outputs, and a fixed batch size, would save in a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro import arena
from keras_ntt.litert.options import Options


def savings(model: Any, options: Options, batch: int | None) -> Iterator[str]:
    """Yield the arguments that would make a file for devices smaller, and the saved bytes.

    Args:
        model: A ``ModelT`` that computes in integers.
        options: The options of the export.
        batch: The fixed batch size, or None.
    """
    integer = options.quantization
    given = {"inference_input_type": options.input_type}
    given["inference_output_type"] = options.output_type
    names = [f"{name}={integer!r}" for name, kind in given.items() if kind == "float32"]
    if names:
        plain = without_float_ports(model)
        operators = len(model.subgraphs[0].operators) - len(plain.subgraphs[0].operators)
        now, then = (arena.plan(found).head for found in (model, plain))
        if operators:
            yield (
                f"the file takes or returns float32; {' and '.join(names)} would save "
                f"{operators} operator{'s' * (operators > 1)} and {max(now - then, 0):,} of "
                f"{now:,} bytes of activations of one sample, as TensorFlow Lite Micro has them"
            )
    if batch is None:
        found = shape_operators(model)
        yield (
            "the file takes any number of samples at a time; batch_size=1 would fix it, which "
            "microcontrollers and NPUs need"
            + (f", and save {len(found)} operators ({', '.join(sorted(set(found)))})" * bool(found))
        )


def without_float_ports(model: Any) -> Any:
    """Return a model whose inputs and outputs are the integers in which it computes.

    Args:
        model: A ``ModelT``. It is not changed.

    Returns:
        The model without a QUANTIZE that alone reads an input, and without a DEQUANTIZE that
        computes an output that nothing else reads.
    """
    model = fb.copy_of(model)
    graph = model.subgraphs[0]
    readers, producers = fb.uses(graph), fb.producers(graph)
    dropped: set[int] = set()
    inputs = [int(index) for index in graph.inputs]
    for place, index in enumerate(inputs):
        places = readers.get(index, [])
        if len(places) == 1 and fb.operator_name(model, places[0].operator) == "QUANTIZE":
            inputs[place] = int(places[0].operator.outputs[0])
            dropped.add(id(places[0].operator))
            _empty(graph.tensors[index])
    outputs = [int(index) for index in graph.outputs]
    for place, index in enumerate(outputs):
        operator = producers.get(index)
        if operator is None or index in readers or outputs.count(index) > 1:
            continue
        if fb.operator_name(model, operator) == "DEQUANTIZE":
            outputs[place] = int(operator.inputs[0])
            dropped.add(id(operator))
            _empty(graph.tensors[index])
    graph.inputs, graph.outputs = inputs, outputs
    graph.operators = [op for op in graph.operators if id(op) not in dropped]
    return model


def _empty(tensor: Any) -> None:
    """Remove the bytes of a tensor that nothing reads, so that the planner does not place it."""
    tensor.shape = [0]


def shape_operators(model: Any) -> list[str]:
    """Return the names of the operators whose results depend only on shapes.

    Args:
        model: A ``ModelT``.

    Returns:
        One name for each SHAPE and each operator that reads but constants and results of such.
    """
    found = []
    for graph in model.subgraphs:
        known: set[int] = set()
        for operator in graph.operators:
            name = fb.operator_name(model, operator)
            read = [int(i) for i in operator.inputs if i >= 0]
            computed = [i for i in read if fb.constant(model, graph.tensors[i]) is None]
            if name == "SHAPE" or (computed and known.issuperset(computed)):
                known |= {int(i) for i in operator.outputs}
                found.append(name)
    return found
