"""Random ternary features with the kernel of random ReLU features (Gu et al., NeurIPS 2022).

Research. In high dimension the kernel of a wide random network depends on its activation through a
few numbers alone: with z normal and tau the size of what goes in, a1 = E[s'(tau z)]^2,
a2 = E[s''(tau z)]^2 and a3 = E[(s^2)''(tau z)] of the centred activation s, and on the distribution
of its weights not at all (Gu et al., "Lossless compression of deep neural networks: A
high-dimensional neural tangent kernel approach", 2022). So weights can be -1, 0 and 1 times a
constant, and the activation a step down and a step up. Nothing that is trained is compressed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_ntt.core import checks


class Steps(NamedTuple):
    """The activation ``height * (1{x < down} + 1{x > up})``, less its mean.

    Attributes:
        down: Where it falls to zero.
        up: Where it rises again.
        height: How high it is outside.
    """

    down: float
    up: float
    height: float


class Coefficients(NamedTuple):
    """What of an activation a kernel depends on.

    Attributes:
        first: ``E[s'] ** 2``.
        second: ``E[s''] ** 2``.
        square: ``E[(s ** 2)'']``.
        variance: ``Var s``, the square of the size of what comes out.
    """

    first: float
    second: float
    square: float
    variance: float


def of_relu(tau: float) -> Coefficients:
    """Return the coefficients of ReLU, centred, for inputs of a size.

    >>> [round(a, 4) for a in of_relu(1.0)]
    [0.25, 0.1592, 0.6817, 0.3408]
    """
    variance = tau**2 * (0.5 - 0.5 / math.pi)
    return Coefficients(0.25, 1 / (2 * math.pi * tau**2), 1 - 1 / math.pi, variance)


def of_steps(steps: Steps, tau: float) -> Coefficients:
    """Return the coefficients of two steps for inputs of a size."""
    low, high = steps.down / tau, steps.up / tau
    mean = mean_of(steps, tau)
    first = steps.height * (_density(high) - _density(low)) / tau
    bend = (high * _density(high) - low * _density(low)) / tau**2
    square = (steps.height**2 - 2 * steps.height * mean) * bend
    return Coefficients(first**2, (steps.height * bend) ** 2, square, steps.height * mean - mean**2)


def mean_of(steps: Steps, tau: float) -> float:
    """Return the mean of two steps for inputs of a size, before it is taken away."""
    return steps.height * (1 + _below(steps.down / tau) - _below(steps.up / tau))


def matching_steps(wanted: Coefficients, tau: float) -> Steps:
    """Return the steps whose first three coefficients are those that are wanted.

    Args:
        wanted: The coefficients; the variance is not matched.
        tau: The size of what goes into the steps.

    Returns:
        The steps.

    Raises:
        ValueError: If none were found.
    """
    gaps = np.arange(0.25, 4, 0.25)
    starts = [(low, low + gap) for low in np.arange(-2, 2.1, 0.25) for gap in gaps]

    def residual(x: np.ndarray) -> np.ndarray:
        steps = Steps(tau * x[0], tau * (x[0] + math.exp(x[1])), tau * math.exp(x[2]))
        found = of_steps(steps, tau)
        return np.array([found[i] / wanted[i] - 1 for i in range(3)])

    guesses = []
    for low, high in starts:
        slope = abs(_density(high) - _density(low))
        if slope > 1e-3:
            height = math.log(math.sqrt(wanted.first) / slope)
            guesses.append(np.array([low, math.log(high - low), height]))
    guesses.sort(key=lambda x: float(np.abs(residual(x)).max()))
    for guess in guesses[:8]:
        x = _newton(residual, guess)
        if np.abs(residual(x)).max() < 1e-9:
            up = tau * (x[0] + math.exp(x[1]))
            return Steps(float(tau * x[0]), float(up), float(tau * math.exp(x[2])))
    raise ValueError(
        "No activation of two steps has this kernel. Use fewer layers. "
        f"Received: coefficients {wanted}, tau={tau}"
    )


def _newton(residual: Any, x: np.ndarray) -> np.ndarray:
    """Return a root of three equations in three unknowns, or where the search ended."""
    for _ in range(40):
        r = residual(x)
        if np.abs(r).max() < 1e-14:
            break
        h = 1e-6
        slopes = [(residual(x + h * e) - residual(x - h * e)) / (2 * h) for e in np.eye(3)]
        step = np.linalg.lstsq(np.stack(slopes, axis=1), -r, rcond=None)[0]
        step *= min(1.0, 0.5 / max(np.abs(step).max(), 1e-12))
        while np.abs(residual(x + step)).max() > np.abs(r).max() and np.abs(step).max() > 1e-12:
            step = step / 2
        x = x + step
    return x


@keras.saving.register_keras_serializable("keras_ntt")
class TwoSteps(keras.layers.Layer):
    """``scale * (height * (1{x < down} + 1{x > up}) - mean)``, entry by entry."""

    def __init__(
        self, down: float, up: float, height: float, mean: float, scale: float, **options: Any
    ):
        super().__init__(**options)
        self.numbers = {"down": down, "up": up, "height": height, "mean": mean, "scale": scale}

    def call(self, x: Any) -> Any:
        """Return the outputs."""
        n = self.numbers
        outside = ops.logical_or(x < n["down"], x > n["up"])
        levels = n["scale"] * (n["height"] - n["mean"]), -n["scale"] * n["mean"]
        return ops.where(outside, ops.cast(levels[0], x.dtype), ops.cast(levels[1], x.dtype))

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again."""
        return {**super().get_config(), **self.numbers}


def random_ternary_features(
    widths: Sequence[int], data: Any, *, zeros: float = 0.9, seed: int = 0
) -> keras.Sequential:
    """Return frozen random layers whose kernel is nearly that of random ReLU layers.

    Research: for a linear classifier on top, where features are high-dimensional. Weights are 0
    with the probability `zeros`, else plus or minus one constant: 0.57 bits each at 0.9. The
    conjugate kernel is that of ReLU layers except for a multiple of the identity, and for what
    finite widths make of it; both kernels are those of centred, scaled layers without biases.

    Args:
        widths: Units of each layer.
        data: Inputs ``[n, d]``, of which the mean square norm is taken.
        zeros: Fraction of weights that are zero, in [0, 1).
        seed: Seed of the weights.

    Returns:
        A model from ``[n, d]`` to ``[n, widths[-1]]`` without trainable weights.

    Raises:
        ValueError: If something does not fit, or there are no such layers.

    Examples:
        >>> import numpy as np
        >>> from keras_ntt import random_ternary_features
        >>> x = np.random.default_rng(0).normal(size=(20, 50)) / np.sqrt(50)
        >>> random_ternary_features([200, 100], x)(x).shape.as_list()
        [20, 100]
    """
    x = checks.as_floats("data", data)
    if x.ndim != 2 or not x.size or not x.any():
        raise ValueError(
            f"data must be finite numbers [n, d], not all zero. Received: data of shape {x.shape}"
        )
    given = list(widths) if isinstance(widths, list | tuple) else []
    sizes = [checks.whole(n) or 0 for n in given]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"widths must be positive integers. Received: widths={widths!r}")
    if not checks.is_number(zeros) or not 0 <= zeros < 1:
        raise ValueError(f"zeros must be a number in [0, 1). Received: zeros={zeros!r}")
    rng = np.random.default_rng(checks.check_seed(seed))
    theirs = ours = math.sqrt(float(np.square(x).sum(axis=1).mean()))
    layers: list[Any] = [keras.Input((x.shape[1],))]
    kernels, inputs = [], x.shape[1]
    for width in sizes:
        wanted = of_relu(theirs)
        steps = matching_steps(wanted, ours)
        signs = rng.integers(0, 2, (inputs, width)) * 2 - 1
        kept = rng.random((inputs, width)) >= zeros
        kernels.append(kept * signs / math.sqrt(1 - zeros))
        mean = mean_of(steps, ours)
        layers += [
            keras.layers.Dense(width, use_bias=False, trainable=False),
            TwoSteps(*steps, mean, 1 / math.sqrt(width)),
        ]
        theirs, ours = math.sqrt(wanted.variance), math.sqrt(of_steps(steps, ours).variance)
        inputs = width
    model = keras.Sequential(layers)
    model.set_weights(kernels)
    return model


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _below(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
