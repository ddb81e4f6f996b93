"""Balanced dynamic sparse training of GANs (Wang et al., 2023): DDA and ADAPT, for two networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ntt.core import checks
from keras_ntt.masks.apply import get_masks, hold_masks, retrace
from keras_ntt.masks.constraint import MaskConstraint
from keras_ntt.masks.filters import Filters, check_filters
from keras_ntt.masks.policies import check_policy, choose_weights
from keras_ntt.pruning.balance import balance_ratios, decide, mean_ratio
from keras_ntt.pruning.exchange import drop_count, drop_smallest, grow
from keras_ntt.pruning.exchange_step import Rule, Together
from keras_ntt.pruning.random_masks import random_masks
from keras_ntt.selection.find_masks import paths_of

# Of the authors' settings: how the discriminator's density follows the ratio.
_DDA: dict[str, Any] = {"lower": 0.5, "upper": 0.65, "frequency": 2000, "max_density": 1.0}
CONTROLS: dict[str, dict[str, Any]] = {
    "static": _DDA,
    "dda": _DDA,
    "adapt": {"lower": 0.45, "upper": 0.55, "frequency": 1000, "max_density": 1.0},
    "adapt_strict": {"lower": 0.45, "upper": 0.55, "frequency": 2000, "max_density": 0.5},
}


class SparseGAN(keras.callbacks.Callback):
    """Trains the generator and the discriminator of a GAN sparsely, and keeps them in balance.

    The model has the two networks as attributes, and its own `train_step`, which updates each by
    an optimizer of Keras, the discriminator first. Both get random masks of an Erdős-Rényi
    allocation, unless they hold masks already. Every `ratio_frequency` steps the *balance ratio* is
    measured,

        (D(G after its step) - D(G before it)) / (D(real) - D(G before it)),

    with means of the discriminator's outputs over a batch, the same noise, and both networks in
    inference mode. Every `frequency` steps its mean over the last `window` steps decides about the
    density of the discriminator: at `upper` and above it grows by `change` where the gradient is
    largest, at `lower` and below it falls by as much where magnitudes are smallest, by one
    threshold for all its weights (Wang et al., "Balanced training for sparse GANs", NeurIPS 2023,
    arXiv 2302.14670).

    The masks move in the optimizers' updates, as those of `keras_ntt.RigL` with
    ``scope="global"`` do, and so hold in compiled steps.

    Args:
        real: Real samples as an array, or a function ``count -> samples``.
        noise: The size of the generator's input, of which normal numbers are drawn, or a function
            ``count -> inputs of the generator``.
        sparsity: Fraction of zeros of the generator, if it holds no masks.
        discriminator_sparsity: And of the discriminator, at first. None: the same.
        control: ``"adapt"`` moves connections of the generator as RigL does and the density of the
            discriminator. ``"adapt_strict"`` allows it a density of 0.5, and has it exchange
            connections instead where it would need more. ``"dda"`` moves the density only, and
            ``"static"`` nothing: it measures the ratio.
        end_step: The step of the generator from which nothing moves.
        lower: Ratio at which the density falls. None is 0.45, for ``"dda"`` 0.5.
        upper: Ratio at which it rises. None is 0.55, for ``"dda"`` 0.65.
        frequency: Steps between two decisions. None is 1,000 for ``"adapt"`` and 2,000 else.
        change: How much the density rises or falls, of all entries.
        min_density: The least density of the discriminator.
        max_density: The greatest. None is 1, for ``"adapt_strict"`` 0.5.
        window: Steps that the mean of the ratio is of.
        ratio_frequency: Steps between two measurements.
        exchange_frequency: Steps between two exchanges of the generator.
        drop_fraction: The fraction that is exchanged, at the beginning.
        drop_fraction_end: And at `end_step`; it falls by half a cosine.
        batch_size: Samples of a measurement.
        networks: The names of the model's attributes.
        filters: Which layers of both, see `keras_ntt.NeuralTangentTransfer`.
        pruning_policy: See `keras_ntt.NeuralTangentTransfer`.
        seed: Seed of masks, noise and samples.

    Attributes:
        ratios: ``(step, ratio)`` of each measurement.
        densities: ``(step, density)`` of the discriminator, of each decision.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a setting is out of range; when training begins, if the model does not have
            the two networks, or takes several steps an execution.
    """

    def __init__(
        self,
        real: Any,
        noise: int | Callable[[int], Any],
        *,
        sparsity: float = 0.9,
        discriminator_sparsity: float | None = None,
        control: str = "adapt",
        end_step: int,
        lower: float | None = None,
        upper: float | None = None,
        frequency: int | None = None,
        change: float = 0.05,
        min_density: float = 0.05,
        max_density: float | None = None,
        window: int = 1000,
        ratio_frequency: int = 10,
        exchange_frequency: int = 500,
        drop_fraction: float = 0.5,
        drop_fraction_end: float = 0.005,
        batch_size: int = 64,
        networks: tuple[str, str] = ("generator", "discriminator"),
        filters: Filters = None,
        pruning_policy: Any = None,
        seed: int = 0,
    ):
        super().__init__()
        checks.check_choice("control", control, tuple(CONTROLS))
        self.control, own = control, CONTROLS[control]
        sparser = sparsity if discriminator_sparsity is None else discriminator_sparsity
        self.sparsities = (checks.check_sparsity(sparsity), checks.check_sparsity(sparser))
        self.end_step = checks.check_count("end_step", end_step)
        self.lower = _number("lower", own["lower"] if lower is None else lower)
        self.upper = _number("upper", own["upper"] if upper is None else upper)
        if self.lower > self.upper:
            raise ValueError(f"lower must not be over upper. Received: {lower=}, {upper=}")
        every = checks.check_count(
            "frequency", own["frequency"] if frequency is None else frequency
        )
        self.frequency = every if control != "static" else 0
        self.change = _fraction("change", change)
        self.min_density = _fraction("min_density", min_density)
        self.max_density = _fraction(
            "max_density", own["max_density"] if max_density is None else max_density
        )
        self.window = checks.check_count("window", window)
        self.ratio_frequency = checks.check_count("ratio_frequency", ratio_frequency)
        self.exchange_frequency = checks.check_count("exchange_frequency", exchange_frequency)
        self.drop_fraction = _fraction("drop_fraction", drop_fraction, below=1)
        self.drop_fraction_end = _fraction("drop_fraction_end", drop_fraction_end, below=1)
        self.batch_size = checks.check_count("batch_size", batch_size)
        self.networks = _names(networks)
        check_filters(filters)
        check_policy(pruning_policy)
        self._choice = {"filters": filters, "pruning_policy": pruning_policy}
        self._seed = checks.check_seed(seed)
        self._rng = np.random.default_rng(self._seed)
        self._real = real if callable(real) else _draws(real, self._rng)
        self._noise = noise if callable(noise) else _normal(noise, self._rng)
        self.ratios: list[tuple[int, float]] = []
        self.densities: list[tuple[int, float]] = []
        # What the next update of the discriminator does: entries to grow (or, negative, to drop).
        self._growth = tf.Variable(0, dtype=tf.int32, trainable=False)
        self._exchanges = tf.Variable(False, trainable=False)
        # The first update of each network that this callback does not look after: it is not told
        # that a run was interrupted, and the compiled step stays in the model.
        self._ends = [tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(2)]

    # --- in training -----------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        """Wait for the first epoch: other callbacks may take up the state of an earlier run."""
        self._held: list[list[MaskConstraint]] = []
        self._growth.assign(0)
        self._exchanges.assign(False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin, when the first epoch does: find the masks, or draw them."""
        if self._held:
            return
        if (self.model.steps_per_execution or 1) > 1:
            raise ValueError(
                "The balance ratio compares the generator before and after one step. Compile with "
                f"steps_per_execution=1. Received: {self.model.steps_per_execution}"
            )
        parts = [self._network(name) for name in self.networks]
        chosen = [choose_weights(part, **self._choice).weights for part in parts]
        for i, (part, variables) in enumerate(zip(parts, chosen, strict=True)):
            paths = paths_of(part, variables)
            if not set(paths) & set(get_masks(part)):
                drawn = random_masks(part, variables, self.sparsities[i], self._seed + i)
                hold_masks(part, dict(zip(paths, drawn, strict=True)))
        self._held = [[v.constraint for v in variables] for variables in chosen]
        rules = (
            Rule(self._exchanged, self._generator_is_due, True),
            Rule(self._rebalanced, self._discriminator_is_due, True),
        )
        for rule, constraints in zip(rules, self._held, strict=True):
            together = Together(rule)
            for held in constraints:
                held.exchange = together.member(held)
        retrace(self.model)
        self._decided = 0
        self._before: Any = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Allow masks to move, and keep what the generator makes before its step."""
        for i, end in enumerate(self._ends):
            end.assign(self._step(i) + 1)
        if self._step() % self.ratio_frequency == 0:
            noise = self._noise(self.batch_size)
            self._before = (noise, self._generated(noise), self._step())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Measure the ratio, if it is time, and decide about the density."""
        step = self._step()
        if self._before is not None:
            noise, fakes, begun = self._before
            if step > begun:  # else this batch was the discriminator's alone
                samples = (self._real(self.batch_size), fakes, self._generated(noise))
                means = [[self._judged(x)] for x in samples]
                self.ratios.append((step, float(balance_ratios(*means)[0])))
            self._before = None
        if self.frequency and step % self.frequency == 0 and self._decided < step < self.end_step:
            self._decided = step
            self._decide(step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the mean ratio and the discriminator's density to the logs."""
        if logs is not None:
            logs["balance_ratio"] = mean_ratio([r for _, r in self.ratios[-100:]])
            logs["discriminator_density"] = self._density()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave both networks with their masks, which no longer move."""
        for held in (h for constraints in self._held for h in constraints):
            held.exchange = None
        retrace(self.model)
        self._held = []

    def _decide(self, step: int) -> None:
        recent = [ratio for when, ratio in self.ratios if when > step - self.window]
        density, size = self._density(), self._size()
        decision = decide(
            density,
            mean_ratio(recent),
            lower=self.lower,
            upper=self.upper,
            change=self.change,
            least=self.min_density,
            most=self.max_density,
            exchanges_at_most=self.control == "adapt_strict",
        )
        self._growth.assign(round(decision.density * size) - round(density * size))
        self._exchanges.assign(decision.exchanges)
        self.densities.append((step, decision.density))

    # --- what the updates of the optimizers do -----------------------------------------------

    def fraction_at(self, step: Any) -> tf.Tensor:
        """Return the fraction of the kept entries that is exchanged at a step, as float64."""
        progress = tf.clip_by_value(tf.cast(step, tf.float64) / self.end_step, 0.0, 1.0)
        wave = (1 + tf.cos(math.pi * progress)) / 2
        return self.drop_fraction_end + (self.drop_fraction - self.drop_fraction_end) * wave

    def _generator_is_due(self, step: tf.Tensor) -> tf.Tensor:
        if not self.control.startswith("adapt"):
            return tf.constant(False)
        times = tf.logical_and(step > 0, tf.equal(step % self.exchange_frequency, 0))
        return times & (step < self.end_step) & (step < self._ends[0])

    def _exchanged(self, value: Any, gradient: Any, mask: Any, step: Any, _: int) -> tf.Tensor:
        count = drop_count(mask, self.fraction_at(step))
        return grow(drop_smallest(value, mask, count), tf.abs(gradient), count)

    def _discriminator_is_due(self, step: tf.Tensor) -> tf.Tensor:
        growth = tf.convert_to_tensor(self._growth)
        return (tf.not_equal(growth, 0) | self._exchanges) & (step < self._ends[1])

    def _rebalanced(self, value: Any, gradient: Any, mask: Any, step: Any, index: int) -> tf.Tensor:
        growth, zero = tf.convert_to_tensor(self._growth), tf.constant(0)
        new = tf.cond(
            tf.convert_to_tensor(self._exchanges),
            lambda: self._exchanged(value, gradient, mask, step, index),
            lambda: mask,
        )
        new = drop_smallest(value, new, tf.maximum(-growth, zero))
        new = grow(new, tf.abs(gradient), tf.maximum(growth, zero))
        self._growth.assign(0)
        self._exchanges.assign(False)
        return new

    # --- the two networks --------------------------------------------------------------------

    def _network(self, name: str) -> keras.Model:
        found = getattr(self.model, name, None)
        if not isinstance(found, keras.Model):
            raise ValueError(
                "The model must have its two networks as attributes, Keras models both. Give their "
                f"names as networks=(generator, discriminator). Received: networks={self.networks}"
                f", model.{name}={found!r}"
            )
        checks.check_built(found)
        return found

    def _generated(self, noise: Any) -> tf.Tensor:
        return getattr(self.model, self.networks[0])(noise, training=False)

    def _judged(self, samples: Any) -> float:
        outputs = getattr(self.model, self.networks[1])(samples, training=False)
        first = tf.convert_to_tensor(keras.tree.flatten(outputs)[0])
        return float(tf.reduce_mean(tf.cast(first, tf.float32)))

    def _step(self, network: int = 0) -> int:
        """Return the number of updates of a network, of the generator by default."""
        known = (held.optimizer for held in self._held[network])
        optimizer = next((one for one in known if one is not None), None)
        return 0 if optimizer is None else int(optimizer.iterations)

    def _size(self) -> int:
        return sum(held.mask.size for held in self._held[1])

    def _density(self) -> float:
        return sum(int(held.mask.sum()) for held in self._held[1]) / self._size()


def _number(name: str, value: Any) -> float:
    if not checks.is_number(value) or not abs(value) <= 1e30:
        raise ValueError(f"{name} must be a number of at most 1e30. Received: {name}={value!r}")
    return float(value)


def _fraction(name: str, value: Any, below: float = math.inf) -> float:
    if not checks.is_number(value) or not 0 <= value <= 1 or value >= below:
        raise ValueError(f"{name} must be a fraction from 0 to 1. Received: {name}={value!r}")
    return float(value)


def _names(networks: Any) -> tuple[str, str]:
    fits = isinstance(networks, list | tuple) and len(networks) == 2
    if not fits or not all(isinstance(name, str) for name in networks):
        raise ValueError(
            "networks must be the names of two attributes, the generator's and the "
            f"discriminator's. Received: networks={networks!r}"
        )
    return tuple(networks)


def _draws(real: Any, rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    if not isinstance(real, np.ndarray) or real.ndim < 2 or not len(real):
        raise TypeError(
            "real must be an array of samples, or a function that is given a count and returns "
            f"samples. Received: real of type {type(real).__name__}"
        )
    return lambda count: real[rng.integers(0, len(real), count)]


def _normal(noise: Any, rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    size = checks.check_count("noise", noise)
    return lambda count: rng.normal(size=(count, size)).astype("float32")
