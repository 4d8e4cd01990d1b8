"""Ties, strengths, rankings and ratings in the solvers: against NumPy and SciPy on the objective as it is defined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from lore_jax.comparisons import make_table
from lore_jax.fitting.reading import pull, row_arguments, total_constants
from lore_jax.ratings import PRECISION
from lore_jax.weights import objective
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.errors import UserError
from pref_jax.likelihood import Scale, thresholds

USERS, RESPONSES, BASIS = 40, 30, 3
# As the tables hold it.
LAMBDA = float(np.float32(PRECISION))
SCALE = Scale(ties=True, edges=(2.0, 3.0))
GAPS, LOG_SCALE = np.array([0.2, -0.5, 0.4]), 0.3
SOLVE = {
    name: jax.jit(lambda z, prior, _kind=kind, **rows: solve_weights(z, prior=prior, **_kind, **rows))
    for name, kind in {
        "logistic": {},
        "mixture": {"likelihood": "mixture"},
        "simplex": {"constraint": "simplex"},
    }.items()
}


class Crowd:
    """Users with votes of every kind, and of each degenerate sort: none, ties alone, one rating, contradictions .."""

    def __init__(self, seed=0, ranked=True, rated=True):
        self.rng = rng = np.random.default_rng(seed)
        self.rewards = rng.normal(size=(RESPONSES + 1, BASIS)) * 1.5
        self.rewards[RESPONSES] = 0
        self.rewards[:3] *= 1e3
        user, chosen, rejected, tie, strength, choice, rating = [], [], [], [], [], [], []
        for u in range(USERS):
            kind = u % 8
            for v in range({0: 0, 2: 0}.get(kind, int(rng.integers(1, 7)))):
                a, b = rng.choice(np.arange(3 * (kind != 7), RESPONSES), 2, replace=False)
                both = [(a, b), (b, a)] if kind == 3 else [(a, b)]
                for one, other in both:
                    user.append(u)
                    chosen.append(one)
                    rejected.append(other)
                    tie.append(kind == 1 or rng.random() < 0.3)
                    strength.append(np.nan if tie[-1] else rng.choice([1, 2, 3, np.nan]))
                    choice.append(-1)
                if ranked and kind in (4, 5, 7) and v < 2:
                    some = rng.choice(np.arange(3 * (kind != 7), RESPONSES), 4, replace=False)
                    for other in some[1:]:
                        user.append(u)
                        chosen.append(some[0])
                        rejected.append(other)
                        tie.append(False)
                        strength.append(np.nan)
                        choice.append(100 * u + v)
            for _ in range({2: 1, 4: 3, 6: 2}.get(kind, 0) if rated else 0):
                rating.append((u, rng.integers(RESPONSES), rng.normal() * 2))
        order = rng.permutation(len(user))
        columns = (np.array(x)[order] for x in (user, chosen, rejected))
        self.votes = Comparisons(
            *columns,
            tie=np.array(tie)[order],
            strength=np.array(strength, np.float32)[order],
            choice=np.array(choice)[order] if ranked else None,
        )
        parts = np.array(rating or [(0, 0, 0)])[: len(rating)]
        self.ratings = Ratings(parts[:, 0].astype(int), parts[:, 1].astype(int), parts[:, 2].astype(np.float32))
        both = (self.ratings, None) if rated else None
        self.table = make_table(self.votes, None, USERS, RESPONSES, scale=SCALE, ratings=both)
        self.z = self.rewards[np.asarray(self.table.chosen)] - self.rewards[np.asarray(self.table.rejected)]

    def rows(self, gaps=GAPS):
        """Keyword arguments of the solvers; within `enable_x64`."""
        scales = {"gaps": jnp.asarray(gaps), "log_scale": jnp.asarray(LOG_SCALE)}
        return {"z": jnp.asarray(self.z), **row_arguments(self.table.extras, self.table.train, scales)}

    def losses(self, user, margin_of, ends, log_scale=LOG_SCALE):
        """-log likelihood of a user's votes, from the definitions; `margin_of` maps (response, response) to margins."""
        ends, total = np.concatenate([ends, [np.inf]]), 0.0
        mine = self.votes.take(self.votes.user == user)
        choice = np.full(len(mine.user), -1) if mine.choice is None else mine.choice
        for c, r, tie, s, own in zip(mine.chosen, mine.rejected, mine.tie, mine.strength, choice, strict=True):
            m = margin_of(c, r)
            level = np.searchsorted(SCALE.edges, s, side="right") if np.isfinite(s) else 0
            low, high = (-ends[0], ends[0]) if tie else (ends[level], ends[level + 1] if np.isfinite(s) else np.inf)
            if own < 0:
                total += np.logaddexp(0, low - m) + np.logaddexp(0, m - high) - np.log(-np.expm1(low - high))
        for number in np.unique(choice[choice >= 0]):
            rows = mine.take(choice == number)
            margins = np.stack([margin_of(c, r) for c, r in zip(rows.chosen, rows.rejected, strict=True)])
            total += logsumexp(np.concatenate([np.zeros_like(margins[:1]), -margins]), axis=0)
        known = self.ratings.user == user
        for response, rating in zip(self.ratings.response[known], self.ratings.rating[known], strict=True):
            total += 0.5 * LAMBDA * (np.exp(log_scale) * rating - margin_of(response, RESPONSES)) ** 2
        return total

    def energy(self, user, ends, mean, precision):
        """The objective of one user's weights."""

        def value(w):
            gap = w - mean
            loss = self.losses(user, lambda c, r: (self.rewards[c] - self.rewards[r]) @ w, ends)
            return loss + 0.5 * gap @ precision @ gap

        return value


def prior_of(seed=1, *, positive=False):
    rng = np.random.default_rng(seed)
    root, mean = rng.normal(size=(BASIS, BASIS)), rng.normal(size=BASIS) * 0.5
    mean = np.array([0.5, 0.3, 0.2]) if positive else mean
    return mean, root @ root.T + 0.5 * np.eye(BASIS)


def slope_of(value, step=1e-4):
    """The gradient by central differences, as a function."""
    eye = np.eye(BASIS) * step
    return lambda at: np.array([(value(at + e) - value(at - e)) / (2 * step) for e in eye])


@pytest.mark.parametrize(("ranked", "rated"), [(True, True), (False, True)])
def test_mixed_votes_equal_scipy(ranked, rated):
    crowd, (mean, precision) = Crowd(ranked=ranked, rated=rated), prior_of()
    with jax.enable_x64(True):
        ends = np.asarray(thresholds(jnp.asarray(GAPS)))
        prior, rows = Prior(jnp.asarray(mean), jnp.asarray(precision)), crowd.rows()
        found = SOLVE["logistic"](prior=prior, **rows)
        values = objective.logistic_objective(objective.problem(prior=prior, **rows)[0], found.weights)
        scales = {"gaps": jnp.asarray(GAPS), "log_scale": jnp.asarray(LOG_SCALE)}
        whole = (
            values.sum() + total_constants(crowd.table.extras, crowd.table.train, scales, jnp.float64) - pull(scales)
        )
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
        right = np.log(mean) - lost
        np.testing.assert_allclose(found[u], np.exp(right - logsumexp(right)), atol=1e-9)


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
        users, width = rows["mask"].shape
        choice = np.asarray(rows["choice"])
        flat = {name: np.asarray(x).reshape(users * width, *x.shape[2:]) for name, x in rows.items()}
        flat["choice"] = np.where(choice < 0, -1, choice + width * np.arange(users)[:, None]).reshape(-1)
        order = np.random.default_rng(0).permutation(users * width)
        flat = {name: jnp.asarray(x[order]) for name, x in flat.items()}
        user = jnp.asarray(np.repeat(np.arange(users), width)[order])
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
            rows = row_arguments(crowd.table.extras, crowd.table.train, scales)
            return jnp.sum(solve_weights(jnp.asarray(crowd.z), prior=prior, **rows).weights * sent)

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
            rows = row_arguments(extras, crowd.table.train, scales)
            problem, users = objective.problem(jnp.asarray(crowd.z), prior=prior, **rows)
            lost = objective.logistic_objective(problem, jnp.broadcast_to(w, (users, BASIS)))
            return lost.sum() + total_constants(extras, crowd.table.train, scales, dtype) - pull(scales)

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
