"""Ties, strengths, rankings and ratings in the solvers: against NumPy and SciPy on the objective as it is defined."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixed_votes import BASIS, GAPS, LOG_SCALE, USERS, Crowd
from scipy.optimize import minimize
from scipy.special import logsumexp

from lore_jax import lanes
from lore_jax.fitting.reading import pull, row_arguments, total_constants
from lore_jax.ratings import PRECISION
from lore_jax.weights import objective
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.errors import UserError
from pref_jax.likelihood import thresholds

SOLVE = {
    name: jax.jit(lambda z, prior, _kind=kind, **rows: solve_weights(z, prior=prior, **_kind, **rows))
    for name, kind in {
        "logistic": {},
        "mixture": {"likelihood": "mixture"},
        "simplex": {"constraint": "simplex"},
    }.items()
}


def prior_of(seed=1, *, positive=False):
    rng = np.random.default_rng(seed)
    root, mean = rng.normal(size=(BASIS, BASIS)), rng.normal(size=BASIS) * 0.5
    mean = np.array([0.5, 0.3, 0.2]) if positive else mean
    return mean, root @ root.T + 0.5 * np.eye(BASIS)


def slope_of(value, step=1e-4):
    """The gradient by central differences, as a function."""
    eye = np.eye(BASIS) * step
    return lambda at: np.array([(value(at + e) - value(at - e)) / (2 * step) for e in eye])


@pytest.mark.parametrize(("ranked", "rated", "further"), [(True, True, 16), (False, True, 16), (True, True, 0)])
def test_mixed_votes_equal_scipy(monkeypatch, ranked, rated, further):
    # Where further lanes cost nothing, most users have several, and choices lie across them.
    monkeypatch.setattr(lanes, "FURTHER", further)
    crowd, (mean, precision) = Crowd(ranked=ranked, rated=rated), prior_of()
    with jax.enable_x64(True):
        ends = np.asarray(thresholds(jnp.asarray(GAPS)))
        prior, rows = Prior(jnp.asarray(mean), jnp.asarray(precision)), crowd.rows()
        found = SOLVE["logistic"](prior=prior, **rows)
        values = objective.logistic_objective(objective.problem(prior=prior, **rows)[0], found.weights)
        scales = {"gaps": jnp.asarray(GAPS), "log_scale": jnp.asarray(LOG_SCALE)}
        more = total_constants(crowd.table.extras, crowd.table.train, scales, jnp.float64)
        assert more is not None
        whole = values.sum() + more - pull(scales)
    expected = len(crowd.ratings.user) * (0.5 * np.log(2 * np.pi / PRECISION) - LOG_SCALE)
    for u in range(USERS):
        value, w = crowd.energy(u, ends, mean, precision), np.asarray(found.weights[u])
        expected += value(w)
        # In coordinates in which the covariance claimed is 1, around the answer: rewards differ by 1e3.
        root = np.linalg.cholesky(np.asarray(found.covariance[u]))

        def moved(x, value=value, w=w, root=root):
            return value(w + root @ x) - value(w)

        slope, begin = slope_of(moved), np.clip(np.linalg.solve(root, mean - w), -1, 1)
        best = minimize(moved, begin, jac=slope, method="BFGS", options={"gtol": 1e-7}).x
        # Newton's last step, from SciPy's tolerance to rounding.
        best = best - slope(best)
        np.testing.assert_allclose(best, 0, atol=1e-6, err_msg=f"user {u}")
        bend = np.stack([(slope(e) - slope(-e)) / 2e-3 for e in np.eye(BASIS) * 1e-3])
        np.testing.assert_allclose(bend, np.eye(BASIS), atol=1e-3, err_msg=f"user {u}")
    np.testing.assert_allclose(whole, expected, rtol=1e-10)
    np.testing.assert_array_equal(found.weights[0], mean)


def test_mixture_is_bayes_rule_of_all_kinds():
    crowd, (mean, precision) = Crowd(), prior_of(positive=True)
    with jax.enable_x64(True):
        ends = np.asarray(thresholds(jnp.asarray(GAPS)))
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))
        found = np.asarray(SOLVE["mixture"](prior=prior, **crowd.rows()).weights)
    for u in range(USERS):
        lost = crowd.losses(u, lambda c, r: crowd.rewards[c] - crowd.rewards[r], ends)
        right: Any = np.log(mean) - lost
        total: Any = logsumexp(right)
        np.testing.assert_allclose(found[u], np.exp(right - total), atol=1e-9)


def test_simplex_beats_every_point_of_a_grid():
    crowd, (mean, precision) = Crowd(), prior_of(positive=True)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 21)] * 2), -1).reshape(-1, 2)
    grid = np.concatenate([grid, 1 - grid.sum(1, keepdims=True)], 1)
    with jax.enable_x64(True):
        ends = np.asarray(thresholds(jnp.asarray(GAPS)))
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))
        found = np.asarray(SOLVE["simplex"](prior=prior, **crowd.rows()).weights)
    for u in range(0, USERS, 3):
        value = crowd.energy(u, ends, mean, precision)
        least = min(value(w) for w in grid[(grid >= 0).all(1)])
        assert value(found[u]) <= least + 1e-9
        # Nor does a small step towards a corner or the middle lower it.
        towards = [*np.eye(BASIS), np.full(BASIS, 1 / 3)]
        assert all(value(found[u] + 1e-4 * (end - found[u])) >= value(found[u]) - 1e-10 for end in towards)


def test_flat_rows_equal_padded_ones():
    crowd, (mean, precision) = Crowd(), prior_of()
    with jax.enable_x64(True):
        prior, rows = Prior(jnp.asarray(mean), jnp.asarray(precision)), crowd.rows()
        padded = SOLVE["logistic"](prior=prior, **rows)
        owner, (count, width) = np.asarray(rows.pop("user")), rows["mask"].shape
        assert owner.size, "some users have two lanes"
        users = count - len(owner)
        parts = {name: np.asarray(x).reshape(count * width, *x.shape[2:]) for name, x in rows.items()}
        order = np.random.default_rng(0).permutation(count * width)
        flat: dict[str, Any] = {name: jnp.asarray(x[order]) for name, x in parts.items()}
        user = jnp.asarray(np.repeat(np.append(np.arange(users), owner), width)[order])
        found = solve_weights(prior=prior, user=user, num_users=users, **flat)
    np.testing.assert_allclose(found.weights, padded.weights, atol=1e-9)
    np.testing.assert_allclose(found.covariance, padded.covariance, rtol=1e-6, atol=1e-12)


def test_derivatives_by_thresholds_and_scale_equal_differences():
    crowd, (mean, precision) = Crowd(), prior_of()
    rng = np.random.default_rng(2)
    sent, lean = rng.normal(size=(USERS, BASIS)), rng.normal(size=4)
    with jax.enable_x64(True):
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))

        @jax.jit
        def run(numbers):
            scales = {"gaps": numbers[:3], "log_scale": numbers[3]}
            rows = row_arguments(crowd.table.extras, crowd.table.train, scales, crowd.table.owner)
            return jnp.sum(solve_weights(jnp.asarray(crowd.z), prior=prior, **rows).weights[:USERS] * sent)

        at = jnp.asarray([*GAPS, LOG_SCALE])
        slope = (run(at + 1e-6 * lean) - run(at - 1e-6 * lean)) / 2e-6
        np.testing.assert_allclose(jax.grad(run)(at) @ lean, slope, rtol=1e-6)


def test_the_objective_is_convex_in_weights_thresholds_and_scale():
    crowd, rng = Crowd(), np.random.default_rng(3)
    mean, precision = np.zeros(BASIS), np.zeros((BASIS, BASIS))
    with jax.enable_x64(True):
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))

        @jax.jit
        def value(w, ends, scale):
            # Thresholds themselves, not the gaps that make them.
            extras, dtype = crowd.table.extras, jnp.float64
            gaps = jnp.log(jnp.expm1(jnp.diff(ends, prepend=0.0) - 1e-4))
            scales = {"gaps": gaps, "log_scale": jnp.log(scale)}
            rows = row_arguments(extras, crowd.table.train, scales, crowd.table.owner)
            problem, users = objective.problem(jnp.asarray(crowd.z), prior=prior, **rows)
            lost = objective.logistic_objective(problem, jnp.broadcast_to(w, (users, BASIS)))
            more: Any = total_constants(extras, crowd.table.train, scales, dtype)
            return lost.sum() + more - pull(scales)

        for _ in range(40):
            points = [
                (rng.normal(size=BASIS), np.cumsum(rng.uniform(0.1, 2, 3)), rng.uniform(0.1, 3)) for _ in range(2)
            ]
            middle = [(a + b) / 2 for a, b in zip(*points, strict=True)]
            ends = (value(*points[0]) + value(*points[1])) / 2
            assert value(*middle) <= ends + 1e-9 * abs(ends)


def test_choices_keep_their_digits_and_never_turn_nan():
    rng = np.random.default_rng(4)
    choice, mask = jnp.asarray(np.array([[0, 0, 0, -1, 4, 4]] * 30)), jnp.asarray(rng.random((30, 6)) < 0.8)
    prior = Prior(jnp.zeros(3), jnp.eye(3))

    @jax.jit
    def run(z):
        def total(z):
            found = solve_weights(z, mask, prior, choice=choice, offset=jnp.ones_like(z[..., 0]))
            return found.weights.sum(), found

        return jax.value_and_grad(total, has_aux=True)(z)

    for power in (-6, 0, 3, 6):
        z = rng.normal(size=(30, 6, 3)) * 10.0**power
        (_, found), grad = run(jnp.asarray(z, jnp.float32))
        assert np.isfinite(found.weights).all(), power
        assert np.isfinite(found.covariance).all(), power
        assert np.isfinite(grad).all(), power
    # p_0 = 1e-9 and p_j = 1e-9: what is left of the curvature is right, not rounded away.
    for margin in (-20.0, 20.0):
        rows = objective.Rows(jnp.ones((1, 1, 1)), jnp.ones((1, 1)), None, choice=jnp.zeros((1, 1), jnp.int32))
        bend = float(rows.information(jnp.full((1, 1), margin), 1)[0, 0, 0])
        assert bend == pytest.approx(np.exp(-20), rel=1e-5)


def test_ridge_knows_preferences_alone():
    with pytest.raises(UserError, match="'ridge' knows preferences alone"):
        solve_weights(
            jnp.ones((1, 1, 2)), None, Prior(jnp.zeros(2), jnp.eye(2)), likelihood="ridge", offset=jnp.ones((1, 1))
        )
