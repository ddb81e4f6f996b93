"""The policy that prunes for XNNPACK's sparse inference, for Keras 3 graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import layers

from keras_ntt.core import checks, host
from keras_ntt.core.network import Call, Network, unroll
from keras_ntt.masks.policies import PruningPolicy

_LAYERS = (
    layers.Add,
    layers.Multiply,
    layers.ZeroPadding2D,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    # Layers that return their inputs in inference mode.
    layers.Identity,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
)
_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "elu", "sigmoid", "silu", "hard_silu", "gelu")
# The classes behind keras.ops.add, `a + b` and so on.
_OPERATIONS = (
    "Identity",
    "Add",
    "Subtract",
    "Multiply",
    "Relu",
    "Relu6",
    "LeakyRelu",
    "Elu",
    "Sigmoid",
    "Silu",
    "HardSilu",
    "Gelu",
)


class PruneForLatencyOnXNNPack(PruningPolicy):
    """Prune the 1x1 convolutions of a model that XNNPACK can run sparse.

    XNNPACK can run a part of a network sparsely and so speed up its 1x1 convolutions (Elsen,
    Dukhan, Gale & Simonyan, "Fast Sparse ConvNets", 2020). The part begins with a 3x3 convolution
    of an image (three channels, stride 2, ``padding="valid"`` after ``ZeroPadding2D(1)``) and ends
    in `GlobalAveragePooling2D`. Between them only certain layers are allowed: 1x1 convolutions,
    depthwise convolutions of 3x3 and 5x5, additions, multiplications and some activations. The
    rules are those of tensorflow-model-optimization. SiLU, hard SiLU and GELU are accepted as well,
    and the ``activation=`` of convolutions is checked. `keras_ntt.explain_edge_latency` analyses
    the converted graph itself.

    Nested Sequential and functional models are included.
    """

    def allow_pruning(self, layer: keras.layers.Layer) -> bool:
        """Return whether `layer` is a 1x1 `Conv2D`."""
        return isinstance(layer, layers.Conv2D) and tuple(layer.kernel_size) == (1, 1)

    def ensure_model_supports_pruning(self, model: keras.Model) -> None:
        """Raise unless XNNPACK can run the model sparsely between its first and last layers.

        Args:
            model: A built Sequential or functional model.

        Raises:
            TypeError: If it is not a Keras 3 model.
            ValueError: If it is not built, has a custom `call()`, or has a part that is not in
                these rules; the message says which.
        """
        checks.check_built(model)
        if host.functional_of(model) is None:
            raise ValueError(
                "PruneForLatencyOnXNNPack looks at the layers of a graph, and this model has a "
                "custom call(). Make it with the functional API or as a Sequential model. "
                f"Received: {model.name!r} of class {type(model).__name__}"
            )
        graph = _Graph(unroll(model))
        starts = graph.search(graph.readers(graph.network.inputs), graph.is_start, graph.after)
        if not starts:
            raise ValueError(
                "XNNPACK's sparse inference begins with a 3x3 Conv2D of three channels with "
                "strides=2 and padding='valid', after ZeroPadding2D(1). Begin every branch of the "
                f"model so. Received: {model.name!r}, which does not"
            )
        ends = graph.search(graph.writers(graph.network.outputs), _is_end, graph.before)
        if not ends:
            raise ValueError(
                "XNNPACK's sparse inference ends in GlobalAveragePooling2D. End every branch of "
                f"the model so, and do the rest behind it. Received: {model.name!r}, which does not"
            )
        for start in starts:
            if not _is_activation_supported(start.operation):
                raise _refusal(start.operation)
        ended = set(map(id, ends))

        def visit(call: Call) -> bool:
            if id(call) in ended:
                return True
            if not graph.is_supported(call):
                raise _refusal(call.operation)
            return False

        graph.search([c for start in starts for c in graph.after(start)], visit, graph.after)


class _Graph:
    """The calls of a model and their order."""

    def __init__(self, network: Network):
        self.network = network

    def readers(self, slots: Sequence[int]) -> list[Call]:
        """Return the calls that read one of the slots."""
        return [call for call in self.network.calls if set(call.inputs) & set(slots)]

    def writers(self, slots: Sequence[int]) -> list[Call]:
        """Return the calls that write one of the slots."""
        return [call for call in self.network.calls if set(call.outputs) & set(slots)]

    def after(self, call: Call) -> list[Call]:
        """Return the calls that read what a call writes."""
        return self.readers(call.outputs)

    def before(self, call: Call) -> list[Call]:
        """Return the calls that write what a call reads."""
        return self.writers(call.inputs)

    def search(
        self,
        first: Iterable[Call],
        stop: Callable[[Call], bool],
        then: Callable[[Call], list[Call]],
    ) -> list[Call]:
        """Return the calls at which all paths from the first ones stop; none if one does not."""
        waiting, seen, found = list(first), set(), []
        while waiting:
            call = waiting.pop()
            if id(call) in seen:
                continue
            seen.add(id(call))
            if stop(call):
                found.append(call)
                continue
            following = then(call)
            if not following:
                return []
            waiting.extend(following)
        return found

    def is_start(self, call: Call) -> bool:
        """Tell whether sparse inference can begin with a call."""
        layer = call.operation
        return (
            isinstance(layer, layers.Conv2D)
            and tuple(layer.kernel.shape[:3]) == (3, 3, 3)
            and tuple(layer.strides) == (2, 2)
            and layer.padding == "valid"
            and self._padding_before(call) == 1
        )

    def is_supported(self, call: Call) -> bool:
        """Tell whether sparse inference can run a call."""
        layer = call.operation
        if isinstance(layer, _LAYERS):
            return True
        if isinstance(layer, layers.DepthwiseConv2D):
            return _is_activation_supported(layer) and self._is_supported_depthwise(call)
        if isinstance(layer, layers.Conv2D):
            sizes = (layer.kernel_size, layer.strides, layer.dilation_rate)
            pointwise = layer.groups == 1 and all(tuple(size) == (1, 1) for size in sizes)
            return pointwise and _is_activation_supported(layer)
        if isinstance(layer, layers.GlobalAveragePooling2D):
            return layer.keepdims
        if isinstance(layer, layers.BatchNormalization):
            return layer.axis in (-1, 3)
        if isinstance(layer, layers.UpSampling2D):
            return layer.interpolation == "bilinear"
        if isinstance(layer, layers.Activation):
            return _is_activation_supported(layer)
        of_keras = host.is_of_keras(layer, "ops")
        return of_keras and type(layer).__name__ in _OPERATIONS

    def _is_supported_depthwise(self, call: Call) -> bool:
        layer = call.operation
        size, strides = tuple(layer.kernel_size), tuple(layer.strides)
        if layer.depth_multiplier != 1 or tuple(layer.dilation_rate) != (1, 1):
            return False
        if size not in ((3, 3), (5, 5)):
            return False
        if layer.padding == "same":
            return strides == (1, 1)
        padded = self._padding_before(call) == size[0] // 2
        return strides in ((1, 1), (2, 2)) and layer.padding == "valid" and padded

    def _padding_before(self, call: Call) -> int:
        """Return by how much `ZeroPadding2D` pads the input of a call on each side, or 0."""
        calls = self.before(call)
        if len(calls) != 1 or not isinstance(calls[0].operation, layers.ZeroPadding2D):
            return 0
        sides = {side for axis in calls[0].operation.padding for side in axis}
        return sides.pop() if len(sides) == 1 else 0


def _is_activation_supported(layer: Any) -> bool:
    return getattr(layer.activation, "__name__", "") in ("linear", *_ACTIVATIONS)


def _refusal(operation: Any) -> ValueError:
    name = getattr(operation, "name", operation)
    activation = getattr(getattr(operation, "activation", None), "__name__", "linear")
    with_activation = "" if activation == "linear" else f" with activation {activation!r}"
    return ValueError(
        "PruneForLatencyOnXNNPack does not take this layer, in this form, between the first "
        "convolution and GlobalAveragePooling2D. keras_ntt.explain_edge_latency(model) says what "
        f"XNNPACK does with the model as it is. Received: {name!r} of class "
        f"{type(operation).__name__}{with_activation}"
    )


def _is_end(call: Any) -> bool:
    return isinstance(call.operation, layers.GlobalAveragePooling2D)
