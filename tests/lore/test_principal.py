"""Principal directions against NumPy, weights on them against SciPy, and tastes that they span."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from lore_jax.fitting import model_selection
from lore_jax.fitting.principal import fit_principal, principal_directions
from pref_jax.comparisons import Comparisons


def people(seed: int, users: int = 30, each: int = 20, dim: int = 6) -> tuple[np.ndarray, Comparisons, np.ndarray]:
    """Users who differ in one direction, along which responses vary most, whatever the scale of each feature."""
    rng = np.random.default_rng(seed)
    features = (2 * rng.normal(size=(90, 1)) + rng.normal(size=(90, dim))).astype(np.float32)
    taste = np.where(np.arange(users) % 2, 1.0, -1.0)[:, None] * np.ones(dim)
    user = np.repeat(np.arange(users), each)
    one, two = rng.integers(0, 90, (2, len(user)))
    first = np.sum((features[one] - features[two]) * taste[user], axis=1) > 0
    return features, Comparisons(user, np.where(first, one, two), np.where(first, two, one)), taste


def split(votes: Comparisons, parts: int = 4) -> tuple[Comparisons, Comparisons]:
    held = np.arange(len(votes.user)) % parts == 0
    return votes.take(~held), votes.take(held)


def test_directions_are_those_of_the_differences():
    features, votes, _ = people(0)
    rng = np.random.default_rng(1)
    real = rng.random(votes.user.shape) < 0.7
    shape = (30, 20)
    args = (x.reshape(shape) for x in (votes.chosen, votes.rejected, real))
    found = np.asarray(principal_directions(jnp.asarray(features), *map(jnp.asarray, args)))
    differences = (features[votes.chosen] - features[votes.rejected])[real].astype(np.float64)
    want = np.linalg.svd(differences, full_matrices=False)[2].T
    np.testing.assert_allclose(np.abs(np.sum(found * want, axis=0)), 1, atol=1e-4)


def test_a_users_weights_are_the_mode():
    """Of a new user, by SciPy in float64 from what the fit says of its prior."""
    features, votes, _ = people(2)
    train, validation = split(votes)
    found = fit_principal(features, train, validation, 30, ranks=(3,), variances=(1.0,))
    context = people(3, users=2, each=5)[1]
    weights = np.asarray(model_selection.adapt(found, features, context, 3), np.float64)
    basis, mean, precision = (np.asarray(x, np.float64) for x in (found.basis, found.mean, found.precision))
    phi = (features - np.asarray(found.standardiser.mean)) / np.asarray(found.standardiser.scale)
    for user in range(2):
        own = context.take(context.user == user)
        z = (phi[own.chosen] - phi[own.rejected]) @ basis

        def cost(w, z=z):
            return np.logaddexp(0, -z @ w).sum() + 0.5 * (w - mean) @ precision @ (w - mean)

        best = scipy.optimize.minimize(cost, mean, tol=1e-12).x
        np.testing.assert_allclose(weights[user], best, atol=2e-3)
    np.testing.assert_allclose(weights[2], mean, atol=1e-6)


def test_users_who_differ_along_them_are_told_apart():
    features, votes, _ = people(4)
    train, validation = split(votes)
    found = fit_principal(features, train, validation, 30)
    new, test = split(people(5)[1], 2)
    phi = people(5)[0]
    weights = model_selection.adapt(found, phi, new, 30)
    assert np.mean(np.asarray(model_selection.predict(found, phi, weights, test)) > 0) > 0.85
    assert found.kind == "gaussian"
    assert len(found.candidates) == 5, "six features hold one of the ranks"


@pytest.mark.parametrize("few", [0, 1])
def test_without_votes_to_choose_by_the_first_candidate_is_taken(few):
    features, votes, _ = people(6)
    found = fit_principal(features, votes, votes.take(slice(0)), 30)
    assert len(found.candidates) == 1
    assert np.isfinite(np.asarray(found.weights)).all()
    lonely = votes.take(slice(few))
    if few:
        one = fit_principal(features, lonely, votes.take(slice(0)), 1)
        assert np.isfinite(np.asarray(one.weights)).all()
