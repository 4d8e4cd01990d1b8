"""Baselines that read no text: matrix factorisation and nearest users against NumPy, and on planted tastes."""

import itertools

import jax
import numpy as np
from scipy import optimize

from pref_jax.baselines import matrix_factorisation, user_knn
from pref_jax.comparisons import Comparisons
from pref_jax.item_values import item_values


def planted(rng, users: int, each: int, responses: int = 30) -> tuple[Comparisons, np.ndarray]:
    """Votes by products of two features, of which every other user likes the first; and the users' features."""
    items, people = rng.normal(size=(responses, 2)), np.eye(2)[np.arange(users) % 2]
    user = np.repeat(np.arange(users), each)
    first = rng.integers(0, responses, len(user))
    second = (first + rng.integers(1, responses, len(user))) % responses
    better = np.sum(people[user] * (items[first] - items[second]), axis=1) > 0
    return Comparisons(user, np.where(better, first, second), np.where(better, second, first)), people


def split(votes: Comparisons, each: int, *parts: int) -> list[Comparisons]:
    place, edges = np.arange(len(votes.user)) % each, np.cumsum([0, *parts])
    return [votes.take((place >= a) & (place < b)) for a, b in itertools.pairwise(edges)]


def test_factors_find_planted_tastes_of_seen_and_new_users():
    rng = np.random.default_rng(0)
    votes, _ = planted(rng, 120, 25)
    train, validation, test = split(votes, 25, 14, 3, 8)
    old, new = (lambda part: part.take(part.user < 90)), (lambda part: part.take(part.user >= 90))
    found = matrix_factorisation.fit(
        old(train),
        old(validation),
        num_users=90,
        num_responses=30,
        key=jax.random.key(0),
        priors=(0.5, 2.0, 500.0),
        factors=(4,),
    )
    assert found.prior < 500  # under which nothing is learned
    users = np.concatenate([found.users, np.zeros((30, 4), np.float32)])
    users[90:] = found.new_users(train, 120)[90:]
    for part in (old(test), new(test)):
        differences = found.responses[part.chosen] - found.responses[part.rejected]
        margin = np.sum(users[part.user] * differences, axis=1) + found.bias[part.chosen] - found.bias[part.rejected]
        assert np.mean(margin > 0) > 0.8


def test_a_strong_prior_leaves_the_item_values():
    """Factors are 0 then, and the bias is that of SciPy's optimum."""
    rng = np.random.default_rng(1)
    votes, _ = planted(rng, 20, 12)
    none = votes.take(slice(0))
    sizes = {"num_users": 20, "num_responses": 30}
    found = matrix_factorisation.fit(votes, none, **sizes, key=jax.random.key(0), priors=(1e4,), factors=(3,))
    assert max(np.abs(found.users).max(), np.abs(found.responses).max()) < 0.02
    np.testing.assert_allclose(found.bias, item_values(votes, 30, precision=1.0), atol=0.02)


def test_a_fit_is_near_a_stationary_point_of_its_objective():
    """Without validation votes training goes to its end, where SciPy finds hardly anything lower nearby."""
    rng = np.random.default_rng(2)
    votes, _ = planted(rng, 10, 12, responses=8)
    none = votes.take(slice(0))
    found = matrix_factorisation.fit(
        votes, none, num_users=10, num_responses=8, key=jax.random.key(0), priors=(3.0,), factors=(2,)
    )
    shapes = [(10, 2), (8, 2), (8,)]
    sizes = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def objective(flat):
        x, y, b = (part.reshape(shape) for part, shape in zip(np.split(flat, sizes[:-1]), shapes, strict=True))
        margin = np.sum(x[votes.user] * (y[votes.chosen] - y[votes.rejected]), axis=1) + b[votes.chosen]
        nll = np.logaddexp(0, b[votes.rejected] - margin).sum()
        return nll + 1.5 * (np.sum(x**2) + np.sum(y**2)) + 0.5 * np.sum(b**2)  # without validation its precision is 1

    flat = np.concatenate([part.ravel().astype(np.float64) for part in found[:3]])
    best = optimize.minimize(objective, flat, method="L-BFGS-B")
    assert objective(flat) < best.fun + 0.02
    assert objective(flat) < objective(np.concatenate([np.zeros(36), item_values(votes, 8, precision=1.0)])) + 1e-6


def test_neighbours_margins_are_the_formula():
    rng = np.random.default_rng(3)
    votes, _ = planted(rng, 14, 9, responses=7)
    own, _ = planted(rng, 5, 4, responses=7)
    own = own.take(own.user < 4)  # user 4 has no votes
    signed = [np.zeros((count, 7)) for count in (14, 5)]
    for matrix, part in zip(signed, (votes, own), strict=True):
        np.add.at(matrix, (part.user, part.chosen), 1)
        np.add.at(matrix, (part.user, part.rejected), -1)
        length = np.linalg.norm(matrix, axis=1, keepdims=True)
        matrix /= np.where(length > 0, length, 1)
    np.testing.assert_allclose(user_knn.signed_votes(votes, 14, 7).toarray(), signed[0], atol=1e-12)
    values = rng.normal(size=7)
    known = user_knn.Neighbours(user_knn.signed_votes(votes, 14, 7), values, 3, 0.7)
    pairs = Comparisons(np.arange(5), np.array([0, 1, 2, 3, 4]), np.array([5, 6, 0, 1, 2]))
    got = user_knn.margins(known, own, pairs, num_users=5)
    for user in range(5):
        similar = signed[0] @ signed[1][user]
        told = sum(max(similar[v], 0) * signed[0][v] for v in np.argsort(-similar)[:3])
        value = values + 0.7 * told
        np.testing.assert_allclose(got[user], value[pairs.chosen[user]] - value[pairs.rejected[user]], atol=1e-12)


def test_neighbours_find_planted_tastes():
    rng = np.random.default_rng(4)
    votes, _ = planted(rng, 120, 25)
    train, validation, test = split(votes, 25, 14, 3, 8)
    known = user_knn.fit(train, validation, num_users=120, num_responses=30)
    assert np.mean(user_knn.margins(known, train, test, num_users=120) > 0) > 0.75
