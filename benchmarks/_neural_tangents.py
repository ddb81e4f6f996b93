"""The peer's side of `ntt_step.py`: one step of Neural Tangent Transfer with neural-tangents.

Runs in an environment of its own. Reads one JSON command a line from standard input and answers
each with one JSON line on standard output:

    {"do": "versions"}
    {"do": "prepare", "layers": [...], "arrays": "x.npz", "settings": {...}}
    {"do": "kernel", "implementation": "...", "output": "kernel.npy"}
    {"do": "step", "implementation": "...", "repeats": 3}
    {"do": "peak"}
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np
from jax.example_libraries import optimizers, stax

Params = list[tuple]


def network(layers: list[list]) -> Callable:
    """Return ``apply(params, x)`` of a network.

    Args:
        layers: ``[kind, units, size, relu]`` for each layer, as `ntt_step.Layer`.
    """
    parts = []
    for kind, units, size, relu in layers:
        if kind == "conv":
            parts.append(stax.Conv(units, (size, size)))
        elif kind == "pool":
            parts.append(stax.MaxPool((size, size), (size, size)))
        elif kind == "flatten":
            parts.append(stax.Flatten)
        else:
            parts.append(stax.Dense(units))
        if relu:
            parts.append(stax.Relu)
    return stax.serial(*parts)[1]


def parameters(layers: list[list], arrays: Any) -> tuple[Params, Params]:
    """Return the parameters in stax's structure, and masks in the same structure."""
    params, masks, i = [], [], 0
    for kind, _, _, relu in layers:
        if kind in ("conv", "dense"):
            kernel, bias = jnp.asarray(arrays[f"kernel{i}"]), jnp.asarray(arrays[f"bias{i}"])
            if kind == "conv":
                bias = bias.reshape(1, 1, 1, -1)
            params.append((kernel, bias))
            masks.append((jnp.asarray(arrays[f"mask{i}"], kernel.dtype), jnp.ones_like(bias)))
            i += 1
        else:
            params.append(())
            masks.append(())
        if relu:
            params.append(())
            masks.append(())
    return params, masks


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    try:
        with open("/proc/self/status") as status:
            return next(int(row.split()[1]) * 1024 for row in status if row.startswith("VmHWM"))
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Transfer:
    """A student, its teacher and one batch; steps by any of neural-tangents' implementations.

    Args:
        layers: The network.
        arrays: An .npz with x and the weights and masks of the layers.
        settings: learning_rate, ntk_weight, l2, density.
    """

    def __init__(self, layers: list[list], arrays: str, settings: dict[str, float]):
        with np.load(arrays) as loaded:
            self.x = jnp.asarray(loaded["x"])
            self.teacher, self.masks = parameters(layers, loaded)
        self.apply = network(layers)
        self.settings = settings
        self.steps: dict[str, Callable] = {}
        self.states: dict[str, Any] = {}
        self.count = 0

    def kernel_fn(self, implementation: str) -> Callable:
        """Return ``kernel(x1, x2, params)`` -> ``[n1, n2, c, c]``."""
        return nt.empirical_ntk_fn(
            self.apply,
            trace_axes=(),
            vmap_axes=0,
            implementation=nt.NtkImplementation[implementation],
        )

    def kernel(self, implementation: str) -> np.ndarray:
        """Return the teacher's kernel between the halves of the batch."""
        half = len(self.x) // 2
        kernel = jax.jit(self.kernel_fn(implementation))
        return np.asarray(kernel(self.x[:half], self.x[half:], self.teacher))

    def step(self, implementation: str, repeats: int) -> dict[str, Any]:
        """Take steps and time each, until its results are there."""
        if implementation not in self.steps:
            self._make_step(implementation)
        seconds, loss = [], None
        for _ in range(repeats):
            state = self.states[implementation]
            begin = time.perf_counter()
            loss, state = self.steps[implementation](self.count, state, self.teacher, self.x)
            jax.block_until_ready((loss, state))
            seconds.append(time.perf_counter() - begin)
            self.states[implementation] = state
            self.count += 1
        return {"seconds": seconds, "loss": float(loss)}

    def _make_step(self, implementation: str) -> None:
        start, update, params_of = optimizers.adam(self.settings["learning_rate"], eps=1e-7)
        kernel, apply, settings = self.kernel_fn(implementation), self.apply, self.settings
        half, masks = len(self.x) // 2, self.masks

        def loss(params, teacher, x):
            masked = jax.tree_util.tree_map(jnp.multiply, params, masks)
            x1, x2 = x[:half], x[half:]
            ntk = jnp.mean((kernel(x1, x2, masked) - kernel(x1, x2, teacher)) ** 2)
            outputs = jnp.mean((apply(masked, x) - apply(teacher, x)) ** 2)
            squares = sum(jnp.sum(layer[0] ** 2) for layer in masked if layer)
            l2 = settings["l2"] / settings["density"] * squares
            return settings["ntk_weight"] * ntk + outputs + l2

        def step(i, state, teacher, x):
            value, gradient = jax.value_and_grad(loss)(params_of(state), teacher, x)
            return value, update(i, gradient, state)

        self.steps[implementation] = jax.jit(step)
        self.states[implementation] = start(self.teacher)


def versions() -> dict[str, str]:
    """Return what runs here."""
    names = ("neural-tangents", "jax", "jaxlib", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def main() -> None:
    """Answer commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    transfer: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if command["do"] == "versions":
                answer = versions()
            elif command["do"] == "prepare":
                transfer = Transfer(command["layers"], command["arrays"], command["settings"])
            elif command["do"] == "kernel":
                np.save(command["output"], transfer.kernel(command["implementation"]))
            elif command["do"] == "step":
                answer = transfer.step(command["implementation"], command["repeats"])
            elif command["do"] == "peak":
                answer = {"bytes": peak_memory()}
            else:
                answer = {"error": f"unknown command {command['do']!r}"}
        except Exception as error:  # reported to the other side, which decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
