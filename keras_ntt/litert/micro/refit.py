"""Refit biases to rounded weights: empirical bias correction (Nagel et al. 2019, section 4.2).

Rounding weights changes the mean of a layer's outputs. A layer is linear up to its activation, so
this mean follows from the mean of its inputs, and the bias can correct it. Layers are refitted in
their order, each with the inputs from the refitted layers before it. This needs inputs, but no
labels.
"""

from __future__ import annotations

import copy
import pathlib
import tempfile
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro.graph import Key
from keras_ntt.litert.runtime.record import means_of

_MOST = 64  # samples for the means
_VALID = 1  # number of the padding in the schema


def refit_biases(
    model: Any, rounded: Any, keys: Collection[Key], samples: Sequence[np.ndarray]
) -> Any:
    """Return a model with rounded weights whose layers have the mean outputs of another model.

    Args:
        model: The ``ModelT`` with the original weights, of fixed shapes.
        rounded: The same with rounded weights and their scales. It is not changed.
        keys: The weights that were rounded.
        samples: Inputs ``[n, ...]``, in the order of the file.

    Returns:
        The new ``ModelT``.
    """
    result = fb.copy_of(rounded)
    graph = result.subgraphs[0]
    chosen = {index for number, index in keys if number == 0}
    layers = [op for op in graph.operators if len(op.inputs) > 1 and int(op.inputs[1]) in chosen]
    layers = [op for op in layers if _bias_of(result, op) is not None]
    sources = sorted({_source_of(result, op) for op in layers})
    few = [array[:_MOST] for array in samples]
    before = _means(model, few, sources)
    for operator in layers:
        place = _bias_place(result, operator)
        graph.tensors.append(copy.deepcopy(graph.tensors[int(operator.inputs[place])]))
        moved = np.array(operator.inputs, np.int32)
        moved[place] = len(graph.tensors) - 1
        operator.inputs = moved
    for operator in layers:
        source = _source_of(result, operator)
        after = _means(result, few, [source])
        _refit(model, result, operator, before[source], after[source])
    fb.drop_unused(result)
    return result


def mean_patch(name: str, options: Any, mean: np.ndarray, shapes: Sequence[Any]) -> np.ndarray:
    """Return the mean input of each entry of a filter.

    Args:
        name: The operator.
        options: Its options.
        mean: Mean of its input over samples, minus the zero point: ``[rows, in]`` of
            fully-connected operators, else ``[batch, height, width, in]``.
        shapes: The shapes of weight and output.

    Returns:
        ``[height, width, in]`` of the filter, or ``[in]``.
    """
    weight, output = shapes
    if name == "FULLY_CONNECTED":
        return mean.reshape(-1, weight[1]).mean(axis=0)
    mean = mean.mean(axis=0)
    filters, found = weight[1:3], np.zeros((*weight[1:3], mean.shape[-1]))
    strides = (options.strideH, options.strideW)
    is_transposed = name == "TRANSPOSE_CONV"
    rates = (
        (1, 1)
        if is_transposed
        else (max(options.dilationHFactor, 1), max(options.dilationWFactor, 1))
    )
    for y in range(filters[0]):
        rows = _met(
            y, filters[0], mean.shape[0], output[1], strides[0], rates[0], options, is_transposed
        )
        for x in range(filters[1]):
            columns = _met(
                x,
                filters[1],
                mean.shape[1],
                output[2],
                strides[1],
                rates[1],
                options,
                is_transposed,
            )
            found[y, x] = mean[rows][:, columns].sum(axis=(0, 1)) / (output[1] * output[2])
    return found


def _met(
    place: int,
    size: int,
    inputs: int,
    outputs: int,
    stride: int,
    rate: int,
    options: Any,
    is_transposed: bool,
) -> np.ndarray:
    """Return the positions of an input axis at which one entry of a filter is applied."""
    small, large = (inputs, outputs) if is_transposed else (outputs, inputs)
    span = (small - 1) * stride + (size - 1) * rate + 1
    padding = 0 if options.padding == _VALID else max(span - large, 0) // 2
    other = np.arange(small) * stride + place * rate - padding
    inside = (other >= 0) & (other < large)
    return np.arange(small)[inside] if is_transposed else other[inside]


def _refit(model: Any, result: Any, operator: Any, before: np.ndarray, after: np.ndarray) -> None:
    """Set the bias of a layer so that the mean of its outputs does not change."""
    graph, name = result.subgraphs[0], fb.operator_name(result, operator)
    index = int(operator.inputs[1])
    tensors = [side.subgraphs[0].tensors[index] for side in (model, result)]
    found = [fb.constant(side, t) for side, t in zip((model, result), tensors, strict=True)]
    old, new = (array.astype(np.float64) for array in found if array is not None)
    scales = [np.asarray(t.quantization.scale, np.float64) for t in tensors]
    output = [int(n) for n in graph.tensors[int(operator.outputs[0])].shape]
    sums = []
    for weight, mean in ((old, before), (new, after)):
        patch = mean_patch(name, operator.builtinOptions, mean, (weight.shape, output))
        groups = patch.shape[-1] // weight.shape[-1]
        parts = np.repeat(np.split(patch, groups, axis=-1), len(weight) // groups, axis=0)
        sums.append((weight * parts).reshape(len(weight), -1).sum(axis=1))
    tensor = graph.tensors[int(operator.inputs[_bias_place(result, operator)])]
    bias = fb.constant(result, tensor)
    assert bias is not None
    ratio = scales[0] / scales[1]
    limits = np.iinfo(bias.dtype)
    wanted = np.rint(ratio * (sums[0] + bias) - sums[1])
    tensor.buffer = fb.add_buffer(
        result,
        np.clip(wanted, max(limits.min, -(2**53)), min(limits.max, 2**53)).astype(bias.dtype),
    )
    if tensor.quantization is not None and tensor.quantization.scale is not None:
        old_scale = np.asarray(tensor.quantization.scale, np.float64)
        tensor.quantization.scale = (old_scale / ratio).astype(np.float32)


def _means(model: Any, samples: Sequence[np.ndarray], tensors: Sequence[int]) -> dict[int, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.tflite"
        file.write_bytes(fb.write(model))
        return means_of(str(file), samples, tensors)


def _source_of(model: Any, operator: Any) -> int:
    return int(operator.inputs[2 if fb.operator_name(model, operator) == "TRANSPOSE_CONV" else 0])


def _bias_place(model: Any, operator: Any) -> int:
    return 3 if fb.operator_name(model, operator) == "TRANSPOSE_CONV" else 2


def _bias_of(model: Any, operator: Any) -> np.ndarray | None:
    place = _bias_place(model, operator)
    if len(operator.inputs) <= place or operator.inputs[place] < 0:
        return None
    return fb.constant(model, model.subgraphs[0].tensors[int(operator.inputs[place])])
