"""Draws against sums over a fine grid in float64: moments, information, the pair asked; edges; what they save."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lore_jax.online import acquisition, posterior_sampling
from lore_jax.online import sliding_window as windows
from lore_jax.weights.objective import Prior
from pref_jax.errors import UserError

KEEP = 4
ask = jax.jit(posterior_sampling.select_query, static_argnames=("count", "finalists"))


def answered(seed, users=4, answers=3, strength=3.0, keep=KEEP):
    """Users of two weights who gave so many answers, some of them strong; the prior; the answers [U n K]."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(2, 2))
    prior = Prior(jnp.asarray(rng.normal(size=2), jnp.float32), jnp.asarray(root @ root.T + np.eye(2), jnp.float32))
    z = strength * rng.normal(size=(users, answers, 2)) * np.exp(rng.normal(size=(users, answers, 1)))
    window = windows.start(prior, users, keep)
    for index in range(answers):
        window = windows.update(window, jnp.asarray(z[:, index], jnp.float32), None)
    return window, prior, z


def grid(prior, z, size=201, reach=6.0):
    """One user's posterior on a grid: weights [G 2] and their shares [G], by the definition."""
    mean, precision = np.asarray(prior.mean, np.float64), np.asarray(prior.precision, np.float64)
    line = np.linspace(-reach, reach, size)
    weights = mean + np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    away = weights - mean
    log = -0.5 * np.einsum("gk,kl,gl->g", away, precision, away) - np.logaddexp(0, -weights @ z.T).sum(1)
    share = np.exp(log - log.max())
    return weights, share / share.sum()


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-300)) + (1 - p) * np.log(np.maximum(1 - p, 1e-300)))


def told(weights, share, pool):
    """Mutual information of the answer to each pair and the weights."""
    likely = np.exp(-np.logaddexp(0, -pool @ weights.T))
    return entropy(likely @ share) - entropy(likely) @ share


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_have_the_moments_of_the_posterior(seed):
    window, prior, z = answered(seed)
    found = posterior_sampling.sample_posterior(window, jax.random.key(seed), 20_000)
    for user in range(len(z)):
        weights, share = grid(prior, z[user])
        mean = share @ weights
        spread = np.sqrt(share @ (weights - mean) ** 2)
        own, part = np.asarray(found.weights[user], np.float64), np.asarray(found.importance_weights[user], np.float64)
        close = part @ own
        np.testing.assert_allclose(close, mean, atol=0.05 * spread.max())
        np.testing.assert_allclose(np.sqrt(part @ (own - close) ** 2), spread, rtol=0.06)
        # Laplace's own mean, the mode, is elsewhere: what is tested is not Laplace's Gaussian.
    modes = np.asarray(window.belief.weights)
    means = np.stack([np.dot(*grid(prior, own)[::-1]) for own in z])
    assert np.abs(modes - means).max() > 0.2


@pytest.mark.parametrize("seed", [0, 1])
def test_information_equals_the_sum_over_the_grid(seed):
    window, prior, z = answered(seed)
    pool = np.random.default_rng(seed + 9).normal(size=(12, 2)) * 4
    found = posterior_sampling.sample_posterior(window, jax.random.key(seed), 20_000)
    for user in range(len(z)):
        own = posterior_sampling.sampled_information(
            found.weights[user], found.importance_weights[user], jnp.asarray(pool, jnp.float32)
        )
        np.testing.assert_allclose(own, told(*grid(prior, z[user]), pool), atol=0.015)


def test_the_pair_asked_is_the_one_that_tells_most():
    window, prior, z = answered(3, users=6)
    pool = np.random.default_rng(5).normal(size=(6, 20, 2)) * 3
    choice = ask(window, jnp.asarray(pool, jnp.float32), jnp.ones((6, 20), bool), jax.random.key(0), count=4096)
    for user in range(6):
        worth = told(*grid(prior, z[user]), pool[user])
        assert worth[choice.index[user, 0]] > worth.max() - 0.02
        assert abs(float(choice.score[user, 0]) - worth[choice.index[user, 0]]) < 0.03


def test_of_many_pairs_the_draws_weigh_those_that_laplace_ranks_first():
    """The best by the grid of the eight pairs out of 100 that go into the final."""
    window, prior, z = answered(3, users=6)
    pool = np.random.default_rng(6).normal(size=(100, 2)) * 3
    open = jnp.ones((6, 100), bool)
    choice = ask(window, jnp.asarray(pool, jnp.float32), open, jax.random.key(0), count=4096, finalists=8)
    for user in range(6):
        worth = told(*grid(prior, z[user]), pool)
        weights, factor = (np.asarray(part[user]) for part in (window.belief.weights, window.belief.factor))
        margin, spread = (x.astype(np.float32) for x in (pool @ weights, ((pool @ factor) ** 2).sum(1)))
        first = acquisition.information(jnp.asarray(margin), jnp.asarray(spread))
        final = np.argsort(-np.asarray(first))[:8]
        assert choice.index[user, 0] in final
        assert worth[choice.index[user, 0]] > worth[final].max() - 0.02


def test_certain_answers_tell_nothing():
    """Where all draws agree their shares may sum to a little above 1, of which there is no entropy."""
    users = 1000
    window = windows.start(Prior(jnp.asarray([10.0, 0.0]), jnp.eye(2)), users, KEEP)
    pool = jnp.asarray([[5.0, 0.0], [0.0, 0.1]])
    choice = ask(window, pool, jnp.ones((users, 2), bool), jax.random.key(0))
    assert np.isfinite(choice.score).all()
    assert (choice.index == 1).all()


def test_one_pool_for_everybody_is_the_same_pool_for_each():
    window, _, z = answered(4)
    pool = jnp.asarray(np.random.default_rng(1).normal(size=(20, 2)), jnp.float32)
    open, key = jnp.ones((len(z), 20), bool), jax.random.key(2)
    one, each = ask(window, pool, open, key), ask(window, jnp.tile(pool[None], (len(z), 1, 1)), open, key)
    np.testing.assert_array_equal(one.index, each.index)
    np.testing.assert_allclose(one.score, each.score, atol=1e-6)


def test_without_answers_all_draws_are_of_the_prior():
    prior = Prior(jnp.asarray([1.0, -2.0]), jnp.asarray([[2.0, 0.3], [0.3, 0.5]]))
    found = posterior_sampling.sample_posterior(windows.start(prior, 2, KEEP), jax.random.key(0), 40_000)
    mean = np.einsum("us,usk->uk", found.importance_weights, found.weights)
    np.testing.assert_allclose(mean, np.tile(prior.mean, (2, 1)), atol=0.03)
    covariance = np.cov(found.weights[0].T, aweights=found.importance_weights[0])
    np.testing.assert_allclose(covariance, np.linalg.inv(prior.precision), rtol=0.05, atol=0.03)


def test_answers_that_left_the_window_still_count():
    window, prior, z = answered(6, answers=6, strength=1.0, keep=3)
    found = posterior_sampling.sample_posterior(window, jax.random.key(0), 20_000)
    mean = np.einsum("us,usk->uk", found.importance_weights, found.weights)
    truth = np.stack([np.dot(*grid(prior, own)[::-1]) for own in z])
    np.testing.assert_allclose(mean, truth, atol=0.1)


@pytest.mark.parametrize("size", [1e-20, 1e4, 1e8])
def test_nothing_is_lost_to_absurd_sizes(size):
    window, _, z = answered(7, strength=size)
    found = posterior_sampling.sample_posterior(window, jax.random.key(0))
    np.testing.assert_allclose(found.importance_weights.sum(1), 1, rtol=1e-4)
    pool = jnp.asarray(np.random.default_rng(1).normal(size=(9, 2)) * size, jnp.float32)
    choice = ask(window, pool, jnp.ones((len(z), 9), bool), jax.random.key(0))
    assert (choice.index >= 0).all()
    assert np.isfinite(choice.score).all()
    assert (np.asarray(choice.score) <= np.log(2) + 1e-6).all()


def test_only_open_pairs_of_finite_size_are_asked():
    window, _, _ = answered(8, users=3)
    pool = jnp.asarray(np.random.default_rng(2).normal(size=(5, 2)), jnp.float32).at[1].set(jnp.nan)
    open = jnp.asarray([[False, True, False, True, False], [False] * 5, [False, True, False, False, False]])
    choice = ask(window, pool, open, jax.random.key(0))
    np.testing.assert_array_equal(choice.index[:, 0], [3, -1, -1])
    np.testing.assert_array_equal(choice.score[1:, 0], [0, 0])


def test_a_pair_that_is_too_large_to_learn_from_is_not_asked():
    window, _, _ = answered(8, users=3)
    pool = jnp.asarray([[1e25, 0.0], [0.3, 0.1]], jnp.float32)
    np.testing.assert_array_equal(ask(window, pool, jnp.ones((3, 2), bool), jax.random.key(0)).index[:, 0], [1, 1, 1])


def test_users_in_several_blocks_are_those_of_one(monkeypatch):
    window, _, _ = answered(9, users=5)
    pool = jnp.asarray(np.random.default_rng(3).normal(size=(15, 2)), jnp.float32)
    whole = ask(window, pool, jnp.ones((5, 15), bool), jax.random.key(1))
    monkeypatch.setattr(posterior_sampling, "BLOCK", 2)
    parts = jax.jit(lambda: posterior_sampling.select_query(window, pool, jnp.ones((5, 15), bool), jax.random.key(1)))()
    np.testing.assert_array_equal(whole.index, parts.index)


def test_what_cannot_be_asked_is_told():
    window, _, _ = answered(0)
    with pytest.raises(UserError, match="count 1"):
        posterior_sampling.sample_posterior(window, jax.random.key(0), 1)
    with pytest.raises(UserError, match="count 0"):
        posterior_sampling.select_query(window, jnp.ones((3, 2)), jnp.ones((4, 3), bool), jax.random.key(0), count=0)
    with pytest.raises(UserError, match="0 finalists"):
        posterior_sampling.select_query(
            window, jnp.ones((3, 2)), jnp.ones((4, 3), bool), jax.random.key(0), finalists=0
        )
    with pytest.raises(UserError, match="pool of 0"):
        posterior_sampling.select_query(window, jnp.ones((0, 2)), jnp.ones((4, 0), bool), jax.random.key(0))
