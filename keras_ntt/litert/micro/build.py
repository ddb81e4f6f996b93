"""Build a file for a microcontroller from a dense file, and compare both bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.inspect import StoredWeight
from keras_ntt.litert.micro import arena, fit, verify
from keras_ntt.litert.micro.report import (
    CODE_SIZE,
    MicroReport,
    decoded_weights,
    products,
    resolver_calls,
)
from keras_ntt.litert.micro.slim import slim
from keras_ntt.litert.runtime import micro as runtime
from keras_ntt.litert.runtime import vela
from keras_ntt.litert.runtime.run import ExportError
from keras_ntt.litert.runtimes import MICRO, runtimes_of

_TRIES = 4  # attempts to stay below a limit, as measured with the interpreter


@dataclass(frozen=True)
class Built:
    """A file for a microcontroller.

    Attributes:
        content: Its bytes.
        tensors: How each constant is stored, and why.
        report: The figures for a firmware.
    """

    content: bytes
    tensors: tuple[StoredWeight, ...]
    report: MicroReport


def build(
    model: Any,
    dense_size: int,
    inputs: Sequence[np.ndarray],
    *,
    huffman: bool = False,
    arena_limit: int | str | None = None,
    npu: str | None = None,
) -> Built:
    """Make a file for a microcontroller.

    Args:
        model: The ``ModelT`` of the dense file. It is not changed.
        dense_size: Bytes of the dense file.
        inputs: The inputs to run both files on, ``[samples, ...]`` per input, in the file's types,
            each with the file's own axis of the batch.
        huffman: Whether HUFFMAN may be used.
        arena_limit: Bytes of memory, ``"dense"``, or None.
        npu: The NPU for whose compiler the file is, which then stays dense; or None.

    Returns:
        The file.

    Raises:
        ArenaLimitError: If no form of it stays within the limit.
        ExportError: If TensorFlow Lite Micro does not run it, or its outputs are wrong.
    """
    refusal = runtimes_of(model)[MICRO]
    if refusal != "yes":
        raise ExportError(
            "TensorFlow Lite Micro does not take this file in any form. Export the model again "
            f"with target='micro'. Received: {refusal}"
        )
    dense = fb.write(slim(model, micro=True))
    installed = runtime.is_installed()
    twin = _run(model, dense, inputs) if installed else None

    def measured(packed: fit.Packed) -> int:
        content = fb.write(packed.model)
        verify.check_same(model, content)
        return packed.plan.total if twin is None else _compare(model, content, inputs, twin[0])

    if isinstance(arena_limit, int):
        packed, needed = _within(model, arena_limit, huffman, measured)
    else:
        if arena_limit is None:
            packed = fit.pack(model, huffman=huffman, npu=npu is not None)
        else:
            packed = fit.within(model, arena_limit, huffman=huffman)
        needed = measured(packed)
    content = fb.write(packed.model)
    constants = verify.check_same(model, content)
    plan = arena.plan(slim(model, micro=True))
    decoded = decoded_weights(packed.model)
    report = MicroReport(
        size=len(content),
        slim_size=len(dense),
        dense_size=dense_size,
        code_size=CODE_SIZE if decoded else 0,
        arena=needed,
        peak=packed.plan.head,
        dense_arena=plan.total if twin is None else twin[1],
        dense_peak=plan.head,
        measured=twin is not None,
        decoded=decoded,
        products=products(model),
        resolver=resolver_calls(packed.model),
        constants=constants,
        runs=0 if twin is None or not inputs else len(inputs[0]),
        npu=None if npu is None else vela.compiled(content),
    )
    return Built(content, tuple(c.row() for c in packed.constants), report)


def _within(
    model: Any, arena_limit: int, huffman: bool, measured: Callable[[fit.Packed], int]
) -> tuple[fit.Packed, int]:
    """Return the smallest form within a limit, and its measured arena.

    The interpreter may need more than the computed size: then the limit for the computed size is
    reduced.
    """
    limit, is_smallest = arena_limit, False
    for _ in range(_TRIES):
        try:
            packed = fit.within(model, limit, huffman=huffman)
        except fit.ArenaLimitError as error:
            packed, is_smallest = error.smallest, True
        needed = measured(packed)
        if needed <= arena_limit:
            return packed, needed
        if is_smallest:
            break
        limit -= needed - arena_limit
    raise fit.ArenaLimitError(arena_limit, needed, packed)


def _run(
    model: Any, content: bytes, inputs: Sequence[np.ndarray]
) -> tuple[tuple[np.ndarray, ...], int]:
    """Return the outputs of a file, and the smallest arena with which it works."""
    found = runtime.run(content, inputs, outputs=len(model.subgraphs[0].outputs))
    return found.outputs, runtime.smallest_arena(content, found.arena.total)


def _compare(
    model: Any, content: bytes, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> int:
    """Return the smallest arena of a file, or raise unless its outputs are the expected ones."""
    outputs, needed = _run(model, content, inputs)
    for number, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        if ours.tobytes() != theirs.tobytes():
            wrong = np.mean(ours != theirs)
            raise ExportError(
                "TensorFlow Lite Micro computes something else from the file than from its dense "
                "twin, so it was not written. Received: output "
                f"{number} with {wrong:.1%} of its values different"
            )
    return needed


def corners(model: Any) -> list[np.ndarray]:
    """Return extreme inputs of their types: ``[3, ...]`` per input; for floats -1, 0 and 1.

    Args:
        model: A ``ModelT`` of fixed shapes.

    Returns:
        One array per input.
    """
    graph, found = model.subgraphs[0], []
    for index in map(int, graph.inputs):
        tensor = graph.tensors[index]
        dtype = fb.dtypes()[tensor.type]
        ends = [-1, 0, 1]
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            ends = [limits.min, limits.max, (limits.min + limits.max + 1) // 2]
        shape = tuple(int(n) for n in tensor.shape)
        found.append(np.stack([np.full(shape, end).astype(dtype) for end in ends]))
    return found
