"""Channels of attention: heads, sizes of heads, and the stream that is read and written."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from keras_ntt.core.channels.call import ChannelCall, Traced
from keras_ntt.core.channels.labels import Axes, labelled


def _arguments(call: ChannelCall) -> tuple[Traced, Traced, Traced] | None:
    """Return query, value and key, after what else comes in has been fixed."""
    names = dict(zip(("query", "value", "key"), call.args, strict=False)) | call.kwargs
    query, value = names.get("query"), names.get("value")
    key = names.get("key")
    key = value if key is None else key
    found = [t for t in (query, value, key) if isinstance(t, Traced)]
    if len(found) != 3:
        return None
    for tensor in call.inputs:
        if not any(tensor is t for t in found):
            for labels in labelled(tensor.axes):
                call.fix(labels, "takes them for a mask")
    for tensor in found:
        call.only(tensor, -1)
    return found[0], found[1], found[2]


def multi_head_attention(call: ChannelCall) -> Axes | list[Axes]:
    """MultiHeadAttention: kernels [d, h, k] of query, key and value, [h, v, d] of the output.

    Products of queries and keys are divided by sqrt(k): where k shrinks, the query's weights
    shrink by the square root with it.
    """
    layer, config = call.layer, call.layer.get_config()
    tensors = _arguments(call)
    each = 2 if config["use_bias"] else 1
    weights = [w for w in layer.weights if "seed" not in w.path]
    if tensors is None or len(weights) != 4 * each or config.get("use_gate"):
        return call.opaque("is called, or built, in a way that is not known")
    query, value, key = tensors
    (wq, *bq), (wk, *bk), (wv, *bv), (wo, *bo) = (
        weights[i : i + each] for i in range(0, 4 * each, each)
    )
    if len(wo.shape) != 3:
        return call.opaque("has outputs of several axes")
    heads, depth = call.new(wq.shape[1]), call.new(wq.shape[2])
    own = call.new(wv.shape[2])
    out = call.new(wo.shape[2])
    for kernel, bias, tensor, last in (
        (wq, bq, query, depth),
        (wk, bk, key, depth),
        (wv, bv, value, own),
    ):
        ins = tensor.axes[-1]
        call.weight(kernel, {0: ins, 1: heads, 2: last}, {0: "in", 1: "out", 2: "out"})
        call.reads(kernel, 0, ins, tensor=tensor)
        call.works(kernel, tensor.shape[1:-1])
        for variable in bias:
            call.weight(variable, {0: heads, 1: last}, {0: "out", 1: "out"})
    call.weight(wo, {0: heads, 1: own, 2: out}, {0: "in", 1: "in", 2: "out"})
    call.reads(wo, 0, heads)
    call.reads(wo, 1, own)
    call.works(wo, query.shape[1:-1])
    for variable in bo:
        call.weight(variable, {0: out}, {0: "out"})
    call.multiplies(depth)
    for variable in (wq, *bq):
        call.rescale(variable, depth, 0.5)
    call.resize("num_heads", heads)
    call.resize("key_dim", depth)
    call.resize("value_dim", own)
    call.resize("output_shape", out, lambda after, before: (after,))
    axes: list[Axes] = [(*(None for _ in query.shape[1:]), out)]
    if len(call.output_shapes) == 2:  # the attention scores
        call.fix(heads, "returns the scores of each head")
        axes.append((None,) * len(call.output_shapes[1]))
    return axes


def grouped_query_attention(call: ChannelCall) -> Axes | list[Axes]:
    """GroupedQueryAttention: a head of keys and values goes with the queries that read it."""
    layer, config = call.layer, call.layer.get_config()
    tensors = _arguments(call)
    each = 2 if config["use_bias"] else 1
    weights = [w for w in layer.weights if "seed" not in w.path]
    if tensors is None or len(weights) != 4 * each or config.get("use_gate"):
        return call.opaque("is called, or built, in a way that is not known")
    query, value, key = tensors
    (wq, *bq), (wk, *bk), (wv, *bv), (wo, *bo) = (
        weights[i : i + each] for i in range(0, 4 * each, each)
    )
    shared, depth = call.new(wk.shape[1]), call.new(wq.shape[2])
    heads = np.repeat(shared, wq.shape[1] // wk.shape[1])
    stream = query.axes[-1]  # the output is as wide as the query
    for kernel, bias, tensor, mine in (
        (wq, bq, query, heads),
        (wk, bk, key, shared),
        (wv, bv, value, shared),
    ):
        ins = tensor.axes[-1]
        call.weight(kernel, {0: ins, 1: mine, 2: depth}, {0: "in", 1: "out", 2: "out"})
        call.reads(kernel, 0, ins, tensor=tensor)
        call.works(kernel, tensor.shape[1:-1])
        for variable in bias:
            call.weight(variable, {0: mine, 1: depth}, {0: "out", 1: "out"})
    call.weight(wo, {0: heads, 1: depth, 2: stream}, {0: "in", 1: "in", 2: "out"})
    call.reads(wo, 0, heads)
    call.works(wo, query.shape[1:-1])
    for variable in bo:
        call.weight(variable, {0: stream}, {0: "out"})
    call.multiplies(depth)
    for variable in (wq, *bq):
        call.rescale(variable, depth, 0.5)
    call.resize("num_query_heads", heads)
    call.resize("num_key_value_heads", shared)
    call.resize("head_dim", depth)
    axes: list[Axes] = [(*(None for _ in query.shape[1:]), stream)]
    if len(call.output_shapes) == 2:
        call.fix(heads, "returns the scores of each head")
        axes.append((None,) * len(call.output_shapes[1]))
    return axes


RULES: dict[type, Any] = {
    layers.MultiHeadAttention: multi_head_attention,
    layers.GroupQueryAttention: grouped_query_attention,
}
