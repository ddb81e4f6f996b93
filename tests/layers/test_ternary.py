"""Random ternary features: the coefficients that are matched, and the kernel that follows."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from keras_ntt import random_ternary_features
from keras_ntt.layers import ternary
from keras_ntt.layers.ternary import Steps, matching_steps, of_relu, of_steps


def by_quadrature(function, tau):
    """The coefficients by Stein's identities: E[f'(x)] is E[f(x) z] / tau for x = tau z."""
    z = np.linspace(-9, 9, 200_001)
    weight = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    found = function(tau * z)
    centred = found - (weight * found).sum()
    first = (weight * centred * z).sum() / tau
    second = (weight * centred * (z * z - 1)).sum() / tau**2
    square = (weight * centred**2 * (z * z - 1)).sum() / tau**2
    return first**2, second**2, square, (weight * centred**2).sum()


@pytest.mark.parametrize("tau", [0.7, 1.0, 2.0])
def test_coefficients_are_those_of_the_definition(tau):
    relu = by_quadrature(lambda x: np.maximum(x, 0), tau)
    np.testing.assert_allclose(of_relu(tau), relu, rtol=2e-3)
    steps = Steps(0.9, 2.2, 2.4)
    found = by_quadrature(lambda x: 2.4 * ((x < 0.9) | (x > 2.2)), tau)
    np.testing.assert_allclose(of_steps(steps, tau), found, rtol=2e-3)


def test_published_example():
    steps = matching_steps(of_relu(1.0), 1.0)
    np.testing.assert_allclose(steps, (0.99953, 2.21253, 2.40874), atol=1e-5)
    found = of_steps(steps, 1.0)
    assert found.square == pytest.approx(0.68169, abs=1e-5)
    assert found.variance == pytest.approx(0.7206, abs=1e-4)  # not ReLU's .3408
    assert math.sqrt(of_relu(1.0).variance) == pytest.approx(0.5838, abs=1e-4)


def test_later_layers_match_what_relu_would_have():
    theirs = ours = 1.0
    for tau in (1.0, 0.5838, 0.3408):
        assert theirs == pytest.approx(tau, abs=1e-4)
        wanted = of_relu(theirs)
        steps = matching_steps(wanted, ours)
        np.testing.assert_allclose(of_steps(steps, ours)[:3], wanted[:3], rtol=1e-8)
        theirs, ours = math.sqrt(wanted.variance), math.sqrt(of_steps(steps, ours).variance)


def test_the_kernel_of_the_features(rng):
    """Between different samples a first layer's kernel is a quarter of the inputs' products."""
    x = rng.normal(size=(60, 300)) / np.sqrt(300)
    x += 0.7 * np.sign(rng.normal(size=(60, 1))) * np.ones(300) / np.sqrt(300)
    model = random_ternary_features([6000], x, seed=1)
    assert model.trainable_variables == []
    kernel = model.get_weights()[0]
    np.testing.assert_allclose(np.unique(kernel), [-(10**0.5), 0, 10**0.5], rtol=1e-6)
    assert np.mean(kernel == 0) == pytest.approx(0.9, abs=0.003)
    features = model(x.astype("float32")).numpy()
    off = ~np.eye(60, dtype=bool)
    found, products = (features @ features.T)[off], (x @ x.T)[off]
    slope = (found * products).sum() / np.square(products).sum()
    tau = math.sqrt(np.square(x).sum(axis=1).mean())
    assert slope == pytest.approx(0.25, rel=0.1)
    own = of_steps(matching_steps(of_relu(tau), tau), tau).variance
    assert np.square(features).sum(axis=1).mean() == pytest.approx(own, rel=0.1)


def test_saved(tmp_path, rng):
    x = rng.normal(size=(5, 8)).astype("float32")
    model = random_ternary_features([6, 4], x, zeros=0.5)
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), model(x))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"data": np.zeros((3, 4))}, r"data must be finite numbers.*Received"),
        ({"widths": [0]}, r"widths must be positive integers.*Received"),
        ({"widths": 3}, r"widths must be positive integers.*Received"),
        ({"zeros": 1}, r"zeros must be a number in \[0, 1\).*Received"),
    ],
)
def test_refused(options, match):
    with pytest.raises(ValueError, match=match):
        random_ternary_features(**{"widths": [3], "data": np.ones((3, 4)), **options})


def test_no_solution_is_said():
    impossible = ternary.Coefficients(0.25, 1e-12, -5.0, 1.0)
    with pytest.raises(ValueError, match=r"No activation of two steps.*Received"):
        matching_steps(impossible, 1.0)
