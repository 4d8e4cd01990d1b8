"""The objectives of the joint fits against NumPy, their gradients against differences; features and rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from lore_jax.comparisons import make_table
from lore_jax.fitting import priors, published
from lore_jax.fitting.lbfgs import minimise
from lore_jax.reward import pair_logits, rewards
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.standardiser import fit_standardiser, standardise


def softplus(x):
    return np.logaddexp(0, x)


def small(seed, users=6, responses=10, dim=4):
    """Random votes of a few users, one of them without any."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users - 1, 24)
    chosen = rng.integers(0, responses, 24)
    votes = Comparisons(user, chosen, (chosen + rng.integers(1, responses, 24)) % responses)
    features = rng.normal(size=(responses, dim))
    return rng, features, votes, make_table(votes, None, users, responses)


def directional(objective, params, rng):
    """Largest gap between the gradient and central differences along random directions."""
    run = jax.jit(jax.value_and_grad(objective))
    _, grad = run(params)
    for _ in range(2):
        lean = {k: rng.normal(size=v.shape) for k, v in params.items()}
        ahead, behind = (run({k: v + s * lean[k] for k, v in params.items()})[0] for s in (1e-5, -1e-5))
        expected = sum(np.sum(grad[k] * lean[k]) for k in params)
        np.testing.assert_allclose((ahead - behind) / 2e-5, expected, rtol=1e-5, atol=1e-5)


def test_reference_loss_equals_numpy():
    rng, features, votes, _ = small(0)
    counts = np.bincount(votes.user, minlength=6)
    w, v = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)) * 30
    total = 0.0
    for u in np.unique(votes.user):
        mine = votes.user == u
        soft = np.exp(w[u]) / np.exp(w[u]).sum()
        logits = (features[votes.chosen[mine]] - features[votes.rejected[mine]]) @ v @ soft / 100
        total += softplus(-logits).mean()
    with jax.enable_x64(True):
        share = jnp.asarray(1 / counts[votes.user])
        user, chosen, rejected = map(jnp.asarray, votes[:3])
        params = {"W": jnp.asarray(w), "V": jnp.asarray(v)}

        def objective(params):
            return published.reference_loss(params, jnp.asarray(features), user, chosen, rejected, share)

        np.testing.assert_allclose(objective(params), total, rtol=1e-12)
        directional(objective, params, rng)


def test_mixture_objective_equals_numpy():
    rng, features, votes, table = small(1)
    shared, delta, logits = rng.normal(size=4), rng.normal(size=(4, 3)), rng.normal(size=3)
    used = np.array([True, True, False])
    share = np.exp(logits) * used / np.sum(np.exp(logits) * used)
    total = 0.5 * (2 * shared @ shared + 3 * np.sum(delta**2)) + 0.05 * np.sum(logits**2)
    for u in range(6):
        mine = votes.user == u
        z = (features[votes.chosen[mine]] - features[votes.rejected[mine]]) @ (shared[:, None] + delta)
        total -= np.log(share @ np.exp(-softplus(-z).sum(0)))
    with jax.enable_x64(True):
        strengths = jnp.asarray([2.0, 3.0])

        def objective(params):
            task = priors.FitProblem(jnp.asarray(features), table, table.train, strengths, jnp.asarray(used))
            return priors.mixture_objective(task, params)

        params = {"shared": jnp.asarray(shared), "delta": jnp.asarray(delta), "logits": jnp.asarray(logits)}
        np.testing.assert_allclose(objective(params), total, rtol=1e-10)
        directional(objective, params, rng)


def test_simplex_objective_equals_numpy():
    rng, features, votes, table = small(3)
    users = len(table.train)  # some of them padding, who have tastes and no votes
    shared, delta, tastes = rng.normal(size=4), rng.normal(size=(4, 3)), rng.normal(size=(users, 3))
    used = np.array([True, True, False])
    total = 0.5 * (2 * shared @ shared + 3 * np.sum(delta**2)) + 0.003 * np.sum(tastes[:, used] ** 2)
    for u in range(6):
        mine = votes.user == u
        z = (features[votes.chosen[mine]] - features[votes.rejected[mine]]) @ (shared[:, None] + delta)
        share = np.exp(tastes[u]) * used / np.sum(np.exp(tastes[u]) * used)
        total += softplus(-z @ share).sum()
    with jax.enable_x64(True):

        def objective(params):
            strengths = jnp.asarray([2.0, 3.0])
            task = priors.FitProblem(jnp.asarray(features), table, table.train, strengths, jnp.asarray(used))
            return priors.simplex_objective(task, params)

        params = {"shared": jnp.asarray(shared), "delta": jnp.asarray(delta), "tastes": jnp.asarray(tastes)}
        np.testing.assert_allclose(objective(params), total, rtol=1e-10)
        directional(objective, params, rng)


def test_factor_objective_equals_numpy():
    rng, features, votes, table = small(4)
    users = table.num_users
    shared, delta, tastes = rng.normal(size=4), rng.normal(size=(4, 3)), rng.normal(size=(users, 3))
    used = np.array([True, False, True])
    total = 0.5 * (2 * shared @ shared + 3 * np.sum(delta**2) + np.sum(tastes[:, used] ** 2))
    for user, chosen, rejected in zip(votes.user, votes.chosen, votes.rejected, strict=True):
        taste = shared + delta[:, used] @ tastes[user, used]
        total += softplus(-(features[chosen] - features[rejected]) @ taste)
    with jax.enable_x64(True):

        def objective(params):
            strengths = jnp.asarray([2.0, 3.0])
            task = priors.FitProblem(jnp.asarray(features), table, table.train, strengths, jnp.asarray(used))
            return priors.factor_objective(task, params)

        params = {"shared": jnp.asarray(shared), "spread": jnp.asarray(delta), "tastes": jnp.asarray(tastes)}
        np.testing.assert_allclose(objective(params), total, rtol=1e-10)
        directional(objective, params, rng)


def test_gaussian_objective_equals_numpy():
    rng, features, votes, table = small(2)
    shared, spread = rng.normal(size=4), rng.normal(size=(4, 2))
    basis = np.concatenate([shared[:, None], spread], 1)
    mean, precision = np.eye(3)[0], np.diag([priors.PINNED_PRECISION, 1, 1])
    total = 0.5 * (2 * shared @ shared + 3 * np.sum(spread**2))
    for u in range(6):
        mine = votes.user == u
        z = (features[votes.chosen[mine]] - features[votes.rejected[mine]]) @ basis

        def energy(w, z=z):
            force = np.exp(-softplus(z @ w))
            value = softplus(-z @ w).sum() + 0.5 * (w - mean) @ precision @ (w - mean)
            return value, precision @ (w - mean) - z.T @ force

        w = mean.copy()
        for _ in range(200):
            p = np.exp(-softplus(-z @ w))
            w = w - 0.7 * np.linalg.solve(precision + (z * (p * (1 - p))[:, None]).T @ z, energy(w)[1])
        p = np.exp(-softplus(-z @ w))
        hessian = precision + (z * (p * (1 - p))[:, None]).T @ z
        total += energy(w)[0] + 0.5 * np.linalg.slogdet(hessian)[1] - 0.5 * np.log(priors.PINNED_PRECISION)
    # The table pads users; a padded user adds nothing.
    with jax.enable_x64(True):

        def objective(params):
            strengths = jnp.asarray([2.0, 3.0])
            task = priors.FitProblem(jnp.asarray(features), table, table.train, strengths, jnp.ones(2, bool))
            return priors.gaussian_objective(task, params)

        params = {"shared": jnp.asarray(shared), "spread": jnp.asarray(spread)}
        np.testing.assert_allclose(objective(params), total, rtol=1e-8)
        directional(objective, params, rng)


def test_lbfgs_reaches_scipys_bradley_terry():
    _, features, votes, table = small(3)
    difference = features[votes.chosen] - features[votes.rejected]
    expected = minimize(lambda w: softplus(-difference @ w).sum() + 0.4 * w @ w, np.zeros(4), options={"gtol": 1e-10}).x
    with jax.enable_x64(True):

        def objective(w):
            return priors.shared_objective(jnp.asarray(features), table, table.train, jnp.asarray(0.8), w)

        found, value, history = minimise(objective, jnp.zeros(4), steps=50, tolerance=1e-9)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert history[-1] == value
    assert (np.diff(history) <= 0).all()


def test_corners_make_a_regular_simplex():
    for used in (1, 2, 3, 5):
        found = np.asarray(priors.corners(5, jnp.asarray(used)))
        assert not found[used:].any()
        if used > 1:
            expected = np.where(np.eye(used), 1, -1 / (used - 1))
            np.testing.assert_allclose(found[:used] @ found[:used].T, expected, atol=1e-5)


def test_standardiser():
    values = np.random.default_rng(8).normal(3, 5, (50, 3)).astype(np.float32)
    values[:, 1] = 7.1
    done = np.asarray(standardise(fit_standardiser(values), jnp.asarray(values)))
    np.testing.assert_allclose(done.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(done.std(0), [1, 0, 1], atol=1e-5)
    values[4, 2] = np.nan
    with pytest.raises(UserError, match="first row 4"):
        fit_standardiser(values)


def test_rewards_agree_with_pair_logits():
    rng = np.random.default_rng(9)
    basis, weights = jnp.asarray(rng.normal(size=(8, 3))), jnp.asarray(rng.normal(size=(4, 3)))
    user, a, b = (jnp.asarray(rng.integers(0, n, 20)) for n in (4, 8, 8))
    every = np.asarray(rewards(basis, weights))
    expected = every[user, a] - every[user, b]
    np.testing.assert_allclose(pair_logits(basis, weights, user, a, b), expected, atol=1e-5)
