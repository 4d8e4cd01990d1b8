"""Free parts of responses beside their features, against the same one-hot features laid out; ranks that grow."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lore_jax
from lore_jax.comparisons import make_table
from lore_jax.fitting import model_selection, priors
from lore_jax.fitting.bradley_terry import LoReConfig
from lore_jax.fitting.design import SHARES, Design, designs, fitted_design, parted, width
from pref_jax.baselines import matrix_factorisation
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError

QUICK = {"components": (), "variances": (1.0,), "shared_variances": (1.0,), "factor_variances": ()}


def drawn(users=40, responses=15, dim=3, each=8, rank=2, seed=0):
    """Votes by values of each response alone, of which the features say nothing."""
    rng = np.random.default_rng(seed)
    rewards = 2 * rng.normal(size=responses) + 2 * rng.normal(size=(users, rank)) @ rng.normal(size=(rank, responses))
    user = np.repeat(np.arange(users), each)
    one = rng.integers(0, responses, len(user))
    other = (one + rng.integers(1, responses, len(user))) % responses
    first = rewards[user, one] > rewards[user, other]
    votes = Comparisons(user, np.where(first, one, other), np.where(first, other, one))
    return rng.normal(size=(responses, dim)).astype(np.float32), votes


@pytest.mark.parametrize("kind", ["response", "both"])
def test_a_design_is_its_matrix(kind):
    features, votes = drawn()
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        phi = jnp.asarray(np.vstack([features, np.zeros(3)]), float)
        for what, given in designs(kind, phi, len(features)):
            scale = np.diag(np.append(np.full(15, np.sqrt(3 * what["share"]) if "share" in what else 1.0), 0.0))
            matrix = np.hstack([phi, scale]) if kind == "both" else scale
            assert given.shape == matrix.shape
            assert width(given) == (3 if kind == "both" else 1)
            directions = rng.normal(size=(matrix.shape[1], 2))
            np.testing.assert_allclose(given @ jnp.asarray(directions), matrix @ directions, rtol=1e-6)
            table = make_table(votes, None, 40, 15)
            params = {"shared": jnp.asarray(directions[:, 0]), "spread": jnp.asarray(directions[:, 1:])}
            found = [_objective(x, table, params) for x in (given, jnp.asarray(matrix))]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *found)
            basis, free = parted(given, jnp.asarray(directions), 3, 15)
            again, own = fitted_design(basis, free, phi)
            np.testing.assert_allclose(again @ own, matrix @ directions, rtol=1e-6, atol=1e-9)


def _objective(features, table, params):
    task = priors.FitProblem(features, table, table.train, jnp.ones(2), jnp.ones(1, bool))
    return jax.value_and_grad(lambda own: priors.gaussian_objective(task, own))(params)


def test_choices_and_their_faults():
    phi = jnp.zeros((4, 2))
    assert [what.get("share") for what, _ in designs("auto", phi, 4)] == [None, *SHARES, None]
    assert designs("text", phi, 4)[0][1] is phi
    with pytest.raises(UserError, match="give one of text, response, both, auto"):
        designs("texts", phi, 4)
    with pytest.raises(UserError, match="free parts of 4 responses"):
        fitted_design(jnp.zeros((2, 1)), jnp.zeros((4, 1)), phi[:3])
    assert isinstance(designs("both", phi, 4)[0][1], Design)


def test_a_model_knows_its_responses_again(tmp_path):
    features, votes = drawn(users=60, each=14)
    features = np.concatenate([features, features[:1]])
    votes = votes._replace(chosen=np.where(votes.chosen == 0, 15 * (votes.user % 2), votes.chosen))
    config = LoReConfig.quick(**QUICK, ranks=(1,), steps=40, allow_shared=False)
    model = lore_jax.fit(features, votes, features="response", config=config)
    assert "and 15 free parts of responses" in repr(model)
    model.save(tmp_path / "mine")
    read = lore_jax.load(tmp_path / "mine")
    right = []
    for one in (model, read):
        rewards = np.stack([one.rewards([str(u)] * 16, features, uncertainty=False)[0] for u in range(60)])
        # Equal texts are one response; unknown ones have the features' reward, here none.
        np.testing.assert_array_equal(rewards[:, 0], rewards[:, 15])
        assert not np.any(one.rewards(["0"], features[:1] + 1, uncertainty=False)[0])
        right.append(np.mean(rewards[votes.user, votes.chosen] > rewards[votes.user, votes.rejected]))
    assert right[0] == right[1] > 0.85
    text = lore_jax.fit(features, votes, config=config)
    rewards = np.stack([text.rewards([str(u)] * 16, features, uncertainty=False)[0] for u in range(60)])
    assert np.mean(rewards[votes.user, votes.chosen] > rewards[votes.user, votes.rejected]) < right[0] - 0.05
    # What the model keeps of a vote is the difference that it scores by.
    alone = read.add_votes("new", (features[votes.chosen[:3]], features[votes.rejected[:3]]))
    assert alone.votes == 3
    z = read._basis_rewards(features)
    kept = read._votes.of(read._rows["new"])[:, : z.shape[1]]
    np.testing.assert_allclose(kept, z[votes.chosen[:3]] - z[votes.rejected[:3]], rtol=1e-5, atol=1e-6)


def test_rank_grows_while_held_out_votes_say_so():
    features, votes = drawn(users=150, responses=30, each=60, rank=6)
    held = np.arange(len(votes.user)) % 6 == 0
    config = LoReConfig.quick(**QUICK, ranks=(1, 2), max_rank=8, steps=40, features="response", refit=False)
    found = model_selection.fit(features, votes.take(~held), votes.take(held), 150, config=config)
    assert found.chosen["rank"] in (4, 8)
    tried = [(row["rank"], row["variance"]) for row in found.candidates if row["kind"] == "gaussian"]
    assert [rank for rank, _ in tried[:7]] == [1, 1, 2, 2, 4, 4, 4]
    # Free parts are tried with a third of the smallest variance too, and a rank with the last best, more and less.
    assert np.allclose([variance for _, variance in tried[:2]], [QUICK["variances"][0] / 3, QUICK["variances"][0]])
    best = min(variance for _, variance in tried[4:7]) * 3
    np.testing.assert_allclose([variance for _, variance in tried[4:7]], [best, 3 * best, best / 3])
    still = LoReConfig.quick(**QUICK, ranks=(1, 2), max_rank=2, steps=40, features="response", refit=False)
    short = model_selection.fit(features, votes.take(~held), votes.take(held), 150, config=still)
    assert max(row["rank"] for row in short.candidates) == 2
    assert found.chosen["log_loss"] < short.chosen["log_loss"]


def test_factors_are_matrix_factorisation():
    features, votes = drawn(users=100, responses=20, each=30, rank=10)
    held, test = (np.arange(len(votes.user)) % 6 == part for part in (0, 1))
    train, held, test = votes.take(~held & ~test), votes.take(held), votes.take(test)
    config = LoReConfig.quick(
        **QUICK | {"factor_variances": (0.06, 0.25, 1.0)}, ranks=(1,), features="response", refit=False
    )
    found = model_selection.fit(features, train, held, 100, config=config)
    assert found.kind == "factors"
    assert found.basis.shape[1] == found.weights.shape[1] == 1 + 20
    factors = matrix_factorisation.fit(
        train, held, num_users=100, num_responses=20, key=jax.random.key(0), factors=(16,)
    )
    by = factors.users[test.user], factors.responses[test.chosen] - factors.responses[test.rejected]
    others = np.sum(by[0] * by[1], 1) + factors.bias[test.chosen] - factors.bias[test.rejected]
    margins = np.asarray(model_selection.predict(found, features, found.weights, test))
    assert np.mean(margins > 0) > np.mean(others > 0) - 0.02
    assert np.mean((margins > 0) == (others > 0)) > 0.85
    # People who were not there are solved on the same basis.
    some = model_selection.adapt(found, features, train, 100)
    np.testing.assert_allclose(model_selection.predict(found, features, some, test), margins, atol=0.02)


def test_factors_are_looked_at_on_their_way_and_fitted_again_as_far():
    features, votes = drawn(users=40, responses=12, each=12, rank=3)
    held = np.arange(len(votes.user)) % 4 == 0
    options: Any = {"ranks": (1,), "features": "response", "factor_steps": (2, 6, 500), "steps": 30}
    config = LoReConfig.quick(**QUICK | {"factor_variances": (0.25, 4.0)} | options)
    found = model_selection.fit(features, votes.take(~held), votes.take(held), 40, config=config)
    rows = [row for row in found.candidates if row["kind"] == "factors"]
    # No path is longer than the config's steps.
    assert [(row["variance"], row["steps"]) for row in rows] == [(v, s) for v in (0.25, 4.0) for s in (2, 6, 30)]
    assert len({row["log_loss"] for row in rows}) > 3
    assert found.kind == "factors"
    # Fitted again on all votes, it took as many steps as the choice had.
    assert int(np.sum(np.diff(np.asarray(found.history)) != 0)) <= found.chosen["steps"]
    alone = dataclasses.replace(config, factor_variances=(found.chosen["variance"],))
    alone = dataclasses.replace(alone, factor_steps=(found.chosen["steps"],))
    again = model_selection.fit(features, votes.take(~held), votes.take(held), 40, config=alone)
    np.testing.assert_allclose(again.basis, found.basis, rtol=1e-3, atol=1e-4)


def test_the_shared_reward_of_factors_is_shrunk_at_least_so_much():
    features, votes = drawn(users=40, responses=12, each=12, rank=3)
    options: Any = {"ranks": (1,), "features": "response", "factor_steps": (30,), "steps": 30, "refit": False}
    config = LoReConfig.quick(**QUICK | {"factor_variances": (0.25,), "shared_variances": (10.0,)} | options)
    sizes = []
    for most in (100.0, 10.0, 0.01):
        own = dataclasses.replace(config, factor_shared_variance=most)
        found = model_selection.fit(features, votes, votes, 40, config=own)
        assert found.kind == "factors"
        sizes.append(float(jnp.linalg.norm(jnp.asarray(found.free)[:, 0])))
    # What is chosen is less already, or is not.
    assert sizes[0] == sizes[1] > 3 * sizes[2]


def test_factors_need_free_parts():
    features, votes = drawn(users=20)
    config = LoReConfig.quick(**QUICK | {"factor_variances": (1.0,)}, ranks=(1,), steps=5)
    found = model_selection.fit(features, votes, votes, 20, config=config)
    assert {row["kind"] for row in found.candidates} == {"shared", "gaussian"}


def test_gradient_of_more_directions_than_are_written_out_equals_differences():
    features, votes = drawn(users=8, responses=14, dim=14, each=7)
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        table = make_table(votes, None, 8, 14)
        used = jnp.ones(10, bool)
        task = priors.FitProblem(jnp.asarray(features, float), table, table.train, jnp.asarray([2.0, 3.0]), used)
        at, lean = (jnp.asarray(rng.normal(size=(14, 11))) for _ in range(2))

        @jax.jit
        def value(matrix):
            return priors.gaussian_objective(task, {"shared": 0.3 * matrix[:, 0], "spread": 0.3 * matrix[:, 1:]})

        slope = (value(at + 1e-5 * lean) - value(at - 1e-5 * lean)) / 2e-5
        np.testing.assert_allclose(jnp.sum(jax.jit(jax.grad(value))(at) * lean), slope, rtol=1e-5)
