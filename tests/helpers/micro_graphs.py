"""Random graphs of operators that microcontrollers run: int8, int16 activations, float32."""

from __future__ import annotations

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb

from .litert_graphs import Graph, empty_model

KINDS = ("int8", "int16", "float32")
SCALE = {"int8": 0.05, "int16": 0.0002}
BIAS = {"int8": np.int32, "int16": np.int64, "float32": np.float32}
WEIGHT = {"int8": np.int8, "int16": np.int8, "float32": np.float32}


class MicroGraph(Graph):
    """A graph whose activations have one type; `kind` is one of `KINDS`."""

    def __init__(self, model, shape, kind="int8"):
        super().__init__(model, shape)
        self.kind = kind
        tensor = self.subgraph.tensors[0]
        tensor.shapeSignature = None
        self.activation(0)

    def activation(self, index):
        """Give a tensor the type of the activations, and their scale."""
        tensor = self.subgraph.tensors[index]
        tensor.type = fb.type_of(self.kind)
        if self.kind != "float32":
            zero = 3 if self.kind == "int8" else 0
            self.quantize(index, [SCALE[self.kind]], [zero])
        return index

    def quantize(self, index, scales, zero_points, axis=0):
        quantization = fb.schema().QuantizationParametersT()
        quantization.scale = np.array(scales, np.float32)
        quantization.zeroPoint = np.array(zero_points, np.int64)
        quantization.quantizedDimension = axis
        self.subgraph.tensors[index].quantization = quantization

    def weight(self, array, axis=0, per_channel=True, zero_point=0):
        """Add a weight, with scales along an axis or one, and one zero point."""
        index = self.constant("weight", array)
        if self.kind != "float32":
            count = array.shape[axis] if per_channel else 1
            scales = 0.01 + 0.001 * np.arange(count)
            zero_points = np.full(count, zero_point)
            self.quantize(index, scales, zero_points, axis if per_channel else 0)
        return index

    def bias(self, weight, values):
        index = self.constant("bias", np.asarray(values, BIAS[self.kind]))
        if self.kind != "float32":
            scales = np.asarray(self.subgraph.tensors[weight].quantization.scale)
            self.quantize(index, scales * np.float32(SCALE[self.kind]), np.zeros(len(scales)))
        return index

    def layer(self, kind, inputs, shape, **options):
        index = self.operator(kind, inputs, shape, **options)
        return self.activation(index)


def values(rng, shape, kind, zeros, zero_point=0):
    """Return a weight with about this fraction of zeros; floats have a -0.0 among them."""
    if kind == "float32":
        array = rng.normal(size=shape).astype(np.float32)
        array[rng.random(shape) < zeros] = 0
        if array.size > 3:
            array.reshape(-1)[rng.integers(array.size)] = -0.0
        return array
    array = rng.integers(-127, 128, shape).astype(np.int8)
    array[rng.random(shape) < zeros] = zero_point
    return array


def dense(graph, rng, index, inputs, outputs, zeros, *, weight=None, per_channel=True, bias=True):
    if weight is None:
        # Only fully-connected operators in int8 take weights with another zero point than 0.
        shifted = graph.kind == "int8" and not per_channel and rng.random() < 0.5
        zero_point = int(rng.integers(-9, 10)) if shifted else 0
        array = values(rng, (outputs, inputs), graph.kind, zeros, zero_point)
        weight = graph.weight(array, 0, per_channel, zero_point)
    shift = graph.bias(weight, rng.integers(-500, 500, outputs)) if bias else -1
    return graph.layer("FULLY_CONNECTED", [index, weight, shift], (1, outputs)), weight


def conv(graph, rng, index, size, inputs, outputs, zeros, k=3, *, weight=None, per_channel=True):
    if weight is None:
        weight = graph.weight(
            values(rng, (outputs, k, k, inputs), graph.kind, zeros), 0, per_channel
        )
    shift = graph.bias(weight, rng.integers(-500, 500, outputs))
    options = {"padding": 0, "strideH": 1, "strideW": 1}
    shape = (1, size, size, outputs)
    return graph.layer("CONV_2D", [index, weight, shift], shape, **options), weight


def depthwise(graph, rng, index, size, channels, zeros, k=3):
    weight = graph.weight(values(rng, (1, k, k, channels), graph.kind, zeros), 3)
    shift = graph.bias(weight, rng.integers(-500, 500, channels))
    options = {"padding": 0, "strideH": 1, "strideW": 1, "depthMultiplier": 1}
    shape = (1, size, size, channels)
    return graph.layer("DEPTHWISE_CONV_2D", [index, weight, shift], shape, **options)


def transposed(graph, rng, index, size, inputs, outputs, zeros, k=3):
    weight = graph.weight(values(rng, (outputs, k, k, inputs), graph.kind, zeros), 0)
    shape = (1, size + k - 1, size + k - 1, outputs)
    sizes = graph.constant("sizes", np.array(shape, np.int32))
    shift = graph.bias(weight, rng.integers(-500, 500, outputs))
    options = {"padding": 1, "strideH": 1, "strideW": 1}
    return graph.layer("TRANSPOSE_CONV", [sizes, weight, index, shift], shape, **options)


def random_model(seed):
    """Return a random model: chains of layers, shared weights, one output or two."""
    rng = np.random.default_rng(seed)
    kind = KINDS[int(rng.integers(3))]
    zeros = rng.choice([0.0, 0.1, 0.5, 0.8, 0.95, 1.0])
    model = empty_model()
    if rng.random() < 0.5:
        width = int(rng.choice([7, 8, 9, 31, 32, 33, 40]))
        graph = MicroGraph(model, (1, width), kind)
        index, weight = dense(
            graph,
            rng,
            0,
            width,
            width,
            zeros,
            per_channel=rng.random() < 0.5,
            bias=rng.random() < 0.8,
        )
        first = index
        for _ in range(int(rng.integers(0, 3))):
            shared = weight if rng.random() < 0.4 else None
            index, weight = dense(graph, rng, index, width, width, zeros, weight=shared)
        index, _ = dense(graph, rng, index, width, int(rng.integers(1, 34)), zeros)
    else:
        size, channels = int(rng.integers(3, 6)), int(rng.choice([1, 3, 8]))
        graph = MicroGraph(model, (1, size, size, channels), kind)
        index, weight = conv(
            graph, rng, 0, size, channels, channels, zeros, per_channel=rng.random() < 0.7
        )
        first = index
        for _ in range(int(rng.integers(0, 4))):
            step = rng.integers(4)
            if step == 0:
                index = depthwise(graph, rng, index, size, channels, zeros)
            elif step == 1:
                index, weight = conv(
                    graph, rng, index, size, channels, channels, zeros, weight=weight
                )
            elif step == 2:
                wider = int(rng.integers(1, 12))
                index, _ = conv(graph, rng, index, size, channels, wider, zeros, k=1)
                index, _ = conv(graph, rng, index, size, wider, channels, zeros)
            else:
                index = transposed(graph, rng, index, size, channels, channels, zeros)
                size += 2
    graph.finish(index)
    if rng.random() < 0.3 and first != index:
        graph.subgraph.outputs = [index, first]
    return model


def inputs_of(model, count=2, seed=0):
    """Return inputs of the type that a model takes, with shape ``[count, ...]``."""
    tensor = model.subgraphs[0].tensors[0]
    shape, dtype = (count, *tensor.shape[1:]), fb.dtypes()[tensor.type]
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
