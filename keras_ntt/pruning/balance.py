"""The balance of two networks that are trained against each other (Wang et al., 2023).

The balance ratio says how much of the gap between real and generated samples, as the discriminator
sees it, one step of the generator closes. High ratios mean that the discriminator is too weak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Decision(NamedTuple):
    """What the discriminator is to do.

    Attributes:
        density: The fraction of its weights that it keeps from now on.
        exchanges: Whether it exchanges connections, because it may not keep more.
    """

    density: float
    exchanges: bool


def balance_ratios(real: Any, before: Any, after: Any) -> np.ndarray:
    """Return the balance ratio of each step, ``(after - before) / (real - before)``.

    Args:
        real: Means of the discriminator's outputs on real samples, of shape ``[steps]``.
        before: The same on generated samples, of the generator before its step.
        after: And after it, from the same noise.

    Returns:
        Ratios of shape ``[steps]``; NaN where real and generated samples are told apart by less
        than a millionth of the outputs.

    >>> balance_ratios([0.6, 1.0], [-0.4, -0.2], [0.1, 0.7]).round(6).tolist()
    [0.5, 0.75]
    """
    real, before, after = (np.asarray(x, np.float64) for x in (real, before, after))
    gap = real - before
    clear = np.abs(gap) > 1e-6 * np.maximum(np.maximum(np.abs(real), np.abs(before)), 1e-30)
    return np.where(clear, (after - before) / np.where(clear, gap, 1.0), np.nan)


def mean_ratio(ratios: Sequence[float]) -> float:
    """Return the mean of ratios that are known; NaN if none is.

    >>> mean_ratio([0.5, float("nan"), 0.75])
    0.625
    """
    known = [ratio for ratio in ratios if np.isfinite(ratio)]
    return float(np.mean(known)) if known else float("nan")


def decide(
    density: float,
    ratio: float,
    *,
    lower: float,
    upper: float,
    change: float = 0.05,
    least: float = 0.05,
    most: float = 1.0,
    exchanges_at_most: bool = False,
) -> Decision:
    """Return the next density of a discriminator: more if the ratio is high, less if it is low.

    Args:
        density: The density of now.
        ratio: The mean balance ratio of the last steps; NaN changes nothing.
        lower: A ratio of at most this takes connections away.
        upper: A ratio of at least this adds some.
        change: How much is added or taken away, of all entries.
        least: The least density.
        most: The greatest.
        exchanges_at_most: Whether connections are exchanged where more are not allowed.

    >>> decide(0.5, 0.7, lower=0.5, upper=0.65).density
    0.55
    >>> decide(0.5, 0.7, lower=0.5, upper=0.65, most=0.5, exchanges_at_most=True)
    Decision(density=0.5, exchanges=True)
    """
    if ratio >= upper:
        wanted = max(min(density + change, most), density)
        full = density + 1e-9 >= most
        return Decision(round(wanted, 12), full and exchanges_at_most)
    if ratio <= lower:
        return Decision(round(min(max(density - change, least), density), 12), False)
    return Decision(density, False)
