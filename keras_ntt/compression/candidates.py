"""What is tried to make a model small: fewer weights, fewer channels, from little to much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_ntt.core import checks
from keras_ntt.core.channels.groups import channel_groups
from keras_ntt.core.checks import check_sparsity
from keras_ntt.pruning.channels.prune import prune_channels
from keras_ntt.pruning.post_training.prune import prune_post_training

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Fractions of zeros that are tried if none is asked for."""

CHANNELS = (0.25, 0.5, 0.75)
"""Fractions of the channels that are removed if none is asked for."""

METHODS = ("weights", "channels")


@dataclass(frozen=True)
class Candidate:
    """A model that is made of the dense one.

    Attributes:
        method: ``"dense"``, ``"weights"`` or ``"channels"``.
        amount: The fraction of zeros, or of channels that go.
    """

    method: str
    amount: float = 0.0

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.method}-{self.amount:g}" if self.amount else self.method

    @property
    def sparsity(self) -> float:
        """The fraction of zeros that is asked for."""
        return self.amount if self.method == "weights" else 0.0

    @property
    def channels(self) -> float:
        """The fraction of channels that go."""
        return self.amount if self.method == "channels" else 0.0

    def make(
        self,
        model: keras.Model,
        inputs: Any,
        *,
        epochs: int,
        seed: int,
        filters: Any,
        options: Mapping[str, Any],
    ) -> keras.Model:
        """Return the model; the dense one stays as it is.

        Args:
            model: The dense model.
            inputs: Unlabelled inputs.
            epochs: Passes over them to recover in.
            seed: Seed of every random choice.
            filters: Which layers are pruned.
            options: Further ones of `prune_post_training`.

        Returns:
            The dense model itself, a sparse copy or a smaller model.
        """
        given = {"filters": filters, "epochs": epochs, "seed": seed, "verbose": 0}
        if self.method == "weights":
            return prune_post_training(model, inputs, sparsity=self.amount, **given, **options)
        if self.method == "channels":
            return prune_channels(model, inputs, channels=self.amount, **given)
        return model


def ladders(
    model: keras.Model, *, methods: Any, sparsity: Any, channels: Any
) -> list[list[Candidate]]:
    """Return what is tried, in rows that go from little to much.

    Args:
        model: The dense model.
        methods: Some of `METHODS`. None takes those that amounts are given of, or else all that
            the model admits.
        sparsity: A fraction of zeros, several, or None for `SPARSITIES`.
        channels: A fraction of the channels, several, or None for `CHANNELS`.

    Returns:
        One row a method. The first row is the dense model alone.

    Raises:
        ValueError: If an amount or a method is none, or a method does not fit the model.
    """
    amounts = {
        "weights": _amounts(SPARSITIES if sparsity is None else sparsity, check_sparsity),
        "channels": _amounts(CHANNELS if channels is None else channels, _check_channels),
    }
    given = {"weights": sparsity is not None, "channels": channels is not None}
    if methods is None:
        chosen = [name for name in METHODS if given[name]] or list(METHODS)
    else:
        chosen = _chosen(methods, given)
    removable = any(group.kept is None and group.channels > 1 for group in channel_groups(model))
    if "channels" in chosen and not removable:
        if methods is not None or given["channels"]:
            raise ValueError(
                "The model has no channels that may be removed; channel_groups(model) says why. "
                f"Leave channels out of methods. Received: {methods=}, {channels=}"
            )
        chosen.remove("channels")
    rows = [[Candidate(name, amount) for amount in amounts[name]] for name in chosen]
    return [[Candidate("dense")], *rows]


def _chosen(methods: Any, given: Mapping[str, bool]) -> list[str]:
    """Return methods as a list, or raise a ValueError."""
    found = [methods] if isinstance(methods, str) else list(methods)
    for name in found:
        checks.check_choice("methods", name, METHODS)
    unused = [name for name in METHODS if given[name] and name not in found]
    if not found or unused:
        word = "channels" if "channels" in unused else "sparsity"
        said = f"{word} was given, too, and nothing would use it. " if unused else ""
        raise ValueError(
            f"methods must hold one at least of {METHODS}. {said}Received: methods={methods!r}"
        )
    return list(dict.fromkeys(found))


def _check_channels(value: Any) -> float:
    found = checks.check_fraction("channels", value)
    if found == 1:
        raise ValueError(f"channels must be below 1: some must stay. Received: channels={value!r}")
    return found


def _amounts(given: Any, check: Any) -> tuple[float, ...]:
    """Return amounts, rising, without 0."""
    values: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    return tuple(sorted({check(value) for value in values} - {0.0}))
