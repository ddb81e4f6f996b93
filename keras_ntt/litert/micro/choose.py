"""Choose the form of each constant in a file for microcontrollers: the fewest bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import WEIGHT_AXIS
from keras_ntt.litert.inspect import StoredWeight
from keras_ntt.litert.micro.decode import PRUNING_TYPES, Encoded, compress, prune
from keras_ntt.litert.micro.graph import Key, channels_of

_OVERHEAD = 160  # bytes of tables that an encoded weight adds: two tensors, an operator
_LISTED = 64  # constants from this size on are in the table

# Operators whose kernels need a constant while they prepare.
_RECURRENT = ("UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM", "SVDF", "UNIDIRECTIONAL_SEQUENCE_RNN", "RNN")


@dataclass(frozen=True)
class Constant:
    """A constant of a model, and its chosen form.

    Attributes:
        key: Graph and tensor.
        name: Its name.
        operators: Names of the operators that read it.
        array: Its values.
        encoded: Its encoded form, or None if it is not changed.
        reason: The reason.
    """

    key: Key
    name: str
    operators: tuple[str, ...]
    array: np.ndarray
    encoded: Encoded | None
    reason: str

    def row(self) -> StoredWeight:
        """Return the row of the report."""
        storage = "dense" if self.encoded is None else self.encoded.method
        return StoredWeight(
            self.name.split(";")[0],
            self.array.shape,
            "+".join(self.operators),
            int(np.count_nonzero(self.array)),
            storage,
            self.array.dtype.name,
            "",
            self.array.nbytes if self.encoded is None else self.encoded.size,
            self.reason,
        )


def constants_of(model: Any, *, huffman: bool) -> list[Constant]:
    """Choose a form for each constant of a model.

    Only weights that convolutions and fully-connected operators read are encoded: their kernels
    read weights when they run, on all targets. A weight that shares its bytes with another constant
    is encoded only if the other one is as well.

    Args:
        model: A ``ModelT`` whose weights are stored densely.
        huffman: Whether HUFFMAN may be used. Unpacking then takes about 3 times as long.

    Returns:
        The constants of 64 bytes or more, in the order of their tensors.
    """
    found = list(_judged(model, huffman))
    buffers: dict[bytes, list[bool]] = {}
    for constant in found:
        content = constant.array.tobytes()
        buffers.setdefault(content, []).append(constant.encoded is not None)
    mixed = {content for content, encoded in buffers.items() if any(encoded) and not all(encoded)}
    return [
        Constant(c.key, c.name, c.operators, c.array, None, "another constant has the same bytes")
        if c.encoded is not None and c.array.tobytes() in mixed
        else c
        for c in found
    ]


def _judged(model: Any, huffman: bool) -> Iterator[Constant]:
    for number, subgraph in enumerate(model.subgraphs):
        uses = fb.uses(subgraph)
        outputs = {int(i) for i in subgraph.outputs}
        for index, tensor in enumerate(subgraph.tensors):
            array, places = fb.constant(model, tensor), uses.get(index, [])
            if array is None or not places or array.nbytes < _LISTED:
                continue
            names = tuple(sorted({fb.operator_name(model, use.operator) for use in places}))
            no = "it is an output of the graph" if index in outputs else ""
            no = no or refusal(model, places, tensor, array)
            encoded, reason = (None, no) if no else smallest(tensor, array, huffman=huffman)
            yield Constant((number, index), fb.name_of(tensor), names, array, encoded, reason)


def refusal(model: Any, places: list[fb.Use], tensor: Any, array: np.ndarray) -> str:
    """Return why a constant cannot be encoded; empty if it can.

    Args:
        model: A ``ModelT``.
        places: Where it is read.
        tensor: Its tensor.
        array: Its values.

    Returns:
        The reason.
    """
    for use in places:
        name = fb.operator_name(model, use.operator)
        if name in _RECURRENT:
            return f"{name} needs constant weights while it prepares (CMSIS-NN)"
        if name not in WEIGHT_AXIS or use.position != 1:
            return "not a weight"
        if getattr(use.operator.builtinOptions, "weightsFormat", 0):
            return "its values are shuffled"
    if array.dtype.name not in PRUNING_TYPES:
        return f"DECODE does not unpack {array.dtype.name}"
    channels = channels_of(tensor)
    if any(channels.zero_points) and (len(channels.zero_points) > 1 or array.dtype != np.int8):
        return "its zero points are not 0"
    if len(channels.zero_points) > 1 and channels.axis not in (0, array.ndim - 1):
        return f"its scales lie along axis {channels.axis}"
    return ""


def smallest(tensor: Any, array: np.ndarray, *, huffman: bool) -> tuple[Encoded | None, str]:
    """Return the smallest form of a weight, and why.

    Args:
        tensor: Its tensor, for the zero points.
        array: Its values.
        huffman: Whether HUFFMAN may be used.

    Returns:
        The form, None if it is not smaller than the weight itself, and the reason.
    """
    forms = [prune(array, channels_of(tensor))]
    if huffman and array.dtype.name in ("int8", "int16"):
        forms.append(compress(array))
    best = min(forms, key=lambda form: form.size)
    zeros = np.mean(array == (channels_of(tensor).zero_points or (0,))[0])
    if best.size + _OVERHEAD >= array.nbytes:
        return None, f"{best.method.upper()} is not smaller at {zeros:.0%} zeros"
    return best, "the smallest" if len(forms) > 1 else f"{zeros:.0%} zeros"
