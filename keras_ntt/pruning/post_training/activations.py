"""Tensors that wait for later layers: in memory up to a limit, beyond it in a temporary folder."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import weakref
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ntt.core import host

MEMORY_LIMIT = 2**31
"""Bytes of activations that are kept in memory."""


class Kept:
    """A tensor that can be read again.

    Args:
        tensor: The tensor; None if it is in a file.
        path: The file.
        size: The bytes that it takes in memory.
    """

    def __init__(self, tensor: Any, path: pathlib.Path | None, size: int):
        self._tensor, self._path, self.size = tensor, path, size

    @property
    def value(self) -> Any:
        """The tensor."""
        if self._path is None:
            return self._tensor
        return tf.constant(np.load(self._path, allow_pickle=False))

    def delete(self) -> None:
        """Delete the file, if there is one."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Activations:
    """Keeps tensors, and counts the bytes of those in memory.

    Args:
        limit: The most bytes; None for no limit. What does not fit goes to files, except for
            tensors with a mask of timesteps, and of types that NumPy's files do not have.

    Attributes:
        used: Bytes in memory.
    """

    def __init__(self, limit: int | None = MEMORY_LIMIT):
        self._limit = limit
        self.used = 0
        self._folder: pathlib.Path | None = None
        self._number = 0

    def keep(self, tensor: Any) -> Kept:
        """Keep a tensor.

        Args:
            tensor: The tensor.

        Returns:
            From which it can be read, until it is released.
        """
        size = int(np.prod(tensor.shape)) * tensor.dtype.size if tf.is_tensor(tensor) else 0
        fits = self._limit is None or self.used + size <= self._limit
        known = size and tensor.dtype not in (tf.bfloat16, tf.string, tf.variant)
        if fits or not known or host.get_mask(tensor) is not None:
            self.used += size
            return Kept(tensor, None, size)
        if self._folder is None:
            self._folder = pathlib.Path(tempfile.mkdtemp(prefix="keras_ntt_"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._number += 1
        path = self._folder / f"{self._number}.npy"
        np.save(path, tensor.numpy(), allow_pickle=False)
        return Kept(None, path, 0)

    def release(self, kept: Kept) -> None:
        """Forget a tensor."""
        self.used -= kept.size
        kept.delete()
