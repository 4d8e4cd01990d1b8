"""Adaptation of unseen users against a dense reference, its corner cases, and the right cluster at the end."""

from typing import Any

import jax
import numpy as np
import pytest

from copl_jax.graph import cold_start as adapting
from copl_jax.graph import signed_graph, training
from copl_jax.graph.settings import fast_config
from pref_jax.comparisons import Comparisons, concatenate
from pref_jax.errors import UserError


def adapt(**inputs: Any) -> adapting.ColdStart:
    return adapting.cold_start(**inputs)


def as_pairs(user, chosen, rejected) -> Comparisons:
    user, chosen, rejected = (np.asarray(rows, np.int32) for rows in (user, chosen, rejected))
    return Comparisons(user, chosen, rejected, np.full(len(user), -1, np.int8), np.arange(len(user)))


def random_pairs(rng, users, count, num_responses) -> Comparisons:
    chosen = rng.integers(0, num_responses, count)
    rejected = (chosen + rng.integers(1, num_responses, count)) % num_responses
    return as_pairs(rng.choice(users, count), chosen, rejected)


def reference(users, responses, seen, train_pairs, context, unseen, temperature):
    """The paper's two-hop neighbours, user by user."""
    chose = np.zeros((len(users), len(responses)), bool)
    chose[train_pairs.user, train_pairs.chosen] = True
    embeddings, widened, sizes = [], [], []
    for who in unseen:
        own = context.user == who
        near = np.flatnonzero(seen & chose[:, context.chosen[own]].any(1))
        sizes.append(len(near))
        widened.append(not len(near))
        near = near if len(near) else np.flatnonzero(seen)
        margins = users[near] @ (responses[context.chosen[own]] - responses[context.rejected[own]]).T
        fits = -np.log1p(np.exp(-margins)).mean(1) if own.any() else np.zeros(len(near))
        weights = np.exp((fits - fits.max()) / temperature)
        embeddings.append(weights @ users[near] / weights.sum())
    return np.array(embeddings), np.array(widened), np.array(sizes)


def example(seed, *, num_users=90, num_responses=60, count=160) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    users = rng.standard_normal((num_users, 6))
    users /= np.linalg.norm(users, axis=1, keepdims=True)
    seen = np.arange(num_users) < num_users - 20
    unseen = rng.permutation(np.flatnonzero(~seen))[:17]
    # Users outside of `seen` and `unseen` stand in both lists of pairs and must not count.
    return {
        "users": users,
        "responses": rng.standard_normal((num_responses, 6)),
        "seen": seen,
        "train_pairs": random_pairs(rng, num_users - 5, count, num_responses),
        "context": random_pairs(rng, np.arange(num_users - 20, num_users - 2), 60, num_responses),
        "unseen": unseen,
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [1 << 20, 25])
def test_is_the_dense_formula(seed, chunk, monkeypatch):
    monkeypatch.setattr(adapting, "_CHUNK", chunk)
    inputs = example(seed)
    with jax.enable_x64(True):
        got = adapt(**inputs, temperature=0.2)
    embeddings, widened, sizes = reference(**inputs, temperature=0.2)
    np.testing.assert_allclose(got.embeddings, embeddings, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(got.used_all_users, widened)
    np.testing.assert_array_equal(got.num_neighbours, sizes)


def test_seen_users_are_refreshed_and_answers_may_come_later():
    inputs = example(3)
    rng = np.random.default_rng(4)
    seen = np.flatnonzero(inputs["seen"])
    rows = np.concatenate([rng.permutation(seen)[:9], inputs["unseen"][:5]])
    first, later = (random_pairs(rng, rows, count, 60) for count in (30, 40))
    every = concatenate([first, later])
    # What is asked for last is what counts: earlier answers leave nothing behind.
    with jax.enable_x64(True):
        for context in (first, every):
            asked = {**inputs, "unseen": rows, "context": context}
            got = adapt(**asked, temperature=0.2)
            embeddings, widened, sizes = reference(**asked, temperature=0.2)
            np.testing.assert_allclose(got.embeddings, embeddings, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(got.num_neighbours, sizes)
            np.testing.assert_array_equal(got.used_all_users, widened)
    # Contradictory answers cancel out: nobody explains one half of them better without losing on the other.
    back = Comparisons(first.user, first.rejected, first.chosen, first.controversial, first.row)
    both = concatenate([first, back])
    assert np.isfinite(adapt(**{**inputs, "unseen": rows, "context": both}).embeddings).all()


@pytest.mark.parametrize("seed", range(3))
def test_refreshed_users_are_the_formula_on_their_own_answers(seed):
    inputs = example(10 + seed)
    del inputs["context"], inputs["unseen"]
    who = np.flatnonzero(inputs["seen"])
    with jax.enable_x64(True):
        fresh = adapting.reembed_seen_users(**inputs)
    expected, *_ = reference(**inputs, context=inputs["train_pairs"], unseen=who, temperature=0.07)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(fresh[who], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(fresh[~inputs["seen"]], inputs["users"][~inputs["seen"]])


def test_refreshing_brings_strays_back_to_their_like():
    """Two camps around opposite centres, a tenth of the users put into the wrong one; 8 answers each."""
    rng = np.random.default_rng(6)
    camp, stray = rng.integers(0, 2, 200), rng.random(200) < 0.1
    centres = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    users = training.normalised(centres[camp ^ stray] + 0.3 * rng.standard_normal((200, 3)))
    responses = rng.standard_normal((80, 3))
    draws = random_pairs(rng, np.arange(200), 1600, 80)
    first, second = np.minimum(draws.chosen, draws.rejected), np.maximum(draws.chosen, draws.rejected)
    wins = np.sum(centres[camp[draws.user]] * (responses[first] - responses[second]), axis=1) > 0
    train_pairs = as_pairs(draws.user, np.where(wins, first, second), np.where(wins, second, first))
    fresh = adapting.reembed_seen_users(
        users=users, responses=responses, seen=np.ones(200, bool), train_pairs=train_pairs
    )
    assert (np.argmax(users @ centres.T, axis=1) == camp).mean() < 0.95
    assert (np.argmax(fresh @ centres.T, axis=1) == camp).mean() > 0.98


def test_corner_cases():
    """User 4: neighbours; 5: a response nobody seen chose; 6: no pair; 7: chose what only the unseen user 5 chose."""
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "users": np.eye(8, 3) + rng.standard_normal((8, 3)) * 0.1,
        "responses": rng.standard_normal((6, 3)),
        "seen": np.arange(8) < 4,
        "train_pairs": as_pairs([0, 1, 1, 5], [0, 0, 1, 3], [1, 2, 2, 2]),
        "context": as_pairs([4, 4, 5, 7, 7], [0, 0, 5, 3, 3], [2, 2, 0, 1, 1]),
        "unseen": np.array([4, 5, 6, 7]),
    }
    with jax.enable_x64(True):
        got = adapt(**inputs)
    embeddings, widened, _ = reference(**inputs, temperature=0.07)
    np.testing.assert_allclose(got.embeddings, embeddings, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(got.num_neighbours, [2, 0, 0, 0])
    np.testing.assert_array_equal(got.used_all_users, widened)
    np.testing.assert_array_equal(got.used_all_users, [False, True, True, True])
    np.testing.assert_allclose(got.embeddings[2], inputs["users"][:4].mean(0))


def test_nobody_to_adapt_and_nothing_known():
    inputs = example(1)
    none = as_pairs([], [], [])
    got = adapt(**inputs | {"unseen": np.zeros(0, np.int64)})
    assert got.embeddings.shape == (0, 6)
    got = adapt(**inputs | {"train_pairs": none})
    assert got.used_all_users.all()
    assert np.isfinite(got.embeddings).all()
    got = adapt(**inputs | {"context": none})
    mean = inputs["users"][inputs["seen"]].mean(0)
    np.testing.assert_allclose(got.embeddings, np.tile(mean, (17, 1)), rtol=1e-6)


def test_large_margins_stay_finite():
    inputs = example(2)
    got = adapt(**inputs | {"responses": inputs["responses"] * 1e4}, temperature=1e-3)
    assert np.isfinite(got.embeddings).all()
    np.testing.assert_array_less(np.linalg.norm(got.embeddings, axis=1), 1 + 1e-5)


def test_one_more_user_compiles_nothing():
    inputs = example(3)
    adapt(**inputs)
    program: Any = adapting._score
    before = program._cache_size()
    for unseen in (inputs["unseen"][:12], inputs["unseen"][:9], inputs["unseen"][::-1]):
        adapt(**inputs | {"unseen": unseen})
    assert program._cache_size() == before


def test_order_of_users_and_pairs_is_of_no_matter():
    inputs = example(4)
    rng = np.random.default_rng(0)
    order, mix = rng.permutation(17), rng.permutation(60)
    context = inputs["context"].take(mix)
    before = adapt(**inputs)
    after = adapt(**inputs | {"context": context, "unseen": inputs["unseen"][order]})
    np.testing.assert_allclose(after.embeddings, before.embeddings[order], rtol=1e-4, atol=1e-5)


def test_unseen_users_land_among_their_like():
    """Two groups that mostly disagree on 150 pairs of responses; 300 users seen, 60 unseen with 8 pairs each."""
    rng = np.random.default_rng(5)
    group = rng.integers(0, 2, 360)
    quality = rng.standard_normal((2, 150, 2))

    def draw(users, each):
        user = np.repeat(users, each)
        prompt = rng.integers(0, 150, len(user))
        best = quality[group[user], prompt].argmax(-1)
        return as_pairs(user, 2 * prompt + best, 2 * prompt + 1 - best)

    train, validation = draw(np.arange(300), 7), draw(np.arange(300), 1)
    made = signed_graph.build(train.user, train.chosen, train.rejected, num_users=300, num_responses=300)
    fitted = training.fit(fast_config(dim=32, num_layers=3), made, train, validation, jax.random.key(0))
    users = np.concatenate([fitted.users, np.full((60, 32), np.nan, np.float32)])  # not to be read
    unseen = np.arange(300, 360)
    got = adapt(
        users=users,
        responses=fitted.responses,
        seen=np.arange(360) < 300,
        train_pairs=train,
        context=draw(unseen, 8),
        unseen=unseen,
    )
    centres = np.stack([fitted.users[group[:300] == g].mean(0) for g in (0, 1)])
    assert ((got.embeddings @ centres.T).argmax(1) == group[unseen]).mean() > 0.95
    test = draw(unseen, 30)
    own = got.embeddings[test.user - 300]
    margins = np.sum(own * (fitted.responses[test.chosen] - fitted.responses[test.rejected]), 1)
    assert (margins > 0).mean() > 0.9
    assert not got.used_all_users.any()


def test_mistakes_are_told():
    inputs = example(0)
    with pytest.raises(UserError, match="no seen users"):
        adapt(**inputs | {"seen": np.zeros(90, bool)})
    with pytest.raises(UserError, match="more than once"):
        adapt(**inputs | {"unseen": np.array([80, 80])})
    with pytest.raises(UserError, match="temperature is 0"):
        adapt(**inputs, temperature=0.0)
