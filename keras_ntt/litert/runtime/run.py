"""Run LiteRT files in every usual way, and compare their outputs with the expected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class ExportError(RuntimeError):
    """A converted model could not be run or does not compute what the Keras model computes."""


@dataclass(frozen=True)
class Run:
    """One way to run a file, and the result.

    Attributes:
        xnnpack: Whether the XNNPACK delegate ran, as it does by default.
        threads: Number of threads.
        batch: The batch size.
        differences: Largest difference of each output from the expected output.
    """

    xnnpack: bool
    threads: int
    batch: int
    differences: tuple[float, ...]

    @property
    def difference(self) -> float:
        """The largest difference of all outputs."""
        return float(np.max(self.differences))

    def __str__(self) -> str:
        """Return the way to run as text."""
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
    path: str,
    x: Sequence[np.ndarray] | Mapping[str, np.ndarray],
    *,
    batch: int | None = None,
    xnnpack: bool = True,
    threads: int = 1,
    dequantize: bool = False,
) -> list[np.ndarray]:
    """Run a file.

    Floats for a quantized input are rounded with its scale.

    Args:
        path: The file.
        x: Inputs ``[n, ...]`` in the order of the file, or by name.
        batch: The batch size; None takes that of the file, or all samples at once.
        xnnpack: Whether to use the XNNPACK delegate.
        threads: Number of threads.
        dequantize: Whether to return quantized outputs as floats.

    Returns:
        Outputs ``[n, ...]`` in the order of the file.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the file does not run.
    """
    try:
        loaded = interpreter(path, xnnpack=xnnpack, threads=threads)
        given = _in_order(loaded, x)
        count = len(given[0][1])
        fixed = (int(n) for port, _ in given for n in port["shape_signature"][:1] if n > 0)
        size = next(fixed, count) if batch is None else batch
        for port, array in given:
            loaded.resize_tensor_input(port["index"], (size, *array.shape[1:]))
        loaded.allocate_tensors()
        results = loaded.get_output_details()
        outputs: list[list[np.ndarray]] = [[] for _ in results]
        for start in range(0, count, max(size, 1)):
            filled = min(size, count - start)
            for port, array in given:
                part = quantized(array[start : start + size], port["dtype"], port["quantization"])
                rest = np.zeros((size - filled, *array.shape[1:]), part.dtype)
                loaded.set_tensor(port["index"], np.concatenate([part, rest]))
            loaded.reset_all_variables()  # states that an LSTM would keep from the last batch
            loaded.invoke()
            for found, port in zip(outputs, results, strict=True):
                output = loaded.get_tensor(port["index"])
                if dequantize:
                    output = _floats_of(output, port["quantization"])
                found.append(output[:filled].copy() if filled < size else output.copy())
        return [np.concatenate(found) for found in outputs]
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"The LiteRT interpreter could not run the file: {error}. Received: path={path!r}"
        ) from error


def quantized(array: np.ndarray, dtype: Any, scale: tuple[float, int]) -> np.ndarray:
    """Return an input in the type of a file.

    Args:
        array: The input.
        dtype: What the file takes.
        scale: Scale and zero point of the file's input; a scale of 0 stands for none.

    Returns:
        The input, floats rounded to the integers that stand for them.
    """
    kind = np.dtype(dtype)
    if kind.kind not in "iu" or array.dtype.kind != "f" or not scale[0]:
        return array.astype(kind)
    limits = np.iinfo(kind)
    with np.errstate(invalid="ignore"):
        rounded = np.rint(array.astype(np.float32) / np.float32(scale[0])) + scale[1]
    return np.clip(np.nan_to_num(rounded), limits.min, limits.max).astype(kind)


def _floats_of(output: np.ndarray, scale: tuple[float, int]) -> np.ndarray:
    if output.dtype.kind not in "iu" or not scale[0]:
        return output
    return (output.astype(np.float32) - np.float32(scale[1])) * np.float32(scale[0])


def _in_order(
    loaded: Any, x: Sequence[np.ndarray] | Mapping[str, np.ndarray]
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Return the details of each input of a file, and its array."""
    ports: Any = loaded.get_input_details()
    if isinstance(x, Mapping):
        signatures = list(loaded.get_signature_list())
        if len(signatures) != 1:
            raise ValueError(
                f"it has {len(signatures)} signatures, so names do not tell its inputs; pass a "
                "list of arrays in its order"
            )
        ports = loaded.get_signature_runner(signatures[0]).get_input_details()
        if ports.keys() != x.keys():
            raise ValueError(f"it takes inputs of the names {sorted(ports)}, not {sorted(x)}")
        return [(ports[name], array) for name, array in x.items()]
    if len(ports) != len(x):
        raise ValueError(f"it takes {len(ports)} inputs, not {len(x)}")
    return list(zip(ports, x, strict=True))


class Way(NamedTuple):
    """A way to run a file.

    Attributes:
        xnnpack: Whether the XNNPACK delegate runs.
        threads: Number of threads.
        batch: The batch size.
    """

    xnnpack: bool
    threads: int
    batch: int


def outputs_by(
    path: str, samples: Sequence[np.ndarray], *, batch: int | None
) -> list[tuple[Way, list[np.ndarray]]]:
    """Run a file with and without XNNPACK, on one and two threads, one by one and in batches.

    Args:
        path: The file.
        samples: Inputs ``[n, ...]`` in the order of the file.
        batch: The batch size if the file fixes it, else None.

    Returns:
        Each way and its outputs ``[n, ...]``, as floats. If the file takes any batch size, the ways
        with one sample at a time run only the first four.

    Raises:
        ImportError: If `ai_edge_litert` is not installed.
        ExportError: If the file does not run in one of the ways.
    """
    whole = len(samples[0]) if batch is None else batch
    ways = [Way(True, 1, whole), Way(True, 2, whole), Way(False, 1, whole)]
    if batch is None and whole > 1:
        ways += [Way(True, 1, 1), Way(False, 1, 1)]
    found = []
    for way in ways:
        few = batch is None and way.batch == 1
        x = [array[:4] for array in samples] if few else samples
        found.append((way, run(path, x, **way._asdict(), dequantize=True)))
    return found


def compare(
    found: Sequence[tuple[Way, Sequence[np.ndarray]]],
    expected: Sequence[tuple[Way, Sequence[np.ndarray]]] | Sequence[np.ndarray],
) -> tuple[Run, ...]:
    """Compare the outputs of all ways to run a file with the expected outputs.

    Args:
        found: The result of `outputs_by`.
        expected: The expected outputs ``[n, ...]``; or the result of `outputs_by` for another file.
            Then each way is compared with the same way, because delegates round differently.

    Returns:
        The result of each way.
    """
    runs = []
    for i, (way, outputs) in enumerate(found):
        entry: Any = expected[i] if i < len(expected) else None
        wanted = entry[1] if isinstance(entry, tuple) else expected
        pairs = zip(outputs, wanted, strict=True)
        runs.append(Run(*way, tuple(_difference(a, b) for a, b in pairs)))
    return tuple(runs)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        # In float64, because integers would overflow and booleans have no difference.
        return float(np.abs(found.astype(np.float64) - expected[: len(found)]).max())


def judge(
    name: str, found: Sequence[Run], expected: Sequence[np.ndarray], tolerance: float
) -> tuple[float, float]:
    """Return the difference and the limit of the output that is closest to its limit.

    Args:
        name: What the file is compared with, in words.
        found: The ways in which it was run.
        expected: The outputs that it should give.
        tolerance: Largest allowed difference, relative to the largest number of an output.

    Returns:
        The difference, and the limit.

    Raises:
        ExportError: If it is above the limit, or not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        scales = [max(float(np.abs(output).max()), 1e-30) for output in expected]
    differences = [
        (difference / scale, difference, scale, way)
        for way in found
        for difference, scale in zip(way.differences, scales, strict=True)
    ]
    _, difference, scale, way = max(differences, key=lambda d: (not np.isfinite(d[0]), d[0]))
    if not difference <= tolerance * scale:
        raise ExportError(
            f"The LiteRT file computes something else than {name}, so it was not written. If that "
            f"much does no harm, allow it by tolerance={_above(difference / scale)}. "
            f"Received: outputs that differ by {difference:.3g}, where "
            f"{tolerance * scale:.3g} is allowed ({way})"
        )
    return difference, tolerance * scale


def _above(ratio: float) -> str:
    """Return a round number above a ratio, or the text for one that is not finite."""
    if not np.isfinite(ratio) or ratio <= 0:
        return "..."
    step = 10.0 ** np.floor(np.log10(ratio))
    return f"{np.ceil(ratio / step * 1.05) * step:.1g}"
