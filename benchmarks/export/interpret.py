"""Run LiteRT files in the environment of one release: ``interpret.py FOLDER [tensorflow]``.

Needs numpy and an interpreter only. Prints JSON: for each file and each way to run it the largest
difference of the outputs from the expected ones, over their largest value, or the error.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np


def run(interpreter: Any, given: np.ndarray) -> np.ndarray:
    """Return the outputs of a file for one batch."""
    (take,), (give,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(take["index"], given.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(take["index"], given)
    interpreter.invoke()
    return interpreter.get_tensor(give["index"])


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    if sys.argv[2:] == ["tensorflow"]:
        from tensorflow.lite.python.interpreter import Interpreter, OpResolverType
    else:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    resolvers = {
        "XNNPACK": OpResolverType.AUTO,
        "no delegate": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    }
    found = []
    for file in sorted(folder.glob("*.tflite")):
        arrays = np.load(file.with_suffix(".npz"))
        for name, resolver in resolvers.items():
            for batch in [b for b in ("1", "3") if f"inputs_{b}" in arrays.files]:
                row: dict[str, Any] = {"file": file.stem, "delegate": name, "batch": int(batch)}
                try:
                    loaded = Interpreter(
                        model_path=str(file), num_threads=2, experimental_op_resolver_type=resolver
                    )
                    outputs = run(loaded, arrays[f"inputs_{batch}"]).astype("float64")
                    wanted = arrays[f"outputs_{batch}"].astype("float64")
                    largest = np.abs(wanted).max() or 1.0
                    row["difference"] = float(np.abs(outputs - wanted).max() / largest)
                except (RuntimeError, ValueError) as error:
                    row["error"] = str(error).strip().splitlines()[-1][:200]
                found.append(row)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
