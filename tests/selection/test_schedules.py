"""Schedules: tables written by hand, and compiled answers against plain ones."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import keras_ntt
from keras_ntt.selection.compiled_schedule import ASKED_AHEAD, Timetable, warn_if_idle
from keras_ntt.selection.schedules import (
    ConstantSparsity,
    NTTSchedule,
    PolynomialDecay,
    as_schedule,
    decide,
)


def fired(schedule, last):
    return [step for step in range(last + 1) if schedule(step)[0]]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"begin_step": 0, "frequency": 10}, [10, 20, 30, 40]),
        ({"begin_step": 1, "frequency": 10}, [1, 11, 21, 31, 41]),
        ({"begin_step": 7, "frequency": 10, "end_step": 27}, [7, 17, 27]),
        ({"begin_step": 7, "frequency": 10, "end_step": 26}, [7, 17]),
        ({"begin_step": 5, "end_step": 5}, [5]),
        ({"begin_step": 0}, []),  # 100 by default: not within these 45 steps
        ({"begin_step": 0, "frequency": 1, "end_step": 3}, [1, 2, 3]),
    ],
)
def test_constant_sparsity_by_hand(arguments, steps):
    schedule = ConstantSparsity(0.5, **arguments)
    assert fired(schedule, 45) == steps
    assert {schedule(step)[1] for step in range(45)} == {0.5}


@pytest.mark.parametrize(
    ("arguments", "answers"),
    [
        # sparsity 0.8 - 0.8 * (1 - t / 4), t / 4 = 0, 1/4, ...
        ((0.0, 0.8, 0, 4, 1, 1), {1: 0.2, 2: 0.4, 3: 0.6, 4: 0.8}),
        # from 0.2 to 0.6 by a square: 0.6 - 0.4 * (1 - (t - 2) / 4) ** 2
        ((0.2, 0.6, 2, 6, 2, 2), {2: 0.2, 4: 0.5, 6: 0.6}),
        # 3 does not divide 10: the end is there all the same
        ((0.0, 0.5, 0, 10, 1, 3), {3: 0.15, 6: 0.3, 9: 0.45, 10: 0.5}),
        # a frequency longer than the run
        ((0.0, 0.5, 0, 10, 3, 100), {10: 0.5}),
        # downwards, as tfmot allows
        ((0.8, 0.2, 0, 2, 1, 1), {1: 0.5, 2: 0.2}),
    ],
)
def test_polynomial_decay_by_hand(arguments, answers):
    schedule = PolynomialDecay(*arguments)
    assert fired(schedule, 20) == list(answers)
    for step, sparsity in answers.items():
        assert schedule(step)[1] == pytest.approx(sparsity, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ConstantSparsity(1.0, 0), "target_sparsity is the fraction"),
        (lambda: ConstantSparsity(0.5, -1), "begin_step must be at least 0"),
        (lambda: ConstantSparsity(0.5, 0.5), "begin_step must be an integer"),
        (lambda: ConstantSparsity(0.5, 10, 9), "end_step must be -1 or a step after"),
        (lambda: ConstantSparsity(0.5, 0, 0), "end_step must be -1 or a step after"),
        (lambda: ConstantSparsity(0.5, 0, frequency=0), "frequency must be a positive"),
        (lambda: PolynomialDecay(0.0, 0.5, 10, 10), "end_step must be a step after"),
        (lambda: PolynomialDecay(0.0, 0.5, 0, -1), "end_step must be a step after"),
        (lambda: PolynomialDecay(0.0, 1.5, 0, 10), "final_sparsity is the fraction"),
        (lambda: PolynomialDecay(-0.1, 0.5, 0, 10), "initial_sparsity is the fraction"),
        (lambda: PolynomialDecay(0.0, 0.5, 0, 10, power=-1), "power must be a finite"),
    ],
)
def test_arguments_out_of_range(make, match):
    with pytest.raises(ValueError, match=match):
        make()


SCHEDULES = [
    ConstantSparsity(0.5, 3, 9, 2),
    ConstantSparsity(0.9, 0),
    PolynomialDecay(0.1, 0.7, 2, 20, 2, 5),
    NTTSchedule(0.3, 7, 40),
    NTTSchedule(0.3, 7),
    NTTSchedule(0.3, None),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_serialised_by_keras_and_back(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    assert [again(step) for step in range(60)] == [schedule(step) for step in range(60)]


steps = st.integers(0, 40)
sparsities = st.floats(0, 0.99)


@st.composite
def schedules(draw):
    begin, frequency = draw(steps), draw(st.integers(1, 12))
    end = max(begin, 1) + draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["constant", "endless", "polynomial", "regular", "open", "held"]))
    if kind == "constant":
        return ConstantSparsity(draw(sparsities), begin, end, frequency)
    if kind == "endless":
        return ConstantSparsity(draw(sparsities), begin, frequency=frequency)
    if kind == "polynomial":
        power = draw(st.sampled_from([1, 2, 3, 0.5]))
        return PolynomialDecay(draw(sparsities), draw(sparsities), begin, end, power, frequency)
    if kind == "held":
        return NTTSchedule(draw(sparsities), None, draw(st.sampled_from([None, end])))
    return NTTSchedule(draw(sparsities), frequency, end if kind == "regular" else None)


def compare(schedule, last=100):
    timetable = Timetable(schedule)
    ask = tf.function(timetable.at, input_signature=[tf.TensorSpec([], tf.int64)])
    for step in range(last):
        due, sparsity = ask(tf.constant(step, tf.int64))
        should_prune, wanted = decide(schedule, step)
        assert bool(due) == should_prune, step
        if should_prune:
            assert float(sparsity) == pytest.approx(wanted, abs=1e-6)


@given(schedules())
def test_the_compiled_answer_is_the_plain_one(schedule):
    compare(schedule)


class Twice(ConstantSparsity):
    """A subclass that answers otherwise than its base, which has a formula."""

    def __call__(self, step):
        return step in (3, 4), 0.25


@pytest.mark.parametrize(
    "schedule",
    [Twice(0.5, 0), as_schedule(lambda step: (0 < step < 9 and step % 2 == 0, step / 100))],
    ids=["subclass", "function"],
)
def test_the_compiled_answer_of_a_schedule_of_ones_own(schedule):
    compare(schedule, 30)
    due, _ = Timetable(schedule).at(tf.constant(10 * ASKED_AHEAD, tf.int64))
    assert not bool(due)


def test_a_function_that_never_ends_is_warned_of():
    with pytest.warns(UserWarning, match="asked about its first 100,000 steps only"):
        Timetable(as_schedule(lambda step: (step % 100 == 0, 0.5)))


@pytest.mark.parametrize(
    ("schedule", "first", "last", "match"),
    [
        (ConstantSparsity(0.5, 0), 1, 99, "Nothing will be pruned.*step 1 to step 99"),
        (ConstantSparsity(0.5, 0), 101, 199, "Nothing will be pruned"),
        (ConstantSparsity(0.5, 1000), 1, 999, "begin_step=1000"),
        (PolynomialDecay(0, 0.5, 0, 500), 1, 499, "before the schedule's end_step"),
        (PolynomialDecay(0, 0.5, 0, 500), 1, 99, "Nothing will be pruned"),
        (as_schedule(lambda step: (False, 0.5)), 1, 50, "Nothing will be pruned"),
    ],
)
def test_a_run_in_which_nothing_would_happen_is_warned_of(schedule, first, last, match):
    with pytest.warns(UserWarning, match=match):
        warn_if_idle(schedule, first, last)


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (ConstantSparsity(0.5, 0), 1, 100),
        (ConstantSparsity(0.5, 0, 100), 101, 150),  # ended in an earlier run
        (PolynomialDecay(0, 0.5, 0, 500), 1, 500),
        (PolynomialDecay(0, 0.5, 0, 500), 501, 600),
        (NTTSchedule(0.5), 0, 10),
    ],
)
def test_no_warning_where_pruning_happens(schedule, first, last):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_idle(schedule, first, last)


def test_without_a_frequency_the_first_masks_are_held():
    assert fired(NTTSchedule(0.5, frequency=None), 400) == [0]
    assert fired(NTTSchedule(0.5, frequency=None).ending_at(300), 400) == [0]


def test_numpy_numbers_are_numbers():
    schedule = PolynomialDecay(np.float32(0.5), 0.75, np.int64(0), np.int32(10), frequency=5)
    assert fired(schedule, 20) == [5, 10]


# --- in a transfer ----------------------------------------------------------------------------


def transfer(mlp, schedule, epochs=2):
    """Run 4 steps of Neural Tangent Transfer an epoch; return the sparsities by epoch."""
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    trainer = keras_ntt.NeuralTangentTransfer(mlp(), pruning_schedule=schedule, seed=0)
    trainer.compile("adam", run_eagerly=True)
    return trainer.fit(x, batch_size=4, epochs=epochs, verbose=0).history["sparsity"]


def test_a_transfer_prunes_gradually(mlp):
    found = transfer(mlp, PolynomialDecay(0.0, 0.75, 0, 8, power=1, frequency=4))
    # 72 entries, in kernels of 48 and 24: three eighths, then three quarters
    np.testing.assert_allclose(found, [0.375, 0.75], atol=1e-6)


class Refreshes(keras.callbacks.Callback):
    """Notes the steps after which the masks are others than before."""

    def __init__(self):
        super().__init__()
        self.steps, self.masks = [], None

    def on_train_batch_end(self, batch, logs=None):
        """Compare the masks with those of the step before."""
        masks = np.concatenate([m.ravel() for m in self.model.masks.values()])
        if self.masks is not None and (masks != self.masks).any():
            self.steps.append(self.model.step)
        self.masks = masks


def test_a_transfer_knows_its_end_where_epochs_are_skipped(mlp):
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    schedule = keras_ntt.NTTSchedule(0.5, frequency=3)
    trainer = keras_ntt.NeuralTangentTransfer(mlp(), pruning_schedule=schedule, seed=0)
    trainer.compile(keras.optimizers.Adam(0.5))
    seen = Refreshes()
    trainer.fit(x, batch_size=16, epochs=7, initial_epoch=5, callbacks=[seen], verbose=0)
    assert trainer.step == 8
    assert seen.steps == [3]  # not 6, in the last interval


def test_a_transfer_that_would_not_prune_is_warned_of(mlp):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert transfer(mlp, ConstantSparsity(0.5, 0)) == [0.0, 0.0]
    assert any("from step 0 to step 8" in str(w.message) for w in caught)
