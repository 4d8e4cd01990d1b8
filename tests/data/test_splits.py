"""Draws that sources share."""

import numpy as np
import pytest

from pref_jax.data.sources.common.simulated_users import SimulationConfig, tastes
from pref_jax.data.splits import draw_pairs, hold_out_new, whole_choices
from pref_jax.errors import UserError


@pytest.mark.parametrize("pool", [40, 50, 60, 400])
def test_pairs_of_a_user_are_distinct_and_drawn_evenly(pool):
    """From users who answer one pair to those who answer all there are, which redrawing would take long to find."""
    counts = np.tile([1, 7, 33, 40], 500)
    drawn = draw_pairs(counts, pool, np.random.default_rng(pool), fix="")
    assert np.array_equal(np.bincount(drawn.user), counts)
    assert drawn.pick.min() >= 0
    assert len(np.unique(drawn.user * pool + drawn.pick)) == counts.sum()
    assert np.array_equal(np.flatnonzero(drawn.last), np.cumsum(counts) - 1)
    for count in (1, 7, 33, 40):
        times = np.bincount(drawn.pick[counts[drawn.user] == count], minlength=pool)
        wanted = 500 * count / pool
        assert len(times) == pool
        assert np.abs(times - wanted).max() <= 5 * np.sqrt(wanted * (1 - count / pool)) + 4


def test_everybody_answers_everything():
    drawn = draw_pairs(np.full(3000, 300), 300, np.random.default_rng(0), fix="")
    assert np.array_equal(np.sort(drawn.pick.reshape(3000, 300), axis=1), np.tile(np.arange(300), (3000, 1)))
    assert (drawn.pick.reshape(3000, 300)[:, 0] == 0).mean() < 0.02
    with pytest.raises(UserError, match="lower it: a user is to answer 4 of a pool of 3 pairs"):
        draw_pairs(np.array([1, 4]), 3, np.random.default_rng(0), fix="lower it")


def test_tastes_are_as_many_of_each_among_seen_and_unseen_users():
    survey = SimulationConfig(seen_users=10, unseen_users=7, pairs_per_user=2)
    drawn = [tastes(survey, 4, np.random.default_rng(seed)) for seed in range(20)]
    for one in drawn:
        assert np.bincount(one[:10]).tolist() == [3, 3, 2, 2]
        assert np.bincount(one[10:]).tolist() == [2, 2, 2, 1]
    assert len({tuple(one) for one in drawn}) == 20


@pytest.mark.parametrize("pairs", [1, 2, 9])
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.99])
def test_what_is_held_out_is_new_and_never_empty_or_all(pairs, fraction):
    rng = np.random.default_rng(pairs)
    pair, user = np.arange(60) % pairs, rng.integers(4, size=60)
    held = hold_out_new(pair, user, fraction, np.random.default_rng(0))
    assert 0 < held.sum() < 60
    unit = pair if pairs > 1 else np.arange(60)
    assert not set(unit[held]) & set(unit[~held])
    if pairs == 1:
        assert set(user[~held]) == set(user)


def test_of_one_vote_each_nothing_is_held_out():
    assert not hold_out_new(np.zeros(3, int), np.arange(3), 0.2, np.random.default_rng(0)).any()


def test_rows_of_one_choice_stay_together():
    rng = np.random.default_rng(3)
    choice, held = rng.integers(-1, 8, size=50), rng.random(50) < 0.3
    whole = whole_choices(choice, held)
    assert (whole[choice < 0] == held[choice < 0]).all()
    for one in range(8):
        assert (whole[choice == one] == held[choice == one][:1]).all()
