"""The objective free of units: distances divided by the teacher's own size."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import architectures
from helpers.errors import refused, samples, small

import keras_ntt
from keras_ntt.core import host
from keras_ntt.core.network import unroll
from keras_ntt.pruning.neural_tangent.gradient import loss_and_gradient
from keras_ntt.pruning.neural_tangent.objective import Pair, Weighting


def pair_of(make=architectures.lenet, n=5):
    teacher, student = (architectures.randomize(make(), seed) for seed in (0, 1))
    return student, teacher, architectures.inputs_for(student, n)


def sizes(teacher, x):
    """The teacher's own sizes from its Jacobian and its outputs, in NumPy."""
    half = -(-len(x) // 2)
    ntk = keras_ntt.empirical_ntk(teacher, x[:half], x[half:], implementation="jacobian")
    return np.square(ntk).mean(), np.asarray(teacher(x)).var(axis=0).mean()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n", [4, 5])
def test_distances_are_divided_by_the_size_of_the_teacher(n):
    student, teacher, x = pair_of(n=n)
    options = {"sparsity": 0.4, "ntk_weight": 0.1, "l2": 1e-3}
    plain = keras_ntt.ntt_loss(student, teacher, x, **options)
    found = keras_ntt.ntt_loss(student, teacher, x, normalize=True, **options)
    kernel, outputs = sizes(teacher, x)
    wanted = float(plain.ntk_distance) / kernel, float(plain.output_distance) / outputs
    np.testing.assert_allclose((found.ntk_distance, found.output_distance), wanted, rtol=1e-10)
    total = 0.1 * wanted[0] + wanted[1] + 1e-3 / 0.6 * float(found.l2)
    np.testing.assert_allclose(float(found.total), total, rtol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("wrt", ["all", "kept"])
def test_units_do_not_matter(rng, wrt):
    """Inputs in another unit: outputs are 10 times, the kernel of a linear model 100 times."""
    models = [
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
        for _ in range(2)
    ]
    x = rng.normal(size=(6, 4))
    mask = {models[0].weights[0].path: np.eye(4, 3)}
    for normalize in (True, False):
        found = [
            keras_ntt.ntt_loss(
                *models, x * unit, sparsity=0.75, masks=mask, wrt=wrt, l2=0.0, normalize=normalize
            )
            for unit in (1, 10)
        ]
        ratios = [float(b / a) for a, b in zip(found[0][1:3], found[1][1:3], strict=True) if a]
        wanted = [1.0, 1.0] if normalize else [1e4, 1e2]
        np.testing.assert_allclose(ratios, wanted[-len(ratios) :], rtol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("k", [None, 3])
def test_blocks_give_the_gradient_of_the_whole(k):
    student, teacher, x = pair_of(n=7)
    weighting = Weighting(0.1, 1e-3, "all", output_projections=k, normalize=True)
    pair = Pair(unroll(student), unroll(teacher), [student.weights[0]], {}, 0.5, weighting)
    sources = [host.raw(v) for v in student.trainable_variables]
    whole, gradients = loss_and_gradient(pair, x, sources)
    loss, blocks = loss_and_gradient(pair, tf.constant(x), sources, parts=2)
    np.testing.assert_allclose(loss, whole, rtol=1e-9)
    for a, b in zip(gradients, blocks, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12)
    plain = Weighting(0.1, 1e-3, "all", output_projections=k)
    other, _ = loss_and_gradient(pair_with(pair, plain), x, sources)
    assert float(other.total) != pytest.approx(float(whole.total))


def pair_with(pair, weighting):
    return Pair(pair.student, pair.teacher, pair.pruned, pair.masks, pair.density, weighting)


def test_a_single_sample_has_no_variance_to_divide_by():
    student, teacher, x = pair_of(architectures.dense, 1)
    options = {"sparsity": 0.0, "l2": 0.0}
    found = keras_ntt.ntt_loss(student, teacher, x, normalize=True, **options)
    plain = keras_ntt.ntt_loss(student, teacher, x, **options)
    assert float(found.output_distance) == float(plain.output_distance)
    assert np.isfinite(float(found.total))


def test_a_step_of_the_transfer_has_the_distances_of_the_loss():
    dense, x = small(), samples()
    student = keras.models.clone_model(dense)
    student.set_weights(dense.get_weights())
    transfer = keras_ntt.NeuralTangentTransfer(student, pruning_schedule=0.5, normalize=True)
    transfer.compile(keras.optimizers.SGD(0.0))  # the weights stay
    found = transfer.fit(x, batch_size=8, shuffle=False, verbose=0).history
    wanted = keras_ntt.ntt_loss(student, dense, x, sparsity=0.5, normalize=True)
    for name in ("ntk_distance", "output_distance"):
        np.testing.assert_allclose(found[name], float(getattr(wanted, name)), rtol=1e-4)


def test_refused():
    student = small()
    with refused(ValueError, "normalize must be True or False.*Received: normalize=1", student):
        keras_ntt.ntt_loss(student, small(), samples(), sparsity=0.5, normalize=1)
