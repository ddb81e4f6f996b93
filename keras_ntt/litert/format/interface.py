"""The inputs and outputs of a LiteRT file, with the scales of those that are integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras_ntt.litert.format import flatbuffer as fb


@dataclass(frozen=True)
class Port:
    """An input or output of a LiteRT file.

    Attributes:
        kind: ``"input"`` or ``"output"``.
        name: Its name.
        shape: Its shape, -1 for a size that is open.
        dtype: Its type.
        scale: What integers ``q`` stand for, ``scale * (q - zero_point)``; None for numbers that
            stand for themselves.
        zero_point: See there.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int

    def to_dict(self) -> dict[str, Any]:
        """Return the port as plain numbers and strings."""
        return {**vars(self), "shape": list(self.shape)}

    def __str__(self) -> str:
        """Return the port in one line."""
        shape = "x".join("?" if n < 0 else str(n) for n in self.shape)
        text = f"{self.kind} {self.name}: {self.dtype} {shape}"
        if self.scale is None:
            return text
        return f"{text}, value = {self.scale:.9g} * (q - {self.zero_point})"


def ports_in(model: Any) -> tuple[Port, ...]:
    """List the inputs and outputs of a model.

    Args:
        model: A ``ModelT``.

    Returns:
        Those of its first graph, inputs first.
    """
    graph = model.subgraphs[0]
    found = []
    for kind, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for index in () if indices is None else indices:
            tensor = graph.tensors[int(index)]
            dtype = fb.dtypes().get(tensor.type)
            signature = tensor.shapeSignature
            shape = tensor.shape if signature is None or not len(signature) else signature
            scales = getattr(tensor.quantization, "scale", None)
            scaled = scales is not None and len(scales) > 0
            zeros = getattr(tensor.quantization, "zeroPoint", None)
            found.append(
                Port(
                    kind,
                    fb.name_of(tensor),
                    () if shape is None else tuple(int(n) for n in shape),
                    "other" if dtype is None else dtype.name,
                    None if scales is None or not scaled else float(scales[0]),
                    0 if not scaled or zeros is None or not len(zeros) else int(zeros[0]),
                )
            )
    return tuple(found)
