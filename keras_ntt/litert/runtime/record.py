"""Record the means over samples of tensors inside a LiteRT file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_ntt.litert.runtime.run import ExportError, quantized


def means_of(
    path: str, samples: Sequence[np.ndarray], tensors: Sequence[int]
) -> dict[int, np.ndarray]:
    """Return the means of some tensors over samples.

    Args:
        path: A file that computes in integers, of fixed shapes.
        samples: Inputs ``[n, ...]``, in the order of the file.
        tensors: Numbers of tensors of its first graph.

    Returns:
        float64 arrays of the tensors' shapes, by number: integers minus their zero points.

    Raises:
        ExportError: If the file does not run.
        ImportError: If `ai_edge_litert` is not installed.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        loaded = Interpreter(
            model_path=path,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        loaded.allocate_tensors()
        ports = loaded.get_input_details()
        details = {d["index"]: d for d in loaded.get_tensor_details()}
        sums = {index: np.zeros(details[index]["shape"]) for index in tensors}
        size = int(ports[0]["shape"][0]) or 1
        count = len(samples[0]) // size
        for number in range(count):
            for port, array in zip(ports, samples, strict=True):
                part = array[number * size : (number + 1) * size]
                loaded.set_tensor(
                    port["index"], quantized(part, port["dtype"], port["quantization"])
                )
            loaded.invoke()
            for index in tensors:
                zero_point = details[index]["quantization"][1]
                sums[index] += loaded.get_tensor(index).astype(np.float64) - zero_point
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"The LiteRT interpreter could not run the file: {error}. Received: path={path!r}"
        ) from error
    return {index: total / max(count, 1) for index, total in sums.items()}
