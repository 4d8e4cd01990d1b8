"""Mixing CoPL with the shared reward: what the held-out answers prefer."""

from typing import Any

import numpy as np
import pytest
from scipy import optimize

from configs import quickstart
from experiments import baselines, copl
from experiments.methods import METHODS, SHARED
from experiments.prepare import prepare
from experiments.runner.workspace import HIDDEN, Workspace
from pref_jax.data.schema import prompt_ids
from pref_jax.errors import UserError
from pref_jax.files import write_json


def test_a_useless_personal_model_leaves_the_shared_reward():
    rng = np.random.default_rng(0)
    base = np.abs(rng.normal(size=4000)) + 0.2
    share, losses = baselines.best_mixture(base, -base)
    assert share == 0
    assert losses[0] == min(losses)


def test_a_better_personal_model_takes_over():
    rng = np.random.default_rng(1)
    personal = np.abs(rng.normal(size=4000)) + 1
    assert baselines.best_mixture(rng.normal(size=4000), personal)[0] == 1


def test_the_share_is_the_optimum_to_the_grids_width():
    rng = np.random.default_rng(2)
    base, personal = rng.normal(0.5, 1, 5000), rng.normal(0.6, 1.5, 5000)

    def loss(share: float) -> float:
        return float(np.log1p(np.exp(-((1 - share) * base + share * personal))).mean())

    found: Any = optimize.minimize_scalar(loss, bounds=(0, 1), method="bounded")
    exact = found.x
    assert 0.05 < exact < 0.95
    assert abs(baselines.best_mixture(base, personal)[0] - exact) <= 0.026


def test_huge_margins_stay_finite():
    assert np.isfinite(baselines.best_mixture(np.full(3, -1e6), np.full(3, 1e6))[1]).all()


def test_nothing_held_out_is_told(tmp_path):
    with pytest.raises(UserError, match="holdout_fraction above 0"):
        METHODS["CoPL + shrinkage"].run(Workspace(quickstart.get_config("smoke"), 0, tmp_path))


def test_what_it_is_chosen_by_is_unknown_to_the_graph_and_the_models(tmp_path):
    config: Any = quickstart.get_config("smoke")
    config.reward.holdout_fraction = 0.3
    run = Workspace(config, 0, tmp_path)
    prepare(run)
    data = run.data
    prompt = prompt_ids(data.responses["prompt"])
    learn, held = run.votes_by_prompt(0.3)
    graph, stop = run.graph_pairs(), run.graph_pairs("validation")
    asked = [set(prompt[pairs.chosen].tolist()) for pairs in (learn, graph, stop)]
    assert len(held.user) > 0
    for known in asked:
        assert not known & set(prompt[held.chosen].tolist())
    assert len(graph.user) + len(stop.user) == len(learn.user)
    config.reward.holdout_fraction = 0.0
    assert len(run.graph_pairs().user) == len(data.pairs("train", seen=True).user)


def test_its_margins_and_time_are_those_of_both_models(tmp_path, monkeypatch):
    config: Any = quickstart.get_config("smoke")
    config.reward.holdout_fraction = 0.2
    run, held = Workspace(config, 0, tmp_path), np.abs(np.random.default_rng(5).normal(size=200)) + 1
    monkeypatch.setattr(baselines, "shared", lambda run: None)
    monkeypatch.setattr(copl, "copl", lambda run: None)
    for method, seconds, sign in ((SHARED, 20.0, -1), (copl.METHOD, 30.0, 1)):
        folder = run.method_folder(method)
        (folder / "scores").mkdir(parents=True)
        np.save(folder / "held_out.npy", sign * held)
        np.save(folder / "scores" / "margins.npy", np.full(3, sign, np.float32))
        facts = {"answers": HIDDEN, "seconds": seconds, "parameters_per_user": sign, "context_pairs": 4}
        write_json(folder / "scores" / "facts.json", facts)
    METHODS["CoPL + shrinkage"].run(run)
    margins, facts = run.scores("CoPL + shrinkage")
    np.testing.assert_array_equal(margins, np.ones(3))
    assert (facts["share_of_copl"], facts["parameters_per_user"]) == (1, 1)
    assert 50 < facts["seconds"] < 60
