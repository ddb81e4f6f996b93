"""What the kernels of a recurrent layer multiply: its inputs and its states, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_ntt.pruning.post_training.walk import Arguments


def inputs_of_steps(layer: Any) -> Callable[[Arguments], np.ndarray]:
    """Return the function from the arguments of a call to the inputs of all steps.

    Args:
        layer: An LSTM, GRU or SimpleRNN.

    Returns:
        A function to ``[1, n, features]``; steps that a mask leaves out are left out.
    """

    def rows(given: Arguments) -> np.ndarray:
        x = np.asarray(given.first)
        return x[_steps(given, x.shape[:2])].reshape(1, -1, x.shape[-1])

    return rows


def states_of_steps(layer: Any) -> Callable[[Arguments], np.ndarray]:
    """Return the function from the arguments of a call to the states before all steps.

    The layer is run with the values that its variables have then.

    Args:
        layer: An LSTM, GRU or SimpleRNN.

    Returns:
        A function to ``[1, n, units]``.
    """

    def rows(given: Arguments) -> np.ndarray:
        sequences, state = layer.return_sequences, layer.return_state
        try:
            layer.return_sequences, layer.return_state = True, False
            kwargs = dict(given.kwargs)
            if given.mask is not None:
                kwargs["mask"] = given.mask
            after = np.asarray(layer.call(*given.args, **kwargs))
        finally:
            layer.return_sequences, layer.return_state = sequences, state
        first = given.kwargs.get("initial_state")
        if first is None and len(given.args) > 1:
            first = given.args[1]
        start = np.zeros_like(after[:, 0])
        if first is not None:
            start = np.broadcast_to(np.asarray(keras.tree.flatten(first)[0]), start.shape)
        before = np.concatenate([start[:, None], after[:, :-1]], axis=1)
        kept = _steps(given, after.shape[:2])
        if layer.go_backwards:
            kept = kept[:, ::-1]
        return before[kept].reshape(1, -1, after.shape[-1])

    return rows


def _steps(given: Arguments, shape: tuple[int, int]) -> np.ndarray:
    mask = given.mask
    return np.ones(shape, bool) if mask is None else np.asarray(mask, bool).reshape(shape)
