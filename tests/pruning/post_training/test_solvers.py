"""The solvers of one layer, against worked examples, brute force and least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from keras_ntt.core.axes import Axes
from keras_ntt.pruning.post_training import alps, magnitude, obc, refit, sparsegpt, wanda
from keras_ntt.pruning.post_training.moments import Moments
from keras_ntt.pruning.post_training.problems import Layout
from keras_ntt.pruning.post_training.refit import LeastSquares
from keras_ntt.pruning.post_training.structure import Structure, Unit
from keras_ntt.selection.named_patterns import as_pattern

# Features (1,0,1,0), (1,1,0,0), (0,1,1,1) over four samples, and the weights of one output.
X = np.array([[1.0, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 1]])
HESSIAN = X.T @ X
WEIGHTS = np.array([[2.0], [1.0], [-1.0]])
SOLVERS = (magnitude, wanda, sparsegpt, obc, alps)


def problem_of(hessian, weights):
    return LeastSquares(hessian, hessian @ weights)


def structure_of(features, outputs, count, pattern=None):
    layout = Layout((features, outputs), (features, outputs), (0, 1), 1, features, outputs)
    return Structure(layout, Axes((), (0,), (1,)), count, as_pattern(pattern))


def random_problem(rng, features, outputs, rows=50):
    x = rng.normal(size=(rows, features)) @ rng.normal(size=(features, features))
    weights = rng.normal(size=(features, outputs))
    return problem_of(x.T @ x / rows, weights), weights, x


def error_of(hessian, change):
    """Return the sum of squared errors of the outputs, per sample."""
    return float(np.einsum("fo,fh,ho->", change, hessian, change))


def best_of_all_supports(hessian, weights, count):
    """Return the least error of any support of one output, by trying all."""
    best = np.inf
    for support in itertools.combinations(range(len(weights)), count):
        kept = np.zeros_like(weights)
        rows = list(support)
        part = hessian[np.ix_(rows, rows)]
        kept[rows] = np.linalg.solve(part, (hessian @ weights)[rows])
        best = min(best, error_of(hessian, kept - weights))
    return best


def test_costs_of_single_removals():
    found = obc.single_costs([problem_of(HESSIAN, WEIGHTS)], WEIGHTS[None])
    np.testing.assert_allclose(found.ravel(), [5.6, 1.4, 7 / 3])


@pytest.mark.parametrize(
    ("count", "expected", "error"), [(2, [2.4, 0, -0.8], 1.4), (1, [2, 0, 0], 3.0)]
)
def test_obc_reads_any_sparsity_off_one_trace(count, expected, error):
    mask, kept = obc.prune([problem_of(HESSIAN, WEIGHTS)], WEIGHTS[None], structure_of(3, 1, count))
    np.testing.assert_allclose(kept.ravel(), expected, atol=1e-12)
    assert error_of(HESSIAN, kept[0] - WEIGHTS) == pytest.approx(error)
    np.testing.assert_allclose(((X @ (kept[0] - WEIGHTS)) ** 2).sum(), error)
    assert (kept[~mask] == 0).all()


def test_obc_costs_are_the_errors_that_removals_add(rng):
    problem, weights, _ = random_problem(rng, 7, 3)
    trace = obc.traces(problem, weights)
    for column in range(3):
        mask = np.ones(7, bool)
        before = 0.0
        for step in range(7):
            mask[trace.order[step, column]] = False
            kept = refit.solve(
                LeastSquares(problem.hessian, problem.cross[:, [column]]), mask[:, None]
            )
            after = error_of(problem.hessian, kept - weights[:, [column]])
            assert after - before == pytest.approx(trace.costs[step, column], rel=1e-8)
            before = after


def test_obc_in_blocks_of_steps_is_that_of_the_plain_formulas(rng):
    # More features than steps between two updates of the inverse.
    problem, weights, _ = random_problem(rng, 90, 2, rows=400)
    trace = obc.traces(problem, weights)
    for column in range(2):
        inverse, w = np.linalg.inv(problem.hessian), weights[:, column].copy()
        left = list(range(90))
        for step in range(90):
            cost = [w[p] ** 2 / inverse[p, p] for p in left]
            p = left[int(np.argmin(cost))]
            assert trace.order[step, column] == p
            assert trace.costs[step, column] == pytest.approx(min(cost), rel=1e-5)
            w = w - w[p] / inverse[p, p] * inverse[:, p]
            inverse = inverse - np.outer(inverse[:, p], inverse[p]) / inverse[p, p]
            left.remove(p)


def test_obc_removes_blocks_by_their_joint_cost(rng):
    problem, weights, _ = random_problem(rng, 6, 4)
    unit = Unit(height=2, width=2)
    trace = obc.traces(problem, weights, unit)
    assert trace.order.shape == (3, 2)
    for column in range(2):
        wide = slice(2 * column, 2 * column + 2)
        best = min(
            _error_without(problem, weights[:, wide], range(2 * b, 2 * b + 2)) for b in range(3)
        )
        assert trace.costs[0, column] == pytest.approx(best)
        whole = error_of(problem.hessian, weights[:, wide])
        assert trace.costs[:, column].sum() == pytest.approx(whole)


def _error_without(problem, weights, rows):
    mask = np.ones(weights.shape, bool)
    mask[list(rows)] = False
    kept = refit.solve(problem_of(problem.hessian, weights), mask)
    return error_of(problem.hessian, kept - weights)


def test_columns_of_sparsegpt():
    inverse = np.linalg.inv(HESSIAN)
    factor = np.linalg.cholesky(inverse).T
    np.testing.assert_allclose(np.diag(factor) ** 2, [5 / 7, 0.6, 1 / 3])
    np.testing.assert_allclose((WEIGHTS[:, 0] / np.diag(factor)) ** 2, [5.6, 5 / 3, 3])


@pytest.mark.parametrize(
    ("removed", "expected", "error"),
    [(0, [0, 1.8, -0.6], 5.6), (1, [2, 0, -2 / 3], 5 / 3), (2, [2, 1, 0], 3.0)],
)
def test_sparsegpt_passes_errors_to_the_right_only(removed, expected, error):
    factor = np.linalg.cholesky(np.linalg.inv(HESSIAN)).T
    mask = np.arange(3)[:, None] != removed
    _, kept = sparsegpt.sweep(factor, WEIGHTS, [slice(0, 3)], lambda block, scores: mask)
    np.testing.assert_allclose(kept.ravel(), expected, atol=1e-12)
    assert error_of(HESSIAN, kept - WEIGHTS) == pytest.approx(error)


def test_sparsegpt_is_the_same_in_any_blocks_of_a_given_mask(rng):
    problem, weights, _ = random_problem(rng, 12, 3)
    factor = np.linalg.cholesky(np.linalg.inv(problem.hessian)).T
    mask = rng.random((12, 3)) < 0.5
    whole = sparsegpt.sweep(factor, weights, [slice(0, 12)], lambda block, _: mask[block])[1]
    blocks = [slice(i, i + 3) for i in range(0, 12, 3)]
    found = sparsegpt.sweep(factor, weights, blocks, lambda block, _: mask[block])[1]
    np.testing.assert_allclose(found, whole, atol=1e-9)


def test_two_of_four():
    hessian = np.diag([0.0, 0, 1, 1])
    hessian[:2, :2] = [[2, 1], [1, 2]]
    weights = np.array([[1.0], [1.0], [0.9], [-0.8]])
    problem, structure = problem_of(hessian, weights), structure_of(4, 1, 2, "2:4")
    for solver in SOLVERS:
        mask, kept = solver.prune([problem], weights[None], structure)
        assert mask.ravel().tolist() == [True, True, False, False], solver
        assert error_of(hessian, kept[0] - weights) == pytest.approx(1.45)
    trace = obc.traces(problem, weights, structure.unit)
    assert trace.order.ravel().tolist() == [3, 2]
    np.testing.assert_allclose(trace.costs.ravel(), [0.64, 0.81])
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    scores = (weights[:, 0] / np.diag(factor)) ** 2
    np.testing.assert_allclose(scores, [1.5, 2, 0.81, 0.64])


@pytest.mark.parametrize(("solver", "ratio"), [(obc, 1.2), (alps, 1.2), (sparsegpt, 4)])
def test_solvers_against_all_supports(rng, solver, ratio):
    # A greedy choice and a relaxation need not find the best support, but must come near it.
    ratios = []
    for _ in range(20):
        problem, weights, _ = random_problem(rng, 8, 1)
        mask, kept = solver.prune([problem], weights[None], structure_of(8, 1, 4))
        assert mask.sum() == 4
        best = best_of_all_supports(problem.hessian, weights, 4)
        ratios.append(error_of(problem.hessian, kept[0] - weights) / best)
    assert min(ratios) > 1 - 1e-9
    assert np.median(ratios) < ratio


@pytest.mark.parametrize("solver", [obc, alps])
def test_what_is_kept_is_the_least_squares_of_its_support(rng, solver):
    problem, weights, x = random_problem(rng, 9, 5)
    mask, kept = solver.prune([problem], weights[None], structure_of(9, 5, 20))
    for column in range(5):
        rows = mask[0, :, column]
        expected = np.linalg.lstsq(x[:, rows], x @ weights[:, column])[0]
        np.testing.assert_allclose(kept[0, rows, column], expected, atol=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("pattern", [None, "2:4", "1:4", (4, 1), (2, 2), (3, 2), "filters"])
@pytest.mark.few(12)
def test_every_solver_follows_every_pattern(rng, solver, pattern):
    problem, weights, _ = random_problem(rng, 12, 6)
    density = {"2:4": 0.5, "1:4": 0.25}.get(pattern, 1 / 3)
    structure = structure_of(12, 6, round(72 * density), pattern)
    mask, kept = solver.prune([problem], weights[None], structure)
    assert mask.sum() == 72 * density
    assert (kept[~mask] == 0).all()
    assert np.isfinite(kept).all()
    if pattern == "2:4":
        assert (mask.reshape(3, 4, 6).sum(axis=1) == 2).all()
    if isinstance(pattern, tuple):
        h, w = pattern
        blocks = mask.reshape(12 // h, h, 6 // w, w)
        assert (blocks == blocks[:, :1, :, :1]).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("count", [0, 1, 71, 72])
def test_counts_are_exact(rng, solver, count):
    problem, weights, _ = random_problem(rng, 12, 6)
    mask, _ = solver.prune([problem], weights[None], structure_of(12, 6, count))
    assert mask.sum() == count


def test_wanda_compares_within_an_output(rng):
    problem, weights, _ = random_problem(rng, 10, 4)
    weights[:, 0] *= 1000
    mask, _ = wanda.prune([problem], weights[None], structure_of(10, 4, 20))
    assert (mask.sum(axis=1) == 5).all()
    mask, _ = magnitude.prune([problem], weights[None], structure_of(10, 4, 10))
    assert mask[0, :, 0].sum() > 8


def test_importance_moves_entries_to_the_outputs_that_matter(rng):
    problem, weights, _ = random_problem(rng, 10, 2)
    importance = np.array([[1e6, 1.0]])
    for solver in (obc, sparsegpt, alps):
        mask, _ = solver.prune([problem], weights[None], structure_of(10, 2, 10), importance)
        assert mask[0, :, 0].sum() > mask[0, :, 1].sum(), solver


def test_moments_are_those_of_all_rows(rng):
    x = 1000 + rng.normal(size=(1, 90, 4)) * [1, 2, 3, 0]
    t = -500 + rng.normal(size=(1, 90, 2))
    moments = Moments()
    for rows in (slice(0, 7), slice(7, 60), slice(60, 90)):
        moments.add(x[:, rows], t[:, rows])
    found = moments.statistics()
    centred = x[0] - x[0].mean(axis=0)
    np.testing.assert_allclose(found.hessian[0], centred.T @ centred / 90, atol=1e-9)
    np.testing.assert_allclose(
        found.cross[0], centred.T @ (t[0] - t[0].mean(axis=0)) / 90, atol=1e-9
    )
    np.testing.assert_allclose(found.inputs, x.mean(axis=1))
    np.testing.assert_allclose(found.targets, t.mean(axis=1))
    found = moments.statistics(centred=False)
    np.testing.assert_allclose(found.hessian[0], x[0].T @ x[0] / 90)
    np.testing.assert_allclose(found.cross[0], x[0].T @ t[0] / 90)


def test_refit_is_ridge_regression(rng):
    x, t = rng.normal(size=(60, 5)), rng.normal(size=(60, 2))
    weights = rng.normal(size=(1, 5, 2))
    moments = Moments()
    moments.add(x[None], t[None])
    statistics = moments.statistics()
    (problem,) = refit.damped(statistics, weights, damping=0.5)
    mask = np.array([[1, 1], [0, 1], [1, 0], [1, 1], [0, 0]], bool)
    found = refit.solve(problem, mask)
    centred, wanted = x - x.mean(axis=0), t - t.mean(axis=0)
    ridge = 0.5 * np.mean((centred**2).mean(axis=0)) * 60
    for column in range(2):
        s = mask[:, column]
        # The ridge as further rows that pull the entries to the weights.
        rows = np.vstack([centred[:, s], np.sqrt(ridge) * np.eye(5)[:, s]])
        right = np.concatenate([wanted[:, column], np.sqrt(ridge) * weights[0, :, column]])
        np.testing.assert_allclose(found[s, column], np.linalg.lstsq(rows, right)[0], atol=1e-9)
    shift = refit.bias_shift(statistics, found[None])
    np.testing.assert_allclose(shift[0], t.mean(axis=0) - x.mean(axis=0) @ found)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("samples", [1, 6, 500])
def test_dead_and_constant_inputs_and_too_few_samples(rng, solver, samples):
    x = rng.normal(size=(1, samples, 20))
    x[:, :, 3] = 0
    x[:, :, 5] = 2
    weights = rng.normal(size=(1, 20, 4))
    moments = Moments()
    moments.add(x, x @ weights)
    problems = refit.damped(moments.statistics(), weights)
    start = np.stack([refit.solve(p) for p in problems])
    mask, kept = solver.prune(problems, start, structure_of(20, 4, 40))
    assert mask.sum() == 40
    assert np.isfinite(kept).all()
    if solver in (obc, alps) and samples == 500:  # inputs that say nothing are the first to go
        assert not mask[0, [3, 5]].any()


def test_inputs_that_are_all_constant_leave_the_weights(rng):
    x = np.full((1, 9, 3), 0.1)
    weights = rng.normal(size=(1, 3, 2))
    moments = Moments()
    moments.add(x, x @ weights)
    (problem,) = refit.damped(moments.statistics(), weights)
    np.testing.assert_array_equal(refit.solve(problem), weights[0])
