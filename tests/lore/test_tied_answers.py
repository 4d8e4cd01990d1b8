"""Answers that may be ties, one at a time: updates, windows, draws, asking; against quadrature and the solver."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit, xlogy

from lore_jax.online import acquisition, bayes_filter, posterior_sampling, sliding_window
from lore_jax.online.bayes_filter import UpdateRule, bounded_margin, tie_bounds
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.errors import UserError

USERS, BASIS, END = 12, 3, 0.8
BOUNDS = np.array([[-END, END], [END, np.inf], [0.0, np.inf], [END, 2.0], [-np.inf, np.inf]])


def prior():
    root = np.random.default_rng(1).normal(size=(BASIS, BASIS))
    return Prior(jnp.asarray([0.4, -0.3, 0.2]), jnp.asarray(root @ root.T + 0.4 * np.eye(BASIS)))


def answers(count, scale=1.0, seed=2):
    """Differences [S U K], and whether each was a tie."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, USERS, BASIS)) * scale, rng.random((count, USERS)) < 0.4


def test_the_mode_along_one_margin_is_the_root():
    rng = np.random.default_rng(0)
    margin = np.concatenate([rng.normal(size=40) * 10.0 ** rng.integers(-2, 4, 40)])
    spread = 10.0 ** rng.uniform(-6, 8, 40)
    for bounds in BOUNDS:
        with jax.enable_x64(True):
            both = jnp.broadcast_to(jnp.asarray(bounds), (40, 2))
            found = np.asarray(jax.jit(bounded_margin)(jnp.asarray(margin), jnp.asarray(spread), both))
        for m, s, t in zip(margin, spread, found, strict=True):

            def gap(x, m=m, s=s, bounds=bounds):
                return m - x + s * (expit(bounds[0] - x) - expit(x - bounds[1]))

            right: Any = brentq(gap, m - s - 1e-9 - abs(m), m + s + 1e-9 + abs(m), xtol=1e-12 * (1 + abs(m)))
            np.testing.assert_allclose(t, right, rtol=1e-7, atol=1e-9)
        single = bounded_margin(*(jnp.asarray(x, jnp.float32) for x in (margin, spread, np.tile(bounds, (40, 1)))))
        assert np.isfinite(single).all()


def test_a_first_answer_is_exact_and_a_window_always_is():
    z, tie = answers(6)
    with jax.enable_x64(True):
        own, bounds = prior(), [tie_bounds(END, jnp.asarray(t)) for t in tie]
        origin = bayes_filter.start(own, 1)
        window = sliding_window.start(own, USERS, 6, bounded=True)
        first = bayes_filter.update(
            bayes_filter.start(own, USERS), jnp.asarray(z[0]), None, origin, UpdateRule(), bounds[0]
        )
        slide = jax.jit(sliding_window.update)
        for count, (now, ends) in enumerate(zip(z, bounds, strict=True), start=1):
            window = slide(window, jnp.asarray(now), None, ends)
            known = np.moveaxis(z[:count], 0, 1), np.moveaxis(np.stack(bounds[:count]), 0, 1)
            rows = np.concatenate([known[0], -known[0]], 1)
            offset = np.concatenate([-known[1][..., 0], known[1][..., 1]], 1)
            mask = jnp.asarray(np.isfinite(offset))
            exact = solve_weights(jnp.asarray(rows), mask, own, offset=jnp.where(mask, jnp.asarray(offset), 0))
            covariance = bayes_filter.covariance(window.belief)
            np.testing.assert_allclose(window.belief.weights, exact.weights, atol=1e-8)
            np.testing.assert_allclose(covariance, exact.covariance, atol=1e-8)
            if count == 1:
                np.testing.assert_allclose(first.weights, exact.weights, atol=1e-8)
                np.testing.assert_allclose(bayes_filter.covariance(first), exact.covariance, atol=1e-8)


def test_ties_without_room_are_told():
    window = sliding_window.start(prior(), USERS, 2)
    with pytest.raises(UserError, match="bounded=True"):
        sliding_window.update(window, jnp.ones((USERS, BASIS)), None, tie_bounds(END, jnp.ones(USERS, bool)))


def outcomes(t):
    return np.array([expit(t - END), expit(END - t) - expit(-END - t), expit(-t - END)])


def entropy(p):
    return -np.sum(xlogy(p, p), 0)


def test_information_and_curvature_of_three_outcomes_equal_quadrature():
    for margin in (0.0, 0.5, -3.0, 12.0):
        for spread in (1e-4, 0.3, 2.2, 2.3, 40.0, 1e4):
            deviation = np.sqrt(spread)
            low, high = margin - 9 * deviation, margin + 9 * deviation
            points = [x for x in (-END, END, margin) if low < x < high]

            def mean(value, margin=margin, deviation=deviation, low=low, high=high, points=points):
                def part(t):
                    return value(t) * np.exp(-0.5 * ((t - margin) / deviation) ** 2) / deviation / np.sqrt(2 * np.pi)

                return quad(part, low, high, points=points, limit=400)[0]

            likely = np.array([mean(lambda t, k=k: outcomes(t)[k]) for k in range(3)])
            right = entropy(likely) - mean(lambda t: entropy(outcomes(t)))
            found = acquisition.information(jnp.asarray([margin]), jnp.asarray([spread]), END)
            np.testing.assert_allclose(found, right, atol=2e-3, err_msg=f"{margin}, {spread}")

            def bend(t):
                first, _, second = outcomes(t)
                ahead, behind = expit(t - END), expit(t + END)
                return ahead * (1 - ahead) * (1 - second) + behind * (1 - behind) * (1 - first)

            found = acquisition._tied_curvature(jnp.asarray([margin]), jnp.asarray([spread]), END)
            np.testing.assert_allclose(found, mean(bend), atol=2e-3, err_msg=f"{margin}, {spread}")


def test_draws_rank_as_quadrature_does_and_queries_are_chosen():
    own, (z, tie) = prior(), answers(4)
    window = sliding_window.start(own, USERS, 4, bounded=True)
    for now, t in zip(z, tie, strict=True):
        window = sliding_window.update(window, jnp.asarray(now), None, tie_bounds(END, jnp.asarray(t)))
    pool, open = jnp.asarray(answers(20, 3.0, seed=5)[0][:, 0]), jnp.ones((USERS, 20), bool)
    drawn = posterior_sampling.sample_posterior(window, jax.random.key(0), 4000)
    weights, share = np.asarray(drawn.weights[0], float), np.asarray(drawn.importance_weights[0], float)
    likely = outcomes(np.asarray(pool, float) @ weights.T)
    right = entropy(likely @ share) - entropy(likely) @ share
    found = posterior_sampling.sampled_information(drawn.weights[0], drawn.importance_weights[0], pool, END)
    np.testing.assert_allclose(found, right, atol=1e-4)
    laplace = acquisition.select_queries(window.belief, pool, open, jax.random.key(1), count=20, threshold=END)
    assert sorted(np.asarray(laplace.index[0]).tolist()) == list(range(20))
    sampled = posterior_sampling.select_query(window, pool, open, jax.random.key(1), threshold=END)
    assert (np.asarray(sampled.score) > 0).all()
    assert right[int(sampled.index[0, 0])] > right.max() - 0.05
