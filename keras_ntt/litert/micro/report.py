"""The figures of a file for a firmware: flash, memory, operators to register, time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_ntt.litert.format import flatbuffer as fb
from keras_ntt.litert.format.weights import WEIGHT_AXIS
from keras_ntt.litert.micro.graph import CODE, decodes

# Code that AddDecode() links, with clang -Os for Cortex-M4: always all three decoders.
CODE_SIZE = 11_100
_UNPACKED_SHARE = 0.1  # of the multiplications: above it unpacking takes a large part of the time
_NAMES = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "TFLite_Detection_PostProcess": "DetectionPostprocess",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
    "ETHOSU": "EthosU",
    "ethos-u": "EthosU",
    CODE.decode(): "Decode",
}


@dataclass(frozen=True)
class LevelsEffect:
    """The effect of rounding weights to few levels on the outputs, on the calibration inputs.

    Attributes:
        levels: Number of levels per tensor, without zero.
        rounded: Number of weights (tensors) that were rounded.
        candidates: Number of weights that could be rounded: those of convolutions except depthwise
            ones, and of fully-connected operators.
        difference: Largest change of an output, relative to its largest number before rounding.
        agreement: Fraction of samples whose largest output is in the same place as before.
    """

    levels: int
    rounded: int
    candidates: int
    difference: float
    agreement: float

    def __str__(self) -> str:
        """Return the effect as text."""
        return (
            f"levels: {self.rounded} of {self.candidates} weights rounded to {self.levels}; "
            f"outputs move by up to {self.difference:.1%} of the largest one, "
            f"the largest is the same one on {self.agreement:.1%} of the inputs"
        )


@dataclass(frozen=True)
class MicroReport:
    """The figures of a file for a firmware.

    Attributes:
        size: Bytes of the file.
        slim_size: Bytes of its dense twin without names, metadata and repeated vectors.
        dense_size: Bytes of its dense twin as the converter wrote it.
        code_size: Bytes of code that unpacking adds to a firmware, once; 0 without DECODE.
        arena: Bytes of memory that it needs, as counted on a 64-bit host: the peak of activations
            and unpacked weights, which is the same on all devices, and structures, which are
            smaller on a 32-bit device.
        peak: Bytes of the peak of activations and unpacked weights.
        dense_arena: Bytes of memory that the dense twin needs.
        dense_peak: Its peak.
        measured: Whether `arena` and `dense_arena` are the smallest with which the interpreter
            works; otherwise they are computed.
        decoded: Number of weights unpacked in each run.
        products: Number of multiplications in each run.
        resolver: The calls that register the operators, in order.
        constants: Number of constants that, unpacked, equal those of the dense twin bit by bit.
        runs: Number of inputs on which the interpreter's outputs equal those of the dense twin bit
            by bit; 0 if it is not installed.
        npu: The output of the compiler for the NPU, or None.
        levels: The effect of rounding to few levels, or None.
    """

    size: int
    slim_size: int
    dense_size: int
    code_size: int
    arena: int
    peak: int
    dense_arena: int
    dense_peak: int
    measured: bool
    decoded: int
    products: int
    resolver: tuple[str, ...]
    constants: int
    runs: int
    npu: dict[str, Any] | None = None
    levels: LevelsEffect | None = None

    @property
    def flash(self) -> int:
        """Bytes of the file and of the code that unpacks it."""
        return self.size + self.code_size

    @property
    def pays(self) -> bool:
        """Whether unpacking saves more bytes than its code takes."""
        return self.code_size > 0 and self.flash < self.slim_size

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain numbers and strings."""
        return {
            **asdict(self),
            "resolver": list(self.resolver),
            "flash": self.flash,
            "pays": self.pays,
        }

    def __str__(self) -> str:
        """Return the report as text."""
        how = "measured" if self.measured else "computed"
        lines = [
            f"flash: {self.size:,} bytes, of {self.dense_size:,} dense and {self.slim_size:,} "
            "dense without names and repeated vectors"
            + (f"; and {self.code_size:,} of code once" if self.code_size else ""),
            f"arena: {self.arena:,} bytes, {self.dense_arena:,} dense ({how} on a 64-bit host); "
            f"peak of activations and weights {self.peak:,}, {self.dense_peak:,} dense",
            f"time: {self.decoded:,} weights unpacked per run, and {self.products:,} "
            "multiplications",
            f"same as the dense twin: {self.constants} constants bit by bit; "
            + (
                f"outputs of TensorFlow Lite Micro bit by bit on {self.runs} inputs"
                if self.runs
                else "not run in TensorFlow Lite Micro (pip install 'keras-ntt[micro]')"
            ),
            f"MicroMutableOpResolver<{len(self.resolver)}>: {' '.join(self.resolver)}",
        ]
        if self.levels is not None:
            lines.append(str(self.levels))
        if self.npu:
            lines.append(f"NPU by Vela, {self.npu['accelerator']}: {_said(self.npu)}")
        return "\n".join(lines)


def _said(npu: dict[str, Any]) -> str:
    if "error" in npu:
        return f"not compiled: {npu['error']}"
    return (
        f"weights {npu['encoded_weights']:,} bytes of {npu['weights']:,}, flash "
        f"{npu['flash']:,} bytes, SRAM {npu['sram']:,}, operators on the CPU {npu['cpu_operators']}"
    )


def effect_of(
    levels: int,
    rounded: int,
    candidates: int,
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
) -> LevelsEffect:
    """Return the effect of rounding to few levels on outputs.

    Args:
        levels: Number of levels.
        rounded: Number of weights that were rounded.
        candidates: Number of weights that could be rounded.
        before: Outputs ``[n, ...]`` of the file with the original weights.
        after: Outputs of the file with rounded weights.

    Returns:
        The effect.
    """
    moved, same = [], []
    for old, new in zip(before, after, strict=True):
        old, new = old.astype(np.float64), new.astype(np.float64)
        moved.append(float(np.abs(new - old).max() / max(np.abs(old).max(), 1e-30)))
        flat = [array.reshape(len(array), -1).argmax(axis=1) for array in (old, new)]
        same.append(float((flat[0] == flat[1]).mean()))
    return LevelsEffect(levels, rounded, candidates, max(moved), min(same))


def resolver_calls(model: Any) -> tuple[str, ...]:
    """Return the calls that register the operators of a model.

    Args:
        model: A ``ModelT``.

    Returns:
        The calls, in the order of their names.

    Examples:
        >>> resolver_call("DEPTHWISE_CONV_2D"), resolver_call("TFLM_DECODE")
        ('AddDepthwiseConv2D();', 'AddDecode();')
    """
    names = {fb.operator_name(model, op) for graph in model.subgraphs for op in graph.operators}
    return tuple(sorted(map(resolver_call, names)))


def resolver_call(name: str) -> str:
    """Return the call that registers an operator."""
    words = [word if word == "2D" else word.capitalize() for word in name.split("_")]
    return f"Add{_NAMES.get(name, ''.join(words))}();"


def decoded_weights(model: Any) -> int:
    """Return how many weights DECODE unpacks in a run."""
    shapes = [graph.tensors[entry.output].shape for graph, entry in decodes(model)]
    return sum(int(np.prod(shape)) for shape in shapes)


def products(model: Any) -> int:
    """Return how many multiplications the convolutions and fully-connected operators do in a run.

    Args:
        model: A ``ModelT`` of fixed shapes.

    Returns:
        The number.
    """
    total = 0
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = fb.operator_name(model, operator)
            if name not in WEIGHT_AXIS or len(operator.inputs) < 2:
                continue
            weight = graph.tensors[int(operator.inputs[1])].shape
            place = int(operator.inputs[2] if name == "TRANSPOSE_CONV" else operator.outputs[0])
            reused = [int(n) for n in graph.tensors[place].shape[:-1]]
            total += int(np.prod([int(n) for n in weight])) * int(np.prod(reused))
    return total


def micro_warnings(report: MicroReport) -> Iterator[str]:
    """Yield what not to expect of a file.

    Args:
        report: Its figures.
    """
    if report.code_size:
        yield (
            "the file needs TensorFlow Lite Micro of November 2025 or later (Espressif: "
            "esp-tflite-micro 1.3.5); the examples library for Arduino, of 2023, has no DECODE"
        )
        if not report.pays:
            yield (
                f"unpacking saves {report.slim_size - report.size:,} bytes of model, and its code "
                f"takes {report.code_size:,}: on its own in a firmware a dense file is smaller"
            )
    if report.npu is not None and report.npu.get("error"):
        yield f"Vela does not compile the file: {report.npu['error']}"
    elif report.npu is not None and report.npu["cpu_operators"]:
        yield f"Vela leaves {report.npu['cpu_operators']} operators to the CPU"
    if report.decoded > _UNPACKED_SHARE * report.products:
        yield (
            "weights of dense layers are used once a run and unpacked each run, by some 16 "
            "instructions each: expect several times the time of the dense file"
        )
    if report.arena > 1.5 * report.dense_arena:
        yield (
            f"the arena grows from {report.dense_arena:,} to {report.arena:,} bytes, because whole "
            "layers are unpacked into it; arena_limit= keeps it smaller"
        )
