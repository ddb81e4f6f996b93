"""Random models for microcontrollers: encoder, our decoder and the interpreter must agree.

    python -m benchmarks.fuzz.micro --cases 5000

Needs the package tflite_micro. A case draws a model (dense, convolutional, depthwise, transposed,
shared weights, one output or two; int8, int16 or float32), encodes it whole or in pieces, unpacks
it in NumPy, and runs it beside its dense twin. ``--first NUMBER --cases 1`` repeats one.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.micro import cut, fit, verify
from keras_ntt.litert.runtime import micro as runtime
from tests.helpers.micro_graphs import inputs_of, random_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    if not runtime.is_installed():
        print("not run: tflite_micro is not installed")
        return 0
    failed = [n for n in range(options.first, options.first + options.cases) if not agrees(n)]
    print(f"{options.cases} cases, {len(failed)} failed: {failed[:20]}")
    return bool(failed)


def agrees(seed: int) -> bool:
    model = random_model(seed)
    packed = fit.pack(model, huffman=seed % 2 == 0)
    if seed % 3 == 0:
        pieces = {c.key: 2 + seed % 7 for c in packed.constants if cut.may_be_cut(model, c.key)}
        packed = fit.pack(model, huffman=seed % 2 == 0, pieces=pieces)
    content = fb.write(packed.model)
    verify.check_same(model, content)
    return outputs_of(model, fb.write(model)) == outputs_of(model, content)


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
