"""Encode weights so that the arena stays within a limit: leave some dense, cut others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from keras_ntt.litert.micro import arena, cut, graph, slim
from keras_ntt.litert.micro.arena import Plan
from keras_ntt.litert.micro.choose import Constant, constants_of
from keras_ntt.litert.micro.graph import Key


class Packed(NamedTuple):
    """A model with encoded weights.

    Attributes:
        model: The ``ModelT``.
        constants: Its constants, with the form of each.
        plan: Its memory.
    """

    model: Any
    constants: tuple[Constant, ...]
    plan: Plan


class ArenaLimitError(ValueError):
    """No form of a model keeps its arena within a limit.

    Attributes:
        smallest: The form with the smallest computed arena.
    """

    def __init__(self, limit: int | str, bytes_needed: int, smallest: Packed) -> None:
        super().__init__(
            f"No form of this model fits the arena: the smallest takes {bytes_needed:,} bytes, as "
            "counted on a 64-bit host. Allow as many, make the activations smaller, or leave the "
            f"limit out. Received: arena_limit={limit!r}"
        )
        self.smallest = smallest


def pack(
    model: Any,
    *,
    huffman: bool = False,
    npu: bool = False,
    pieces: Mapping[Key, int] | None = None,
    dense: frozenset[Key] = frozenset(),
) -> Packed:
    """Return a model for a microcontroller: slim, its weights encoded where that is smaller.

    Args:
        model: A ``ModelT`` with dense weights. It is not changed.
        huffman: Whether HUFFMAN may be used.
        npu: Whether the file is for the compiler of an NPU: weights stay dense, and biases keep
            their scales.
        pieces: The number of pieces of the layers of a weight.
        dense: Weights that are not encoded.

    Returns:
        The new model.
    """
    base = cut.cut(model, pieces or {})  # this only adds tensors, so keys do not change
    found = []
    for constant in constants_of(base, huffman=huffman):
        if constant.encoded is not None and (npu or constant.key in dense):
            reason = "the compiler of the NPU packs it" if npu else "the limit of the arena"
            constant = Constant(
                constant.key, constant.name, constant.operators, constant.array, None, reason
            )
        found.append(constant)
    encoded = {c.key: c.encoded for c in found if c.encoded is not None}
    result = slim.slim(graph.insert(base, encoded), micro=not npu)
    return Packed(result, tuple(found), arena.plan(result))


def within(model: Any, limit: int | str, *, huffman: bool = False) -> Packed:
    """Return the smallest file whose arena stays within a limit.

    Each unpacked weight needs its bytes while its layer runs. A threshold on that sum determines
    which layers stay whole, into how many pieces others are cut, and which stay dense. The largest
    threshold that keeps the limit is used. The memory is that of the planner, not of the sums.

    Args:
        model: A ``ModelT`` with dense weights. It is not changed.
        limit: Bytes of the whole arena, or ``"dense"``: no higher peak of activations and unpacked
            weights than the dense model has.
        huffman: Whether HUFFMAN may be used.

    Returns:
        The new model.

    Raises:
        ArenaLimitError: If there is no such file.
    """
    whole = pack(model, huffman=huffman)
    dense_peak = arena.plan(slim.slim(model, micro=True)).head
    bound = dense_peak if limit == "dense" else int(limit)

    def size(packed: Packed) -> int:
        return packed.plan.head if limit == "dense" else packed.plan.total

    if size(whole) <= bound:
        return whole
    needs = _needs(model, whole)
    thresholds = sorted({need for choices in needs.values() for need in choices.values()} | {0})
    tried: dict[int, Packed] = {}

    def at(place: int) -> Packed:
        if place not in tried:
            pieces, dense = _decided(needs, thresholds[place])
            tried[place] = pack(model, huffman=huffman, pieces=pieces, dense=dense)
        return tried[place]

    low, high = -1, len(thresholds)
    while high - low > 1:
        middle = (low + high) // 2
        if size(at(middle)) <= bound:
            low = middle
        else:
            high = middle
    if low >= 0:
        return at(low)
    found = [at(place) for place in range(len(thresholds))]
    fitting = [packed for packed in found if size(packed) <= bound]
    if fitting:
        return fitting[-1]
    smallest = min(found, key=size)
    raise ArenaLimitError(limit, size(smallest), smallest)


def _needs(model: Any, whole: Packed) -> dict[Key, dict[int, int]]:
    """Return the memory while a weight's layers run, by weight and number of pieces."""
    needs: dict[Key, dict[int, int]] = {}
    for constant in whole.constants:
        if constant.encoded is None:
            continue
        number, index = constant.key
        subgraph = model.subgraphs[number]
        buffers = arena.buffers_of(model, subgraph)
        live = outputs = 0
        for scope, operator in enumerate(subgraph.operators, 1):
            if index in map(int, operator.inputs):
                alive = sum(b.size for b in buffers if b.first <= scope <= b.last)
                live = max(live, alive)
                output = subgraph.tensors[int(operator.outputs[0])]
                outputs = max(outputs, arena.bytes_of(output))
        choices = {1: live + constant.array.nbytes}
        if cut.may_be_cut(model, constant.key):
            channels = constant.array.shape[0]
            for count in range(2, min(cut.MOST, channels) + 1):
                parts = cut.bounds(channels, count)
                largest = max(end - start for start, end in parts)
                taken = live + outputs + largest * constant.array[:1].nbytes
                if taken < min(choices.values()):
                    choices[count] = taken
        needs[constant.key] = choices
    return needs


def _decided(
    needs: Mapping[Key, Mapping[int, int]], threshold: int
) -> tuple[dict[Key, int], frozenset[Key]]:
    """Return the fewest pieces that keep each weight within a threshold, and the dense weights."""
    pieces, dense = {}, set()
    for key, choices in needs.items():
        fitting = [count for count, need in choices.items() if need <= threshold]
        if fitting:
            pieces[key] = min(fitting)
        else:
            dense.add(key)
    return pieces, frozenset(dense)
