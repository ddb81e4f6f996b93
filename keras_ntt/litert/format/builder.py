"""Pack a model's tables into the bytes of a file: buffers aligned, equal vectors stored once."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

ALIGNMENT = 16  # of the data of a buffer, as the schema demands


def pack(model: Any, generated: ModuleType, identifier: bytes) -> bytes:
    """Pack a model.

    Args:
        model: A ``ModelT``. It is not changed.
        generated: The module of the schema's generated classes.
        identifier: The four bytes that mark the format.

    Returns:
        The bytes of a file.
    """
    total = sum(len(b.data) + ALIGNMENT for b in model.buffers if b.data is not None)
    builder, plain = _sharing_builder()(total + 65536), model.buffers
    try:
        model.buffers = [_aligned(buffer, generated) for buffer in plain]
        builder.Finish(model.Pack(builder), identifier)
    finally:
        model.buffers = plain
    return bytes(builder.Output())


@functools.cache
def _sharing_builder() -> type:
    import flatbuffers

    class SharingBuilder(flatbuffers.Builder):
        """A builder that stores a vector or string only if no equal one is there already.

        A table refers to its vectors by offset, so several tables may refer to one. A vector of
        offsets is stored each time: its numbers are relative to its own place.
        """

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.stored: dict[tuple[int, int, bytes], int] = {}
            self.strings: dict[Any, int] = {}
            self.layout: tuple[int, int] | None = None  # bytes of an entry, alignment
            self.before = 0  # where the vector that is being written begins, from the end

        def StartVector(self, size: int, count: int, alignment: int) -> int:  # noqa: N802
            self.before, self.layout = self.Offset(), (size, max(size, alignment))
            return super().StartVector(size, count, alignment)

        def PrependUOffsetTRelative(self, offset: int) -> None:  # noqa: N802
            self.layout = None
            super().PrependUOffsetTRelative(offset)

        def EndVector(self, *arguments: Any) -> int:  # noqa: N802
            if self.layout is None:
                return super().EndVector(*arguments)
            size, alignment = self.layout
            self.layout = None
            begin = self.Head()
            content = bytes(self.Bytes[begin : begin + size * self.vectorNumElems])
            end = super().EndVector(*arguments)
            key = (size, alignment, content)
            if key in self.stored:
                self.head = len(self.Bytes) - self.before
                return self.stored[key]
            self.stored[key] = end
            return end

        def CreateString(self, text: Any, *arguments: Any) -> int:  # noqa: N802
            if text not in self.strings:
                self.strings[text] = super().CreateString(text, *arguments)
            return self.strings[text]

    return SharingBuilder


@functools.cache
def _aligned_class(generated: Any) -> type:
    class AlignedBuffer(generated.BufferT):
        """A buffer whose data begin at a multiple of 16 bytes; the generated one's may not."""

        def Pack(self, builder: Any) -> int:  # noqa: N802 - the name is the schema's
            vector = None
            if self.data is not None:
                content = bytes(memoryview(self.data)) if len(self.data) else b""
                builder.StartVector(1, len(content), ALIGNMENT)
                end = builder.head
                builder.head = end - len(content)
                builder.Bytes[builder.head : end] = content
                builder.vectorNumElems = len(content)
                vector = builder.EndVector()
            generated.BufferStart(builder)
            if vector is not None:
                generated.BufferAddData(builder, vector)
            return generated.BufferEnd(builder)

    return AlignedBuffer


def _aligned(buffer: Any, generated: ModuleType) -> Any:
    aligned = _aligned_class(generated)()
    aligned.data = buffer.data
    return aligned
