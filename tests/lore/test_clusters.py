"""Clusters of weights against NumPy and SciPy in float64: what votes say, evidence, a step of learning, posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from lore_jax.fitting import gaussian_mixture
from lore_jax.weights import streaming
from lore_jax.weights.batched_cholesky import cholesky
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights

SIZE = 3


def case(seed, users=12, votes=5):
    """Votes [U n K] of users who gave none, one, duplicates, or all that there is room for."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(users, votes, SIZE)) * 2
    mask = np.arange(votes)[None] < rng.integers(0, votes + 1, users)[:, None]
    mask[0], mask[1] = False, np.arange(votes) < 1
    z[2] = z[2, :1]
    return rng, z, mask


def covariances(rng, count):
    """Random symmetric positive definite matrices [C K K]."""
    root = rng.normal(size=(count, SIZE, SIZE))
    return root @ root.swapaxes(1, 2) + 0.3 * np.eye(SIZE)


def population(rng, count):
    share = rng.dirichlet(np.ones(count))
    return share, rng.normal(size=(count, SIZE)), covariances(rng, count)


def quadratic(rng, users):
    """What votes say of users, of whom some gave none or fewer than there are unknowns; (Known, weights) in NumPy."""
    given = np.arange(4)[None] < rng.integers(0, 5, users)[:, None]
    given[0] = False
    rows = rng.normal(size=(users, 4, SIZE)) * given[..., None]
    weights = rng.normal(size=(users, SIZE))
    curvature = np.einsum("unk,unl->ukl", rows, rows)
    return gaussian_mixture.LaplaceLikelihood(np.einsum("ukl,ul->uk", curvature, weights), curvature), weights


def as_clusters(share, means, spread):
    return gaussian_mixture.Clusters(*map(jnp.asarray, (np.log(share), means, np.linalg.inv(spread))))


def laplace(z, mean, precision):
    """MAP of one user by SciPy, the Hessian there, and the log of Laplace's evidence."""

    def loss(w):
        away = w - mean
        slope = precision @ away - z.T @ (1 / (1 + np.exp(z @ w)))
        return np.logaddexp(0, -z @ w).sum() + 0.5 * away @ precision @ away, slope

    found = minimize(loss, mean, jac=True, method="BFGS", options={"gtol": 1e-11})
    p = 1 / (1 + np.exp(-z @ found.x))
    hessian = precision + (z * (p * (1 - p))[:, None]).T @ z
    volume = np.linalg.slogdet(precision)[1] - np.linalg.slogdet(hessian)[1]
    return found.x, hessian, 0.5 * volume - found.fun


@pytest.mark.parametrize("size", [2, 9])
def test_log_determinant(size):
    root = np.random.default_rng(size).normal(size=(4, size, size))
    matrix = root @ root.swapaxes(1, 2) + np.eye(size)
    with jax.enable_x64(True):
        found = cholesky(jnp.asarray(matrix)).log_determinant()
    np.testing.assert_allclose(found, np.linalg.slogdet(matrix)[1], rtol=1e-10)


def test_votes_as_a_gaussian_likelihood():
    rng, z, mask = case(0)
    mean, precision = rng.normal(size=SIZE), covariances(rng, 1)[0]
    with jax.enable_x64(True):
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))
        users = gaussian_mixture.laplace_likelihood(
            jnp.asarray(np.where(mask[..., None], z, np.nan)), jnp.asarray(mask), prior
        )
    for user, own in enumerate(mask):
        best, hessian, _ = laplace(z[user, own], mean, precision)
        curvature = hessian - precision
        np.testing.assert_allclose(users.curvature[user], curvature, atol=1e-7)
        # At the MAP the likelihood's slope is what the prior pulls back.
        expected = precision @ (best - mean) + curvature @ best
        np.testing.assert_allclose(users.information[user], expected, atol=1e-7)


def test_a_step_of_learning_equals_numpy():
    rng = np.random.default_rng(1)
    users, count = 40, 3
    curvature, weights = covariances(rng, users), rng.normal(size=(users, SIZE))
    information = np.einsum("ukl,ul->uk", curvature, weights)
    real = rng.random(users) < 0.8
    with jax.enable_x64(True):
        known = gaussian_mixture.LaplaceLikelihood(jnp.asarray(information), jnp.asarray(curvature))
        found, history = gaussian_mixture.fit_em(jnp.asarray(weights), known, jnp.asarray(real), count=count, steps=1)

    mine = weights[real]
    centre = mine.mean(0)
    spread = (mine - centre).T @ (mine - centre) / len(mine)
    means = [centre]
    while len(means) < count:
        nearest = np.min([((mine - mean) ** 2).sum(1) for mean in means], 0)
        means.append(mine[nearest.argmax()])
    begin = spread / count + gaussian_mixture.FLOOR * np.eye(SIZE)
    # A user's votes see N(w; weights, curvature^-1); in a cluster the estimate is N(mean, begin + curvature^-1).
    noise = np.linalg.inv(curvature[real])
    density = np.array(
        [[multivariate_normal(m, begin + n).pdf(w) for w, n in zip(mine, noise, strict=True)] for m in means]
    )
    share = density / density.sum(0)
    # The code leaves out the likelihood's own constant, which is that of no cluster.
    constant = [multivariate_normal(np.zeros(SIZE), n).pdf(-w) for w, n in zip(mine, noise, strict=True)]
    np.testing.assert_allclose(history[0], np.log((density / constant).mean(0)).sum(), rtol=1e-6)
    for k in range(count):
        gain = begin @ np.linalg.inv(begin + noise)
        posterior = means[k] + np.einsum("ukl,ul->uk", gain, mine - means[k])
        covariance = begin - gain @ begin
        number = share[k].sum()
        mean = (share[k] @ posterior + 1e-3 * centre) / (number + 1e-3)
        away = posterior - mean
        scatter = np.einsum("u,ukl->kl", share[k], covariance + away[:, :, None] * away[:, None])
        extra = gaussian_mixture.EXTRA_USERS
        wide = (scatter + extra * gaussian_mixture.EXTRA_SPREAD * spread) / (
            number + extra
        ) + gaussian_mixture.FLOOR * np.eye(SIZE)
        np.testing.assert_allclose(found.mean[k], mean, atol=1e-6)
        np.testing.assert_allclose(np.linalg.inv(found.precision[k]), wide, atol=1e-6)
    sizes = share.sum(1) + 1
    np.testing.assert_allclose(np.exp(found.log_share), sizes / sizes.sum(), atol=1e-6)


def test_evidence_and_moments_equal_the_integral():
    rng = np.random.default_rng(11)
    known, _ = quadratic(rng, 6)
    mean, precision = rng.normal(size=SIZE), covariances(rng, 1)[0]
    with jax.enable_x64(True):
        users = gaussian_mixture.LaplaceLikelihood(*map(jnp.asarray, known))
        found, covariance, evidence = gaussian_mixture._members(users, jnp.asarray(mean), jnp.asarray(precision))
    # Gauss and Hermite's rule in the cluster's own coordinates: w = mean + root x, x ~ N(0, I).
    points, share = np.polynomial.hermite_e.hermegauss(40)
    x = np.stack(np.meshgrid(*[points] * SIZE), -1).reshape(-1, SIZE)
    share = np.prod(np.stack(np.meshgrid(*[share / share.sum()] * SIZE), -1).reshape(-1, SIZE), -1)
    w = mean + x @ np.linalg.cholesky(np.linalg.inv(precision)).T
    for user in range(6):
        loglik = w @ known.information[user] - 0.5 * np.einsum("pk,kl,pl->p", w, known.curvature[user], w)
        mass = share * np.exp(loglik)
        middle = mass @ w / mass.sum()
        np.testing.assert_allclose(evidence[user], np.log(mass.sum()), atol=1e-4)
        np.testing.assert_allclose(found[user], middle, atol=1e-4)
        away = w - middle
        np.testing.assert_allclose(covariance[user], (mass[:, None] * away).T @ away / mass.sum(), atol=1e-4)


@pytest.mark.parametrize(("users", "count"), [(50, 4), (3, 6)])
def test_the_posterior_of_the_clusters_rises(users, count):
    rng = np.random.default_rng(12)
    known, weights = quadratic(rng, users)
    away = weights - weights.mean(0)
    spread = away.T @ away / users

    def log_prior(found):
        precision = np.asarray(found.precision)
        shrink = gaussian_mixture.EXTRA_SPREAD * np.einsum("ckl,lk->c", precision, spread)
        return np.sum(found.log_share + 0.5 * gaussian_mixture.EXTRA_USERS * (np.linalg.slogdet(precision)[1] - shrink))

    some = (1, 2, 4, 20)
    with jax.enable_x64(True):
        given = (
            jnp.asarray(weights),
            gaussian_mixture.LaplaceLikelihood(*map(jnp.asarray, known)),
            jnp.ones(users, bool),
        )
        likelihood = np.asarray(gaussian_mixture.fit_em(*given, count=count, steps=some[-1] + 1)[1])
        told = [likelihood[n] + log_prior(gaussian_mixture.fit_em(*given, count=count, steps=n)[0]) for n in some]
    assert (np.diff(told) > 0).all()


def test_posteriors_equal_scipy():
    rng, z, mask = case(2)
    share, means, spread = population(rng, 4)
    with jax.enable_x64(True):
        given = as_clusters(share, means, spread)
        found = gaussian_mixture.posterior(jnp.asarray(np.where(mask[..., None], z, np.nan)), jnp.asarray(mask), given)
    for user, own in enumerate(mask):
        parts = [laplace(z[user, own], m, np.linalg.inv(s)) for m, s in zip(means, spread, strict=True)]
        evidence = share * np.exp([part[2] for part in parts])
        evidence /= evidence.sum()
        weights = np.array([part[0] for part in parts])
        mean = evidence @ weights
        within = sum(e * np.linalg.inv(part[1]) for e, part in zip(evidence, parts, strict=True))
        between = (weights - mean).T @ np.diag(evidence) @ (weights - mean)
        np.testing.assert_allclose(found.weights[user], mean, atol=1e-6)
        np.testing.assert_allclose(found.covariance[user], within + between, atol=1e-6)


def test_nobody_answered_means_the_population():
    rng = np.random.default_rng(3)
    share, means, spread = population(rng, 3)
    with jax.enable_x64(True):
        given = as_clusters(share, means, spread)
        found = gaussian_mixture.posterior(jnp.zeros((2, 4, SIZE)), jnp.zeros((2, 4), bool), given)
        whole = gaussian_mixture.moments(given)
    draws = np.concatenate(
        [rng.multivariate_normal(m, s, int(400_000 * p)) for p, m, s in zip(share, means, spread, strict=True)]
    )
    np.testing.assert_allclose(found.weights[1], whole.mean, atol=1e-10)
    np.testing.assert_allclose(found.covariance[1], np.linalg.inv(whole.precision), atol=1e-8)
    np.testing.assert_allclose(whole.mean, draws.mean(0), atol=0.02)
    np.testing.assert_allclose(np.linalg.inv(whole.precision), np.cov(draws.T), atol=0.05)


def test_one_cluster_is_the_gaussian_solver():
    rng, z, mask = case(4)
    mean, precision = rng.normal(size=SIZE), covariances(rng, 1)[0]
    with jax.enable_x64(True):
        prior = Prior(jnp.asarray(mean), jnp.asarray(precision))
        given = gaussian_mixture.Clusters(jnp.zeros(1), prior.mean[None], prior.precision[None])
        found = gaussian_mixture.posterior(jnp.asarray(z), jnp.asarray(mask), given)
        expected = solve_weights(jnp.asarray(z), jnp.asarray(mask), prior)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-9)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-9)


def test_blocks_and_eight_devices_change_nothing():
    rng, z, mask = case(13)
    given = jax.tree.map(lambda x: x.astype(jnp.float32), as_clusters(*population(rng, 3)))
    z, mask = jnp.asarray(z, jnp.float32), jnp.asarray(mask)
    whole, prior = gaussian_mixture.posterior(z, mask, given), gaussian_mixture.moments(given)

    def run(z, mask, _):
        return gaussian_mixture.posterior(z, mask, given)

    parts = streaming.in_blocks(run, 5)(z, mask, prior)
    cut = jax.jit(streaming.over_users(run, jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))))(
        z, mask, prior
    )
    for other in (parts, cut):
        for own, expected in zip(other, whole, strict=True):
            np.testing.assert_allclose(own, expected, atol=1e-5)


def test_gradients_equal_differences_and_padding_has_none():
    rng, z, mask = case(14, users=6, votes=3)
    z[~mask] = np.nan
    lean = rng.normal(size=z.shape)
    with jax.enable_x64(True):
        given, mask = as_clusters(*population(rng, 3)), jnp.asarray(mask)

        @jax.jit
        def total(z):
            found = gaussian_mixture.posterior(z, mask, given)
            return jnp.sum(jnp.sin(found.weights)) + jnp.sum(jnp.cos(found.covariance))

        slope = np.asarray(jax.grad(total)(jnp.asarray(z)))
        ahead, behind = (float(total(jnp.asarray(z + step * lean))) for step in (1e-5, -1e-5))
    assert not slope[~np.asarray(mask)].any()
    np.testing.assert_allclose((ahead - behind) / 2e-5, np.sum(slope * lean), rtol=1e-6)


def camps(seed, users, votes):
    """Users of three far camps and their votes; (z, mask, camp)."""
    rng = np.random.default_rng(seed)
    camp = rng.integers(0, 3, users)
    z = rng.normal(size=(users, votes, SIZE)).astype(np.float32)
    taste = 4 * np.eye(SIZE)[camp] + 0.1 * rng.normal(size=(users, SIZE))
    logits = np.einsum("unk,uk->un", z, taste)
    right = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    return jnp.asarray(np.where(right, 1, -1).astype(np.float32)[..., None] * z), jnp.ones((users, votes), bool), camp


def test_camps_are_found_and_few_answers_bring_users_nearer_than_one_gaussian():
    z, mask, camp = camps(5, 300, 40)
    prior = Prior(jnp.zeros(SIZE), 0.1 * jnp.eye(SIZE))
    first = solve_weights(z, mask, prior).weights
    found, history = gaussian_mixture.fit_em(
        first, gaussian_mixture.laplace_likelihood(z, mask, prior), mask.any(1), count=6
    )
    assert history[-1] > history[0]
    few = mask & (jnp.arange(40) < 8)[None]
    by_clusters = gaussian_mixture.posterior(z, few, found).weights
    by_gaussian = solve_weights(z, few, gaussian_mixture.moments(found)).weights
    far, farther = (np.mean((own - 4 * np.eye(SIZE)[camp]) ** 2) for own in (by_clusters, by_gaussian))
    assert far < 0.8 * farther
    np.testing.assert_allclose(jnp.exp(found.log_share).sum(), 1, atol=1e-5)


@pytest.mark.parametrize("users", [0, 1, 5])
def test_few_equal_or_silent_users_leave_all_finite(users):
    z, mask, _ = camps(6, 8, 3)
    z = z.at[:].set(z[:1]) * 1e3
    mask = mask & (jnp.arange(8) < users)[:, None]
    prior = Prior(jnp.zeros(SIZE), jnp.eye(SIZE))
    first = solve_weights(z, mask, prior).weights
    found, _ = gaussian_mixture.fit_em(first, gaussian_mixture.laplace_likelihood(z, mask, prior), mask.any(1), count=4)
    told = gaussian_mixture.posterior(z, mask, found)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, told, gaussian_mixture.moments(found))))
