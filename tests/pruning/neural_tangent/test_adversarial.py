"""Adversarial inputs in the transfer: the attack against closed forms, and what a step uses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ntt
from keras_ntt import ProjectedGradient

SEED = tf.constant([3, 5])


def test_on_a_linear_function_it_ends_in_the_corner():
    """A step of the size of the box reaches, from anywhere, the corner of the gradient's signs."""
    slopes = tf.constant([[2.0, -3.0, 0.5]])
    attack = ProjectedGradient(0.1, steps=2, step_size=0.2)
    x = tf.constant([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    moved = attack(x, lambda x: tf.reduce_sum(slopes * x), SEED)
    np.testing.assert_allclose(moved - x, 0.1 * np.sign(slopes) * [[1], [1]], atol=1e-6)


def test_bounds_and_box(rng):
    x = tf.constant(rng.uniform(size=(50, 4)).astype("float32"))
    attack = ProjectedGradient(0.3, steps=3, bounds=(0.0, 1.0))
    moved = attack(x, lambda x: tf.reduce_sum(tf.sin(20 * x)), SEED).numpy()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert np.abs(moved - x).max() <= 0.3 + 1e-6
    assert (tf.reduce_sum(tf.sin(20 * moved)) > tf.reduce_sum(tf.sin(20 * x))).numpy()


def test_each_seed_has_its_start_and_none_is_the_clean_input():
    attack = ProjectedGradient(0.1, step_size=0.0)
    x = tf.zeros([1, 1000])
    first, again, other = (attack(x, tf.reduce_sum, tf.constant([s, 0])) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first.numpy() != other.numpy()).mean() > 0.99
    assert abs(float(tf.reduce_mean(first))) < 0.01  # uniform in [-0.1, 0.1]
    assert np.std(first) == pytest.approx(0.1 / np.sqrt(3), rel=0.05)


class Recorder:
    """An attack that adds 1, and notes the distance at the clean and at the moved inputs."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, distance, seed):
        self.seen.append((distance(x), distance(x + 1.0), seed))
        return x + 1.0


@pytest.mark.parametrize("own_teacher", [False, True])
def test_a_step_is_one_on_the_moved_inputs(rng, mlp, own_teacher):
    x = rng.normal(size=(8, 6)).astype("float32")
    dense, teacher = mlp(), mlp()
    results, recorder = [], Recorder()
    for inputs, attack in ((x, recorder), (x + 1.0, None)):
        student = keras.models.clone_model(dense)
        student.set_weights(dense.get_weights())
        transfer = keras_ntt.NeuralTangentTransfer(
            student,
            teacher if own_teacher else None,
            pruning_schedule=0.5,
            adversarial=attack,
            seed=0,
        )
        transfer.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        history = transfer.fit(inputs, batch_size=8, epochs=1, shuffle=False, verbose=0)
        results.append((history.history["loss"][0], student.get_weights()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    for mine, theirs in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    # What the attack is to make large: the masked student's outputs there against the teacher's
    # at the clean inputs.
    sparse = keras.models.clone_model(dense)
    sparse.set_weights(dense.get_weights())
    sparse = keras_ntt.prune_at_init(
        sparse, sparsity=0.5, saliency="magnitude", allocation="layerwise"
    )
    target = (teacher if own_teacher else dense)(x)
    for found, at in zip(recorder.seen[0][:2], (x, x + 1.0), strict=True):
        wanted = float(tf.reduce_sum((sparse(at) - target) ** 2))
        assert float(found) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.long
def test_compiled_transfer_on_adversarial_inputs(rng, mlp):
    """The loss at attacked inputs falls; validation is on clean ones."""
    x = rng.uniform(size=(64, 6)).astype("float32")
    sparse = keras_ntt.prune_neural_tangent(
        mlp(),
        x,
        sparsity=0.5,
        epochs=30,
        batch_size=16,
        optimizer=keras.optimizers.Adam(1e-2),
        adversarial=ProjectedGradient(0.2, steps=2, bounds=(0.0, 1.0)),
        callbacks=(history := keras.callbacks.History()),
        seed=0,
        verbose=0,
    )
    losses = history.history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert keras_ntt.sparsity_report(sparse).sparsity == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ProjectedGradient(-0.1), ValueError, "epsilon"),
        (lambda: ProjectedGradient(0.1, steps=0), ValueError, "steps must be a positive integer"),
        (lambda: ProjectedGradient(0.1, step_size=float("nan")), ValueError, "step_size"),
        (lambda: ProjectedGradient(0.1, bounds=(1.0, 0.0)), ValueError, "bounds are the least"),
    ],
)
def test_settings_that_do_not_fit(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_attack_that_cannot_be_called(mlp):
    with pytest.raises(TypeError, match="adversarial must be"):
        keras_ntt.NeuralTangentTransfer(mlp(), pruning_schedule=0.5, adversarial=0.1)


def test_integers_cannot_be_moved(rng):
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    before = model.get_weights()
    transfer = keras_ntt.NeuralTangentTransfer(
        model, pruning_schedule=0.5, adversarial=ProjectedGradient(0.1)
    )
    transfer.compile("adam")
    with pytest.raises(ValueError, match="integers cannot be"):
        transfer.fit(rng.integers(0, 7, size=(8, 5)), epochs=1, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
