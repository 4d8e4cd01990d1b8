"""Controls against their definitions, one pair or user at a time, and where there is nothing to say."""

import numpy as np
import pytest

from pref_jax.eval import controls


@pytest.mark.parametrize("seed", range(5))
def test_everyone_gets_the_parameters_of_another_of_the_same_side(seed):
    rng = np.random.default_rng(seed)
    seen = rng.random(40) < 0.6
    found = controls.another_user(seen, seed)
    assert sorted(found) == list(range(40))
    assert not np.any(found == np.arange(40))
    assert np.array_equal(seen[found], seen)


@pytest.mark.parametrize("seen", [[], [True], [True, False]])
def test_who_is_alone_keeps_their_own(seen):
    assert controls.another_user(np.array(seen, bool), 0).tolist() == list(range(len(seen)))


def test_the_share_of_a_gain_that_is_removed():
    assert controls.removed_share(0.8, 0.65, 0.6) == pytest.approx(0.75)
    assert controls.removed_share(0.8, 0.55, 0.6) == pytest.approx(1.25)
    assert controls.removed_share(0.6, 0.5, 0.6) is None


def test_predictions_that_turn_are_counted():
    margins, turned = np.array([1.0, -2.0, 0.5, 0.0, 3.0, 1.0]), np.array([-1.0, 1.0, 0.2, 1.0, np.nan, 0.0])
    assert controls.turned_share(margins, turned) == pytest.approx(2 / 4)
    assert controls.turned_share(margins[:1], np.array([np.nan])) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_judge_of_length_alone_is_at_chance_when_length_is_balanced(seed):
    rng = np.random.default_rng(seed)
    longer = np.where(rng.random(4000) < 0.7, 1.0, -1.0)
    assert np.mean(longer > 0) == pytest.approx(0.7, abs=0.03)
    assert controls.balanced_accuracy(longer, longer) == 0.5
    honest = np.where(rng.random(4000) < 0.8, 1.0, -1.0)
    assert controls.balanced_accuracy(honest, longer) == pytest.approx(0.8, abs=0.03)


def test_balanced_accuracy_counts_users_alike():
    user = np.array([0, 0, 0, 1, 0, 1])
    margins, told = np.array([1.0, 1, 1, -1, -1, 0]), np.array([1.0, 1, 1, 1, -1, -1])
    # Longer chosen: user 0 all right, user 1 wrong; shorter chosen: user 0 wrong, user 1 half.
    assert controls.balanced_accuracy(margins, told, user) == pytest.approx((0.5 + 0.25) / 2)
    assert controls.balanced_accuracy(margins, told) == pytest.approx((0.75 + 0.25) / 2)
    assert controls.balanced_accuracy(margins, np.ones(6)) is None


def test_who_is_served_worst():
    assert controls.worst_share(np.linspace(1, 0, 20)) == pytest.approx(np.mean([0, 1 / 19]))
    assert controls.worst_share(np.array([0.3, 0.9])) == 0.3
    assert controls.worst_share(np.zeros(0)) is None


@pytest.mark.parametrize("seed", range(3))
def test_collapse_shows_in_units_and_in_rank(seed):
    rng = np.random.default_rng(seed)
    users = np.concatenate([rng.normal(size=(50, 3)), np.full((50, 5), 2.0) + 1e-3 * rng.normal(size=(50, 5))], axis=1)
    assert controls.active_units(users) == 3 / 8
    found = controls.effective_rank(users)
    values = np.linalg.eigvalsh(np.cov(users.T))
    part = values[values > 1e-15] / values.sum()
    assert found == pytest.approx(np.exp(-np.sum(part * np.log(part))), rel=1e-6)
    assert controls.effective_rank(np.ones((50, 4))) == 0
    assert controls.effective_rank(np.ones((1, 4))) == 0
    assert controls.active_units(np.zeros((0, 4))) == 0
