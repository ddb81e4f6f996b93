"""How much memory a tangent kernel needs at the least, before it is computed.

The numbers are bounds from below, of tensors that are there at the same time whatever the layers
are: nothing is refused that would have fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_ntt.core import memory

_FLOAT = 4


def kernel_memory(samples: tuple[int, int], outputs: int, *, trace: bool) -> int:
    """Return the bytes of a kernel and, of a full one, of its entries in their last order.

    Args:
        samples: The numbers of samples n1 and n2.
        outputs: The number of outputs, or of their combinations, c.
        trace: Whether it is ``[n1, n2]``, or else ``[n1 * c, n2 * c]`` and then ``[n1, n2, c, c]``.

    >>> kernel_memory((10, 20), 3, trace=True), kernel_memory((10, 20), 3, trace=False)
    (800, 14400)
    """
    pairs = samples[0] * samples[1]
    if trace:
        return _FLOAT * pairs
    moved = samples[1] > 1 and outputs > 1  # or else the order is the same
    return _FLOAT * pairs * outputs**2 * (1 + moved)


def derivatives_memory(
    samples: int, outputs: int, directions: int | None, weights: int | None, itemsize: int = _FLOAT
) -> int:
    """Return the bytes of the derivatives of a batch that are there at one time.

    Args:
        samples: The number of samples n.
        outputs: The number of outputs c.
        directions: The number k of combinations of outputs, or None for the outputs themselves.
        weights: The number of weights if each output of each sample has its own gradient; None for
            derivatives that go backwards together, which begin as ``[n * c, c]``.
        itemsize: Bytes of a number in the outputs, at most four.
    """
    rows = samples * (outputs if directions is None else directions)
    if weights is None:
        return min(itemsize, _FLOAT) * rows * outputs
    return 2 * _FLOAT * rows * weights  # row by row, and all of them together


def samples_of(x: Any) -> int | None:
    """Return the number of samples of a batch; None if it is not known yet."""
    shape = keras.tree.flatten(x)[0].shape
    return None if not len(shape) or shape[0] is None else int(shape[0])


def check_memory(needed: int, advice: str, received: Callable[[], str]) -> None:
    """Raise a ValueError if there is less memory than something needs at the least.

    Args:
        needed: The bytes.
        advice: What to do.
        received: Returns what was received.

    Raises:
        ValueError: If there is less.
    """
    if needed < 2**27 or tf.config.list_logical_devices("GPU"):  # a GPU has its own memory
        return
    there = memory.available(swap=True)
    if there is not None and needed > there:
        raise ValueError(
            f"The tangent kernel needs at least {memory.written(needed)}, and there are "
            f"{memory.written(there)} of memory left. {advice} Received: {received()}"
        )
