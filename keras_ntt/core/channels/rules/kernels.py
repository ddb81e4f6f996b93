"""Channels of Dense, EinsumDense, convolutions of all kinds and Embedding."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_ntt.core import host
from keras_ntt.core.channels.call import ChannelCall, Traced, spread
from keras_ntt.core.channels.labels import Axes, Labels
from keras_ntt.core.channels.rules.elementwise import is_elementwise


def channel_axis(layer: Any, rank: int) -> int:
    """Return the axis of a layer's tensors that counts channels."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 1 if first else rank - 1


def kernel_of(layer: Any) -> Any:
    """Return the kernel of a built layer."""
    return host.kernel_of(layer)


def replaced(x: Traced, axis: int, labels: Labels | None) -> Axes:
    """Return the axes of a tensor of positions with new channels."""
    return tuple(labels if i == axis else None for i in range(x.rank))


def end(call: ChannelCall, out: Labels | None) -> None:
    """Fix channels that a layer's activation mixes."""
    if not is_elementwise(call.layer.activation):
        call.fix(out, "has an activation that mixes channels")


def dense(call: ChannelCall) -> Axes:
    """Dense: kernel [inputs, units]; all axes but the last stay."""
    layer, x = call.layer, call.inputs[0]
    out, kernel = call.new(layer.units), kernel_of(layer)
    call.weight(kernel, {0: x.axes[-1], 1: out}, {0: "in", 1: "out"})
    call.weight(layer.bias, {0: out}, {0: "out"})
    call.resize("units", out)
    call.reads(kernel, 0, x.axes[-1], bias=layer.bias, exact=True, tensor=x)
    call.works(kernel, call.output_shapes[0][1:-1])
    end(call, out)
    return (*x.axes[:-1], out)


def einsum_dense(call: ChannelCall) -> Axes | list[Axes]:
    """EinsumDense: letters of the equation carry labels."""
    layer, x = call.layer, call.inputs[0]
    operands, _, result = layer.equation.replace(" ", "").partition("->")
    ins, _, weights = operands.partition(",")
    ins, result = (_filled(s, rank) for s, rank in ((ins, x.rank), (result, _rank(call))))
    if len(ins) != x.rank or len(result) != _rank(call):
        return call.opaque("has an equation that is not understood")
    labels = dict(zip(ins, x.axes, strict=True))
    for letter in ins:
        if letter not in weights and letter not in result:
            call.fix(labels[letter], "sums over them")
    kernel = kernel_of(layer)
    if len(set(weights)) != len(weights) or len(set(ins)) != len(ins):
        return call.opaque("has an equation with a letter twice")
    roles = {}
    for axis, letter in enumerate(weights):
        if letter not in ins:
            labels[letter] = call.new(kernel.shape[axis])
            roles[axis] = "out"
        elif letter not in result:
            roles[axis] = "in"
    call.weight(kernel, {i: labels[c] for i, c in enumerate(weights)}, roles)
    for axis, role in roles.items():
        if role == "in":
            call.reads(kernel, axis, labels[weights[axis]])
    if layer.bias is not None:
        rank, shape = len(layer.bias.shape), layer.bias.shape
        pairs = {
            axis: labels[letter]
            for axis, letter in enumerate(result[len(result) - rank :])
            if shape[axis] != 1
        }
        call.weight(layer.bias, pairs, dict.fromkeys(pairs, "out"))
    sizes = layer.get_config()["output_shape"]
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    for back in range(1, len(sizes) + 1):
        if sizes[-back] is not None:
            path = ("output_shape", len(sizes) - back)
            call.resize(path, labels[result[-back]])
    positions = [
        size
        for letter, size in zip(result, call.output_shapes[0], strict=True)
        if letter not in weights
    ]
    call.works(kernel, positions[1:])
    out = tuple(labels[letter] for letter in result)
    if not is_elementwise(layer.activation):
        for some in out:
            call.fix(some, "has an activation that mixes channels")
    return out


def _rank(call: ChannelCall) -> int:
    return len(call.output_shapes[0])


def _filled(letters: str, rank: int) -> str:
    """Return one side of an equation with marks in the place of an ellipsis."""
    if "..." not in letters:
        return letters
    count = rank - len(letters) + 3
    return letters.replace("...", "".join(chr(0x391 + i) for i in range(count)))


def convolution(call: ChannelCall) -> Axes:
    """Conv1D to Conv3D: kernel [positions ..., inputs of a group, filters]."""
    layer, x = call.layer, call.inputs[0]
    axis = channel_axis(layer, x.rank)
    ins, out, kernel = call.only(x, axis), call.new(layer.filters), kernel_of(layer)
    if layer.groups == 1:
        call.weight(kernel, {-2: ins, -1: out}, {-2: "in", -1: "out"})
        call.reads(
            kernel,
            len(kernel.shape) - 2,
            ins,
            bias=layer.bias,
            exact=layer.padding == "valid",
            tensor=x,
            tensor_axis=axis - x.rank,
        )
    else:
        _whole_groups(call, ins, out, layer.groups)
        call.weight(kernel, {-1: out}, {-1: "own"})
        call.resize("groups", out[:: len(out) // layer.groups])
    call.weight(layer.bias, {0: out}, {0: "out"})
    call.resize("filters", out)
    _spatial_work(call, kernel, axis)
    end(call, out)
    return replaced(x, axis, out)


def _whole_groups(call: ChannelCall, ins: Labels | None, out: Labels, groups: int) -> None:
    """Couple what a group of a convolution reads and makes: it goes as a whole."""
    if ins is None:
        call.fix(out, "has groups, whose inputs stay")
        return
    for mine, theirs in zip(ins.reshape(groups, -1), out.reshape(groups, -1), strict=True):
        call.couple_all(mine)
        call.couple_all(theirs)
        call.couple(mine[:1], theirs[:1])


def _spatial_work(call: ChannelCall, kernel: Any, axis: int) -> None:
    sizes = [size for i, size in enumerate(call.output_shapes[0]) if i not in (0, axis)]
    call.works(kernel, sizes)


def transposed(call: ChannelCall) -> Axes | list[Axes]:
    """Conv1DTranspose to Conv3DTranspose: kernel [positions ..., filters, inputs]."""
    layer, x = call.layer, call.inputs[0]
    if getattr(layer, "groups", 1) != 1:
        return call.opaque("is transposed and has groups")
    axis = channel_axis(layer, x.rank)
    ins, out, kernel = call.only(x, axis), call.new(layer.filters), kernel_of(layer)
    call.weight(kernel, {-1: ins, -2: out}, {-1: "in", -2: "out"})
    call.weight(layer.bias, {0: out}, {0: "out"})
    call.resize("filters", out)
    # How many entries of the kernel meet at an output differs from place to place.
    call.reads(kernel, len(kernel.shape) - 1, ins, tensor=x, tensor_axis=axis - x.rank)
    call.works(kernel, [size for i, size in enumerate(x.shape) if i not in (0, axis)])
    end(call, out)
    return replaced(x, axis, out)


def depthwise(call: ChannelCall) -> Axes:
    """DepthwiseConv1D, 2D: kernel [positions ..., channels, multiplier]."""
    layer, x = call.layer, call.inputs[0]
    axis, kernel = channel_axis(layer, x.rank), layer.kernel
    ins = call.only(x, axis)
    out = spread(ins, layer.depth_multiplier)
    call.weight(kernel, {-2: ins})
    call.weight(layer.bias, {0: out})
    call.constant = "all" if layer.padding == "valid" else "padded"
    _spatial_work(call, kernel, axis)
    end(call, out)
    return replaced(x, axis, out)


def separable(call: ChannelCall) -> Axes:
    """SeparableConv1D, 2D: a depthwise kernel and a pointwise one."""
    layer, x = call.layer, call.inputs[0]
    axis = channel_axis(layer, x.rank)
    ins, out = call.only(x, axis), call.new(layer.filters)
    between = spread(ins, layer.depth_multiplier)
    call.weight(layer.depthwise_kernel, {-2: ins})
    call.weight(layer.pointwise_kernel, {-2: between, -1: out}, {-2: "in", -1: "out"})
    call.weight(layer.bias, {0: out}, {0: "out"})
    call.resize("filters", out)
    call.reads(layer.pointwise_kernel, len(layer.pointwise_kernel.shape) - 2, between)
    for kernel in (layer.depthwise_kernel, layer.pointwise_kernel):
        _spatial_work(call, kernel, axis)
    end(call, out)
    return replaced(x, axis, out)


def embedding(call: ChannelCall) -> Axes:
    """Embedding: columns of the table are channels."""
    layer, x = call.layer, call.inputs[0]
    for labels in x.axes:
        call.fix(labels, "takes them for tokens")
    out = call.new(layer.output_dim)
    call.weight(host.embeddings_of(layer), {1: out}, {1: "out"})
    call.resize("output_dim", out)
    return (*(None for _ in x.shape), out)


RULES = {
    layers.Dense: dense,
    layers.EinsumDense: einsum_dense,
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), convolution),
    **dict.fromkeys(
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), transposed
    ),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), depthwise),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), separable),
    layers.Embedding: embedding,
}
