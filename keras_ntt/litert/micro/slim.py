"""Remove what a runtime does not read: names, metadata, ranges, scales of biases.

Half of a small int8 file is not weights. Removing these parts changes no output. Equal vectors are
stored once by `flatbuffer.write`, whatever the target.
"""

from __future__ import annotations

from typing import Any

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro.graph import drop_codes, drop_tensors

# The input of operators with one scale per channel that is their bias.
_BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}


def slim(model: Any, *, micro: bool) -> Any:
    """Return a model without the parts that no runtime reads.

    Args:
        model: A ``ModelT``. It is not changed.
        micro: Whether only TensorFlow Lite Micro runs it, which reads no signatures, no names of
            inputs and outputs, and no scales of biases. LiteRT refuses a bias with fewer scales
            than channels.

    Returns:
        The new ``ModelT``, which shares the bytes of the constants.
    """
    model = fb.copy_of(model)
    model.description = None
    model.metadataBuffer = None
    kept = [] if micro else [m for m in model.metadata if m.name != b"CONVERSION_METADATA"]
    model.metadata = kept
    if micro:
        model.signatureDefs = []
    drop_codes(model)
    drop_tensors(model)
    for subgraph in model.subgraphs:
        outside = set() if micro else {int(i) for i in (*subgraph.inputs, *subgraph.outputs)}
        subgraph.name = None
        for index, tensor in enumerate(subgraph.tensors):
            _strip(tensor, micro=micro, named=index in outside)
        for operator in subgraph.operators:
            for name in ("intermediates", "mutatingVariableInputs"):
                numbers = getattr(operator, name, None)
                if numbers is not None and not any(numbers):
                    setattr(operator, name, None if len(numbers) == 0 else numbers)
    if micro:
        _merge_scales_of_biases(model)
    fb.drop_unused(model)
    return model


def _strip(tensor: Any, *, micro: bool, named: bool) -> None:
    if not named:
        tensor.name = None
    if micro:
        tensor.shapeSignature, tensor.hasRank = None, False
    quantization = tensor.quantization
    if quantization is not None:
        quantization.min = quantization.max = None
        if quantization.scale is None or len(quantization.scale) == 0:
            tensor.quantization = None


def _merge_scales_of_biases(model: Any) -> None:
    """Keep only one scale and one zero point of a bias: it is added as integers."""
    for subgraph in model.subgraphs:
        readers = fb.uses(subgraph)
        for index, tensor in enumerate(subgraph.tensors):
            places = readers.get(index, [])
            quantization = tensor.quantization
            if quantization is None or not places or fb.constant(model, tensor) is None:
                continue
            if all(_BIAS.get(fb.operator_name(model, op)) == place for op, place in places):
                quantization.scale = quantization.scale[:1]
                if quantization.zeroPoint is not None:
                    quantization.zeroPoint = quantization.zeroPoint[:1]
                quantization.quantizedDimension = 0
