"""Solving at scale gives what solving at once gives: in blocks, over a mesh of eight devices, streamed from disk."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lore_jax.weights import streaming
from lore_jax.weights.objective import Prior
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.mesh import make_mesh

BASIS = 3
PRIOR = Prior(jnp.asarray([0.5, 0.3, 0.2]), 0.5 * jnp.eye(BASIS))


def problem(seed, users, votes=6):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(users, votes, BASIS)) * rng.choice([0.1, 1, 10], size=(users, 1, 1))
    return jnp.asarray(z, jnp.float32), jnp.asarray(rng.random((users, votes)) < 0.7)


METHODS = {
    "ridge": streaming.weights_of("ridge"),
    "logistic": streaming.weights_of("logistic"),
    "ridge_simplex": streaming.weights_of("ridge", "simplex"),
}
WHOLE = {name: jax.jit(method) for name, method in METHODS.items()}


@pytest.mark.parametrize(("name", "users"), [("logistic", 24), ("ridge_simplex", 24), ("ridge", 21), ("ridge", 5)])
def test_blocks_and_eight_devices_change_nothing(name, users):
    z, mask = problem(1, users)
    expected = WHOLE[name](z, mask, PRIOR)
    blocks = jax.jit(streaming.in_blocks(METHODS[name], block=8))(z, mask, PRIOR)
    np.testing.assert_allclose(blocks, expected, atol=1e-5)
    mesh = make_mesh()
    assert mesh.size == 8
    method = streaming.over_users(streaming.in_blocks(METHODS[name], block=2), mesh, mesh.axis_names)
    eight = jax.jit(method)(z, mask, PRIOR)
    np.testing.assert_allclose(eight, expected, atol=1e-5)
    if users == 24:
        # Each device holds users of its own.
        assert [shard.data.shape for shard in eight.addressable_shards] == [(3, BASIS)] * 8
        assert len({str(shard.index) for shard in eight.addressable_shards}) == 8


def test_gradients_cross_the_mesh():
    z, mask = problem(3, 5)
    mesh = make_mesh()
    method = METHODS["logistic"]

    def total(run, z, prior):
        return jnp.sum(run(z, mask, prior) ** 2)

    found, expected = (
        jax.jit(jax.grad(lambda z, prior, run=run: total(run, z, prior), argnums=(0, 1)))(z, PRIOR)
        for run in (streaming.over_users(streaming.in_blocks(method, block=2), mesh, mesh.axis_names), method)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def votes_of(counts, seed=4, responses=50):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(len(counts)), counts)
    chosen = rng.integers(0, responses, len(user))
    rejected = (chosen + rng.integers(1, responses, len(user))) % responses
    return rng.normal(size=(responses, BASIS)).astype(np.float32), Comparisons(user, chosen, rejected)


def on_disk(folder, name, values, dtype):
    array = np.memmap(folder / name, dtype, "w+", shape=values.shape)
    array[:] = values
    array.flush()
    return np.memmap(folder / name, dtype, "r", shape=values.shape)


@pytest.mark.parametrize(("devices", "cells"), [(None, 1), (None, 100_000), (8, 40)])
def test_a_stream_gives_every_user_the_same_weights_once(tmp_path, devices, cells):
    counts = np.random.default_rng(5).choice([0, 1, 3, 4, 9], 90)
    counts[[0, 40, -1]] = 0, 14, 0
    rewards, votes = votes_of(counts)
    stored = Comparisons(*(on_disk(tmp_path, name, getattr(votes, name), np.int32) for name in votes._fields[:3]))
    mesh = None if devices is None else make_mesh()
    out, seen = np.full((90, BASIS), np.nan), np.zeros(90, int)
    kept = on_disk(tmp_path, "rewards", rewards, np.float32)
    for users, weights in streaming.solve_stream(kept, stored, 90, PRIOR, likelihood="ridge", mesh=mesh, cells=cells):
        assert len(users) == len(weights)
        out[users] = weights
        seen[users] += 1
    assert (seen == 1).all()
    for user, count in enumerate(counts):
        mine = votes.user == user
        z = (rewards[votes.chosen[mine]] - rewards[votes.rejected[mine]]).astype(float)
        step = np.linalg.solve(z.T @ z + PRIOR.precision, z.T @ (1 - z @ PRIOR.mean))
        assert len(z) == count
        np.testing.assert_allclose(out[user], PRIOR.mean + step, atol=1e-5)


def test_a_stream_compiles_once_a_row_length():
    counts = np.full(1000, 9)
    rewards, votes = votes_of(counts)
    program: Any = streaming._program
    before = program._cache_size()
    parts = list(streaming.solve_stream(rewards, votes, 1000, PRIOR, likelihood="ridge", cells=1200))
    assert program._cache_size() == before + 1
    assert [len(users) for users, _ in parts] == [100] * 10


def test_users_may_be_numbered_by_the_narrowest_type_that_holds_them():
    counts = np.full(256, 2)
    rewards, votes = votes_of(counts)
    narrow = votes._replace(user=votes.user.astype(np.uint8))
    one, other = (
        np.concatenate([w for _, w in streaming.solve_stream(rewards, v, 256, PRIOR, likelihood="ridge", cells=120)])
        for v in (votes, narrow)
    )
    np.testing.assert_array_equal(one, other)


def test_nobody_and_no_votes():
    rewards, votes = votes_of(np.zeros(7, int))
    assert list(streaming.solve_stream(rewards, votes, 0, PRIOR)) == []
    ((users, weights),) = streaming.solve_stream(rewards, votes, 7, PRIOR, likelihood="ridge")
    np.testing.assert_array_equal(users, np.arange(7))
    np.testing.assert_array_equal(weights, np.tile(PRIOR.mean, (7, 1)))


@pytest.mark.parametrize(
    ("user", "chosen", "cells", "message"),
    [
        ([0, 2, 1], [0, 0, 0], 1, "out of order or range; sort the votes by user"),
        ([0, 2, 1], [0, 0, 0], 100, "user 1 of row 2 is out of order"),
        ([0, 1, 3], [0, 0, 0], 100, "user 3 of row 2 is out of order or range"),
        ([-1, 1, 2], [0, 0, 0], 100, "user -1 of row 0 is out of order or range"),
        ([0, 1, 2], [0, 0, 50], 2, "chosen of row 2 is 50; indices run from 0 to 49"),
    ],
)
def test_bad_votes_are_told(user, chosen, cells, message):
    rewards, _ = votes_of(np.zeros(1, int))
    votes = Comparisons(np.asarray(user), np.asarray(chosen), np.ones(3, int))
    with pytest.raises(UserError, match=message):
        list(streaming.solve_stream(rewards, votes, 3, PRIOR, likelihood="ridge", cells=cells))


def test_unknown_likelihoods_and_uneven_votes_are_told():
    rewards, votes = votes_of(np.ones(3, int))
    with pytest.raises(UserError, match="'probit', constraint None; give one of logistic, ridge"):
        list(streaming.solve_stream(rewards, votes, 3, PRIOR, likelihood="probit"))
    with pytest.raises(UserError, match="differ in length"):
        list(streaming.solve_stream(rewards, votes._replace(chosen=votes.chosen[:2]), 3, PRIOR))
