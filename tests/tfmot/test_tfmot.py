"""Against the real tensorflow-model-optimization: it is the oracle, and it is served.

Skipped where tf_keras and tensorflow-model-optimization are not installed; `make test-tfmot`
makes an environment that has them.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.legacy import bridge, layers, pruning_impl, seeded, sparsity, tf_keras, tfmot  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st

import keras_ntt
from keras_ntt.selection import named_patterns, patterns, schedules

pytestmark = pytest.mark.filterwarnings("ignore")


# --- schedules, step by step ------------------------------------------------------------------

fractions = st.floats(0, 0.99)


@st.composite
def pairs(draw):
    """Return a schedule of ours and one of tfmot of the same arguments, and the last step."""
    begin, frequency = draw(st.integers(0, 30)), draw(st.integers(1, 12))
    end = max(begin, 1) + draw(st.integers(1, 40))
    if draw(st.booleans()):
        arguments = {
            "target_sparsity": draw(fractions),
            "begin_step": begin,
            "end_step": draw(st.sampled_from([-1, end])),
            "frequency": frequency,
        }
        name = "ConstantSparsity"
    else:
        arguments = {
            "initial_sparsity": draw(fractions),
            "final_sparsity": draw(fractions),
            "begin_step": begin,
            "end_step": end,
            "power": draw(st.sampled_from([1, 2, 3])),
            "frequency": frequency,
        }
        name = "PolynomialDecay"
    ours, theirs = getattr(keras_ntt, name), getattr(sparsity, name)
    return ours(**arguments), theirs(**arguments), end


@given(pairs())
def test_schedules_are_those_of_tfmot_step_by_step(pair):
    ours, theirs, end = pair
    for step in range(1, 80):  # tfmot's first batch is step 1
        due, value = theirs(tf.constant(step, tf.int64))
        mine, fraction = ours(step)
        if step == end and isinstance(ours, keras_ntt.PolynomialDecay):
            assert mine  # the difference: the final sparsity is always reached
        else:
            assert mine == bool(due), step
        assert fraction == pytest.approx(float(value), abs=1e-6)


@given(pairs())
def test_real_schedules_are_taken_everywhere(pair):
    ours, theirs, _ = pair
    taken = schedules.as_schedule(theirs)
    assert type(taken) is type(ours)
    assert taken.get_config() == pytest.approx(ours.get_config())
    back = bridge.as_tfmot_schedule(taken)
    assert type(back) is type(theirs)
    assert back.get_config() == theirs.get_config()


def test_a_real_schedule_of_ones_own_is_asked():
    class Own(sparsity.PruningSchedule):
        def __call__(self, step):
            return tf.equal(step, 3), tf.constant(0.25)

        def get_config(self):
            return {"class_name": "Own", "config": {}}

    taken = schedules.as_schedule(Own())
    assert [schedules.decide(taken, step) for step in (2, 3)] == [(False, 0.0), (True, 0.25)]
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    keras_ntt.prune_low_magnitude(model, Own())
    model.compile("sgd", "mse", steps_per_execution=2)
    x, y = samples((6,), 4)
    zeros = []
    for _ in range(2):  # of two batches: the mask for step 3 is there when step 2 has ended
        zeros.append(keras_ntt.sparsity_report(model).sparsity)
        model.fit(x, y, batch_size=16, verbose=0)
    zeros.append(keras_ntt.sparsity_report(model).sparsity)
    assert zeros == [0.0, 0.25, 0.25]


def test_a_real_schedule_without_an_interval_is_refused():
    broken = sparsity.PolynomialDecay(0.0, 0.5, 10, 10)
    assert np.isnan(float(broken(tf.constant(10, tf.int64))[1]))
    with pytest.raises(ValueError, match="a step after begin_step"):
        schedules.as_schedule(broken)


def test_our_schedule_serves_real_wrappers(tmp_path):
    schedule = bridge.NTTSchedule(0.75, frequency=4, end_step=12)
    assert isinstance(schedule, sparsity.PruningSchedule)
    fired = [step for step in range(1, 15) if bool(schedule(tf.constant(step))[0])]
    assert fired == [1, 4]  # 8 + 4 is the end
    held = bridge.NTTSchedule(0.75, frequency=None)
    assert [step for step in range(1, 300) if bool(held(tf.constant(step))[0])] == [1]
    model = sparsity.prune_low_magnitude(legacy_mlp(), schedule)
    legacy_fit(model, *samples((6,), 3))
    model.save(tmp_path / "m.h5")
    with bridge.prune_scope():
        loaded = tf_keras.models.load_model(tmp_path / "m.h5")
    assert loaded.layers[0].pruning_schedule.get_config() == schedule.get_config()
    for masks in (bridge.get_masks(model), bridge.get_masks(loaded)):
        assert [int(m.sum()) for m in masks.values()] == [12, 6]


def test_our_schedule_for_tfmot_is_ours_in_a_transfer():
    for frequency in (None, 4):
        schedule, ours = (api.NTTSchedule(0.75, frequency) for api in (bridge, keras_ntt))
        assert bridge.as_tfmot_schedule(schedule) is schedule
        taken = schedules.as_schedule(schedule)
        assert type(taken) is keras_ntt.NTTSchedule
        assert taken.get_config() == ours.get_config()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    x, _ = samples((6,), 3)
    settings = {"saliency": "balanced", "seed": 0, "verbose": 0}
    transferred, first = (
        keras_ntt.prune_neural_tangent(
            model, x, sparsity=api.NTTSchedule(0.75, None), epochs=1, **settings
        )
        for api in (bridge, keras_ntt)
    )
    masks = keras_ntt.get_masks(first)
    for path, mask in keras_ntt.get_masks(transferred).items():
        np.testing.assert_array_equal(mask, masks[path])


# --- masks, entry for entry -------------------------------------------------------------------


def theirs_on(weights, fraction, block=(1, 1), pooling="AVG", m_by_n=None):
    held = [tf.Variable(weights), tf.Variable(tf.ones_like(weights)), tf.Variable(0.0)]
    pruning = pruning_impl.Pruning(
        lambda: tf.constant(1, tf.int64),
        [tuple(held)],
        sparsity.ConstantSparsity(fraction, 0),
        block,
        pooling,
        m_by_n,
    )
    return pruning._maybe_update_block_mask(held[0])[1].numpy().astype(bool)


def random_weights(seed, rank, largest=13):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, largest, size=rank))
    return rng.normal(size=shape).astype("float32")


# Fractions for which size * (1 - sparsity) is a half, and others.
fractions_with_halves = st.one_of(st.sampled_from([0.5, 0.75, 0.9, 0.25, 0.95]), fractions)
seeds = st.integers(0, 10_000)


@given(seeds, st.integers(1, 5), fractions_with_halves)
def test_masks_of_entries_are_those_of_tfmot(seed, rank, fraction):
    weights = random_weights(seed, rank)
    mask = named_patterns.pattern_of(weights.shape)(tf.abs(weights), fraction)
    np.testing.assert_array_equal(mask, theirs_on(weights, fraction))


blocks = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(seeds, blocks, st.sampled_from(["AVG", "MAX"]), fractions_with_halves)
def test_masks_of_blocks_are_those_of_tfmot(seed, block, pooling, fraction):
    weights = random_weights(seed, 2)
    pattern = named_patterns.pattern_of(weights.shape, block_size=block, pooling=pooling)
    mask = pattern(tf.abs(weights), fraction).numpy()
    tiles = [-(-n // b) for n, b in zip(weights.shape, block, strict=True)]
    if min(tiles) == 1 and block != (1, 1):
        # Where one row of blocks covers the weight, tfmot loses an axis and fails.
        with pytest.raises(ValueError, match="rank 2"):
            theirs_on(weights, fraction, block, pooling)
        assert mask.any()
    else:
        np.testing.assert_array_equal(mask, theirs_on(weights, fraction, block, pooling))


@given(seeds, st.sampled_from([2, 4]), st.integers(2, 6), st.data())
def test_masks_of_m_by_n_are_those_of_tfmot(seed, rank, n, data):
    m = data.draw(st.integers(1, n - 1))
    weights = random_weights(seed, rank, 9)
    mask = named_patterns.pattern_of(weights.shape, sparsity_m_by_n=(m, n))(tf.abs(weights), 0.3)
    np.testing.assert_array_equal(mask, theirs_on(weights, 0.3, m_by_n=(m, n)))


def test_ties_are_the_difference():
    weights = np.ones((4, 5), "float32")
    assert theirs_on(weights, 0.9).sum() == 20  # all are equal to the least one kept
    assert patterns.entries(tf.constant(weights), 0.9).numpy().sum() == 2


# --- a whole training -------------------------------------------------------------------------


def samples(shape, outputs, n=32):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, *shape)).astype("float32")
    return x, rng.normal(size=(n, outputs)).astype("float32")


def legacy_mlp():
    return tf_keras.Sequential([layers.InputLayer((6,)), layers.Dense(8, "tanh"), layers.Dense(3)])


def legacy_cnn():
    return tf_keras.Sequential(
        [
            layers.InputLayer((8, 8, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(8, "relu"),
            layers.Dense(3),
        ]
    )


def legacy_fit(model, x, y, epochs=2):
    model.compile(tf_keras.optimizers.SGD(0.05), "mse")
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[sparsity.UpdatePruningStep()])


@pytest.mark.parametrize(
    "settings",
    [
        lambda api: {"pruning_schedule": api.PolynomialDecay(0.1, 0.8, 0, 12, frequency=2)},
        lambda api: {"pruning_schedule": api.ConstantSparsity(0.6, 1, frequency=4)},
        lambda api: {"pruning_schedule": api.ConstantSparsity(0.6, 0, frequency=2)},
        lambda api: {"sparsity_m_by_n": (2, 4)},
    ],
    ids=["polynomial", "constant_from_1", "constant_from_0", "m_by_n"],
)
@pytest.mark.parametrize(("momentum", "steps_per_execution"), [(0.0, 1), (0.9, 2)])
def test_training_prunes_as_tfmot_does(settings, momentum, steps_per_execution):
    theirs = legacy_cnn()
    ours = bridge.to_keras3(theirs)
    x, y = samples((8, 8, 2), 3, n=48)
    theirs = sparsity.prune_low_magnitude(theirs, **settings(sparsity))
    keras_ntt.prune_low_magnitude(ours, **settings(keras_ntt))
    theirs.compile(tf_keras.optimizers.SGD(0.05, momentum), "mse")
    ours.compile(
        keras.optimizers.SGD(0.05, momentum),
        "mse",
        steps_per_execution=steps_per_execution,
        jit_compile=False,
    )
    callbacks = [sparsity.UpdatePruningStep()]
    # Steps 6, 12, ...: what is chosen before batch 7 we choose after batch 6, so compare where
    # nothing is.
    for epoch in range(1, 5):
        theirs.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)
        ours.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        schedule = settings(keras_ntt).get("pruning_schedule")
        if schedule is not None and schedule(6 * epoch + 1)[0]:
            continue
        for name, a, _, b in bridge.paired(theirs, ours):
            np.testing.assert_array_equal(a.numpy() == 0, b.numpy() == 0, err_msg=name)
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5, err_msg=name)
        found = bridge.translate_masks(bridge.get_masks(theirs), theirs, ours)
        for path, mask in keras_ntt.get_masks(ours).items():
            np.testing.assert_array_equal(mask, found[path])


# --- the policy for XNNPACK -------------------------------------------------------------------


def _mobile(k, middle, first, last):
    lay = k.layers
    x = k.Input((16, 16, 3))
    parts = [
        *first(lay),
        lay.BatchNormalization(),
        lay.ReLU(6.0),
        *middle(lay),
        lay.Conv2D(8, 1),
        *last(lay),
    ]
    y = x
    for part in parts:
        y = part(y)
    return k.Model(x, y)


def _first(lay):
    return [lay.ZeroPadding2D(1), lay.Conv2D(4, 3, strides=2)]


def _last(lay):
    return [lay.GlobalAveragePooling2D(), lay.Dense(2)]


def _pad(lay, n):
    return lay.ZeroPadding2D(n)


POLICY = {
    "nothing": (lambda lay: [],),
    "depthwise": (lambda lay: [lay.DepthwiseConv2D(3, padding="same")],),
    "strided": (lambda lay: [_pad(lay, 1), lay.DepthwiseConv2D(3, strides=2)],),
    "five": (lambda lay: [_pad(lay, 2), lay.DepthwiseConv2D(5, strides=2)],),
    "five wrong": (lambda lay: [_pad(lay, 1), lay.DepthwiseConv2D(5)],),
    "valid": (lambda lay: [lay.DepthwiseConv2D(3)],),
    "multiplier": (lambda lay: [lay.DepthwiseConv2D(3, padding="same", depth_multiplier=2)],),
    "dilated": (lambda lay: [lay.DepthwiseConv2D(3, padding="same", dilation_rate=2)],),
    "conv": (lambda lay: [lay.Conv2D(4, 3)],),
    "conv strided": (lambda lay: [lay.Conv2D(4, 1, strides=2)],),
    "tanh": (lambda lay: [lay.Activation("tanh")],),
    "sigmoid": (lambda lay: [lay.Activation("sigmoid")],),
    "leaky": (lambda lay: [lay.LeakyReLU()],),
    "pooling": (lambda lay: [lay.MaxPooling2D()],),
    "dropout": (lambda lay: [lay.Dropout(0.1)],),
    "plus": (lambda lay: [lambda y: y + 1.0],),
    "times": (lambda lay: [lambda y: y * 2.0 - 1.0],),
    "residual": (lambda lay: [lambda y: lay.Add()([y, lay.Conv2D(4, 1)(y)])],),
    "bilinear": (lambda lay: [lay.UpSampling2D(interpolation="bilinear")],),
    "nearest": (lambda lay: [lay.UpSampling2D()],),
    "same": (
        lambda lay: [],
        lambda lay: [lay.ZeroPadding2D(1), lay.Conv2D(4, 3, strides=2, padding="same")],
    ),
    "unpadded": (lambda lay: [], lambda lay: [lay.Conv2D(4, 3, strides=2)]),
    "flat": (lambda lay: [], _first, lambda lay: [lay.Flatten(), lay.Dense(2)]),
}


SUPPORTED = "nothing depthwise strided five sigmoid leaky dropout plus times residual bilinear"


@pytest.mark.parametrize("name", POLICY)
def test_the_policy_takes_what_tfmots_takes(name):
    middle, first, last = [*POLICY[name], *[None, _first, _last][len(POLICY[name]) :]]

    def accepted(policy, model):
        try:
            policy.ensure_model_supports_pruning(model)
        except ValueError:
            return False
        return True

    theirs = accepted(sparsity.PruneForLatencyOnXNNPack(), _mobile(tf_keras, middle, first, last))
    ours = accepted(keras_ntt.PruneForLatencyOnXNNPack(), _mobile(keras, middle, first, last))
    assert ours == theirs
    assert theirs == (name in SUPPORTED.split())
