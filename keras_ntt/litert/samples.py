"""The samples to compare a file with its model: given or random inputs, and the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import host, input_kinds
from keras_ntt.litert.ports import Ports, ports_of
from keras_ntt.litert.representative import arrays_of

LIMIT = 256  # samples to measure ranges on
_FEWEST = 32  # fewer samples are not worth holding out


class Samples(NamedTuple):
    """The samples for making and judging a file.

    Attributes:
        given: Inputs, flat, to measure ranges and differences on.
        held_out: Further inputs of the data, to judge rounding on; `given` itself if there are
            fewer than 32.
        ports: The inputs and outputs of the model.
    """

    given: list[np.ndarray]
    held_out: list[np.ndarray]
    ports: Ports

    @property
    def has_held_out(self) -> bool:
        """Whether rounding is judged on other samples than the ranges."""
        return self.held_out is not self.given


def samples_of(
    model: keras.Model, representative_data: Any, batch_size: int | None = None
) -> Samples:
    """Return the inputs to compare outputs on, and the ports of the model.

    Args:
        model: A built model.
        representative_data: Inputs, in the forms of `representative.arrays_of`. Of more than 256
            the first 256 are used, in whole batches if the model fixes the batch size, and up to
            256 further ones are held out. None draws 16 samples, or one such batch: standard
            normal, or zeros and ones if the model takes integers.
        batch_size: The fixed batch size of the file, or None.

    Returns:
        The inputs and the ports of the model.

    Raises:
        ValueError: If the data do not fit the model, or are missing where none can be drawn.
    """
    if representative_data is None:
        ports = ports_of(model)
        assert ports is not None
        kinds = input_kinds.are_indices(ports.structure, model)
        rng = np.random.default_rng(0)
        pairs = zip(ports.inputs, kinds, strict=True)
        size = ports.batch or batch_size or 1
        count = size if ports.batch else -(-16 // size) * size
        drawn = [_drawn(rng, spec, count, kind) for spec, kind in pairs]
        return Samples(drawn, drawn, ports)
    arrays = arrays_of(representative_data, model, limit=2 * LIMIT)
    functional = host.functional_of(model)
    names = None if functional is None else host.names_of_inputs(functional)
    # A dict may have more entries than the inputs.
    leaves = [np.asarray(leaf) for leaf in host.flat_inputs(arrays, names)]
    ports = ports_of(model, arrays)
    assert ports is not None
    types = [spec.dtype.as_numpy_dtype for spec in ports.inputs]
    data = [leaf.astype(kind) for leaf, kind in zip(leaves, types, strict=True)]
    batch, count = ports.batch or batch_size or 1, len(data[0])
    if count < batch:
        raise ValueError(
            "representative_data must fill a batch of the size that the file fixes. "
            f"Received: {count} samples for batches of {batch}"
        )
    end = max(min(count, LIMIT) // batch, 1) * batch
    given = [array[:end] for array in data]
    rest = (count - end) // batch * batch
    if rest < _FEWEST:
        return Samples(given, given, ports)
    return Samples(given, [array[end : end + rest] for array in data], ports)


def _drawn(rng: np.random.Generator, spec: tf.TensorSpec, count: int, indices: bool) -> np.ndarray:
    """Return random inputs: normal, or small integers if the model takes integers."""
    if None in spec.shape[1:]:
        raise ValueError(
            "The model leaves a size of its input open, so there is nothing to compare outputs "
            f"on. Pass representative_data. Received: input of shape {tuple(spec.shape)}"
        )
    shape = (count, *spec.shape[1:])
    whole = indices or not spec.dtype.is_floating
    drawn = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)
    return drawn.astype(spec.dtype.as_numpy_dtype)


def outputs_of(model: keras.Model, samples: Sequence[np.ndarray], ports: Ports) -> list[np.ndarray]:
    """Return the outputs of a model in inference mode.

    Args:
        model: The model.
        samples: Its inputs ``[n, ...]``, flat.
        ports: Its inputs and outputs.

    Returns:
        Its outputs ``[n, ...]``, flat.
    """
    size, parts = ports.batch or len(samples[0]), []
    for start in range(0, len(samples[0]), size):
        outputs = ports.call(model, [array[start : start + size] for array in samples])
        parts.append([keras.ops.convert_to_numpy(output) for output in outputs])
    return [np.concatenate(found) for found in zip(*parts, strict=True)]
