"""Draws that sources share."""

import numpy as np
import pytest

from pref_jax.data.sources.common.simulated_users import SimulationConfig, tastes
from pref_jax.data.splits import draw_pairs
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
