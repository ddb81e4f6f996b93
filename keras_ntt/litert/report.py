"""Report of a written file: sizes, how each weight is stored, and what the runtime does with it."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_ntt.core.tables import table
from keras_ntt.litert.format.interface import Port
from keras_ntt.litert.format.sizes import Sizes
from keras_ntt.litert.inspect import StoredWeight, weights_table
from keras_ntt.litert.micro.report import MicroReport
from keras_ntt.litert.rounding import Rounding
from keras_ntt.litert.runtime.benchmark import Benchmark, cpu_class
from keras_ntt.litert.runtime.run import Run
from keras_ntt.litert.xnnpack.verdict import Verdict


@dataclass(frozen=True)
class ExportReport:
    """The report of a written file.

    Attributes:
        path: The file.
        size: Its size in bytes.
        max_difference: Largest difference of the compared outputs from those of Keras.
        tolerance: The largest allowed difference; infinity if `rounding` was judged instead.
        samples: Number of samples compared.
        nonzeros: Number of non-zero weights with which the Keras model computes.
        weights: Number of weights of the Keras model; LoRA's are in its kernels.
        target: The target.
        quantization: How values were rounded, or None.
        sizes: Bytes of the file, raw and compressed.
        dense: Bytes of the model's densely stored float32 file.
        limit: Minimum number of bytes of the weights: the entropy of the masks, the bits of the
            non-zero values, and all other constants.
        tensors: How each weight of a convolution or fully-connected operator is stored, and why.
        verdict: What XNNPACK does with the file on ARM and on x86 without AVX.
        runs: The ways in which the file was run and compared.
        warnings: What not to expect of the file.
        removed: Units that were removed because they were dead, by layer.
        benchmark: Measured latency and memory on this host, if asked for.
        runtimes: For each runtime ``"yes"`` if it can run the file, or the reason why not.
        micro: The figures for a firmware, of a file for microcontrollers; None for other files.
        rounding: The effect of rounding on the model, or None if nothing was rounded.
        ports: The inputs and outputs of the file, with the scales of those that are integers.
        reference: What the file was compared with: ``"Keras"``, or the ``"source"`` of a file that
            was made from another file. `dense` then has the bytes of the source.
    """

    path: pathlib.Path
    size: int
    max_difference: float
    tolerance: float
    samples: int
    nonzeros: int
    weights: int
    target: str
    quantization: str | None
    sizes: Sizes
    dense: Sizes
    limit: float
    tensors: tuple[StoredWeight, ...]
    verdict: Verdict
    runs: tuple[Run, ...]
    warnings: tuple[str, ...] = ()
    removed: tuple[tuple[str, int], ...] = ()
    benchmark: Benchmark | None = None
    runtimes: Mapping[str, str] = field(default_factory=dict)
    micro: MicroReport | None = None
    rounding: Rounding | None = None
    ports: tuple[Port, ...] = ()
    reference: str = "Keras"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers and strings."""
        names = ("size", "max_difference", "tolerance", "samples", "nonzeros", "weights")
        return {
            "path": os.fspath(self.path),
            **{name: getattr(self, name) for name in (*names, "target", "quantization", "limit")},
            "tolerance": self.tolerance if math.isfinite(self.tolerance) else None,
            "sizes": self.sizes.to_dict(),
            "dense": self.dense.to_dict(),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "xnnpack": self.verdict.to_dict(),
            "runs": [vars(run) for run in self.runs],
            "warnings": list(self.warnings),
            "removed": dict(self.removed),
            "benchmark": None if self.benchmark is None else self.benchmark.to_dict(),
            "runtimes": dict(self.runtimes),
            "rounding": None if self.rounding is None else self.rounding.to_dict(),
            "ports": [port.to_dict() for port in self.ports],
            "micro": None if self.micro is None else self.micro.to_dict(),
            "reference": self.reference,
        }

    def __str__(self) -> str:
        """Return the report as text."""
        rounding = "" if self.quantization is None else f", quantization {self.quantization!r}"
        lines = [
            f"{self.path}: {self.size:,} bytes, {self.nonzeros:,} of {self.weights:,} weights "
            f"non-zero, outputs within {self.max_difference:.1e} of {self._reference} "
            f"{self._allowed}on {self.samples} samples",
            f"target {self.target!r}{rounding}; {self._subject}run {len(self.runs)} ways: "
            + "; ".join(map(str, self.runs)),
            "",
            self._sizes_table(),
        ]
        if self.removed:
            units = ", ".join(f"{count} of {name}" for name, count in self.removed)
            lines += ["", f"dead units removed: {units}"]
        if self.tensors:
            lines += ["", weights_table(self.tensors)]
        if self.micro is not None:
            lines += ["", str(self.micro)]
        else:
            lines += ["", f"XNNPACK on ARM and x86 without AVX: {self.verdict}"]
        lines += runtimes_lines(self.runtimes)
        if self.rounding is not None:
            lines.append(str(self.rounding))
        lines += [str(port) for port in self.ports if port.scale is not None]
        if self.benchmark is not None:
            lines.append(str(self.benchmark))
        return "\n".join([*lines, *(f"note: {warning}" for warning in self.warnings)])

    @property
    def _reference(self) -> str:
        return "Keras" if self.reference == "Keras" else f"the {self.reference}"

    @property
    def _allowed(self) -> str:
        return f"(allowed {self.tolerance:.1e}) " if math.isfinite(self.tolerance) else ""

    @property
    def _subject(self) -> str:
        return "" if self.micro is None else "its dense twin "

    def _sizes_table(self) -> str:
        columns = [
            ("raw", self.sizes.raw, self.dense.raw),
            ("gzip", self.sizes.gzip, self.dense.gzip),
        ]
        if self.sizes.zstd is not None and self.dense.zstd is not None:
            columns.append(("zstd", self.sizes.zstd, self.dense.zstd))
        body = [
            [
                *(name, f"{ours:,}", f"{dense:,}", f"{dense / ours:.2f}"),
                f"{ours / self.limit:.2f}" if self.limit else "-",  # no weights, or only zeros
            ]
            for name, ours, dense in columns
        ]
        other = "dense float32" if self.reference == "Keras" else self.reference
        head = ["bytes", "this file", other, "times smaller", "of the entropy limit"]
        return table(head, body, right=(1, 2, 3, 4))


def runtimes_lines(runtimes: Mapping[str, str]) -> list[str]:
    """Return a line for each runtime: whether it can run a file."""
    return [f"{name}: {answer}" for name, answer in runtimes.items()]


SPARSE_ENOUGH = 0.3  # below it a weight does not count as pruned


def file_warnings(weights: Sequence[StoredWeight], verdict: Verdict) -> Iterator[str]:
    """Yield what not to expect of a file.

    Args:
        weights: Its weights.
        verdict: What XNNPACK does with it.
    """
    pruned = [w for w in weights if w.sparsity >= SPARSE_ENOUGH]
    kept_dense = [w for w in pruned if w.storage == "dense"]
    if kept_dense and len(kept_dense) == len(pruned):
        yield (
            "pruned weights are stored densely: size and latency are those of the dense model, "
            "and only a compressed copy of the file is smaller"
        )
        if any(w.dtype == "int8" for w in kept_dense):
            yield (
                "weights that are computed with in int8 stay dense: with XNNPACK, LiteRT does not "
                "load sparse ones"
            )
    if any(w.storage == "densify" for w in weights):
        yield (
            "DENSIFY unpacks weights when the file is loaded: it needs as much memory as a dense "
            "one, and runtimes without DENSIFY (microcontrollers, some GPU and NPU delegates) "
            "do not load it"
        )
    if any(w.storage == "direct" for w in weights):
        yield (
            "the sparse fully-connected kernel runs on one thread and takes time in proportion to "
            "the batch: it is slower than the dense kernel at batches above about 4, and below "
            "about 92% zeros on x86 with AVX or 80% on ARM"
        )
    if verdict.kind == "sparse":
        yield (
            "XNNPACK computes this file sparsely on ARM, WebAssembly and x86 without AVX; on x86 "
            f"with AVX it computes densely (this host is an {cpu_class()})"
        )
    if verdict.kind == "dense" and any(_is_pointwise(w) for w in pruned):
        yield f"1x1 convolutions are computed densely everywhere: {'; '.join(verdict.reasons)}"
    if any(_is_wide(w) for w in pruned):
        yield (
            "convolutions larger than 1x1 have no sparse kernel in LiteRT: their zeros make the "
            "file smaller, not faster"
        )


def _is_pointwise(weight: StoredWeight) -> bool:
    return weight.operators == "CONV_2D" and weight.shape[1:3] == (1, 1)


def _is_wide(weight: StoredWeight) -> bool:
    return len(weight.shape) == 4 and weight.shape[1:3] != (1, 1)
