"""Numbers that are not finite: the last good state is kept, and the error says what to do."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures
from keras import layers

import keras_ntt


def student_of(last=3, policy=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, "relu", dtype=policy),
            layers.Dense(last, dtype=policy),
        ]
    )
    return architectures.randomize(model)


def transfer_of(student, optimizer=None, **options):
    transfer = keras_ntt.NeuralTangentTransfer(
        student, pruning_schedule=keras_ntt.NTTSchedule(0.8, frequency=2, end_step=99), seed=7
    )
    transfer.compile(optimizer or keras.optimizers.Adam(1e-2), **options)
    return transfer


def samples(n=32, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 6)).astype("float32")


def batches(bad, size=4, of=8):
    """Return batches of a data set, some of which hold a NaN."""
    x = samples(size * of)
    for i in bad:
        x[i * size, 0] = np.nan
    return tf.data.Dataset.from_tensor_slices(x).batch(size, drop_remainder=True)


def state_of(transfer):
    variables = [*transfer.variables, *transfer.optimizer.variables]
    means = {id(v) for v in transfer.metrics_variables}
    return [keras.ops.convert_to_numpy(v) for v in variables if id(v) not in means]


def assert_same(found, expected, atol=0.0):
    assert len(found) == len(expected) > 10
    for value, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, right, rtol=0, atol=atol)


class Power(layers.Layer):
    def call(self, x):
        return keras.ops.power(keras.ops.abs(x), 1.5)  # its second derivative at zero is not finite


@functools.cache
def after_five_good_batches():
    transfer = transfer_of(student_of())
    transfer.fit(batches([]).take(5), verbose=0)
    return state_of(transfer)


@pytest.mark.parametrize(
    "options",
    [{}, {"steps_per_execution": 4}, {"run_eagerly": True}, {"jit_compile": True}],
    ids=lambda options: next(iter(options), "graph"),
)
@pytest.mark.few(1)
def test_everything_stays_as_the_last_finite_step_left_it(options):
    found = transfer_of(student_of(), **options)
    with pytest.raises(FloatingPointError, match=r"after step 5.*as that step left them.*lower it"):
        found.fit(batches([5]), verbose=0)  # six and seven are good, and nothing takes them
    assert found.step == 5
    rounded = options.keys() & {"jit_compile", "run_eagerly"}
    assert_same(state_of(found), after_five_good_batches(), 1e-5 if rounded else 0)


def test_the_student_holds_its_masks_after_the_error():
    transfer = transfer_of(student_of())
    with pytest.raises(FloatingPointError):
        transfer.fit(batches([5]), verbose=0)
    masks = keras_ntt.get_masks(transfer.student)
    assert masks.keys() == transfer.masks.keys()
    for variable in transfer.student.weights:
        if variable.path in masks:
            np.testing.assert_array_equal(variable.numpy() != 0, masks[variable.path])


@pytest.mark.long
def test_a_run_goes_on_after_the_error_with_data_that_are_good():
    expected = transfer_of(student_of())
    expected.fit(batches([]).take(2), verbose=0)
    expected.fit(batches([]).skip(3), verbose=0)
    found = transfer_of(student_of())
    with pytest.raises(FloatingPointError):
        found.fit(batches([2]), verbose=0)
    found.fit(batches([]).skip(3), verbose=0)
    assert found.step == 7
    assert_same(state_of(found), state_of(expected))


def test_a_loss_that_is_finite_with_a_gradient_that_is_not():
    student = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, use_bias=False), Power(), layers.Dense(2)]
    )
    transfer = keras_ntt.NeuralTangentTransfer(student, pruning_schedule=0.5)
    transfer.compile(keras.optimizers.SGD(1e-3))
    x = samples(16)
    transfer.fit(x[:4], batch_size=4, verbose=0)
    before = state_of(transfer)
    x[5] = 0
    assert np.isfinite(transfer.evaluate(x[4:8], batch_size=4, verbose=0)).all()
    with pytest.raises(FloatingPointError, match="loss or its gradient"):
        transfer.fit(x[4:8], batch_size=4, shuffle=False, verbose=0)
    assert transfer.step == 1
    assert_same(state_of(transfer), before)


@pytest.mark.parametrize("rate", [1e30, 1e37])
@pytest.mark.few(1)
def test_a_learning_rate_that_is_too_high_leaves_finite_weights_and_says_so(rate):
    transfer = transfer_of(student_of(), keras.optimizers.Adam(rate))
    with pytest.raises(FloatingPointError, match="learning rate is too high") as error:
        transfer.fit(samples(), batch_size=8, epochs=3, verbose=0)
    assert "learning_rate=1e+3" in str(error.value)
    assert all(np.isfinite(w).all() for w in transfer.student.get_weights())


def test_weights_that_a_step_itself_overflowed_are_called_of_no_use():
    transfer = transfer_of(student_of(), keras.optimizers.SGD(3e38))
    with pytest.raises(FloatingPointError, match="overflowed in that step and are of no use"):
        transfer.fit(100 * samples(), batch_size=8, epochs=3, verbose=0)


# --- float16 ----------------------------------------------------------------------------------


def scaled_transfer(scale):
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.optimizers.Adam(1e-3)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale)
    return transfer_of(student_of(), optimizer)


def test_steps_whose_scaled_gradients_overflow_are_left_out_until_the_scale_fits():
    transfer = scaled_transfer(2.0**40)
    before = transfer.student.get_weights()
    first = transfer.masks
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            scale = float(keras.ops.convert_to_numpy(transfer.optimizer.dynamic_scale))
            applied = int(keras.ops.convert_to_numpy(transfer.optimizer.inner_optimizer.iterations))
            seen.append((scale, applied, logs["loss"]))

    transfer.fit(samples(128), batch_size=2, verbose=0, callbacks=[Watch()])
    scales, applied, losses = zip(*seen, strict=True)
    assert scales[0] == 2.0**39
    assert applied[0] == 0
    assert np.isfinite(losses).all()
    assert transfer.step == 64  # batches, whether or not they were applied
    assert 0 < applied[-1] < 64
    assert scales[-1] == 2.0 ** (40 - (64 - applied[-1]))  # halved by each that was left out
    after = transfer.student.get_weights()
    kernels = zip(before[::2], after[::2], first.values(), strict=True)
    assert all((old != new)[mask].any() for old, new, mask in kernels)


@pytest.mark.long
def test_gradients_that_overflow_at_any_scale_are_a_clear_error():
    keras.config.set_dtype_policy("mixed_float16")
    student = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, use_bias=False), Power(), layers.Dense(2)]
    )
    transfer = keras_ntt.NeuralTangentTransfer(student, pruning_schedule=0.5)
    transfer.compile(keras.optimizers.Adam(1e-3))
    before = student.get_weights()
    x = samples(16)
    x[::2] = 0
    with pytest.raises(FloatingPointError, match=r"overflow in float16 at every step.*of 0\.5"):
        transfer.fit(x, batch_size=16, epochs=20, verbose=0)
    assert transfer.step == 16  # 2**15 was the scale to begin with
    for old, variable in zip(before, student.weights, strict=True):
        mask = transfer.masks.get(variable.path, 1)
        np.testing.assert_array_equal(old * mask, keras.ops.convert_to_numpy(variable))


def test_outputs_that_overflow_in_float16_are_a_clear_error():
    keras.config.set_dtype_policy("mixed_float16")
    student = student_of()
    student.layers[-1].kernel.assign(student.layers[-1].kernel * 1e5)
    transfer = transfer_of(student)
    assert isinstance(transfer.optimizer, keras.optimizers.LossScaleOptimizer)
    before = state_of(transfer)
    with pytest.raises(FloatingPointError, match="overflow in float16"):
        transfer.fit(samples(), batch_size=8, verbose=0)
    assert_same(state_of(transfer), before)
