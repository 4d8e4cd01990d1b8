"""How people agree, against plain loops in float64."""

import itertools

import numpy as np
import pytest

from pref_jax.data.checks.agreement import agreement, opposite_votes, split_half


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_the_share_of_agreeing_pairs_of_people(seed):
    rng = np.random.default_rng(seed)
    item, sign = rng.integers(7, size=40) * 11, rng.choice([-1, 1], size=40)
    found = agreement(item, sign)
    share, weight = [], []
    for one in np.unique(item):
        own = sign[item == one]
        if len(own) > 1:
            share.append(np.mean([a == b for a, b in itertools.combinations(own, 2)]))
            weight.append(len(own))
    assert found.agree == pytest.approx(np.average(share, weights=weight))
    assert (found.votes, found.items) == (sum(weight), len(weight))


def test_no_shared_reward_beats_the_ceiling():
    """Of many people whose probabilities are known, the best shared reward is right in E max(p, 1 - p)."""
    rng = np.random.default_rng(0)
    p = rng.beta(2, 1, size=400)
    sign = np.where(rng.random((400, 300)) < p[:, None], 1, -1)
    found = agreement(np.repeat(np.arange(400), 300), sign.ravel())
    assert found.agree == pytest.approx(np.mean(p**2 + (1 - p) ** 2), abs=5e-3)
    assert found.agree <= np.maximum(p, 1 - p).mean() <= found.ceiling


def test_agreement_of_nobody_and_of_everybody():
    nobody = agreement(np.arange(3), np.ones(3, int))
    assert (nobody.votes, nobody.items) == (0, 0)
    assert np.isnan(nobody.agree)
    assert agreement(np.zeros(4, int), np.ones(4, int))[2:] == (1.0, 1.0)
    assert agreement(np.zeros(2, int), np.array([1, -1]))[2:] == (0.0, 0.5)
    assert agreement(np.zeros(0, int), np.zeros(0, int)).votes == 0


def test_split_half_finds_the_reliability_of_means():
    """Users differ by N(0, 1), votes of one by N(0, 2²): means of m votes have reliability m / (m + 4)."""
    rng = np.random.default_rng(1)
    users, votes = 3000, 16
    value = rng.normal(size=(users, 1)) + 2 * rng.normal(size=(users, votes))
    found = split_half(np.repeat(np.arange(users) * 3, votes), value.ravel(), least=10, seed=0)
    assert found.users == users
    assert found.r == pytest.approx(8 / 12, abs=0.03)
    assert found.reliability == pytest.approx(16 / 20, abs=0.02)
    assert found.reliability == pytest.approx(2 * found.r / (1 + found.r))
    assert found.low < 8 / 12 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * (1 - found.r**2) / np.sqrt(users), rel=0.02)


def test_split_half_of_one_halving_is_the_correlation_of_its_halves():
    rng = np.random.default_rng(2)
    value = rng.normal(size=10)
    user = np.repeat(np.arange(5), 2)
    found = split_half(user, value, least=2, seed=3, halvings=1)
    pairs, rows = value.reshape(5, 2), np.arange(5)
    flips = np.array(list(itertools.product([0, 1], repeat=5)))
    every = [np.corrcoef(pairs[rows, flip], pairs[rows, 1 - flip]) for flip in flips]
    assert np.isclose([one[0, 1] for one in every], found.r).any()


@pytest.mark.parametrize(("user", "value"), [([], []), ([0], [1.0]), ([0, 0, 1, 1], [1.0] * 4), ([0] * 9, range(9))])
def test_split_half_of_too_little_is_nan(user, value):
    found = split_half(np.array(user, int), np.array(value, float), least=2, seed=0)
    assert np.isnan(found.r)
    assert np.isnan(found.reliability)


def test_constant_users_with_least_votes_do_not_count():
    found = split_half(
        np.repeat([0, 1, 2, 3], [4, 4, 4, 1]), np.repeat([0.0, 1.0, 2.0, 9.0], [4, 4, 4, 1]), least=3, seed=0
    )
    assert found.users == 3
    assert found.r == pytest.approx(1)


def test_opposite_votes_are_found_and_ties_oppose_nothing():
    user = np.array([0, 0, 0, 1, 1, 2, 2])
    item = np.array([5, 5, 5, 5, 6, 7, 7])
    sign = np.array([1, -1, 1, -1, 1, 1, 0])
    assert opposite_votes(user, item, sign) == (3, 1)
    assert opposite_votes(*np.zeros((3, 0), int)) == (0, 0)
