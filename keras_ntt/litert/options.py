"""The options of an export: which combinations are valid, and their defaults."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from keras_ntt.core import checks
from keras_ntt.litert.convert import QUANTIZATIONS
from keras_ntt.litert.format.storage import CPUS
from keras_ntt.litert.micro import c_array as c_source
from keras_ntt.litert.reencode import TARGETS

# Types of inputs and outputs for each quantization; the first is the one for microcontrollers.
_PORTS = {"int8": ("int8", "uint8", "float32"), "int16": ("int16", "float32")}
NPUS = ("ethos-u",)


_DEVICES = ("int8", "micro")  # they take one sample, in the type in which they compute


@dataclass(frozen=True)
class Micro:
    """Options of ``target="micro"``.

    Attributes:
        huffman: Whether weights may be stored by a Huffman code.
        arena_limit: Bytes of memory, ``"dense"``, or None.
        c_array: Where to write C source, or None.
        npu: The kind of NPU that the file is compiled for, or None.
        levels: The number of values to which the weights of a tensor are rounded, or None.
    """

    huffman: bool = False
    arena_limit: int | str | None = None
    c_array: str | os.PathLike | None = None
    npu: str | None = None
    levels: int | None = None


@dataclass(frozen=True)
class Options:
    """Valid options of an export.

    Attributes:
        target: What the file is for.
        quantization: How values are rounded, or None.
        cpu: The processor for ``"latency"``.
        tolerance: Largest allowed difference, relative to the largest number of an output. None
            judges the rounding, or is 1e-4 if nothing is rounded.
        input_type: The input type: ``"float32"``, ``"int8"``, ``"uint8"`` or ``"int16"``.
        output_type: The output type.
        batch_size: The fixed batch size of the file, or None for that of the model.
        micro: Options of ``target="micro"``.
        operators: Whether an LSTM may become one operator.
    """

    target: str
    quantization: str | None
    cpu: str
    tolerance: float | None
    input_type: str
    output_type: str
    batch_size: int | None
    micro: Micro
    operators: bool = True


def options_of(
    *,
    target: str,
    quantization: Any,
    cpu: str,
    tolerance: Any,
    data: Any,
    input_type: Any,
    output_type: Any,
    batch_size: Any,
    micro: Micro,
) -> Options:
    """Check and return options.

    Args:
        target: As in `export_tflite`.
        quantization: Likewise.
        cpu: Likewise.
        tolerance: Likewise.
        data: ``representative_data``.
        input_type: ``inference_input_type``.
        output_type: ``inference_output_type``.
        batch_size: As in `export_tflite`.
        micro: The options that are only for ``target="micro"``.

    Returns:
        The options.

    Raises:
        ValueError: If they do not fit together.
    """
    checks.check_choice("target", target, (*TARGETS, "micro"))
    checks.check_choice("cpu", cpu, CPUS)
    if quantization is not None:
        checks.check_choice("quantization", quantization, (*QUANTIZATIONS, "float32"))
    if target == "int8":
        if quantization not in (None, "int8"):
            raise ValueError(
                'A file of target="int8" always computes in int8, so quantization cannot be '
                "chosen. Leave it out, or use another target. "
                f"Received: target='int8', quantization={quantization!r}"
            )
        quantization = "int8"
    if target == "micro":
        quantization = quantization or "int8"
        checks.check_choice("quantization", quantization, ("int8", "int16", "float32"))
    quantization = None if quantization == "float32" else quantization
    if quantization in _PORTS and data is None:
        raise ValueError(
            f"A file that computes in {quantization} needs inputs to measure the ranges of "
            "activations on. Pass representative_data, some hundred samples as the model will see "
            "them. Received: representative_data=None"
        )
    takes = _port("inference_input_type", input_type, quantization, target)
    returns = _port("inference_output_type", output_type, quantization, target)
    checked = check_micro(micro, target)
    if checked.levels is not None and quantization is None:
        raise ValueError(
            "levels are for files that compute in integers, whose weights are int8. Leave levels "
            f"out, or quantization. Received: levels={checked.levels}, quantization='float32'"
        )
    is_auto = isinstance(tolerance, str) and tolerance == "auto"
    number = None if is_auto else checks.check_number("tolerance", tolerance)
    any_number = isinstance(batch_size, str) and batch_size == "any" and target != "micro"
    size = None if batch_size is None or any_number else _count(batch_size, target)
    if target in _DEVICES and batch_size is None:
        size = 1
    whole = target != "latency"
    return Options(target, quantization, cpu, number, takes, returns, size, checked, whole)


def _count(batch_size: Any, target: str) -> int:
    """Return the batch size, or raise a ValueError."""
    try:
        return checks.check_count("batch_size", batch_size)
    except ValueError:
        also = "" if target == "micro" else ', or "any"'
        raise ValueError(
            f"batch_size must be a whole number of at least 1{also}. Received: {batch_size=}"
        ) from None


def _port(name: str, given: Any, quantization: str | None, target: str) -> str:
    """Return the type of inputs or outputs."""
    choices = _PORTS.get(quantization or "", ("float32",))
    if given is None:
        return choices[0] if target in _DEVICES else "float32"
    wanted = str(getattr(given, "name", None) or getattr(given, "__name__", given))
    if wanted not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(choices)} with quantization={quantization!r}: only "
            "files that compute in integers take and return them. "
            f"Received: {name}={given!r}"
        )
    return wanted


def check_micro(micro: Micro, target: str) -> Micro:
    """Check and return the options for microcontrollers.

    Args:
        micro: The options as given.
        target: What the file is for.

    Returns:
        The options.

    Raises:
        FileNotFoundError: If the folder of the C source does not exist.
        ValueError: If they do not fit the target or each other.
    """
    if target != "micro":
        given = {k: v for k, v in vars(micro).items() if v is not None and v is not False}
        for name, value in given.items():
            raise ValueError(
                f'{name} is only an option of target="micro". Leave it out, or use that target. '
                f"Received: {name}={value!r}, target={target!r}"
            )
        return micro
    limit = micro.arena_limit
    if limit is not None and limit != "dense":
        limit = checks.check_count("arena_limit", limit)
    if micro.c_array is not None:
        c_source.paths_of(micro.c_array)
    levels = micro.levels
    if levels is not None:
        levels = checks.check_count("levels", levels)
        if levels < 2:
            raise ValueError(f"levels must be at least 2, for both signs. Received: {levels=}")
    if micro.npu is not None:
        checks.check_choice("npu", micro.npu, NPUS)
        taken = {"huffman": micro.huffman, "arena_limit": limit, "c_array": micro.c_array}
        for name, value in taken.items():
            if value:
                raise ValueError(
                    "A file for an NPU is compiled by Vela, which needs dense weights and makes "
                    f"the file that is flashed. Leave {name} out. "
                    f"Received: npu={micro.npu!r}, {name}={value!r}"
                )
    return Micro(micro.huffman, limit, micro.c_array, micro.npu, levels)
