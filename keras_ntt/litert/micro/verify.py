"""Prove that a file for a microcontroller equals its dense twin bit by bit.

All of the file's weights are unpacked again in NumPy. Then the operators of both models are gone
through side by side: the same kinds and options, and the same bytes in all constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro.graph import resolve
from keras_ntt.litert.runtime.run import ExportError


def check_same(dense: Any, content: bytes) -> int:
    """Raise unless a file computes what a dense model computes.

    Args:
        dense: The ``ModelT`` of the dense model.
        content: The file for the microcontroller.

    Returns:
        The number of constants that were compared.

    Raises:
        ExportError: If a constant or an operator differs.
    """
    found = resolve(fb.read(content))
    if len(found.subgraphs) != len(dense.subgraphs):
        raise _differs("the number of graphs")
    compared = 0
    for ours, theirs in zip(found.subgraphs, dense.subgraphs, strict=True):
        compared += _compare_graphs(_Side(found, ours), _Side(dense, theirs))
    return compared


class _Side:
    """One of the two models, and the names that its tensors have got in the comparison."""

    def __init__(self, model: Any, subgraph: Any) -> None:
        self.model, self.subgraph = model, subgraph
        self.values = {int(index): place for place, index in enumerate(subgraph.inputs)}

    def constant(self, index: int) -> np.ndarray | None:
        return None if index < 0 else fb.constant(self.model, self.subgraph.tensors[index])


def _compare_graphs(ours: _Side, theirs: _Side) -> int:
    remaining: Iterator[Any] = iter(ours.subgraph.operators)
    compared, number = 0, len(ours.values)
    for operator in theirs.subgraph.operators:
        group = _group(ours, remaining, _rows(theirs, operator))
        compared += _compare(ours, theirs, group, operator)
        outputs = group[-1].outputs
        if len(outputs) != len(operator.outputs):
            raise _differs("the outputs of an operator")
        for mine, its in zip(outputs, operator.outputs, strict=True):
            ours.values[int(mine)] = theirs.values[int(its)] = number
            number += 1
    if next(remaining, None) is not None:
        raise _differs("the number of operators")
    ends = [[side.values.get(int(i)) for i in side.subgraph.outputs] for side in (ours, theirs)]
    if ends[0] != ends[1]:
        raise _differs("the outputs of the graph")
    return compared


def _rows(side: _Side, operator: Any) -> int:
    """Return the output channels of an operator that may have been cut, else 0."""
    if fb.operator_name(side.model, operator) not in ("FULLY_CONNECTED", "CONV_2D"):
        return 0
    weight = side.constant(int(operator.inputs[1]))
    return 0 if weight is None else len(weight)


def _group(ours: _Side, remaining: Iterator[Any], rows: int) -> list[Any]:
    """Return the operator that stands for one of the dense model, or its pieces with their end."""
    group: list[Any] = []
    taken = 0
    while not group or taken < rows:
        operator = next(remaining, None)
        if operator is None:
            raise _differs("the number of operators")
        group.append(operator)
        part = _rows(ours, operator)
        if rows and not part:
            raise _differs("the kind of an operator")
        taken += part
    if len(group) > 1:
        joint = next(remaining, None)
        parts = [int(piece.outputs[0]) for piece in group]
        axis = len(ours.subgraph.tensors[parts[0]].shape) - 1
        if (
            joint is None
            or fb.operator_name(ours.model, joint) != "CONCATENATION"
            or [int(i) for i in joint.inputs] != parts
            or joint.builtinOptions.axis != axis
        ):
            raise _differs("the joint of a layer's pieces")
        group.append(joint)
    return group


def _compare(ours: _Side, theirs: _Side, group: list[Any], operator: Any) -> int:
    """Compare an operator with the one that stands for it; return the number of constants."""
    pieces = group[:-1] if len(group) > 1 else group
    name, options = _kind(theirs, operator)
    compared = 0
    for piece in pieces:
        if _kind(ours, piece) != (name, options) or len(piece.inputs) != len(operator.inputs):
            raise _differs(f"the kind of {name}")
    for position, index in enumerate(map(int, operator.inputs)):
        expected = theirs.constant(index)
        given = [int(piece.inputs[position]) for piece in pieces]
        if expected is None:
            known = None if index < 0 else theirs.values.get(index)
            if any((None if i < 0 else ours.values.get(i)) != known for i in given):
                raise _differs(f"what input {position} of {name} reads")
            continue
        parts = [ours.constant(i) for i in given]
        arrays = [part for part in parts if part is not None]
        if len(arrays) != len(parts):
            raise _differs(f"constant {position} of {name}")
        whole = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        same = whole.dtype == expected.dtype and whole.shape == expected.shape
        if not same or whole.tobytes() != expected.tobytes():
            raise _differs(f"constant {position} of {name}")
        _compare_scales(ours, theirs, given, index, name, position)
        compared += 1
    return compared


def _compare_scales(
    ours: _Side, theirs: _Side, given: list[int], index: int, name: str, position: int
) -> None:
    """Compare the scales and zero points of a weight; those of a bias are not read."""
    if position != 1:
        return
    for kind, dtype in (("scale", np.float32), ("zeroPoint", np.int64)):
        wanted = _numbers(theirs.subgraph.tensors[index], kind, dtype)
        found = [_numbers(ours.subgraph.tensors[i], kind, dtype) for i in given]
        joined = np.concatenate(found) if len(wanted) > 1 else found[0]
        if joined.tobytes() != wanted.tobytes():
            raise _differs(f"the {'scales' if kind == 'scale' else 'zero points'} of {name}")


def _numbers(tensor: Any, kind: str, dtype: type) -> np.ndarray:
    numbers = getattr(tensor.quantization, kind, None)
    return np.zeros(0, dtype) if numbers is None else np.asarray(numbers, dtype)


def _kind(side: _Side, operator: Any) -> tuple[str, str]:
    options = operator.builtinOptions
    values = {} if options is None else vars(options)
    listed = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return fb.operator_name(side.model, operator), repr(sorted(listed.items()))


def _differs(what: str) -> ExportError:
    return ExportError(
        "The file for microcontrollers is not its dense twin, so it was not written. This is a "
        f"defect of the writer. Received: a difference in {what}"
    )
