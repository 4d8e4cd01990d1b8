"""The fast joint fit reaches the published recipe's loss, and what it is made of equals float64 NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from lore_jax.fitting import model_selection, published, variable_projection
from lore_jax.fitting.layout import Data, layout
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError


def world(seed, users=30, votes=12, dim=16, rank=3, pool=None, strength=3.0):
    """Votes of planted tastes, drawn by Bradley-Terry; pairs of their own, or out of a pool of responses."""
    rng = np.random.default_rng(seed)
    size = 2 * users * votes if pool is None else pool
    features = rng.normal(size=(size, dim)).astype(np.float32)
    tastes = rng.dirichlet(np.full(rank, 0.5), users) @ rng.normal(size=(rank, dim)) * strength / np.sqrt(dim)
    user = np.repeat(np.arange(users), votes)
    if pool is None:
        first, second = np.arange(size).reshape(-1, 2).T
    else:
        first = rng.integers(0, pool, len(user))
        second = (first + rng.integers(1, pool, len(user))) % pool
    margin = np.einsum("pd,pd->p", features[first] - features[second], tastes[user])
    wins = rng.random(len(user)) < 1 / (1 + np.exp(-margin))
    return features, Comparisons(user, np.where(wins, first, second), np.where(wins, second, first))


def loss_of(features, votes, basis, weights):
    """The recipe's loss in float64 NumPy."""
    rows = np.asarray(features, np.float64)
    margins = np.einsum(
        "pd,dk,pk->p",
        rows[votes.chosen] - rows[votes.rejected],
        np.asarray(basis, np.float64),
        np.asarray(weights, np.float64)[votes.user],
    )
    share = 1 / np.bincount(votes.user)[votes.user]
    return np.sum(share * np.logaddexp(0, -margins))


@pytest.mark.parametrize(
    ("seed", "shape"),
    [
        (0, {}),
        (1, {"rank": 2, "votes": 20}),
        (2, {"dim": 40, "votes": 8}),
        (3, {"pool": 40}),
        (4, {"rank": 5, "users": 60}),
    ],
)
def test_reaches_the_loss_of_the_published_recipe(seed, shape):
    features, votes = world(seed, **shape)
    users, rank = shape.get("users", 30), shape.get("rank", 3)
    slow = published.fit_published(features, votes, users, rank=rank, seed=seed, steps=600)
    quick = variable_projection.fit_varpro(features, votes, users, rank=rank, tolerance=1e-5)
    reached = loss_of(features, votes, quick.basis, quick.weights)
    np.testing.assert_allclose(reached, quick.history[-1], rtol=2e-3, atol=1e-4)
    assert reached <= loss_of(features, votes, slow.basis, slow.weights)
    np.testing.assert_allclose(quick.weights.sum(1), 1, atol=1e-5)
    assert (np.asarray(quick.weights) >= 0).all()
    assert quick.history[-1] < quick.history[0]


def test_stops_at_the_goal():
    features, votes = world(5)
    whole = variable_projection.fit_varpro(features, votes, 30, rank=3)
    goal = float(np.mean(np.asarray(whole.history)[[0, -1]]))
    early = variable_projection.fit_varpro(features, votes, 30, rank=3, goal=goal)
    assert early.history[-1] <= goal
    assert early.history[-1] > whole.history[-1]


def test_responses_and_differences_give_one_fit():
    features, votes = world(6, pool=30)
    # Responses that nobody saw make the differences the shorter table.
    more = np.concatenate([features, np.ones((1000, features.shape[1]), np.float32)])
    few, many = (variable_projection.fit_varpro(x, votes, 30, rank=3, steps=8) for x in (features, more))
    np.testing.assert_allclose(few.history, many.history, rtol=1e-3)


def test_reduced_value_and_gradient_equal_numpy():
    features, votes = world(7, users=7, votes=5, dim=4)
    votes = votes.take(slice(-4))
    ridge, rng = 0.01, np.random.default_rng(7)
    difference = (features[votes.chosen] - features[votes.rejected]).astype(float)
    matrix = rng.normal(size=(4, 3))

    def reduced(matrix):
        total, z = 0.0, difference @ matrix
        for u in range(7):
            rows = z[votes.user == u]

            def value(a, rows=rows):
                return np.mean(np.logaddexp(0, -rows[:, 0] - rows[:, 1:] @ a)) + ridge / 2 * a @ a

            total += minimize(value, np.zeros(2), options={"gtol": 1e-9}).fun if len(rows) else 0.0
        return total

    with jax.enable_x64(True):
        data = Data(jnp.asarray(difference), jnp.ones(4), layout(votes, 7))
        data = data._replace(votes=data.votes._replace(share=data.votes.share.astype(float)))
        z = data.responses(jnp.asarray(matrix))
        solved = variable_projection._eliminate(z, data.votes, jnp.zeros((2, 7)), ridge)
        gradient = -data.pull(solved.force, variable_projection._with_one(solved.weights))
    np.testing.assert_allclose(solved.value, reduced(matrix), rtol=1e-6)
    for _ in range(3):
        lean = rng.normal(size=matrix.shape)
        slope = (reduced(matrix + 1e-4 * lean) - reduced(matrix - 1e-4 * lean)) / 2e-4
        np.testing.assert_allclose(np.sum(np.asarray(gradient) * lean), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_enclose_puts_a_tight_simplex_around_points(size):
    rng = np.random.default_rng(size)
    points = rng.normal(size=(size - 1, 40)) * 10.0 ** rng.integers(-2, 3, (size - 1, 1))
    weights, vertices = variable_projection.enclosing_simplex(jnp.asarray(points, jnp.float32))
    assert vertices.shape == (size - 1, size)
    np.testing.assert_allclose(np.asarray(vertices) @ np.asarray(weights).T, points, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert (np.asarray(weights) >= 0).all()
    if size > 1:
        np.testing.assert_allclose(weights.min(0), 0, atol=1e-5)


def test_points_that_do_not_differ_have_a_simplex():
    weights, vertices = variable_projection.enclosing_simplex(jnp.full((2, 4), 7.0))
    np.testing.assert_allclose(np.asarray(vertices) @ np.asarray(weights).T, np.full((2, 4), 7.0), rtol=1e-4)
    assert (np.asarray(weights) >= 0).all()


@pytest.mark.parametrize("rank", [1, 2, 4, 12])
def test_degenerate_users(rank):
    features, votes = world(8, users=12, votes=9, dim=6)
    # User 0 has no votes, user 1 one, user 2 the same one nine times, user 3 a vote and its contrary.
    keep = (votes.user > 1) | ((votes.user == 1) & (np.arange(len(votes.user)) == 9))
    user, chosen, rejected = (x[keep].copy() for x in votes[:3])
    for side in (chosen, rejected):
        side[user == 2] = side[user == 2][0]
    three = np.flatnonzero(user == 3)
    chosen[three], rejected[three] = (
        np.resize([chosen[three[0]], rejected[three[0]]], 9),
        np.resize([rejected[three[0]], chosen[three[0]]], 9),
    )
    features[:, 5] = 3.0
    found = variable_projection.fit_varpro(features, Comparisons(user, chosen, rejected), 14, rank=rank)
    assert found.weights.shape == (14, rank)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[1:7]))
    assert (np.asarray(found.weights) >= 0).all()
    unseen = model_selection.adapt(found, features, votes.take(slice(0)), 2)
    np.testing.assert_allclose(unseen, np.tile(found.mean, (2, 1)), atol=1e-5)


def test_features_that_say_nothing():
    _, votes = world(9)
    found = variable_projection.fit_varpro(np.ones((720, 16), np.float32), votes, 30, rank=3)
    np.testing.assert_allclose(found.history, 30 * np.log(2), rtol=1e-5)
    assert np.isfinite(found.weights).all()


def test_mistakes_are_told():
    features, votes = world(10)
    with pytest.raises(UserError, match="0 votes, rank 3"):
        variable_projection.fit_varpro(features, votes.take(slice(0)), 30, rank=3)
    with pytest.raises(UserError, match="rank 0"):
        variable_projection.fit_varpro(features, votes, 30, rank=0)
    with pytest.raises(UserError, match="user of row"):
        variable_projection.fit_varpro(features, votes, 3, rank=3)
