"""Judge a file by its faults: differences from the dense file of the same quantization.

Faults are weights with other values, or outputs that differ by more than another order of sums
explains. `rounding` judges the effect of the quantization itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format import storage
from keras_ntt.litert.format.weights import Source, axis_of, source_of, weights_read_by
from keras_ntt.litert.runtime import run as runs
from keras_ntt.litert.runtime.run import ExportError

EXACT = 1e-4  # relative to the largest output: the effect of another order of sums in float32
_STEP = 0.5 / 126  # half a step of int8; scales are rounded up by 1/127 at most


class _Read(NamedTuple):
    """A weight as an operator reads it."""

    name: str
    operator: str
    graph: int
    source: Source


def check_weights(content: bytes, dense: Any, name: str) -> None:
    """Raise an ExportError unless the weights in a file are those of the dense file.

    Args:
        content: The file.
        dense: The ``ModelT`` of the converter's dense file. Where it has floats and the file int8,
            weights may be off by half a step. The step of a channel is 1/127 of its largest weight.
            Channels below `storage.DEAD` times the largest weight may be zeros.
        name: The name of the model.
    """
    ours, theirs = (list(_weights_of(model)) for model in (fb.read(content), dense))
    if [found.operator for found in ours] != [found.operator for found in theirs]:
        raise _fault(name, f"operators with {len(ours)} weights instead of {len(theirs)}")
    for found, wanted in zip(ours, theirs, strict=True):
        if wanted.source.array is None:
            continue
        numbers, original = found.source.numbers, wanted.source.numbers
        if numbers is None or original is None or numbers.shape != original.shape:
            raise _fault(name, f"{wanted.name!r} of another shape")
        axis = axis_of(wanted.operator)
        others = tuple(i for i in range(original.ndim) if i != axis)
        largest = np.abs(original).max(axis=others, keepdims=True, initial=0)
        top = largest.max(initial=0)
        limit: Any = np.where(largest <= 2 * storage.DEAD * top, largest, 0)
        assert found.source.array is not None
        if found.source.array.dtype == np.int8 and wanted.source.array.dtype.kind == "f":
            limit = limit + _STEP * largest + np.finfo(np.float32).tiny
        if not np.all(np.abs(numbers - original) <= limit):
            stored = found.source.array.dtype.name
            raise _fault(name, f"{wanted.name!r} with other values, stored as {stored}")


def _weights_of(model: Any) -> Iterator[_Read]:
    """Yield the weights that operators read, in order."""
    for number, graph in enumerate(model.subgraphs):
        producers = fb.producers(graph)
        for operator in graph.operators:
            for index in weights_read_by(model, operator):
                source = source_of(model, graph, producers, index)
                name = fb.name_of(graph.tensors[index])
                yield _Read(name, fb.operator_name(model, operator), number, source)


def _fault(name: str, what: str) -> ExportError:
    return ExportError(
        f"The file of the model {name!r} has other weights than the model, which is a fault of "
        "keras_ntt, so it was not written; please report it. sparse=False stores weights as "
        f"TensorFlow does. Received: {what}"
    )


def twin_of(dense: Any, content: bytes) -> bytes:
    """Return a file that has all weights of another one, each stored densely.

    Args:
        dense: The ``ModelT`` from which the file was made.
        content: The file.

    Returns:
        The dense file; weights that were rounded to int8 are the floats that these stand for.
    """
    twin = fb.copy_of(dense)
    pairs = zip(_weights_of(fb.read(content)), list(_weights_of(twin)), strict=True)
    for ours, theirs in pairs:
        mine, its = ours.source, theirs.source
        if mine.array is None or its.array is None or mine.numbers is None:
            continue
        if mine.array.dtype == np.int8 and its.array.dtype.kind == "f":
            number = fb.add_buffer(twin, mine.numbers.astype(its.array.dtype))
            twin.subgraphs[theirs.graph].tensors[its.tensor].buffer = number
    fb.drop_unused(twin)
    return fb.write(twin)


def check_alike(
    found: Sequence[tuple[runs.Way, Sequence[np.ndarray]]],
    expected: Sequence[tuple[runs.Way, Sequence[np.ndarray]]],
    name: str,
) -> None:
    """Raise an ExportError if the outputs of a file differ from those of its dense twin.

    Args:
        found: The result of `run.outputs_by` for the file.
        expected: The same of the twin, on the same samples.
        name: The name of the model.
    """
    for run, (_, outputs) in zip(runs.compare(found, expected), expected, strict=True):
        for difference, output in zip(run.differences, outputs, strict=True):
            scale = max(float(np.abs(output.astype(np.float64)).max(initial=0)), 1e-30)
            if not difference <= EXACT * scale:
                raise ExportError(
                    f"The file of the model {name!r} computes something else than the dense file "
                    "of the same numbers, which is a fault of keras_ntt or of the runtime and not "
                    "of rounding, so it was not written; please report it. sparse=False stores "
                    f"weights as TensorFlow does. Received: outputs that differ by "
                    f"{difference:.3g}, where {EXACT * scale:.3g} is allowed ({run})"
                )
