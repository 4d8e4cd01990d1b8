"""Reliability of raters: planted differences are found, noise is not, and degenerate raters are left out."""

from typing import Any

import numpy as np
import pytest

from pref_jax.eval.split_half import split_half, taste_reliability


@pytest.mark.parametrize("seed", range(3))
def test_planted_differences_have_the_reliability_of_their_variances(seed):
    """Of users' means of variance v, read from n votes of variance s: halves correlate by v / (v + s / (n / 2))."""
    rng = np.random.default_rng(seed)
    users, votes = 400, 30
    mean = rng.normal(size=users)
    user = rng.permutation(np.repeat(np.arange(users), votes))
    values = mean[user] + 3 * rng.normal(size=len(user))
    found: Any = split_half(values, user)
    want = 1 / (1 + 9 / (votes / 2))
    assert found.users == users
    assert found.halves == pytest.approx(want, abs=0.08)
    assert found.whole == pytest.approx(2 * found.halves / (1 + found.halves))
    assert found.low < found.halves < found.high


def test_the_correlation_is_numpys():
    rng = np.random.default_rng(3)
    user = np.repeat(np.arange(5), 2)
    values = rng.normal(size=10)
    # Of two votes each half is one of them, in either order.
    found = split_half(values, user, fewest=2, splits=2000)
    flips = [(np.arange(32)[:, None] >> k) & 1 for k in range(5)]
    pairs = values.reshape(5, 2)
    every = []
    for flip in np.concatenate(flips, axis=1):
        one, two = pairs[np.arange(5), flip], pairs[np.arange(5), 1 - flip]
        every.append(np.corrcoef(one, two)[0, 1])
    assert found.halves == pytest.approx(np.mean(every), abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_not_reliable(seed):
    rng = np.random.default_rng(seed)
    found: Any = split_half(rng.choice([-1.0, 1.0], 6000), np.repeat(np.arange(200), 30), seed=seed)
    assert abs(found.halves) < 0.15
    assert found.low < 0.05


def test_users_of_few_votes_and_users_who_are_all_alike_tell_nothing():
    assert split_half(np.zeros(0), np.zeros(0, int)) == (None, None, None, None, 0)
    assert split_half(np.ones(40), np.repeat(np.arange(20), 2)).users == 0
    assert split_half(np.ones(80), np.repeat(np.arange(4), 20)) == (None, None, None, None, 4)


def test_tastes_of_their_own_are_told_from_those_that_everyone_has():
    rng = np.random.default_rng(5)
    users, votes, dim = 60, 40, 8
    own = np.where(np.arange(users) < 30, 1.5, 0.0)[:, None] * rng.normal(size=(users, dim))
    user = np.repeat(np.arange(users), votes)
    raw = rng.normal(size=(len(user), dim))
    taste = own + np.eye(dim)[0] * 2
    sign = np.where(rng.random(len(user)) < 1 / (1 + np.exp(-np.sum(raw * taste[user], axis=1))), 1, -1)
    found = taste_reliability(sign[:, None] * raw, user, users + 1)
    assert np.isnan(found[users]), "nobody with that number has voted"
    assert found[:30].mean() > found[30:60].mean() + 0.2
    assert abs(found[30:60].mean()) < 0.15
    assert np.isnan(taste_reliability(np.zeros((0, 3)), np.zeros(0, int), 2)).all()
    assert np.isfinite(taste_reliability(np.zeros((40, 3)), np.zeros(40, int), 1)).all()
