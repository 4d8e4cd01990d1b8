"""LoRe's basis at work: new users answer by answer, and simulated users."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import Fit, LoReConfig
from lore_jax.online import bayes_filter, simulate
from lore_jax.online.simulate import Learned, World
from lore_jax.weights.objective import Prior
from pref_jax.data.sources.synthetic.world import WorldConfig, generate
from pref_jax.standardiser import identity_standardiser


@pytest.fixture(scope="module")
def found() -> Learned:
    """Two tastes and a basis that knows them: what each group chose rather than not, all its votes counted.

    Every other new user answers 5 times, the others 8 times.
    """
    data = generate(WorldConfig(seen_users=40, unseen_users=12, train_prompts=20, test_prompts=20))
    context = data.pairs("train", seen=False)
    drop = context.row[(np.arange(len(context.row)) % 8 >= 5) & (context.user % 2 == 0)]
    kept = np.setdiff1d(np.arange(data.comparisons.num_rows), drop)
    data = dataclasses.replace(data, comparisons=data.comparisons.take(kept))
    names = sorted({name for name in data.groups if name})
    group = np.array([names.index(str(name)) for name in data.groups])
    pairs = data.pairs(("train", "validation", "test"))
    won, asked = np.zeros((2, data.num_responses, 2))
    for rows, sign in ((pairs.chosen, 1), (pairs.rejected, -1)):
        np.add.at(won, (rows, group[pairs.user]), sign)
        np.add.at(asked, (rows, group[pairs.user]), 1)
    rewards = (3 * won / np.maximum(asked, 1)).astype(np.float32)
    weights = np.eye(2, dtype=np.float32)[group]
    mean = jnp.full(2, 0.5)
    precision = jnp.linalg.inv(jnp.diag(mean) - jnp.outer(mean, mean) + 0.01 * jnp.eye(2))
    own = jnp.asarray(weights[data.seen])
    fit = Fit("mixture", identity_standardiser(2), jnp.eye(2), own, mean, precision, jnp.zeros(0), {}, ())
    return Learned(data, fit, weights, rewards)


def test_beliefs_are_those_of_one_answer_after_another(found):
    belief = simulate.beliefs(found)
    context = found.data.pairs("train", seen=False)
    unseen = np.flatnonzero(~found.data.seen)
    counts = np.bincount(context.user, minlength=found.data.num_users)[unseen]
    assert belief.weights.shape == (8 + 1, len(unseen), 2)
    assert set(counts.tolist()) == {5, 8}
    prior = Prior(found.fit.mean, found.fit.precision)
    for place in (int(counts.argmax()), int(counts.argmin())):
        alone = bayes_filter.start(prior, 1)
        rows = np.flatnonzero(context.user == unseen[place])
        for step in range(len(belief.weights)):
            mean, deviation = simulate.weight_path(belief, place)
            np.testing.assert_allclose(mean[step], alone.weights[0], atol=1e-5)
            variance = np.diagonal(np.asarray(bayes_filter.covariance(alone))[0])
            np.testing.assert_allclose(deviation[step], np.sqrt(variance), rtol=1e-4)
            if step < len(rows):
                z = found.rewards[context.chosen[rows[step]]] - found.rewards[context.rejected[rows[step]]]
                alone = bayes_filter.update(
                    alone, jnp.asarray(z)[None], None, bayes_filter.start(prior, 1), bayes_filter.UpdateRule()
                )
        assert np.asarray(belief.answers)[:, place].tolist() == [min(s, len(rows)) for s in range(len(belief.weights))]


def test_answers_tell_the_taste_and_narrow_the_weights(found):
    belief = simulate.beliefs(found)
    own = found.weights[~found.data.seen].argmax(axis=1)
    assert (np.asarray(belief.weights)[-1].argmax(axis=1) == own).mean() > 0.7
    for place in range(len(own)):
        assert (np.diff(simulate.weight_path(belief, place)[1], axis=0) < 1e-5).all()
    curve = simulate.accuracy_by_answer(found, belief)
    assert list(curve) == list(range(len(belief.weights)))
    assert curve[len(curve) - 1].mean > curve[0].mean + 0.1


def test_accuracy_by_answer_is_a_mean_over_users(found):
    belief = simulate.beliefs(found)
    test, unseen = found.data.pairs("test", seen=False), np.flatnonzero(~found.data.seen)
    for count in (0, 3):
        shares = []
        for place, user in enumerate(unseen):
            rows = test.user == user
            z = found.rewards[test.chosen[rows]] - found.rewards[test.rejected[rows]]
            margins = z @ np.asarray(belief.weights)[count, place]
            shares.append(np.mean((margins > 0) + 0.5 * (margins == 0)))
        assert simulate.accuracy_by_answer(found, belief)[count].mean == pytest.approx(np.mean(shares), abs=1e-3)


def test_each_basis_reward_agrees_with_its_group(found):
    rows = simulate.basis_rows(found)
    names = sorted({name for name in found.data.groups if name})
    assert [row["method"] for row in rows] == ["basis reward 1", "basis reward 2"]
    for k, row in enumerate(rows):
        for side in ("seen", "unseen"):
            own, other = (row["metrics"][f"{side}/group/{names[g]}"] for g in (k, 1 - k))
            assert own > other + 0.1


def test_simulated_users_have_tastes_of_seen_ones_and_pairs_that_were_asked(found):
    world = simulate.simulated(found, users=30, pairs=25, seed=1)
    assert {tuple(row) for row in np.asarray(world.truth)} <= {tuple(row) for row in found.weights[found.data.seen]}
    assert (world.truth.shape, world.pool.shape) == ((30, 2), (25, 2))
    for part, split in ((world.pool, "train"), (world.test, "test")):
        pairs = found.data.pairs(split)
        asked = {tuple(sorted(pair)) for pair in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)}
        differences = sorted(tuple((found.rewards[a] - found.rewards[b]).tolist()) for a, b in asked)
        drawn = sorted(map(tuple, np.asarray(part).tolist()))
        assert len(drawn) == (25 if split == "train" else len(asked))
        assert set(drawn) <= set(differences)
        assert drawn == differences or split == "train"
    again = simulate.simulated(found, users=30, pairs=25, seed=1)
    np.testing.assert_array_equal(world.pool, again.pool)
    assert len(simulate.simulated(found, users=3, pairs=10**6).pool) < 10**6


def test_on_the_simplex_the_prior_is_of_the_seen_users_weights(found):
    """Its fit has next to no precision, as the simplex itself holds weights; other fits know their own."""
    loose = found.fit._replace(kind="simplex", precision=1e-3 * jnp.eye(2))
    own = np.asarray(found.weights[found.data.seen], np.float64)
    prior = simulate.prior(found._replace(fit=loose))
    np.testing.assert_allclose(prior.mean, own.mean(0), rtol=1e-6)
    expected = np.linalg.inv(np.cov(own.T, bias=True) + 1e-3 * np.eye(2))
    np.testing.assert_allclose(prior.precision, expected, rtol=1e-3)
    np.testing.assert_array_equal(simulate.prior(found).precision, found.fit.precision)


def test_opposites_agree_least():
    rng = np.random.default_rng(0)
    truth, test = rng.normal(size=(9, 3)).astype(np.float32), rng.normal(size=(40, 3)).astype(np.float32)
    prior = Prior(jnp.zeros(3), jnp.eye(3))
    found = np.asarray(simulate.opposites(World(jnp.asarray(truth), prior, jnp.asarray(test), jnp.asarray(test))))
    for user, taste in enumerate(truth):
        agree = [sum((pair @ taste > 0) == (pair @ other > 0) for pair in test) for other in truth]
        assert min(agree) == agree[int(np.flatnonzero((truth == found[user]).all(axis=1))[0])]


def test_over_trials():
    found = simulate.over_trials([np.array([0.5, 0.7]), jnp.array([0.7, 0.9])])
    assert [(place, value.n, value.over) for place, value in found.items()] == [(0, 2, "trials"), (1, 2, "trials")]
    assert [value.mean for value in found.values()] == pytest.approx([0.6, 0.8])


def test_learned_weights_are_those_of_the_fit_and_of_the_new_users_answers():
    data = generate(WorldConfig(seen_users=30, unseen_users=6, train_prompts=20, test_prompts=10))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(data.num_responses, 5)).astype(np.float32)
    config = LoReConfig.quick(ranks=(1,), components=(), variances=(3.0,), shared_variances=(1.0,), steps=30)
    found = simulate.learned(data, features, config=config)
    votes = data.pairs("train", seen=True), data.pairs("validation", seen=True)
    fit = model_selection.fit(features, *votes, data.num_users, config=config)
    context = data.pairs("train", seen=False)
    unseen = np.flatnonzero(~data.seen)
    own = context._replace(user=np.searchsorted(unseen, context.user))
    weights = np.array(fit.weights)
    weights[unseen] = np.asarray(model_selection.adapt(fit, features, own, len(unseen)))
    test = data.pairs("test")
    z = found.rewards[test.chosen] - found.rewards[test.rejected]
    want = np.asarray(model_selection.predict(fit, features, jnp.asarray(weights), test))
    np.testing.assert_allclose(np.sum(z * found.weights[test.user], axis=1), want, rtol=1e-3, atol=1e-4)
    assert found.fit.chosen == fit.chosen
    assert np.abs(want).max() > 0
