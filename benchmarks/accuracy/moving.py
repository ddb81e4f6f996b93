"""Training with masks that move: how each method of the comparison is set up and trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras

import keras_ntt

# What masks begin as. GraNet and gradual pruning begin dense.
STARTS = {
    **{"rigl": "random", "set": "random", "rigl-balanced": "balanced", "set-balanced": "balanced"},
    **{"granet": None, "gradual": None},
}
# Of the published codes. `begin` and `end` are fractions of the training, `frequency` is in steps.
DEFAULTS: dict[str, dict[str, Any]] = {
    **{
        name: {"drop_fraction": 0.3, "frequency": 100, "begin": 0.0, "end": 0.75}
        for name in ("rigl", "rigl-balanced")
    },
    **{
        name: {"drop_fraction": 0.3, "frequency": 938, "begin": 0.0, "end": 1.0}
        for name in ("set", "set-balanced")
    },
    "granet": {"drop_fraction": 0.5, "frequency": 100, "begin": 0.0, "end": 0.75},
    "gradual": {"drop_fraction": 0.0, "frequency": 100, "begin": 0.0, "end": 0.75},
}
SETTINGS = ("drop_fraction", "frequency", "begin", "end")
CELL = ("dataset", "network", "method", "allocation", "label_fraction", "epochs")


def steps_of(run: Any, steps: int) -> dict[str, int]:
    """Return when masks begin and end to move, in steps.

    Args:
        run: The settings.
        steps: The steps of the whole training.
    """
    begin = round(run.begin * steps)
    return {
        "begin_step": begin,
        "end_step": max(round(run.end * steps), begin + 1),
        "frequency": run.frequency,
    }


def exchange(run: Any, steps: int) -> list[Any]:
    """Return the callback of SET or RigL, or none."""
    base = run.method.split("-")[0]
    kind = {"rigl": keras_ntt.RigL, "set": keras_ntt.SET}.get(base)
    if kind is None:
        return []
    return [kind(drop_fraction=run.drop_fraction, seed=run.seed, **steps_of(run, steps))]


def granet(run: Any, steps: int, x: Any, y: Any, batch_size: int) -> keras.callbacks.Callback:
    """Return the callback of GraNet."""
    return keras_ntt.GraNet(
        1 - run.density,
        (x, y),
        regrow=run.drop_fraction,
        batch_size=batch_size,
        **steps_of(run, steps),
    )


def prune_gradually(run: Any, model: keras.Model, steps: int) -> None:
    """Let schedules prune a model by magnitude, each layer to its share of the allocation."""
    layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
    densities = [run.density] * len(layers)
    if run.allocation == "erk":
        shapes = [tuple(layer.kernel.shape) for layer in layers]
        densities = keras_ntt.erdos_renyi(shapes, run.density)
    times = steps_of(run, steps)
    for layer, density in zip(layers, densities, strict=True):
        if density < 1:
            schedule = keras_ntt.PolynomialDecay(0.0, 1 - float(density), **times)
            keras_ntt.prune_low_magnitude(layer, schedule)


def best(results: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the settings that end highest on validation images, by what they are for.

    Args:
        results: The contents of the files of the runs, of which those on validation images of
            methods that move masks are taken.

    Returns:
        ``cell -> settings``, see `cell_of`. Seeds and densities count by their mean.
    """
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], list[float]]] = {}
    for result in results:
        s = result["settings"]
        if s["split"] == "validation" and s["method"] in STARTS:
            values = tuple(s[name] for name in SETTINGS)
            of_cell = found.setdefault(cell_of(s), {})
            of_cell.setdefault(values, []).append(result["accuracy"][-1])
    return {
        cell: dict(zip(SETTINGS, max(rows, key=lambda v: sum(rows[v]) / len(rows[v])), strict=True))
        for cell, rows in found.items()
    }


def cell_of(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what settings are chosen for, at all densities alike."""
    return tuple(settings[name] for name in CELL)
