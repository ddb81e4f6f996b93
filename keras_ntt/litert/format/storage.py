"""Choose how each weight is stored, and say why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from keras_ntt.litert.format import encoding
from keras_ntt.litert.format.cost import Cost
from keras_ntt.litert.format.encoding import Layout
from keras_ntt.litert.format.weights import LSTM, Weight

# Bytes of tables, names and operators that a storage adds to its data.
_OVERHEAD = {"dense": 0, "densify": 330, "direct": 170, "dequantize": 200}
DEAD = 2.0**-24  # half a unit in the last place of a float32 number
_MIN_QUANTIZED = 1024  # smaller weights stay float, as the converter keeps them

# Sparsity from which the sparse fully-connected kernel beats the dense one at batch 1. A
# non-zero costs about 0.7 ns; a dense weight 0.04 ns where weights stay in the cache of a core,
# 0.07 ns beyond it with 512-bit vectors, 0.175 ns with 128-bit ones.
_CACHED_BYTES = 2**20
_BREAK_EVEN = {"x86": (0.95, 0.92), "arm": (0.80, 0.80)}
CPUS = ("any", *_BREAK_EVEN)


@dataclass(frozen=True)
class Choice:
    """How a weight is stored.

    Attributes:
        storage: ``"dense"``, ``"densify"`` (sparse, unpacked when the file is loaded) or
            ``"direct"`` (sparse, used without unpacking).
        dtype: Type of the stored values: ``"float32"``, ``"float16"`` or ``"int8"``.
        layout: The sparse layout, or None.
        size: Bytes of the stored data.
        reason: Why, in words.
    """

    storage: str
    dtype: str
    layout: Layout | None
    size: int
    reason: str

    @property
    def total(self) -> int:
        """Bytes including the tables of the storage."""
        return self.size + _OVERHEAD[self.storage] + _OVERHEAD["dequantize"] * (self.is_packed)

    @property
    def is_packed(self) -> bool:
        """Whether floats are stored as integers."""
        return self.dtype == "int8"


def quantize(array: np.ndarray, axis: int, *, mixed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Round weights to int8 with one scale per output channel, symmetric about zero.

    Args:
        array: Float weights.
        axis: The axis of output channels.
        mixed: Whether channels are summed with each other afterwards. Then one whose weights are
            all below `DEAD` times the largest of the tensor becomes zeros: its own scale would blow
            up what training has left there to integers of up to 127.

    Returns:
        The integers in [-127, 127], and the float32 scales.

    >>> quantize(np.array([[1.0, -0.5], [0.0, 0.0]], "float32"), 0)[0].tolist()
    [[126, -63], [0, 0]]
    """
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest = np.abs(array.astype(np.float32)).max(axis=others, keepdims=True)
    if mixed:
        top = largest.max(initial=0)
        largest = np.where(largest < np.float32(DEAD) * top, top, largest)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    # The smallest scale whose reciprocal is finite: denormal channels round to zero.
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    scales = _shortened(scales)
    rounded = np.clip(np.rint(array / scales), -127, 127).astype(np.int8)
    return rounded, scales.ravel()


def _shortened(scales: np.ndarray) -> np.ndarray:
    """Round scales up to half as many bytes, by at most 0.8 %, so that they compress."""
    bits = scales.view(np.uint32).astype(np.uint64)
    return ((bits + 0xFFFF) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def dequantize(rounded: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """Return the floats for the integers of `quantize`."""
    shape = [1] * rounded.ndim
    shape[axis] = -1
    return rounded.astype(np.float32) * scales.reshape(shape)


def break_even(weight: Weight, cpu: str) -> float:
    """Return the sparsity from which a sparse fully-connected kernel pays at batch 1.

    Args:
        weight: The weight.
        cpu: ``"x86"``, ``"arm"`` or ``"any"``, which takes the strictest.

    Returns:
        The fraction of zeros.
    """
    large = weight.array.size * 4 > _CACHED_BYTES
    kinds = _BREAK_EVEN if cpu == "any" else (cpu,)
    return max(_BREAK_EVEN[kind][large] for kind in kinds)


def smallest(weight: Weight, *, int8: bool, densify: bool) -> Choice:
    """Choose the storage of the fewest bytes.

    Fully-connected weights with at least 90 % zeros are used without unpacking if this costs at
    most 2 % more bytes than the smallest form with unpacking: it saves the memory of the dense
    weight.

    Args:
        weight: The weight.
        int8: Whether values may be rounded to int8.
        densify: Whether DENSIFY may be used in this file.

    Returns:
        The choice.
    """
    candidates = list(_candidates(weight, int8, densify))
    best = min(candidates, key=lambda c: c.total)
    direct = [c for c in candidates if c.storage == "direct"]
    if direct and sparsity(weight) >= 0.9 and direct[0].total <= 1.02 * best.total:
        return direct[0]
    if best.storage == "direct" and densify:
        # Below 90 % zeros the direct kernel would be slower than the dense one.
        return min((c for c in candidates if c.storage != "direct"), key=lambda c: c.total)
    return best


def _candidates(weight: Weight, int8: bool, densify: bool) -> Iterator[Choice]:
    array, dtype = weight.array, weight.array.dtype.name
    zeros = f"{sparsity(weight):.1%} zeros"
    if densify and not weight.may_be_unpacked:
        yield dense(weight, "XNNPACK does not compute this operator from unpacked float16")
        return
    yield dense(weight, f"sparse is not smaller at {zeros}" if densify else "no DENSIFY here")
    cost = Cost(array)
    if densify:
        yield _unpacked(cost, dtype, array)
    if weight.may_be_direct and array.ndim == 2:
        yield direct(weight)
    # The converter rounds no tables, and a row, which is read alone, would need its own scale.
    # XNNPACK unpacks int8 with a scale per channel correctly only for operators that it computes.
    may_round = not (weight.half or weight.is_table or LSTM in weight.operators)
    if int8 and may_round and array.size >= _MIN_QUANTIZED:
        rounded, scales = quantize(array, weight.axis, mixed=weight.mixed)
        parameters = 12 * len(scales)
        reason = "int8 for each weight is the smallest"
        yield Choice("dense", "int8", None, array.size + parameters, reason)
        # XNNPACK computes transposed convolutions wrongly with unpacked int8.
        if densify and "TRANSPOSE_CONV" not in weight.operators:
            choice = _unpacked(Cost(rounded), "int8", rounded)
            yield Choice("densify", "int8", choice.layout, choice.size + parameters, choice.reason)


def _unpacked(cost: Cost, dtype: str, array: np.ndarray) -> Choice:
    layout, size = cost.best(array.dtype.itemsize)
    return Choice("densify", dtype, layout, size, "the smallest; unpacked when loaded")


def dense(weight: Weight, reason: str) -> Choice:
    """Return the choice not to change a weight."""
    return Choice("dense", weight.array.dtype.name, None, weight.array.nbytes, reason)


def direct(weight: Weight) -> Choice:
    """Return the choice to compute with compressed rows."""
    size = Cost(weight.array).of(encoding.ROWS, 4)
    reason = f"sparse kernel at {sparsity(weight):.1%} zeros, no dense copy in memory"
    return Choice("direct", "float32", encoding.ROWS, size, reason)


def densified(weight: Weight, *, int8: bool, reason: str) -> Choice:
    """Return the smallest choice that DENSIFY unpacks, whatever the dense size."""
    candidates = [c for c in _candidates(weight, int8, True) if c.storage == "densify"]
    return replace(min(candidates, key=lambda c: c.total), reason=reason)


def fastest(weight: Weight, *, cpu: str, sparse_inference: bool, int8: bool) -> Choice:
    """Choose the storage that is fastest at batch size 1.

    Args:
        weight: The weight.
        cpu: As in `break_even`.
        sparse_inference: Whether XNNPACK computes this weight's operator sparsely where it can.
        int8: Whether values may be rounded to int8 where they are unpacked.

    Returns:
        The choice.
    """
    if sparse_inference:
        return densified(weight, int8=int8, reason="XNNPACK's sparse inference, except x86 AVX")
    if weight.may_be_direct and weight.array.ndim == 2:
        wanted = break_even(weight, cpu)
        if sparsity(weight) >= wanted:
            return direct(weight)
        return dense(
            weight, f"the dense kernel is faster below {wanted:.0%} zeros ({sparsity(weight):.1%})"
        )
    if weight.operators == ("FULLY_CONNECTED",):
        return dense(weight, "the sparse kernel takes float32 only")
    if weight.is_pointwise:
        return dense(weight, "sparse inference does not run in this graph")
    return dense(weight, "no sparse kernel for this operator")


def sparsity(weight: Weight) -> float:
    """Return the fraction of zeros of a weight."""
    return 1 - np.count_nonzero(weight.array) / weight.array.size
