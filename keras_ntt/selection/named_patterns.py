"""Patterns by name: what ``pattern=`` accepts besides functions."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.core.axes import Axes
from keras_ntt.selection.patterns import (
    Pattern,
    blocks,
    butterfly,
    check_rank,
    entries,
    m_of_n,
    whole_filters,
)


def as_pattern(value: Any) -> Pattern | None:
    """Return the function of a pattern.

    In a transfer and in `keras_ntt.prune_at_init` the layer defines which axes are inputs and
    outputs: the kernels of transposed convolutions have their inputs last, and kernels of attention
    are matrices of all their inputs and all their outputs. The function itself takes kernels
    ``[..., inputs, outputs]``.

    Args:
        value: None: single entries. ``"n:m"``, for example ``"2:4"``: of every m consecutive
            entries along the input channels n are kept. This fixes the sparsity of every weight,
            whatever the allocation. ``(h, w)``: blocks of h inputs and w outputs. ``"filters"``:
            whole output channels. ``"butterfly"``: blocks of inputs and outputs whose numbers
            differ in at most one of the lowest bits, whatever the scores (flat block butterfly,
            Chen et al., "Pixelated Butterfly", 2022). Each side has 2, 4, 8, ... blocks, the number
            that comes nearest to the sparsity. Or a function that returns a mask from the scores of
            a weight, in its shape, and its sparsity.

    Returns:
        The function, or None.

    Raises:
        ValueError: If it is none of these.

    Examples:
        >>> as_pattern("1:4").sparsity
        0.75
    """
    if value is None or (callable(value) and not isinstance(value, type)):
        return value
    if isinstance(value, str) and value == "filters":
        return whole_filters
    if isinstance(value, str) and value == "butterfly":
        return butterfly
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+):(\d+)", value)):
        n, m = map(int, match.groups())
        if 0 < n < m:
            return OfConsecutive(n, m)
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        height, width = (checks.check_count("pattern", size) for size in value)
        return Blocks(height, width)
    raise ValueError(
        "pattern must be None, 'n:m' with n < m such as '2:4', a block (inputs, outputs) such as "
        "(4, 1), 'filters', 'butterfly', or a function of a weight's scores and its sparsity that "
        f"returns a boolean mask. Received: pattern={value!r}"
    )


def choose(
    pattern: Pattern, scores: tf.Tensor, sparsity: Any, axes: Axes | None = None
) -> tf.Tensor:
    """Return the mask that a pattern chooses, checked.

    Args:
        pattern: The pattern.
        scores: Scores of a weight.
        sparsity: Fraction of zeros.
        axes: The meaning of the weight's axes, for the patterns of this module. With None the last
            two are inputs and outputs, also if each output has its own input.

    Returns:
        A boolean tensor of the shape of `scores`.

    Raises:
        ValueError: If the pattern returns something else.
    """
    if scores.dtype.size < 4:  # some operations do not take half precision
        scores = tf.cast(scores, tf.float32)
    if axes is not None and axes.inputs and axes.outputs and _has_sides(pattern):
        mask = axes.restored(pattern(axes.ordered(scores), sparsity), scores.shape)
    else:
        mask = pattern(scores, sparsity)
    try:
        mask = tf.convert_to_tensor(mask)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"pattern must return a boolean mask. Received: {mask!r}") from error
    if not mask.shape.is_compatible_with(scores.shape):
        raise ValueError(
            "pattern must return a mask of the shape of the scores. "
            f"Received: shape {mask.shape} for scores of shape {scores.shape}"
        )
    return tf.cast(mask, tf.bool)


def _has_sides(pattern: Pattern) -> bool:
    """Return whether a pattern tells inputs from outputs."""
    return isinstance(pattern, OfConsecutive | Blocks) or pattern in (whole_filters, butterfly)


def check_fixed_sparsity(pattern: Pattern | None, sparsity: float, allocation: Any = None) -> None:
    """Raise a ValueError if a pattern fixes another sparsity than the requested one.

    Args:
        pattern: The pattern.
        sparsity: The requested fraction of zeros.
        allocation: The allocation. The sparsities of a mapping are checked as well. 1 is allowed:
            everything is pruned then.
    """
    fixed = getattr(pattern, "sparsity", None)
    if fixed is None:
        return
    asked = {"sparsity": sparsity}
    if isinstance(allocation, Mapping):
        asked |= {f"allocation[{k!r}]": v for k, v in allocation.items() if v != 1}
    for name, value in asked.items():
        if abs(fixed - value) > 1e-6:
            raise ValueError(
                f"The pattern {pattern} fixes the sparsity of every weight at {fixed:g}: ask for "
                "exactly that, and leave out by filters= the weights that must stay dense. "
                f"Received: {name}={value!r}"
            )


def warn_if_sparsity_missed(
    pattern: Pattern | None,
    names: Sequence[str],
    masks: Sequence[np.ndarray],
    counts: Sequence[int],
) -> None:
    """Warn of weights in which a pattern is far from the requested sparsity.

    Far is a fifth of the entries, or twice or half of the entries to keep. Weights that are pruned
    as a whole do not count.

    Args:
        pattern: The pattern.
        names: Paths of the weights.
        masks: Their masks.
        counts: How many entries each should keep, if the pattern does not fix it.
    """
    far = []
    for name, mask, count in zip(names, masks, counts, strict=True):
        if pattern is None or count == 0:
            continue
        wanted = getattr(pattern, "sparsity", 1 - count / mask.size)
        found = 1 - np.count_nonzero(mask) / mask.size
        if abs(found - wanted) > 0.2 or not 0.5 < (1 - found) / (1 - wanted) < 2:
            far.append(f"{name} ({found:.3g} instead of {wanted:.3g})")
    if far:
        warnings.warn(
            f"The pattern does not come near the sparsity of {', '.join(far)}: in such small "
            "weights it has too few groups to choose from. Use a finer pattern, or leave such "
            "weights out by filters=. "
            f"Received: pattern {getattr(pattern, '__name__', pattern)}",
            stacklevel=4,
        )


@dataclass(frozen=True)
class OfConsecutive:
    """The pattern that keeps `n` of every `m` consecutive entries along the input channels.

    Attributes:
        n: Entries that are kept.
        m: Entries of a group.
    """

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def __call__(self, scores: tf.Tensor, sparsity: Any) -> tf.Tensor:
        """Return the mask of a kernel ``[..., inputs, outputs]``; the sparsity has no effect."""
        check_rank(scores, f"The pattern {self}")
        return m_of_n(scores, self.m - self.n, self.m)


@dataclass(frozen=True)
class Blocks:
    """The pattern of whole blocks, those with the largest mean score.

    The kernel of a convolution is a matrix here, with a row for each input channel at each position
    of the filter.

    Attributes:
        height: Inputs of a block.
        width: Outputs of a block.
        pooling: ``"AVG"`` or ``"MAX"``: how a block is scored.
    """

    height: int
    width: int
    pooling: str = "AVG"

    def __str__(self) -> str:
        return f"({self.height}, {self.width})"

    def __call__(self, scores: tf.Tensor, sparsity: Any) -> tf.Tensor:
        """Return the mask of a kernel ``[..., inputs, outputs]``."""
        check_rank(scores, "A block")
        matrix = tf.reshape(scores, [-1, scores.shape[-1]])
        size = (self.height, self.width)
        mask = blocks(matrix, sparsity, block_size=size, pooling=self.pooling)
        return tf.reshape(mask, scores.shape)


POOLINGS: tuple[str, ...] = ("AVG", "MAX")


def pattern_of(
    shape: tuple[int, ...],
    *,
    block_size: tuple[int, int] = (1, 1),
    pooling: str = "AVG",
    sparsity_m_by_n: tuple[int, int] | None = None,
    name: str = "the weight",
    axes: Axes | None = None,
) -> Pattern:
    """Return a function from scores and a sparsity to a mask, for a weight of a given shape.

    Args:
        shape: The weight's shape.
        block_size: Rows and columns of a block.
        pooling: ``"AVG"`` or ``"MAX"``.
        sparsity_m_by_n: Number of zeros and of entries in a group; None for no groups.
        name: The name of the weight in a message.
        axes: The meaning of its axes, see `choose`.

    Returns:
        The function. With `sparsity_m_by_n` the sparsity has no effect.

    Raises:
        ValueError: If the shape does not allow the structure.
    """
    if sparsity_m_by_n is not None:
        m, n = sparsity_m_by_n
        _check_matrix("sparsity_m_by_n", sparsity_m_by_n, shape, name)
        group = OfConsecutive(n - m, n)
        return lambda scores, sparsity: choose(group, scores, sparsity, axes)
    if block_size != (1, 1):
        _check_matrix("block_size", block_size, shape, name)
        whole = Blocks(*block_size, pooling)
        return lambda scores, sparsity: choose(whole, scores, sparsity, axes)
    return lambda scores, sparsity: entries(_floats(scores), sparsity)


def _check_matrix(setting: str, value: Any, shape: tuple[int, ...], name: str) -> None:
    if len(shape) < 2:
        raise ValueError(
            f"{setting} is for kernels, of 2 axes at least. Leave the other weights out by "
            f"filters= or pruning_policy=. Received: {setting}={value}, {name} of shape {shape}"
        )


def _floats(scores: tf.Tensor) -> tf.Tensor:
    """Return half-precision scores as float32, because some operations need it."""
    return tf.cast(scores, tf.float32) if scores.dtype.size < 4 else scores


def check_structure(
    block_size: Any, block_pooling_type: Any, sparsity_m_by_n: Any
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Check and return the requested structure.

    Args:
        block_size: Rows and columns of a block.
        block_pooling_type: ``"AVG"`` or ``"MAX"``.
        sparsity_m_by_n: Zeros and entries of a group, or None.

    Returns:
        The block size and the group as tuples of integers.

    Raises:
        ValueError: If one is not valid, or both are given.
    """
    block = _pair("block_size", block_size)
    checks.check_choice("block_pooling_type", block_pooling_type, POOLINGS)
    if sparsity_m_by_n is None:
        return block, None
    group = _pair("sparsity_m_by_n", sparsity_m_by_n)
    if group[0] >= group[1]:
        raise ValueError(
            "sparsity_m_by_n is (m, n): m zeros in every n consecutive entries, so m must be less "
            f"than n. Received: sparsity_m_by_n={sparsity_m_by_n!r}"
        )
    if block != (1, 1):
        raise ValueError(
            "block_size and sparsity_m_by_n are two structures, and a mask can have only one. "
            f"Received: block_size={block_size!r}, sparsity_m_by_n={sparsity_m_by_n!r}"
        )
    return block, group


def _pair(name: str, value: Any) -> tuple[int, int]:
    try:
        pair = value if isinstance(value, list | tuple | np.ndarray) else ()
        first, second = (checks.check_count(name, entry) for entry in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be two positive integers, such as (2, 4). Received: {name}={value!r}"
        ) from error
    return first, second
