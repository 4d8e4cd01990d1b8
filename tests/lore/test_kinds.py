"""Ties, strengths, rankings and ratings in the solvers: against NumPy and SciPy on the objective as it is defined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from lore_jax.comparisons import make_table
from lore_jax.fitting import gaussian_mixture
from lore_jax.fitting.reading import row_arguments
from lore_jax.ratings import PRECISION
from lore_jax.weights import objective
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.comparisons import Comparisons, Ratings
from pref_jax.errors import UserError
from pref_jax.likelihood import Scale, thresholds

USERS, RESPONSES, BASIS = 48, 30, 3
SCALE = Scale(ties=True, edges=(2.0, 3.0))
GAPS, LOG_SCALE = np.array([0.2, -0.5, 0.4]), 0.3
SOLVE = {
    name: jax.jit(lambda z, prior, _kind=kind, **rows: solve_weights(z, prior=prior, **_kind, **rows))
    for name, kind in {"logistic": {}, "mixture": {"likelihood": "mixture"}, "simplex": {"constraint": "simplex"}}.items()
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

    def losses(self, user, margin_of, ends):
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
            total += 0.5 * PRECISION * (np.exp(LOG_SCALE) * rating - margin_of(response, RESPONSES)) ** 2
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


def slope_and_bend(value, at, step=1e-4):
    """Gradient and Hessian by central differences."""
    eye = np.eye(len(at)) * step
    gradient = np.array([(value(at + e) - value(at - e)) / (2 * step) for e in eye])
    bend = [
        [(value(at + e + f) - value(at + e - f) - value(at - e + f) + value(at - e - f)) / (4 * step**2) for f in eye]
        for e in eye
    ]
    return gradient, np.array(bend)


@pytest.mark.parametrize(("ranked", "rated"), [(True, True), (False, True), (False, False)])
def test_mixed_votes_equal_scipy(ranked, rated):
    crowd, (mean, precision) = Crowd(ranked=ranked, rated=rated), prior_of()
    with jax.enable_x64(True):
        ends = np.asarray(thresholds(jnp.asarray(GAPS)))
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))
        found = SOLVE["logistic"](prior=prior, **crowd.rows())
        problem, _ = objective.problem(prior=prior, **crowd.rows())
        gradient = objective.logistic_gradient(problem, found.weights)
        hessian = objective.logistic_hessian(problem, found.weights)
        values = objective.logistic_objective(problem, found.weights)
    rewards = crowd.rewards
    for u in range(USERS):
        value, w = crowd.energy(u, ends, mean, precision), np.asarray(found.weights[u])
        constants = crowd.losses(u, lambda c, r: 0.0, ends) - _without_constants(crowd, u, ends)
        np.testing.assert_allclose(values[u] + constants, value(w), rtol=1e-9, atol=1e-9)
        # SciPy from the prior's mean, in coordinates in which the answer's curvature is 1: rewards differ by 1e3.
        root = np.linalg.cholesky(np.linalg.inv(np.asarray(hessian[u])))

        def moved(x, value=value, w=w, root=root):
            return value(w + root @ x) - value(w)

        begin = np.linalg.solve(root, mean - w)
        best = minimize(moved, np.clip(begin, -1, 1), method="BFGS", options={"gtol": 1e-9}).x
        assert moved(best) > -1e-9
        slope, bend = slope_and_bend(moved, np.zeros(BASIS), 1e-3)
        np.testing.assert_allclose(slope, 0, atol=2e-6, err_msg=f"user {u}")
        np.testing.assert_allclose(bend, np.eye(BASIS), atol=2e-3, err_msg=f"user {u}")
        np.testing.assert_allclose(np.asarray(found.covariance[u]) @ np.asarray(hessian[u]), np.eye(BASIS), atol=1e-6)
    assert rewards.shape == (RESPONSES + 1, BASIS)
    assert np.abs(np.asarray(gradient)).max() < 1e-6
