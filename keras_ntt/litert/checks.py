"""Run LiteRT files in every way they will be run, and compare with what they should compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


class ExportError(RuntimeError):
    """A converted model could not be run or does not compute what the Keras model computes."""


@dataclass(frozen=True)
class Run:
    """One way to run a file, and what came of it.

    Attributes:
        xnnpack: Whether the XNNPACK delegate ran, as it does by default.
        threads: Number of threads.
        batch: Samples at a time.
        difference: Largest difference of an output from the expected one.
    """

    xnnpack: bool
    threads: int
    batch: int
    difference: float

    def __str__(self) -> str:
        """Return the way to run in words."""
        delegate = "XNNPACK" if self.xnnpack else "no delegate"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{delegate}, {threads}, batch {self.batch}"


def interpreter(path: str, *, xnnpack: bool = True, threads: int = 1) -> Any:
    """Load a file.

    Args:
        path: The file.
        xnnpack: Whether to use the XNNPACK delegate.
        threads: Number of threads.

    Returns:
        The LiteRT interpreter.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise ImportError(
            "Checking a LiteRT file needs the LiteRT interpreter: "
            "pip install 'keras-ntt[litert]' (the package ai-edge-litert)."
        ) from error
    kind = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return Interpreter(model_path=path, num_threads=threads, experimental_op_resolver_type=kind)


def run(
    path: str, x: np.ndarray, *, batch: int | None = None, xnnpack: bool = True, threads: int = 1
) -> np.ndarray:
    """Run a file with one input and one output.

    Args:
        path: The file.
        x: Inputs ``[n, ...]``.
        batch: Samples at a time; None takes as many as the file fixes, or all at once.
        xnnpack: Whether to use the XNNPACK delegate.
        threads: Number of threads.

    Returns:
        Outputs ``[n, ...]``.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the file does not run.
    """
    try:
        loaded = interpreter(path, xnnpack=xnnpack, threads=threads)
        (given,) = loaded.get_input_details()
        (result,) = loaded.get_output_details()
        fixed = (int(n) for n in given["shape_signature"][:1] if n > 0)
        size = next(fixed, len(x)) if batch is None else batch
        loaded.resize_tensor_input(given["index"], (size, *x.shape[1:]))
        loaded.allocate_tensors()
        outputs = []
        for start in range(0, len(x), max(size, 1)):
            part = x[start : start + size].astype(given["dtype"])
            rest = np.zeros((size - len(part), *x.shape[1:]), part.dtype)
            loaded.set_tensor(given["index"], np.concatenate([part, rest]))
            loaded.invoke()
            output = loaded.get_tensor(result["index"])
            outputs.append(output[: len(part)].copy() if len(rest) else output.copy())
        return np.concatenate(outputs)
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"The LiteRT interpreter could not run the file: {error}. Received: path={path!r}"
        ) from error


def compare(
    path: str, samples: np.ndarray, expected: np.ndarray, *, batch: int | None
) -> tuple[Run, ...]:
    """Run a file with XNNPACK and without, on one and two threads, singly and in batches.

    Args:
        path: The file.
        samples: Inputs ``[n, ...]``.
        expected: The outputs that they should give.
        batch: The batch size if the model fixes it, else None.

    Returns:
        What came of each way.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the file does not run in one of the ways.
    """
    whole = len(samples) if batch is None else batch
    ways = [(True, 1, whole), (True, 2, whole), (False, 1, whole)]
    if batch is None and whole > 1:
        ways += [(True, 1, 1), (False, 1, 1)]
    runs = []
    for xnnpack, threads, size in ways:
        x = samples[:4] if size == 1 else samples
        found = run(path, x, batch=size, xnnpack=xnnpack, threads=threads)
        with np.errstate(invalid="ignore", over="ignore"):
            # In float64, because integers would wrap and booleans have no difference.
            difference = float(np.abs(found.astype(np.float64) - expected[: len(found)]).max())
        runs.append(Run(xnnpack, threads, size, difference))
    return tuple(runs)
