"""Random models for microcontrollers: encoder, our decoder and the interpreter must agree.

    python -m benchmarks.fuzz.micro --cases 5000 [--json FILE]

Needs the package tflite_micro. A case draws a model (dense, convolutional, depthwise, transposed,
shared weights, one output or two; int8, int16 or float32) and encodes all its weights, whole or in
pieces, by PRUNING or HUFFMAN (each fourth case: as it would be written). Then it unpacks it in
NumPy, and runs it and its dense twin. ``--first NUMBER --cases 1`` repeats one. With a file of
results an interrupted run continues.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from keras_ntt.core import atomic_files
from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro import cut, fit, verify
from keras_ntt.litert.micro.choose import constants_of
from keras_ntt.litert.micro.decode import Encoded, compress, prune
from keras_ntt.litert.micro.graph import Key, channels_of, insert
from keras_ntt.litert.micro.slim import slim
from keras_ntt.litert.runtime import micro as runtime
from tests.helpers.micro_graphs import inputs_of, random_model

KEPT = 50
"""Cases after which results are written."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to keep the results")
    options = parser.parse_args()
    if not runtime.is_installed():
        print("not run: tflite_micro is not installed")
        return 0
    tally = run(options.first, options.cases, options.json)
    print(f"{tally['cases']} cases, {len(tally['failed'])} failed: {tally['failed'][:20]}")
    return bool(tally["failed"])


def run(first: int, cases: int, file: Path | None = None) -> dict[str, Any]:
    """Run cases, from where a file of results says, and keep the results there."""
    tally: dict[str, Any] = {"first": first, "cases": 0, "failed": [], "covered": {}}
    if file is not None and file.exists():
        found = json.loads(file.read_text())
        if found["first"] != first:
            raise SystemExit(f"{file} has cases from {found['first']} on, not from {first} on")
        tally = found
    for number in range(first + tally["cases"], first + cases):
        covered = collections.Counter(tally["covered"])
        if not agrees(number, covered):
            tally["failed"].append(number)
        tally.update(cases=number + 1 - first, covered=dict(sorted(covered.items())))
        if file is not None and (tally["cases"] % KEPT == 0 or tally["cases"] == cases):
            with atomic_files.replacing(file) as temporary:
                temporary.write_text(json.dumps(tally, indent=2) + "\n")
    return tally


def agrees(seed: int, covered: collections.Counter[str]) -> bool:
    """Return whether a case comes out the same everywhere; count what it had in it."""
    rng, model = np.random.default_rng(seed), random_model(seed)
    try:
        if seed % 4 == 0:  # as it would be written
            packed = fit.pack(model, huffman=rng.random() < 0.5)
            changed, methods = packed.model, {c.key: c.encoded for c in packed.constants}
        else:
            changed, methods = encoded(model, rng)
        content = fb.write(changed)
        verify.check_same(model, content)
        same = outputs_of(model, fb.write(model)) == outputs_of(model, content)
    except Exception as error:  # whatever it is, it is a finding
        print(f"case {seed}: {type(error).__name__}: {error}", flush=True)
        return False
    covered.update(described(model, changed))
    covered.update({one.method for one in methods.values() if one is not None})
    return same


def encoded(model: Any, rng: np.random.Generator) -> tuple[Any, dict[Key, Encoded]]:
    """Return a model whose weights are all encoded, small ones too, and how."""
    base = model
    if rng.random() < 0.4:
        keys = [c.key for c in constants_of(model, huffman=False)]
        pieces = {k: int(rng.integers(2, 9)) for k in keys if cut.may_be_cut(model, k)}
        base = cut.cut(model, pieces)
    graph, chosen = base.subgraphs[0], {}
    for operator in graph.operators:
        if fb.operator_name(base, operator) == "CONCATENATION":
            continue
        index = int(operator.inputs[1])
        tensor = graph.tensors[index]
        array = fb.constant(base, tensor)
        assert array is not None
        if array.dtype == np.int8 and rng.random() < 0.5:
            chosen[0, index] = compress(array)
        else:
            chosen[0, index] = prune(array, channels_of(tensor))
    return slim(insert(base, chosen), micro=True), chosen


def described(model: Any, changed: Any) -> set[str]:
    """Return what a case has in it, in words."""
    graph = model.subgraphs[0]
    words = {f"{fb.dtypes()[graph.tensors[0].type]} activations"}
    words |= {fb.operator_name(changed, op) for op in changed.subgraphs[0].operators}
    words |= {f"{len(graph.outputs)} output{'s' * (len(graph.outputs) > 1)}"}
    for tensor in graph.tensors:
        if tensor.name != b"weight":
            continue
        array = fb.constant(model, tensor)
        assert array is not None
        words |= {{0: "all zeros", array.size: "no zeros"}.get(np.count_nonzero(array), "weights")}
        words |= {f"{array.size % 8} entries beyond a multiple of 8"}
        if tensor.quantization is not None:
            words.add("a scale a channel" if len(tensor.quantization.scale) > 1 else "one scale")
            words |= {"zero points"} if np.any(tensor.quantization.zeroPoint) else set()
    weights = [int(op.inputs[1]) for op in graph.operators]
    return words | ({"shared weights"} if len(set(weights)) < len(weights) else set())


def outputs_of(model: Any, content: bytes) -> list[bytes]:
    """Return the outputs of a file, from the interpreter in this process."""
    from tflite_micro.python.tflite_micro import runtime as tflm

    graph = model.subgraphs[0]
    interpreter, found = tflm.Interpreter.from_bytes(content, arena_size=400_000), []
    for sample in inputs_of(model):
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        found += [interpreter.get_output(i).tobytes() for i in range(len(graph.outputs))]
    return found


if __name__ == "__main__":
    sys.exit(main())
