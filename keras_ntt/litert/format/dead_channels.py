"""Set weights of dead channels to zero in files that the converter has rounded to int8.

The converter gives each output channel its own scale. Where training has left 1e-12 in a
channel, these become integers of up to 127: they compute nothing, and do not compress.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.storage import DEAD
from keras_ntt.litert.format.weights import WEIGHT_AXIS, unmixed


def without_dead_channels(model: Any) -> Any:
    """Return a model whose dead channels hold zeros.

    Args:
        model: A ``ModelT``. It is not changed.

    Returns:
        The new ``ModelT``: in constants of int8 that operators read as their weight, channels with
        a scale below `DEAD` times the largest of the tensor are zeros, if other weights mix the
        channels before they leave the graph: an output may have its own units.
    """
    model = fb.copy_of(model)
    for subgraph in model.subgraphs:
        alone = unmixed(model, subgraph)
        for index, uses in fb.uses(subgraph).items():
            tensor = subgraph.tensors[index]
            names = {fb.operator_name(model, use.operator) for use in uses}
            if not names <= WEIGHT_AXIS.keys() or any(use.position != 1 for use in uses):
                continue
            if any(int(use.operator.outputs[0]) in alone for use in uses):
                continue
            quantization = tensor.quantization
            scales = getattr(quantization, "scale", None)
            array = fb.constant(model, tensor)
            if array is None or array.dtype != np.int8 or scales is None or len(scales) < 2:
                continue
            scales = np.asarray(scales, np.float32)
            dead = scales < np.float32(DEAD) * scales.max()
            if dead.any():
                array = array.copy()
                np.moveaxis(array, int(quantization.quantizedDimension), 0)[dead] = 0
                tensor.buffer = fb.add_buffer(model, array)
    fb.drop_unused(model)
    return model
