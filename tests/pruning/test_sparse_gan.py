"""Two networks in balance: the ratio that is measured, and what moves because of it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ntt import SparseGAN, get_masks

NOISE, SIZE = 5, 12
Z = np.random.default_rng(3).normal(size=(16, NOISE)).astype("float32")
REAL = np.random.default_rng(4).normal(1.0, 0.3, size=(16, SIZE)).astype("float32")


class GAN(keras.Model):
    """A GAN with a training step of its own, the discriminator's first."""

    def __init__(self):
        super().__init__()
        dense = keras.layers.Dense
        self.generator = keras.Sequential(
            [keras.Input((NOISE,)), dense(20, "relu", name="g0"), dense(SIZE, name="g1")]
        )
        self.discriminator = keras.Sequential(
            [keras.Input((SIZE,)), dense(20, "relu", name="d0"), dense(1, name="d1")]
        )
        self.built = True

    def compile(self, **options):
        super().compile(**options)
        self.g_optimizer = keras.optimizers.Adam(2e-2)
        self.d_optimizer = keras.optimizers.Adam(1e-2)

    def train_step(self, x):
        z = tf.random.normal((tf.shape(x)[0], NOISE))
        with tf.GradientTape() as tape:
            real, fake = self.discriminator(x), self.discriminator(self.generator(z))
            loss = tf.reduce_mean(tf.nn.softplus(-real)) + tf.reduce_mean(tf.nn.softplus(fake))
        weights = self.discriminator.trainable_variables
        self.d_optimizer.apply(tape.gradient(loss, weights), weights)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softplus(-self.discriminator(self.generator(z))))
        weights = self.generator.trainable_variables
        self.g_optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


class Watch(keras.callbacks.Callback):
    """Keeps the weights before each batch, and the masks and weights after it."""

    def __init__(self):
        super().__init__()
        self.before, self.after, self.masks = [], [], []

    def _weights(self):
        return [n.get_weights() for n in (self.model.generator, self.model.discriminator)]

    def on_train_batch_begin(self, batch, logs=None):
        self.before.append(self._weights())

    def on_train_batch_end(self, batch, logs=None):
        self.after.append(self._weights())
        networks = (self.model.generator, self.model.discriminator)
        self.masks.append([list(get_masks(n).values()) for n in networks])


def train(batches, *, compile_=None, **settings):
    keras.utils.set_random_seed(0)
    model = GAN()
    model.compile(**(compile_ or {"run_eagerly": True}))
    settings = {"sparsity": 0.6, "end_step": 10_000, "ratio_frequency": 2, **settings}
    callback, watch = SparseGAN(lambda n: REAL, lambda n: Z, **settings), Watch()
    x = np.random.default_rng(0).normal(1.0, 0.3, size=(8 * batches, SIZE)).astype("float32")
    history = model.fit(x, batch_size=8, verbose=0, callbacks=[callback, watch])
    return callback, watch, history


def run(weights, x):
    """Return what a network of two layers does, in float64."""
    w0, b0, w1, b1 = (w.astype("float64") for w in weights)
    return np.maximum(x @ w0 + b0, 0) @ w1 + b1


def counts(masks):
    return sum(int(m.sum()) for m in masks)


def test_the_ratio_is_that_of_the_networks_before_and_after_the_step():
    callback, watch, history = train(7, control="static")
    assert [step for step, _ in callback.ratios] == [1, 3, 5, 7]
    for step, ratio in callback.ratios:
        (old, _), (new, judge) = watch.before[step - 1], watch.after[step - 1]
        real, before, after = (run(judge, x).mean() for x in (REAL, run(old, Z), run(new, Z)))
        assert ratio == pytest.approx((after - before) / (real - before), rel=1e-3)
    assert history.history["balance_ratio"][0] == pytest.approx(
        np.mean([ratio for _, ratio in callback.ratios])
    )
    for masks in watch.masks:  # nothing moves
        for part, first in zip(masks, watch.masks[0], strict=True):
            assert all((m == n).all() for m, n in zip(part, first, strict=True))
    assert counts(watch.masks[0][1]) / (SIZE * 20 + 20) == pytest.approx(0.4, abs=0.01)


@pytest.mark.long
@pytest.mark.parametrize(
    "compile_",
    [{"jit_compile": False}, pytest.param({"jit_compile": True}, marks=pytest.mark.long)],
)
def test_a_high_ratio_makes_the_discriminator_denser(compile_):
    always = {"lower": -1e9, "upper": -1e9, "frequency": 3}
    callback, watch, _ = train(10, control="dda", compile_=compile_, **always)
    size, first = SIZE * 20 + 20, counts(watch.masks[0][1])
    # Decided after batches 3, 6 and 9, and done in the update that follows.
    expected = [first + round(0.05 * size) * (i // 3) for i in range(10)]
    assert [counts(masks[1]) for masks in watch.masks] == expected
    assert [step for step, _ in callback.densities] == [3, 6, 9]
    assert len({counts(masks[0]) for masks in watch.masks}) == 1
    old, new = watch.masks[2][1], watch.masks[3][1]
    assert all((m <= n).all() for m, n in zip(old, new, strict=True))
    grown = [n & ~m for m, n in zip(old, new, strict=True)]
    kernels = watch.after[3][1][0], watch.after[3][1][2]
    assert all(not k[g].any() for k, g in zip(kernels, grown, strict=True))  # they begin at 0


def test_a_low_ratio_takes_the_smallest_weights_of_all_away():
    always = {"lower": 1e9, "upper": 1e9, "frequency": 2, "min_density": 0.3}
    _, watch, history = train(8, control="dda", change=0.08, **always)
    size, first = SIZE * 20 + 20, counts(watch.masks[0][1])
    second = first - (first - round((first / size - 0.08) * size))
    assert [counts(masks[1]) for masks in watch.masks] == [
        *(first, first, second, second, *[round(0.3 * size)] * 4)
    ]
    assert history.history["discriminator_density"][0] == pytest.approx(round(0.3 * size) / size)
    kernels = np.concatenate([watch.before[2][1][i].ravel() for i in (0, 2)])
    old, new = (np.concatenate([m.ravel() for m in watch.masks[i][1]]) for i in (1, 2))
    assert np.abs(kernels[old & ~new]).max() <= np.abs(kernels[new]).min()


def test_at_the_greatest_density_connections_are_exchanged():
    always = {"lower": -1e9, "upper": -1e9, "frequency": 2, "max_density": 0.4}
    _, watch, _ = train(6, control="adapt_strict", exchange_frequency=99, **always)
    counted = [counts(masks[1]) for masks in watch.masks]
    assert counted[1:] == [counted[-1]] * 5
    flat = [np.concatenate([m.ravel() for m in masks[1]]) for masks in watch.masks]
    moved = [i for i in range(1, 6) if (flat[i] != flat[i - 1]).any()]
    assert set(moved) <= {2, 4}
    assert moved


def test_the_generator_exchanges_connections_over_all_its_weights():
    callback, watch, _ = train(8, control="adapt", exchange_frequency=3, frequency=100)
    flat = [np.concatenate([m.ravel() for m in masks[0]]) for masks in watch.masks]
    assert [i for i in range(1, 8) if (flat[i] != flat[i - 1]).any()] == [3, 6]
    assert len({int(m.sum()) for m in flat}) == 1
    assert callback.densities == []
    kept = np.concatenate([watch.before[3][0][i].ravel() for i in (0, 2)])
    dropped, stays = flat[2] & ~flat[3], flat[2] & flat[3]
    # What is dropped for good is smaller than all but some that were dropped and grown at once.
    fraction = float(callback.fraction_at(3))
    number = int(flat[2].sum() * fraction)
    assert 0 < dropped.sum() <= number
    largest = np.sort(np.abs(kept[stays]))[::-1][: flat[2].sum() - number]
    assert np.abs(kept[dropped]).max() <= largest.min()


def test_fractions_fall_by_half_a_cosine():
    callback = SparseGAN(REAL, NOISE, end_step=100)
    found = [float(callback.fraction_at(step)) for step in (0, 25, 50, 75, 100)]
    np.testing.assert_allclose(found, [0.5, 0.4275, 0.2525, 0.0775, 0.005], atol=1e-4)


def test_models_that_do_not_fit_are_refused():
    model = GAN()
    model.compile(steps_per_execution=2, jit_compile=False)
    with pytest.raises(ValueError, match="steps_per_execution=1"):
        model.fit(REAL, verbose=0, callbacks=[SparseGAN(REAL, NOISE, end_step=9)])
    model.compile(jit_compile=False)
    names = SparseGAN(REAL, NOISE, end_step=9, networks=("generator", "critic"))
    with pytest.raises(ValueError, match="critic"):
        model.fit(REAL, verbose=0, callbacks=[names])
    assert get_masks(model.generator) == {}


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"sparsity": 1.5}, ValueError),
        ({"control": "balanced"}, ValueError),
        ({"end_step": 0}, ValueError),
        ({"lower": 0.7, "upper": 0.6}, ValueError),
        ({"upper": "high"}, ValueError),
        ({"frequency": 0}, ValueError),
        ({"change": -0.1}, ValueError),
        ({"max_density": 1.5}, ValueError),
        ({"drop_fraction": 1}, ValueError),
        ({"networks": "generator"}, ValueError),
        ({"noise": 0}, ValueError),
        ({"real": "images"}, TypeError),
    ],
)
def test_settings_out_of_range_are_refused(setting, error):
    with pytest.raises(error, match="Received"):
        SparseGAN(**{"real": REAL, "noise": NOISE, "end_step": 9, **setting})


class Stop(keras.callbacks.Callback):
    """Ends a run by an error, at some batch, in its middle or after it."""

    def __init__(self, batch, when):
        super().__init__()
        self.batch, self.when = batch, when

    def on_train_batch_begin(self, batch, logs=None):
        if (batch, "middle") == (self.batch, self.when):
            raise RuntimeError("stopped")

    def on_train_batch_end(self, batch, logs=None):
        if (batch, "after") == (self.batch, self.when):
            raise RuntimeError("stopped")


@pytest.mark.parametrize("when", ["middle", "after"])
def test_masks_are_held_after_a_run_that_was_interrupted(when):
    keras.utils.set_random_seed(0)
    model = GAN()
    model.compile(run_eagerly=True)
    settings = {"control": "adapt", "frequency": 4, "exchange_frequency": 2, "ratio_frequency": 1}
    # A ratio is over -10 always, so that each decision is for more connections.
    settings |= {"lower": -20.0, "upper": -10.0, "end_step": 10_000, "sparsity": 0.6}
    callback = SparseGAN(lambda n: REAL, lambda n: Z, **settings)
    x = np.random.default_rng(0).normal(1.0, 0.3, size=(64, SIZE)).astype("float32")
    with pytest.raises(RuntimeError, match="stopped"):
        model.fit(x, batch_size=8, verbose=0, callbacks=[callback, Stop(3, when)])
    networks = (model.generator, model.discriminator)
    before = [mask for network in networks for mask in get_masks(network).values()]
    model.fit(x, batch_size=8, verbose=0)
    after = [mask for network in networks for mask in get_masks(network).values()]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)
