"""Find out from operators and tensors which runtime can run a LiteRT file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import WEIGHT_AXIS
from keras_ntt.litert.micro.graph import CODE

LITERT, MICRO, VELA = "LiteRT", "TensorFlow Lite Micro", "Vela (Ethos-U)"
_WOULD = "it would"  # the beginning of notes on silent errors
_MARK = b"not for microcontrollers"  # the name of a tensor that nothing reads


def runtimes_of(model: Any) -> dict[str, str]:
    """Return which runtimes can run a model.

    Args:
        model: A ``ModelT``.

    Returns:
        For each runtime ``"yes"``, or the reason why not. For TensorFlow Lite Micro ``"yes"`` means
        that the form of the file is supported; an operator may still be missing.
    """
    names = {fb.operator_name(model, op) for graph in model.subgraphs for op in graph.operators}
    decoded = CODE.decode() in names
    answers = {LITERT: "yes", MICRO: "yes", VELA: "yes"}
    if decoded:
        answers[LITERT] = answers[VELA] = "no: DECODE is an operator of TensorFlow Lite Micro alone"
    elif _has_short_bias(model):
        answers[LITERT] = answers[VELA] = "no: a bias has one scale for all channels"
    micro = next(iter(_against_micro(model, names)), None)
    if micro is not None:
        kept_out = _WOULD in micro and is_closed(model)
        answers[MICRO] = f"no: {'it does not load this file, because ' * kept_out}{micro}"
    if answers[VELA] == "yes" and not _is_int8(model):
        answers[VELA] = "no: it puts on the NPU what computes in int8 or int16"
    return answers


def dangers(model: Any) -> Iterator[str]:
    """Yield the silent errors of a file on a microcontroller, if it were loaded.

    Args:
        model: A ``ModelT``.
    """
    answer = runtimes_of(model)[MICRO].removeprefix("no: ")
    if _WOULD in answer:
        loads = "" if is_closed(model) else "it loads this file, but "
        yield (
            "not for microcontrollers, which target='micro' is for. Of TensorFlow Lite Micro: "
            f"{loads}{answer}"
        )


def closed(model: Any) -> Any:
    """Return a model that TensorFlow Lite Micro refuses, if it would load it and compute wrongly.

    A tensor of strings that nothing reads is added. TensorFlow Lite Micro does not support strings
    and ends with an error when it allocates tensors. Other runtimes give such a tensor no memory
    and ignore it.

    Args:
        model: A ``ModelT``. It is not changed.

    Returns:
        The model itself if there is no silent error, else a copy with the tensor.
    """
    if _WOULD not in runtimes_of(model)[MICRO] or is_closed(model):
        return model
    model = fb.copy_of(model)
    tensor = fb.schema().TensorT()
    tensor.name, tensor.shape, tensor.buffer = _MARK, np.zeros(1, np.int32), 0
    tensor.type = fb.schema().TensorType.STRING
    model.subgraphs[0].tensors.append(tensor)
    return model


def is_closed(model: Any) -> bool:
    """Return whether TensorFlow Lite Micro refuses a model by the tensor that `closed` adds.

    Args:
        model: A ``ModelT``.
    """
    string = fb.schema().TensorType.STRING
    return any(tensor.type == string for graph in model.subgraphs for tensor in graph.tensors)


def _against_micro(model: Any, names: set[str]) -> Iterator[str]:
    """Yield why TensorFlow Lite Micro cannot run a model, the worst reason first."""
    channels = False
    for graph in model.subgraphs:
        if any(tensor.sparsity is not None for tensor in graph.tensors) and "DENSIFY" not in names:
            yield "it would crash on sparse weights, which it takes for dense ones"
        for operator in graph.operators:
            name = fb.operator_name(model, operator)
            if name == "DEQUANTIZE":
                quantization = graph.tensors[int(operator.inputs[0])].quantization
                scales = getattr(quantization, "scale", None)
                channels |= scales is not None and len(scales) > 1
    if "DENSIFY" in names:
        yield "it has no operator DENSIFY"
    if channels:
        yield (
            "it would compute something else without an error: its DEQUANTIZE takes the first "
            "scale of a weight for all channels"
        )
    types = {fb.dtypes().get(t.type) for graph in model.subgraphs for t in graph.tensors}
    if np.dtype(np.float16) in types:
        yield "it does not compute from float16"
    if any(_is_hybrid(model, graph, op) for graph in model.subgraphs for op in graph.operators):
        yield "it does not run operators of float activations and int8 weights"
    unknown = sorted(n for n in names if n.startswith(("Flex", "operator ")))
    if unknown:
        yield f"it has no operator {unknown[0]}"
    if is_closed(model):
        yield "it has no strings"


def _is_hybrid(model: Any, graph: Any, operator: Any) -> bool:
    if fb.operator_name(model, operator) not in WEIGHT_AXIS or len(operator.inputs) < 2:
        return False
    source = 2 if fb.operator_name(model, operator) == "TRANSPOSE_CONV" else 0
    if len(operator.inputs) <= source:
        return False
    kinds = [fb.dtypes().get(graph.tensors[int(operator.inputs[i])].type) for i in (source, 1)]
    return kinds == [np.dtype(np.float32), np.dtype(np.int8)]


def _has_short_bias(model: Any) -> bool:
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = fb.operator_name(model, operator)
            place = 3 if name == "TRANSPOSE_CONV" else 2
            if name in WEIGHT_AXIS and len(operator.inputs) > place and operator.inputs[place] >= 0:
                pair = [graph.tensors[int(operator.inputs[i])].quantization for i in (1, place)]
                scales = [getattr(quantization, "scale", None) for quantization in pair]
                counts = [0 if found is None else len(found) for found in scales]
                if 0 < counts[1] < counts[0]:
                    return True
    return False


def _is_int8(model: Any) -> bool:
    outputs = [
        graph.tensors[int(op.outputs[0])]
        for graph in model.subgraphs
        for op in graph.operators
        if fb.operator_name(model, op) in WEIGHT_AXIS
    ]
    return all(fb.dtypes().get(t.type) in (np.dtype(np.int8), np.dtype(np.int16)) for t in outputs)
