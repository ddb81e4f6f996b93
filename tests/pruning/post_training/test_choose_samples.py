"""Which inputs are chosen, by hand and against least squares."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.errors import refused, small

from keras_ntt import choose_samples
from keras_ntt.pruning.post_training.choose_samples import gram_schmidt_sample, norm_sample

ROWS = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])  # norms 5, 1, 2, 1.414


def test_the_first_draw_has_the_probabilities_of_the_norms():
    count = 1500
    first = [norm_sample(ROWS, 1, seed=seed)[0] for seed in range(count)]
    found = np.bincount(first, minlength=4) / count
    wanted = np.array([0.531, 0.106, 0.212, 0.150])
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / count)).all()


def test_none_is_drawn_twice_and_zeros_come_last():
    features = np.concatenate([np.zeros((3, 2)), ROWS])
    for seed in range(20):
        found = norm_sample(features, 6, seed=seed)
        assert len(set(found.tolist())) == 6
        assert set(found[:4].tolist()) == {3, 4, 5, 6}
    assert sorted(norm_sample(features, 7, seed=0).tolist()) == list(range(7))
    assert sorted(norm_sample(np.zeros((3, 2)), 2, seed=0).tolist()) in ([0, 1], [0, 2], [1, 2])


def test_gram_schmidt_by_hand():
    """(3, 4) first; of the others (4, -3) / 5 sees .8, -1.2, .2; then the two span all."""
    assert gram_schmidt_sample(ROWS, 2).tolist() == [0, 2]
    assert gram_schmidt_sample(ROWS, 4).tolist() == [0, 2, 3, 1]  # of norms 1.414 and 1: anew


def test_gram_schmidt_takes_what_least_squares_explains_worst(rng):
    features = rng.normal(size=(40, 12)) * rng.lognormal(size=(40, 1))
    found = gram_schmidt_sample(features, 12)
    for k in range(12):
        rest = features
        if k:
            span = features[found[:k]].T
            rest = (features.T - span @ np.linalg.lstsq(span, features.T, rcond=None)[0]).T
        assert np.argmax(np.linalg.norm(rest, axis=1)) == found[k]


def test_equal_features_are_still_all_taken():
    assert gram_schmidt_sample(np.ones((4, 3)), 4).tolist() == [0, 1, 2, 3]
    assert gram_schmidt_sample(np.zeros((3, 2)), 3).tolist() == [0, 1, 2]


def test_features_are_the_inputs_of_the_last_kernel(rng):
    model, x = small(), rng.normal(size=(30, 6)).astype("float32")
    features = model.layers[0](x).numpy()
    for batch_size in (7, 100):
        found = choose_samples(model, x, 9, method="gram_schmidt", batch_size=batch_size)
        assert found.tolist() == gram_schmidt_sample(features, 9).tolist()
    by_inputs = choose_samples(model, x, 5, layer=model.layers[0].name, seed=3)
    assert by_inputs.tolist() == norm_sample(x, 5, seed=3).tolist()


def test_several_inputs(rng):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(keras.layers.concatenate([a, b])))
    x = {"a": rng.normal(size=(9, 2)), "b": rng.normal(size=(9, 3))}
    found = choose_samples(model, x, 4, method="gram_schmidt")
    both = np.concatenate([x["a"], x["b"]], axis=1).astype("float32")
    assert found.tolist() == gram_schmidt_sample(both, 4).tolist()


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 9}, "n must be at most the number of inputs, 8.*Received: n=9"),
        ({"n": 0}, "n must be a positive integer"),
        ({"method": "best"}, "method must be one of 'norm', 'gram_schmidt'.*Received"),
        ({"layer": "none"}, "layer must be the name of.*Received: layer='none'"),
        ({"inputs": iter([1])}, "inputs must be arrays.*Received"),
        ({"inputs": np.full((8, 6), np.inf, "float32")}, "NaN or infinit.*Received"),
    ],
)
def test_refused(options, match):
    model = small()
    given = {"inputs": np.ones((8, 6), "float32"), "n": 2, **options}
    with refused(ValueError, match, model):
        choose_samples(model, given.pop("inputs"), given.pop("n"), **given)


def test_a_model_with_a_call_of_its_own_is_refused():
    model = Own()
    model(np.ones((1, 6)))
    with refused(ValueError, r"custom call\(\).*Received", model):
        choose_samples(model, np.ones((8, 6)), 2)
