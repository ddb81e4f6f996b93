"""Small LiteRT graphs written by hand, without the converter."""

from __future__ import annotations

import copy
import os

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import weights_of


class Graph:
    """One graph of a model that is being built; index 0 of `tensors` is its input."""

    def __init__(self, model, shape):
        schema = fb.schema()
        self.model, self.subgraph = model, schema.SubGraphT()
        self.subgraph.tensors, self.subgraph.operators = [], []
        model.subgraphs.append(self.subgraph)
        self.subgraph.inputs = [self.tensor("input", shape)]
        signature = [-1, *shape[1:]]
        self.subgraph.tensors[0].shapeSignature = np.array(signature, np.int32)

    def tensor(self, name, shape, dtype="float32", buffer=0):
        tensor = fb.schema().TensorT()
        tensor.name, tensor.shape = name.encode(), np.array(shape, np.int32)
        tensor.type, tensor.buffer = fb.type_of(dtype), buffer
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def constant(self, name, array, buffer=None):
        buffer = fb.add_buffer(self.model, array) if buffer is None else buffer
        return self.tensor(name, array.shape, array.dtype, buffer)

    def operator(self, kind, inputs, shape, version=1, **options):
        schema, operator = fb.schema(), fb.schema().OperatorT()
        operator.opcodeIndex = fb.operator_code(self.model, kind, version)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([self.tensor(kind.lower(), shape)], np.int32)
        names = {
            "FULLY_CONNECTED": "FullyConnectedOptions",
            "CONV_2D": "Conv2DOptions",
            "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
            "TRANSPOSE_CONV": "TransposeConvOptions",
        }
        if kind in names:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, names[kind])
            operator.builtinOptions = getattr(schema, names[kind] + "T")()
            for name, value in options.items():
                setattr(operator.builtinOptions, name, value)
        self.subgraph.operators.append(operator)
        return int(operator.outputs[0])

    def finish(self, output):
        self.subgraph.outputs = [output]


def empty_model():
    schema = fb.schema()
    model = schema.ModelT()
    model.version = 3
    model.subgraphs, model.operatorCodes, model.metadata = [], [], []
    model.signatureDefs, model.buffers = [], [schema.BufferT()]
    return model


def add_signature(model, key, number):
    schema = fb.schema()
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = key.encode(), number
    signature.inputs, signature.outputs = [], []
    for which, index in (("inputs", "inputs"), ("outputs", "outputs")):
        entry = schema.TensorMapT()
        entry.name = which[:-1].encode()
        entry.tensorIndex = int(getattr(model.subgraphs[number], index)[0])
        getattr(signature, which).append(entry)
    model.signatureDefs.append(signature)


def fully_connected(*weights, bias=True, seed=0):
    """Return a chain of fully-connected layers; a weight given twice is one tensor."""
    model, rng = empty_model(), np.random.default_rng(seed)
    graph = Graph(model, (1, weights[0].shape[1]))
    index, known = 0, {}
    for number, weight in enumerate(weights):
        if id(weight) not in known:
            known[id(weight)] = graph.constant(f"weight{number}", weight)
        inputs = [index, known[id(weight)], -1]
        if bias:
            shift = rng.normal(size=weight.shape[0]).astype("float32")
            inputs[2] = graph.constant(f"bias{number}", shift)
        index = graph.operator("FULLY_CONNECTED", inputs, (1, weight.shape[0]))
    graph.finish(index)
    return model


def convolution(weight, size=6, bias=True):
    model = empty_model()
    graph = Graph(model, (1, size, size, weight.shape[3]))
    inputs = [0, graph.constant("kernel", weight), -1]
    shift = np.linspace(-1, 1, weight.shape[0], dtype="float32")
    if bias:
        inputs[2] = graph.constant("bias", shift)
    shape = (1, size, size, weight.shape[0])
    graph.finish(graph.operator("CONV_2D", inputs, shape, padding=0, strideH=1, strideW=1))
    return model


def depthwise(weight, size=6):
    model, channels = empty_model(), weight.shape[3]
    graph = Graph(model, (1, size, size, channels))
    shift = np.linspace(-1, 1, channels, dtype="float32")
    inputs = [0, graph.constant("kernel", weight), graph.constant("bias", shift)]
    options = {"padding": 0, "strideH": 1, "strideW": 1, "depthMultiplier": 1}
    shape = (1, size, size, channels)
    graph.finish(graph.operator("DEPTHWISE_CONV_2D", inputs, shape, **options))
    return model


def transposed(weight, size=5):
    model = empty_model()
    outputs, height, width, channels = weight.shape
    graph = Graph(model, (1, size, size, channels))
    shape = (1, size + height - 1, size + width - 1, outputs)
    sizes = graph.constant("sizes", np.array(shape, np.int32))
    inputs = [sizes, graph.constant("kernel", weight), 0]
    options = {"padding": 1, "strideH": 1, "strideW": 1}
    graph.finish(graph.operator("TRANSPOSE_CONV", inputs, shape, **options))
    return model


def halved(model):
    """Return a model whose weights are float16, converted where they are read."""
    model = copy.deepcopy(model)
    schema, graph = fb.schema(), model.subgraphs[0]
    for weight in weights_of(model):
        half = schema.TensorT()
        half.name, half.shape = weight.name.encode() + b"/half", graph.tensors[weight.tensor].shape
        half.type = fb.type_of("float16")
        half.buffer = fb.add_buffer(model, weight.array.astype("float16"))
        graph.tensors.append(half)
        graph.tensors[weight.tensor].buffer = 0
        operator = schema.OperatorT()
        operator.opcodeIndex = fb.operator_code(model, "DEQUANTIZE", 3)
        operator.inputs = np.array([len(graph.tensors) - 1], np.int32)
        operator.outputs = np.array([weight.tensor], np.int32)
        graph.operators.insert(0, operator)
    return model


def run(content, x, *, xnnpack=True, threads=1, runtime="ai_edge_litert", signature=None):
    """Run a model's bytes; independent of the library's own runner."""
    if runtime == "ai_edge_litert":
        from ai_edge_litert import interpreter as module
    else:
        from tensorflow.lite.python import interpreter as module
    kinds = module.OpResolverType
    interpreter = module.Interpreter(
        model_content=bytes(content),
        num_threads=threads,
        experimental_op_resolver_type=kinds.AUTO
        if xnnpack
        else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    if signature is not None:
        return interpreter.get_signature_runner(signature)(input=x)["output"]
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(result["index"]).copy()


def sparse_array(rng, shape, sparsity, dtype="float32"):
    array = rng.normal(size=shape).astype(dtype)
    return np.where(rng.random(shape) >= sparsity, array, np.zeros_like(array))


def input_of(model, batch=1, seed=0):
    shape = [batch, *model.subgraphs[0].tensors[0].shape[1:]]
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def in_file(path, content):
    path.write_bytes(content)
    return os.fspath(path)
