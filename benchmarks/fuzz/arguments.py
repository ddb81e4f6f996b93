"""How the arguments of public functions are drawn, good and bad."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import keras_ntt
from benchmarks.fuzz import values
from benchmarks.fuzz.models import GOOD, OTHER, World

Draw = Callable[[random.Random, World], Any]


@dataclass(frozen=True)
class Argument:
    """How an argument is drawn.

    Attributes:
        good: A value that fits.
        bad: One that may not; None draws any value.
        spoil: How often it is the one that is bad, relative to the others.
    """

    good: Draw
    bad: Draw | None = None
    spoil: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A public function or class.

    Attributes:
        name: Its name.
        call: What is called, with the arguments by name.
        arguments: How they are drawn.
        raises: What it may raise.
        weight: How often it is called, relative to the others.
        changes: Whether it changes models or writes files when it succeeds.
        foreign: Arguments that Keras checks, with its own messages.
    """

    name: str
    call: Callable[..., Any]
    arguments: Mapping[str, Argument]
    raises: tuple[type[BaseException], ...] = (TypeError, ValueError)
    weight: float = 1.0
    changes: bool = False
    foreign: frozenset[str] = field(default_factory=frozenset)


ENTRIES: dict[str, Entry] = {}


def entry(call: Any, name: str | None = None, **options: Any) -> Callable[..., None]:
    """Add an entry: ``entry(function, option=...)(argument=how it is drawn, ...)``."""

    def add(**arguments: Argument) -> None:
        title = name or call.__name__
        ENTRIES[title] = Entry(title, call, arguments, **options)

    return add


# --- arguments -------------------------------------------------------------------------------


def of(*choices: Any, spoil: float = 1.0, bad: Any = None) -> Argument:
    """Return an argument that is one of some values."""
    drawn = None if bad is None else lambda rng, world: bad(rng)
    return Argument(lambda rng, world: rng.choice(choices), drawn, spoil)


def of_work(value: int) -> Argument:
    """Return an argument that says how often something is done: spoiled, but not without end."""

    def bad(rng: random.Random, world: World) -> Any:
        drawn = values.nasty(rng)
        endless = isinstance(drawn, int | float | np.number) and drawn > 100
        return "often" if endless else drawn

    return Argument(lambda rng, world: value, bad)


def bad_model(rng: random.Random, world: World) -> Any:
    if rng.random() < 0.3:
        return values.nasty(rng)
    return world.model(rng.choice(list(OTHER)))


def model(*kinds: str, spoil: float = 1.0) -> Argument:
    """Return an argument that is a model of a kind."""
    good = kinds or tuple(GOOD)
    return Argument(lambda rng, world: world.model(rng.choice(good)), bad_model, spoil)


def drawn(good: Callable[[], Any], bad: values.Make, spoil: float = 1.0) -> Argument:
    """Return an argument of a value, watched if it is an array, or a bad one by a function."""
    return Argument(
        lambda rng, world: world.watch(good()), lambda rng, world: world.watch(bad(rng)), spoil
    )


def fraction() -> Argument:
    """Return an argument that is a fraction below 1."""
    return of(0.0, 0.3, 0.5, np.float32(0.5))


INPUTS = drawn(values.samples, values.bad_inputs, 3.0)
LABELS = drawn(lambda: np.arange(8) % 3, values.bad_labels)
FILTERS = of(None, "first", spoil=1.0, bad=values.bad_filters)
POLICY = of(None, keras_ntt.KernelPolicy(), bad=values.bad_policy)
SALIENCY = of("magnitude", "random", "balanced", bad=values.bad_saliency)
ALLOCATION = of("layerwise", "global", bad=values.bad_allocation)
SCHEDULE = of(0.5, keras_ntt.ConstantSparsity(0.5, 1), bad=values.bad_schedule)
SEED = of(0, 7, np.int64(3))
CHOICE: dict[str, Argument] = {
    "wrt": of("all", "kept"),
    "outputs": of("full", "trace"),
    "count_rule": of("nearest", "original"),
    "output_projections": of(None, spoil=0.5),
    "ntk_weight": of(1e-3, 0),
    "l2": of(0.0, 1e-5),
    "normalize": of(False, True),
    "filters": FILTERS,
    "pruning_policy": POLICY,
}


def chosen(*names: str) -> dict[str, Argument]:
    """Return arguments that several functions have."""
    return {name: CHOICE[name] for name in names}


def bad_masks(rng: random.Random, world: World) -> Any:
    given = world.model(rng.choice([*GOOD, "held", "scheduled", "cnn"]))
    result: dict[Any, Any] = {}
    for variable in given.weights:
        kind = rng.random()
        if kind < 0.2:
            result[variable.path] = values.bad_mask(rng, tuple(variable.shape))
        elif kind < 0.6:
            result[variable.path] = np.ones(variable.shape, bool)
    if rng.random() < 0.4:
        key = rng.choice([*(w for w in values.WORDS), None, 3, ("a",), "first/kernel"])
        result[key] = np.ones((6, 4), bool)
    return result if rng.random() < 0.9 else values.nasty(rng)


MASKS = Argument(lambda rng, world: {}, bad_masks, 4.0)
