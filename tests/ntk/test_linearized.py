"""Training as the tangent kernel predicts it."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_ntt
from keras_ntt.ntk.linearized import predict_training


def sgd(model, x, y, steps, rate, *others):
    """Return outputs on x and on others after each step of Keras's own training."""
    model.compile(keras.optimizers.SGD(rate), "mse")
    found = [[model.predict(a, verbose=0) for a in (x, *others)]]
    for _ in range(steps):
        model.train_on_batch(x, y)
        found.append([model.predict(a, verbose=0) for a in (x, *others)])
    return [np.stack(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize("n", [3, 9], ids=["more weights", "more samples"])
@pytest.mark.few(1)
def test_network_linear_in_its_weights_trains_exactly_so(float64, rng, n):
    """With more samples than weights the kernel has no full rank."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    x, y, others = rng.normal(size=(n, 4)), rng.normal(size=(n, 2)), rng.normal(size=(5, 4))
    kernel, across = (keras_ntt.empirical_ntk(model, a, x) for a in (x, others))
    found = predict_training(
        kernel,
        model.predict(x, verbose=0),
        y,
        learning_rate=0.2,
        steps=range(8),
        test_ntk=across,
        test_outputs=model.predict(others, verbose=0),
    )
    train, test = sgd(model, x, y, 7, 0.2, others)
    np.testing.assert_allclose(found.train, train, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.test, test, rtol=1e-9, atol=1e-9)


def test_pruned_network_trains_by_its_kept_weights(float64, rng):
    dense = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model = keras_ntt.prune_at_init(dense, sparsity=0.5, saliency="random")
    x, y = rng.normal(size=(4, 6)), rng.normal(size=(4, 3))
    start = model.predict(x, verbose=0)
    kernels = {wrt: keras_ntt.empirical_ntk(model, x, wrt=wrt) for wrt in ("kept", "all")}
    (train,) = sgd(model, x, y, 5, 0.1)
    options = {"learning_rate": 0.1, "steps": [5]}
    kept, every = (predict_training(k, start, y, **options).train for k in kernels.values())
    np.testing.assert_allclose(kept[0], train[5], rtol=1e-9, atol=1e-9)
    assert np.abs(every[0] - train[5]).max() > 1e-2


def test_error_of_prediction_is_of_second_order(float64, rng, mlp):
    """For a curved network the first step is wrong by the square of the learning rate."""
    x, y = rng.normal(size=(5, 6)), rng.normal(size=(5, 3))
    errors = []
    for rate in (0.02, 0.01, 0.005):
        keras.utils.set_random_seed(1)
        model = mlp()
        kernel, start = keras_ntt.empirical_ntk(model, x), model.predict(x, verbose=0)
        found = predict_training(kernel, start, y, learning_rate=rate, steps=[1]).train[0]
        (train,) = sgd(model, x, y, 1, rate)
        errors.append(np.abs(found - train[1]).max())
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios, 4, rtol=0.1)


def test_high_learning_rate_diverges():
    found = predict_training(
        [[[[4.0]]]], [[0.0]], [[1.0]], learning_rate=0.5, steps=[0, 1, 2]
    ).train
    np.testing.assert_allclose(found.ravel(), [0, 4, -8])  # each step times 1 - 2 * 0.5 * 4 = -3


GOOD = {
    "ntk": np.eye(2).reshape(2, 2, 1, 1),
    "outputs": np.zeros((2, 1)),
    "targets": np.ones((2, 1)),
    "learning_rate": 0.1,
    "steps": [1],
}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"ntk": np.eye(2)}, "full kernel of shape"),
        ({"targets": np.ones(2)}, "targets of shape"),
        ({"steps": [-1]}, "steps must be"),
        ({"steps": []}, "steps must be"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"test_ntk": np.ones((1, 2, 1, 1))}, "test_outputs=None"),
        ({"test_outputs": np.ones((1, 1))}, "test_ntk=None"),
        ({"test_ntk": np.ones((1, 2, 1, 1)), "test_outputs": np.ones(1)}, "test_outputs must"),
        ({"test_ntk": np.ones((1, 2)), "test_outputs": np.ones((1, 1))}, "test_ntk must"),
    ],
    ids=lambda v: "+".join(v) if isinstance(v, dict) else None,
)
def test_what_does_not_fit_is_refused(changed, text):
    predict_training(**GOOD)
    with pytest.raises(ValueError, match=text):
        predict_training(**{**GOOD, **changed})
