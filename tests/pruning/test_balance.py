"""The balance ratio and what follows from it, on examples by hand."""

from __future__ import annotations

import numpy as np
import pytest

from keras_ntt.pruning.balance import balance_ratios, decide, mean_ratio


def test_the_mean_is_of_ratios_and_not_of_what_they_are_made_of():
    real, before, after = np.array([0.6, 1.0]), np.array([-0.4, -0.2]), np.array([0.1, 0.7])
    ratios = balance_ratios(real, before, after)
    np.testing.assert_allclose(ratios, [0.5, 0.75])
    assert mean_ratio(ratios) == pytest.approx(0.625)
    of_means = (after - before).mean() / (real - before).mean()
    assert of_means == pytest.approx(0.636, abs=1e-3)


def test_ratios_of_what_is_not_told_apart_are_not_known():
    assert np.isnan(balance_ratios([0.5], [0.5], [0.7])).all()
    assert np.isnan(balance_ratios([0.0], [0.0], [0.0])).all()
    assert mean_ratio([float("nan"), 2.0]) == 2.0
    assert np.isnan(mean_ratio([]))


@pytest.mark.parametrize(
    ("density", "ratio", "expected"),
    [
        (0.5, 0.65, 0.55),  # at the upper bound, additive
        (0.5, 0.649, 0.5),
        (0.5, 0.501, 0.5),
        (0.5, 0.5, 0.45),  # at the lower one
        (0.98, 2.0, 1.0),
        (0.07, -3.0, 0.05),
        (0.02, -3.0, 0.02),  # sparser than the least density from the start: not denser for it
        (0.3, float("nan"), 0.3),
    ],
)
def test_density_rises_and_falls_between_its_bounds(density, ratio, expected):
    found = decide(density, ratio, lower=0.5, upper=0.65)
    assert found.density == pytest.approx(expected, abs=1e-12)
    assert not found.exchanges


def test_where_no_more_is_allowed_connections_are_exchanged():
    strict = {"lower": 0.45, "upper": 0.55, "most": 0.5, "exchanges_at_most": True}
    assert decide(0.48, 0.6, **strict) == (0.5, False)
    assert decide(0.5, 0.6, **strict) == (0.5, True)
    assert decide(0.5, 0.5, **strict) == (0.5, False)
    assert decide(0.5, 0.4, **strict) == (0.45, False)
    assert decide(0.7, 0.6, **strict) == (0.7, True)  # never less for a high ratio
