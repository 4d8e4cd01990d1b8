"""Best of n on the synthetic world: what is picked, what it is worth, and the report."""

import json
from typing import Any

import numpy as np
import pytest

from configs import best_of as config_file
from experiments import best_of
from experiments.best_of import BEST, OTHER, OWN, RANDOM, SHARED, Rewards
from experiments.studies import fitted_world
from pref_jax.data.sources.synthetic import world
from pref_jax.data.sources.synthetic.world import WorldConfig
from pref_jax.errors import UserError

SETTINGS = WorldConfig(
    tastes="uf_p_4", seen_users=30, unseen_users=10, train_prompts=8, test_prompts=6, responses_per_prompt=5
)


def test_the_truth_is_that_of_the_tables():
    tables, truth = world.generate(SETTINGS), world.truth(SETTINGS)
    assert truth.levels.shape == (tables.num_responses, 4)
    assert set(truth.levels.ravel()) == {1, 2, 3, 4, 5}
    utility = truth.levels @ truth.tastes.T
    for split, tests in (("train", False), ("test", True)):
        votes = tables.pairs(split)
        assert (utility[votes.chosen, votes.user] >= utility[votes.rejected, votes.user]).all()
        assert (truth.test[votes.chosen] == tests).all()
        assert (truth.prompt[votes.chosen] == truth.prompt[votes.rejected]).all()
    places = [world.lexicon.ATTRIBUTES.index(group) for group in tables.groups]
    np.testing.assert_array_equal(truth.tastes, np.eye(4)[places])


def test_what_is_picked_by_true_rewards_is_worth_what_it_should():
    truth = world.truth(SETTINGS)
    levels = truth.levels.astype(float)
    rewards = Rewards(shared=levels[:, 2], basis=levels, weights=truth.tastes)
    found = best_of.utilities(truth, rewards, np.random.default_rng(0))
    own = levels[truth.test].reshape(6, 5, 4)
    camp = truth.tastes.argmax(axis=1)
    np.testing.assert_allclose(found[RANDOM], own.mean(axis=(0, 1))[camp])
    np.testing.assert_allclose(found[BEST], own.max(axis=1).mean(axis=0)[camp])
    np.testing.assert_allclose(found[OWN], found[BEST])
    by_third = own[np.arange(6), own[:, :, 2].argmax(axis=1)].mean(axis=0)
    np.testing.assert_allclose(found[SHARED], by_third[camp])
    others = fitted_world.others(40, np.random.default_rng(0))
    assert sorted(others) == list(range(40))
    assert (others != np.arange(40)).all()
    np.testing.assert_allclose((found[OTHER] == found[OWN])[camp[others] == camp], True)
    assert (found[OTHER] < found[OWN]).any()


def test_a_gain_is_paired_by_seed():
    rows = [
        {"method": method, "seed": seed, "metrics": {"utility/a": value + seed}}
        for method, value in ((OWN, 2.0), (SHARED, 1.5))
        for seed in (0, 10, 20)
    ]
    found = best_of.gain(rows, OWN, SHARED, "utility/a")
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_it_runs_and_goes_on(tmp_path, capsys):
    config: Any = config_file.get_config("smoke")
    best_of.run(config, tmp_path)
    told = json.loads((tmp_path / "results.json").read_text())
    assert [(row["method"], row["seed"]) for row in told["rows"]] == [
        (name, seed) for seed in (0, 1) for name in best_of.MEANINGS
    ]
    for row in told["rows"]:
        assert all(1 <= value <= 5 for value in row["metrics"].values())
    assert (tmp_path / "plots" / "best_of.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report.md").read_text()
    assert all(name in report for name in best_of.MEANINGS)
    before = capsys.readouterr().out
    best_of.run(config, tmp_path)
    assert "a fit" in before
    assert "a fit" not in capsys.readouterr().out
    config.source.pairs_per_user = 5
    with pytest.raises(UserError, match="another config"):
        best_of.run(config, tmp_path)
