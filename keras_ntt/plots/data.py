"""Convert what users pass to numbers, and describe in words what they show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def series_of(values: Any, metric: str, name: str) -> np.ndarray:
    """Return curves as an array ``[seeds, epochs]``.

    Args:
        values: A Keras History or a list of them, or numbers ``[epochs]`` or ``[seeds, epochs]``.
        metric: Which of a History's curves.
        name: The name of the curves in messages.

    Returns:
        The numbers. If runs have different lengths, only the epochs that all of them have.

    Raises:
        ValueError: If there are no numbers, or a History lacks the metric.
    """
    histories = values if isinstance(values, list | tuple) else [values]
    if histories and all(hasattr(h, "history") for h in histories):
        for history in histories:
            if metric not in history.history:
                raise ValueError(
                    f"metric must be a curve that the history of {name!r} has: "
                    f"{', '.join(map(repr, history.history))}. Received: metric={metric!r}"
                )
        values = [history.history[metric] for history in histories]
        shortest = min(map(len, values))
        values = [run[:shortest] for run in values]
    try:
        array = np.atleast_2d(np.asarray(values, "float64"))
    except (TypeError, ValueError) as error:
        raise ValueError(_wrong_series(name, type(values).__name__)) from error
    if array.ndim != 2 or not array.size:
        raise ValueError(_wrong_series(name, f"an array of shape {array.shape}"))
    return array


def _wrong_series(name: str, received: str) -> str:
    return (
        f"The curves of {name!r} must be a Keras History, a list of them, or numbers [epochs] or "
        f"[seeds, epochs], as many for each seed. Received: {received}"
    )


def numbers_of(values: Any, name: str) -> np.ndarray:
    """Return one number or several as an array ``[runs]``, or raise a ValueError."""
    try:
        array = np.atleast_1d(np.asarray(values, "float64"))
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"{name!r} must have a number, or one a run, at each sparsity. Received: {values!r}"
        )
    return array


def spread(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation over the first axis, 0 where there is one value.

    >>> spread(np.array([[1.0], [3.0]])).round(4).tolist(), spread(np.array([[1.0]])).tolist()
    ([1.4142], [0.0])
    """
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    return values.std(axis=0, ddof=1)


def check_named(values: Any, argument: str) -> Mapping[str, Any]:
    """Return a mapping that is not empty, or raise a ValueError."""
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            f"{argument} must map names to what is drawn, for example {{'dense': ..., 'NTT': "
            f"...}}. Received: {argument} of type {type(values).__name__}"
        )
    return values


def ranking(final: Mapping[str, Any], *, higher: bool = True) -> list[str]:
    """Return names from best to worst mean."""
    return sorted(final, key=lambda name: float(np.mean(final[name])), reverse=higher)


def is_clear(first: Any, second: Any) -> bool:
    """Tell whether two means differ by more than twice the standard error of their difference.

    Single runs have no spread, so their difference is never clear.

    >>> is_clear([5.0, 5.1, 4.9], [3.0, 3.1, 2.9]), is_clear([5.0, 1.0], [3.0, 2.0])
    (True, False)
    >>> is_clear([5.0], [1.0])
    False
    """
    if min(len(first), len(second)) < 2:
        return False
    error = np.sqrt(sum(np.var(v, ddof=1) / len(v) for v in (first, second)))
    return bool(abs(np.mean(first) - np.mean(second)) > 2 * error)


def verdict(final: Mapping[str, Any], when: str, *, unit: str = "", higher: bool = True) -> str:
    """Say in words which of several is best, and whether that is more than chance.

    Args:
        final: Numbers of one or more runs, by name.
        when: When or where they were measured, the beginning of the sentence.
        unit: The unit of a difference.
        higher: Whether higher is better.

    Returns:
        One sentence. Entries without a finite mean are not compared.

    >>> verdict({"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [0.0, 0.1]}, "After 3 epochs")
    'After 3 epochs b is best, 1 ahead of a'
    >>> verdict({"a": [1.0, 3.0], "b": [2.0, 2.1]}, "At the end")
    'At the end b and a cannot be told apart with 2 seeds'
    >>> verdict({"a": [float("nan")], "b": [2.0]}, "At the end")
    'At the end b has 2, a is NaN or infinite'
    """
    lost = [name for name, values in final.items() if not np.isfinite(np.mean(values))]
    if lost:
        others = {name: values for name, values in final.items() if name not in lost}
        rest = f"{', '.join(map(str, lost))} {'is' if len(lost) == 1 else 'are'} NaN or infinite"
        if not others:
            return f"{when} {rest}"
        return f"{verdict(others, when, unit=unit, higher=higher)}, {rest}"
    order = ranking(final, higher=higher)
    if len(order) == 1:
        return f"{when} {order[0]} has {np.mean(final[order[0]]):.3g}{unit}"
    best, second = order[:2]
    gap = abs(float(np.mean(final[best]) - np.mean(final[second])))
    seeds = min(len(final[best]), len(final[second]))
    if seeds < 2:
        return f"{when} {best} is {gap:.2g}{unit} ahead of {second}, in one run"
    if is_clear(final[best], final[second]):
        return f"{when} {best} is best, {gap:.2g}{unit} ahead of {second}"
    return f"{when} {best} and {second} cannot be told apart with {seeds} seeds"
