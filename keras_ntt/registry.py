"""Which weights magnitude pruning may touch: tfmot's list, by Keras 3 layers."""

from __future__ import annotations

import keras
from keras import layers

from keras_ntt.policies import prunable_weights

# What Neural Tangent Transfer leaves alone and tfmot prunes.
_LAYERS: dict[type, tuple[str, ...]] = {
    layers.SeparableConv1D: ("pointwise_kernel",),
    layers.SeparableConv2D: ("pointwise_kernel",),
    layers.Embedding: ("_embeddings",),
}
_CELLS: dict[type, tuple[str, ...]] = dict.fromkeys(
    (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell), ("kernel", "recurrent_kernel")
)


def weights_by_magnitude(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the weights of one layer that pruning by magnitude may touch.

    Those of `keras_ntt.policies.prunable_weights`, and besides the kernels and recurrent kernels
    of LSTM, GRU and SimpleRNN, the pointwise kernels of separable convolutions and the tables of
    Embedding; never biases, depthwise kernels or the scales of normalisations. A recurrent layer
    answers for its cells, so that filters and policies are asked about the layer.

    Args:
        layer: A built layer.

    Returns:
        Trainable variables of the layer and, of a recurrent one, of its cells.

    >>> layer = keras.layers.LSTM(2)
    >>> layer.build((None, None, 3))
    >>> [v.name for v in weights_by_magnitude(layer)]
    ['kernel', 'recurrent_kernel']
    """
    found = prunable_weights(layer)
    if found or hasattr(layer, "get_prunable_weights"):
        return found
    if isinstance(layer, layers.RNN):
        cells = getattr(layer.cell, "cells", [layer.cell])
        return [v for cell in cells for v in _listed(cell, _CELLS)]
    return _listed(layer, _LAYERS)


def _listed(
    layer: keras.layers.Layer, names_of: dict[type, tuple[str, ...]]
) -> list[keras.Variable]:
    if hasattr(layer, "get_prunable_weights"):
        chosen = list(layer.get_prunable_weights())
    else:
        found = (names for cls, names in names_of.items() if isinstance(layer, cls))
        chosen = [getattr(layer, name) for name in next(found, ())]
    return [v for v in chosen if v.trainable]
