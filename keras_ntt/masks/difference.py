"""The sparse difference of a model to another one, or to a seed, in a file.

If few entries of a model were trained, the model is its base and these entries. The base is a model
that the reader also has, or a seed from which `keras_ntt.core.philox` computes the same values on
any machine (Wimmer et al., "FreezeNet", 2020). The values are restored bit by bit.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

from keras_ntt.core import checks, host, philox
from keras_ntt.core.atomic_files import Path, as_path, replacing
from keras_ntt.core.copies import copy_of
from keras_ntt.core.fingerprints import fingerprint
from keras_ntt.masks import difference_format
from keras_ntt.masks.difference_format import Content, Part, shape_of


def save_difference(model: keras.Model, base: keras.Model | int, path: Path) -> None:
    """Write the difference between a model and its base to a file.

    The model shares most of its entries with the base, because of `freeze_entries` or
    `freeze_at_init`. The file has the positions and values of the other entries. It is written
    under a temporary name in the same folder, and moved to its path when it is complete.

    Args:
        model: A built model.
        base: The model that it was made from, with the same layers; or the seed that was passed to
            `freeze_at_init`.
        path: The file to write.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist.
        TypeError: If a model is not a Keras 3 model.
        ValueError: If the models do not have the same weights, or no entry comes from the seed.

    Examples:
        >>> import keras, os, tempfile
        >>> from keras_ntt import load_difference, save_difference
        >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
        >>> tuned = keras.models.clone_model(base)
        >>> tuned.set_weights([base.weights[0] + keras.ops.eye(4, 5), base.weights[1]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_difference(tuned, base, os.path.join(folder, "update.bin"))
        ...     again = load_difference(base, os.path.join(folder, "update.bin"))
        >>> bool((again.weights[0].numpy() == tuned.weights[0].numpy()).all())
        True
    """
    checks.check_built(model)
    values = _arrays(model)
    if isinstance(base, keras.Model):
        checks.check_built(base, "base")
        bases = _arrays(base)
        if _shapes(bases) != _shapes(values):
            raise ValueError(
                "base must have the weights of the model: as many, of the same shapes and types, "
                f"in the same order. Received: base with {_shapes(bases)}, model with "
                f"{_shapes(values)}"
            )
        parts = [Part(v, b, None) for v, b in zip(values, bases, strict=True)]
        content = Content(parts, fingerprint=fingerprint(bases))
    else:
        seed = _check_base(base)
        parts = [
            _seeded_part(v, seed, i, limit)
            for i, (v, limit) in enumerate(zip(values, limits_of(model), strict=True))
        ]
        if all(part.limit is None for part in parts):
            raise ValueError(
                "No entry of the model has the value that the seed gives it. Pass the seed that "
                "keras_ntt.freeze_at_init was given, or the model that was trained on. "
                f"Received: base={base!r}"
            )
        content = Content(parts, seed=seed)
    written = difference_format.encode(content)
    with replacing(path) as temporary:
        temporary.write_bytes(written)


def load_difference(base: keras.Model, path: Path) -> keras.Model:
    """Return the model from a file and its base.

    Args:
        base: The base of the difference; it is not changed. If the base was a seed, any model with
            the same layers: its values are not used.
        path: A file that `save_difference` wrote.

    Returns:
        A copy of the base with exactly the values of the saved model. Nothing in it is frozen.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `base` is not a Keras 3 model.
        ValueError: If it is not such a file, is damaged, or was made for another base.
    """
    checks.check_built(base, "base")
    written = as_path(path).read_bytes()
    bases = _arrays(base)
    size = sum(b.nbytes for b in bases)
    try:
        header = difference_format.decode_header(written, size)
    except Exception as error:  # the bytes may be anything
        raise _not_whole(path, error) from error
    if header.shapes != _shapes(bases):
        raise ValueError(
            "The difference is one of a model with other weights. Build base as the model was when "
            f"it was saved. Received: path={os.fspath(path)!r} of weights {header.shapes}, base "
            f"with {_shapes(bases)}"
        )
    if header.seed is None and header.fingerprint != fingerprint(bases):
        raise ValueError(
            "The difference is one to another base: a model of the same layers with other values. "
            "Load the very model that keras_ntt.save_difference was given as base. "
            f"Received: path={os.fspath(path)!r}, base={base.name!r}"
        )
    if header.seed is not None:
        bases = [
            np.zeros_like(b) if limit is None else seeded(b, header.seed, i, limit)
            for i, (b, limit) in enumerate(zip(bases, header.limits, strict=True))
        ]
    try:
        values = difference_format.decode(written, header, bases)
    except Exception as error:
        raise _not_whole(path, error) from error
    copy = copy_of(base)
    copy.set_weights(values)
    return copy


def limits_of(model: keras.Model) -> list[float | None]:
    """Return the bounds of uniform initial values for each weight of a model.

    They have the variance of the weight's initializer if it is known, else that of Glorot's.

    Returns:
        A bound for each weight of two axes or more, rounded to float32; None for the others.
    """
    owners = {id(v): x for x in host.layers_of(model) for v in host.own_variables(x)}
    return [
        _limit(tuple(v.shape), host.initializer_of(owners.get(id(v)), v))
        if len(v.shape) > 1 and keras.backend.is_float_dtype(v.dtype)
        else None
        for v in model.weights
    ]


def seeded(like: np.ndarray, seed: int, weight: int, limit: float) -> np.ndarray:
    """Return the initial values of a weight from a seed, in the shape and type of an array."""
    values = philox.uniform(seed, weight, like.size, limit)
    return values.reshape(like.shape).astype(like.dtype)


def _limit(shape: tuple[int, ...], initializer: Any) -> float:
    """Return the bound of a uniform distribution with the variance of an initializer."""
    positions = int(np.prod(shape[:-2]))
    fans: dict[str, float] = {}
    fans["fan_in"], fans["fan_out"] = shape[-2] * positions, shape[-1] * positions
    fans["fan_avg"] = (fans["fan_in"] + fans["fan_out"]) / 2
    scale, mode = 1.0, "fan_avg"
    if isinstance(initializer, keras.initializers.VarianceScaling):
        scale, mode = initializer.scale, initializer.mode
    variance = scale / max(1.0, fans[mode])
    if hasattr(initializer, "stddev"):
        variance = initializer.stddev**2
    elif isinstance(initializer, keras.initializers.RandomUniform):
        variance = (initializer.maxval - initializer.minval) ** 2 / 12
    return float(np.float32(np.sqrt(3 * variance)))


def _seeded_part(value: np.ndarray, seed: int, weight: int, limit: float | None) -> Part:
    """Return a weight with the base that shares more entries: the seed's values or zeros."""
    zeros = np.zeros_like(value)
    if limit is None:
        return Part(value, zeros, None)
    first = seeded(value, seed, weight, limit)
    same = np.count_nonzero(difference_format.bits(first) == difference_format.bits(value))
    if same == 0 or same < np.count_nonzero(difference_format.bits(value) == 0):
        return Part(value, zeros, None)
    return Part(value, first, limit)


def _arrays(model: keras.Model) -> list[np.ndarray]:
    return [host.array_of(variable) for variable in model.weights]


def _shapes(values: list[np.ndarray]) -> list[str]:
    return [shape_of(v) for v in values]


def _check_base(base: Any) -> int:
    seed = checks.whole(base)
    if seed is None or seed < 0:
        raise TypeError(
            "base must be the keras.Model that the model was made of, or the seed that "
            f"keras_ntt.freeze_at_init was given. Received: base={base!r}"
        )
    return seed


def _not_whole(path: Path, error: Exception) -> ValueError:
    return ValueError(
        "This is not a whole file as keras_ntt.save_difference writes it. "
        f"Received: path={os.fspath(path)!r} ({type(error).__name__}: {error})"
    )
