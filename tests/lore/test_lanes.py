"""Ragged votes in lanes: the same sums, solutions and objectives as in a table as wide as the busiest user's votes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lore_jax import lanes
from lore_jax.comparisons import make_table
from lore_jax.fitting import priors
from lore_jax.weights.objective import Prior
from lore_jax.weights.solve import solve_weights
from pref_jax.comparisons import Comparisons

COUNTS = {
    "even": np.full(40, 7),
    "one has all": np.array([0, 0, 300, 0]),
    "a heavy tail": np.append(np.random.default_rng(0).integers(0, 9, 60), [200, 77]),
    "nobody voted": np.zeros(5, np.int64),
}


def world(counts, responses=12, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    user = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = rng.integers(0, responses, len(user))
    rejected = (chosen + rng.integers(1, responses, len(user))) % responses
    return rng.normal(size=(responses, dim)), Comparisons(user, chosen, rejected)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("further", [0, 16])
def test_each_item_has_a_cell_of_its_own_among_its_users(monkeypatch, name, further):
    monkeypatch.setattr(lanes, "FURTHER", further)
    counts = COUNTS[name]
    found = lanes.lay_out(counts)
    rows = found.shape[0] - len(found.owner)
    assert len(set(zip(found.lane.tolist(), found.place.tolist(), strict=True))) == counts.sum()
    owner = np.append(np.arange(rows), found.owner)
    np.testing.assert_array_equal(owner[found.lane], np.repeat(np.arange(len(counts)), counts))
    assert (np.diff(found.owner) >= 0).all()
    assert lanes.lay_out(counts, split=False).owner.size == 0


@pytest.mark.parametrize("tail", [1.05, 1.5, 3.0])
def test_cells_are_in_proportion_to_items(tail):
    counts = 1 + (np.random.default_rng(1).pareto(tail, 20_000) * 5).astype(int)
    rows, width = lanes.lay_out(counts).shape
    assert rows * width < 4 * counts.sum()
    counts = np.append(np.full(100_000, 5), 50_000)
    rows, width = lanes.lay_out(counts).shape
    assert rows * width < 2 * counts.sum()


@pytest.mark.parametrize("axis", [0, -1])
def test_sums_and_their_derivatives_equal_numpy(axis):
    rng, owner = np.random.default_rng(2), np.array([0, 0, 3])
    values = rng.normal(size=(7, 2)) if axis == 0 else rng.normal(size=(2, 7))
    one_hot = np.zeros((4, 7))
    one_hot[np.append(np.arange(4), owner), np.arange(7)] = 1
    expected = one_hot @ values if axis == 0 else values @ one_hot.T
    with jax.enable_x64(True):
        here = jnp.asarray(values)
        np.testing.assert_allclose(lanes.fold(here, jnp.asarray(owner), axis=axis), expected, rtol=1e-12)
        spread, back = jax.vjp(lambda x: lanes.spread(x, jnp.asarray(owner), axis=axis), jnp.asarray(expected))
        whole = one_hot.T @ expected if axis == 0 else expected @ one_hot
        np.testing.assert_allclose(spread, whole, rtol=1e-12)
        np.testing.assert_allclose(back(here)[0], expected, rtol=1e-12)
        largest = lanes.fold_max(here, jnp.asarray(owner), axis=axis)
    parts = values if axis == 0 else values.T
    own = np.stack([parts[np.append(np.arange(4), owner) == u].max(0) for u in range(4)])
    np.testing.assert_array_equal(largest, own if axis == 0 else own.T)


@pytest.mark.parametrize(("likelihood", "constraint"), [("logistic", None), ("ridge", "simplex"), ("mixture", None)])
@pytest.mark.parametrize("basis", [3, 10])
def test_lanes_have_the_weights_of_flat_votes(likelihood, constraint, basis):
    counts, rng = COUNTS["a heavy tail"], np.random.default_rng(3)
    found = lanes.lay_out(counts)
    assert found.owner.size
    user, z = np.repeat(np.arange(len(counts)), counts), rng.normal(size=(counts.sum(), basis))
    table, mask = np.full((*found.shape, basis), np.nan), np.zeros(found.shape, bool)
    table[found.lane, found.place], mask[found.lane, found.place] = z, True
    with jax.enable_x64(True):
        mean = jnp.full(basis, 1 / basis)
        prior, options = Prior(mean, jnp.eye(basis)), {"likelihood": likelihood, "constraint": constraint}
        flat = solve_weights(jnp.asarray(z), None, prior, user=jnp.asarray(user), num_users=len(counts), **options)
        own = solve_weights(jnp.asarray(table), jnp.asarray(mask), prior, user=jnp.asarray(found.owner), **options)
    np.testing.assert_allclose(own.weights[: len(counts)], flat.weights, atol=1e-8)
    assert len(own.weights) == lanes.bucket(len(counts))
    if own.covariance is not None:
        np.testing.assert_allclose(own.covariance[: len(counts)], flat.covariance, atol=1e-8)


def test_objectives_and_directions_do_not_depend_on_the_lanes(monkeypatch):
    monkeypatch.setattr(lanes, "FURTHER", 0)
    features, votes = world(COUNTS["a heavy tail"])
    size = len(COUNTS["a heavy tail"])
    with jax.enable_x64(True):
        values = []
        for split in (False, True):
            table = make_table(votes, None, size, len(features), split=split)
            assert bool(table.owner.size) == split
            assert table.num_users == lanes.bucket(size)
            task = priors.FitProblem(jnp.asarray(features), table, table.train, jnp.ones(2), jnp.ones(2, bool))
            shared, spread = jnp.asarray([0.3, -0.5, 0.1]), jnp.asarray([[0.2, 0.1], [0.5, -0.3], [0.0, 1.0]])
            params = {"shared": shared, "spread": spread, "delta": spread, "logits": jnp.asarray([0.1, -0.2])}
            params["tastes"] = jnp.asarray(np.random.default_rng(4).normal(size=(table.num_users, 2)))
            some = [
                jax.value_and_grad(lambda own, f=objective, task=task: f(task, own))(params)
                for objective in (priors.gaussian_objective, priors.mixture_objective, priors.simplex_objective)
            ]
            logits = task.votes(shared[:, None])[..., 0]
            found = priors.spectral_directions(
                jnp.asarray(features), table, table.train, logits, 1, jax.random.key(0), steps=60
            )
            values.append((some, np.abs(found)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9), *values)


def test_some_votes_are_drawn_per_user_across_lanes(monkeypatch):
    monkeypatch.setattr(lanes, "FURTHER", 0)
    counts = COUNTS["a heavy tail"]
    features, votes = world(counts)
    table = make_table(votes, None, len(counts), len(features))
    drawn = table.some(np.asarray(table.train), 5, np.random.default_rng(0))
    assert not (drawn & ~np.asarray(table.train)).any()
    np.testing.assert_array_equal(table.per_user(drawn)[: len(counts)], np.minimum(counts, 5))
    again = table.some(np.asarray(table.train), 5, np.random.default_rng(1))
    assert (again != drawn).any()
