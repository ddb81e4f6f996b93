"""The peer's side of `ntt_step.py`: one step of Neural Tangent Transfer with neural-tangents.

Runs in its own environment. Reads one JSON command a line from standard input and answers
each with one JSON line on standard output:

    {"do": "versions"}
    {"do": "prepare", "layers": [...], "arrays": "x.npz", "settings": {...}}
    {"do": "use", "implementation": "..."}
    {"do": "kernel", "output": "kernel.npy"}
    {"do": "start"}                     the first step: its seconds, loss and memory
    {"do": "step", "repeats": 3}
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np
from jax.example_libraries import optimizers

Params = list  # of arrays, in the order of the layers


def apply_layers(layers: list[list], params: Params, x: Any) -> Any:
    """Run a network.

    Args:
        layers: ``[kind, units, size, relu, stride, same]`` for each, as `networks.Layer`, whose
            description says what they do.
        params: The weights.
        x: Inputs ``[n, ...]``.

    Returns:
        The outputs.
    """
    weights = iter(params)
    for kind, units, size, relu, stride, same in layers:
        if kind == "conv":
            x = conv(x, weights, stride, same)
        elif kind == "block":
            y = conv(jax.nn.relu(conv(x, weights, stride, True)), weights, 1, True)
            plain = stride == 1 and x.shape[-1] == units
            x = jax.nn.relu(y + (x if plain else conv(x, weights, stride, True)))
        elif kind == "pool":
            window = (1, size, size, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        elif kind == "mean":
            x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        elif kind == "flatten":
            x = x.reshape(x.shape[0], -1)
        elif kind == "embed":
            x = jnp.take(next(weights), x, axis=0) + next(weights)
        elif kind == "encoder":
            x = encoder(x, weights)
        else:
            x = jnp.dot(x, next(weights)) + next(weights)
        x = jax.nn.relu(x) if relu else x
    return x


def conv(x: Any, weights: Iterator, stride: int, same: bool) -> Any:
    """Convolve and add the bias, as Keras's Conv2D."""
    kernel, bias = next(weights), next(weights)
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME" if same else "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + bias


def encoder(x: Any, weights: Iterator) -> Any:
    """Run one block of a transformer, as `networks.Layer` describes it."""

    def take(count: int) -> list:
        return [next(weights) for _ in range(count)]

    def norm(x: Any, gamma: Any, beta: Any) -> Any:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-6) * gamma + beta

    q, k, v = (jnp.einsum("nld,dhe->nlhe", x, w) + b for w, b in (take(2) for _ in range(3)))
    scores = jnp.einsum("nlhe,nmhe->nhlm", q, k) / jnp.sqrt(q.shape[-1])
    mixed = jnp.einsum("nhlm,nmhe->nlhe", jax.nn.softmax(scores), v)
    w, b = take(2)
    x = norm(x + jnp.einsum("nlhe,hed->nld", mixed, w) + b, *take(2))
    w1, b1, w2, b2 = take(4)
    return norm(x + jnp.dot(jax.nn.relu(jnp.dot(x, w1) + b1), w2) + b2, *take(2))


def parameters(arrays: Any) -> tuple[Params, Params, list[bool]]:
    """Return the weights, their masks, and which of them are pruned."""
    params, masks, pruned = [], [], []
    for i in range(sum(name.startswith("weight") for name in arrays.files)):
        weight = jnp.asarray(arrays[f"weight{i}"])
        if weight.ndim == 1 and params and params[-1].ndim == 4:  # the bias of a convolution
            weight = weight.reshape(1, 1, 1, -1)
        pruned.append(f"mask{i}" in arrays.files)
        mask = arrays[f"mask{i}"] if pruned[-1] else np.ones(weight.shape)
        params.append(weight)
        masks.append(jnp.asarray(mask, weight.dtype))
    return params, masks, pruned


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
    """A student, its teacher and one batch; steps by one of neural-tangents' implementations.

    Args:
        layers: The network.
        arrays: An .npz with x and the weights and masks of the layers.
        settings: learning_rate, ntk_weight, l2, density.
    """

    def __init__(self, layers: list[list], arrays: str, settings: dict[str, float]):
        with np.load(arrays) as loaded:
            self.x = jnp.asarray(loaded["x"])
            self.teacher, self.masks, self.pruned = parameters(loaded)
        self.apply = lambda params, x: apply_layers(layers, params, x)
        self.settings = settings
        self.count = 0

    def use(self, implementation: str) -> None:
        """Choose the implementation of ``kernel(x1, x2, params)`` -> ``[n1, n2, c, c]``."""
        self.kernel_fn = nt.empirical_ntk_fn(
            self.apply,
            trace_axes=(),
            vmap_axes=0,
            implementation=nt.NtkImplementation[implementation],
        )

    def kernel(self) -> np.ndarray:
        """Return the teacher's kernel between the halves of the batch."""
        half = len(self.x) // 2
        kernel = jax.jit(self.kernel_fn)
        return np.asarray(kernel(self.x[:half], self.x[half:], self.teacher))

    def start(self) -> dict[str, Any]:
        """Take the first step, and one more for the memory."""
        before = peak_memory()
        self._make_step()
        first, loss = self.take()
        warm, _ = self.take()
        memory = {"before": before, "added": peak_memory() - before}
        return {"first": first, "warm": warm, "loss": loss, "memory": memory}

    def take(self) -> tuple[float, float]:
        """Take a step; return its seconds, until its results are there, and its loss."""
        begin = time.perf_counter()
        loss, self.state = self.step(self.count, self.state, self.teacher, self.x)
        jax.block_until_ready((loss, self.state))
        self.count += 1
        return time.perf_counter() - begin, float(loss)

    def _make_step(self) -> None:
        start, update, params_of = optimizers.adam(self.settings["learning_rate"], eps=1e-7)
        kernel, apply, settings = self.kernel_fn, self.apply, self.settings
        half, masks, pruned = len(self.x) // 2, self.masks, self.pruned

        def loss(params, teacher, x):
            masked = jax.tree_util.tree_map(jnp.multiply, params, masks)
            x1, x2 = x[:half], x[half:]
            ntk = jnp.mean((kernel(x1, x2, masked) - kernel(x1, x2, teacher)) ** 2)
            outputs = jnp.mean((apply(masked, x) - apply(teacher, x)) ** 2)
            squares = sum(jnp.sum(w**2) for i, w in enumerate(masked) if pruned[i])
            l2 = settings["l2"] / settings["density"] * squares
            return settings["ntk_weight"] * ntk + outputs + l2

        def step(i, state, teacher, x):
            value, gradient = jax.value_and_grad(loss)(params_of(state), teacher, x)
            return value, update(i, gradient, state)

        self.step: Callable = jax.jit(step)
        self.state: Any = start(self.teacher)


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
            elif command["do"] == "use":
                transfer.use(command["implementation"])
            elif command["do"] == "kernel":
                np.save(command["output"], transfer.kernel())
            elif command["do"] == "start":
                answer = transfer.start()
            elif command["do"] == "step":
                answer = {"seconds": [transfer.take()[0] for _ in range(command["repeats"])]}
            else:
                answer = {"error": f"unknown command {command['do']!r}"}
        except Exception as error:  # reported to the other side, which decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
