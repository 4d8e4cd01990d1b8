"""What ties and strengths are worth: worlds that answer as asked, and a study from config to report."""

import json
from typing import Any

import numpy as np
import pytest

from configs import jsonl
from configs import vote_kinds as configs
from experiments import lore, vote_kinds
from experiments.embed import embed
from experiments.lore_methods import make_task
from experiments.prepare import prepare_votes
from experiments.runner.workspace import Workspace
from experiments.studies.answered_world import AnsweredConfig, draw
from experiments.studies.planted_world import PlantedConfig
from pref_jax.errors import UserError
from pref_jax.files import read_json

PLANTED = PlantedConfig(
    alpha=0.1, pairs=10, wrong=0.0, seen=200, unseen=20, tests=5, responses=300, features=8, directions=2
)


def test_answers_have_the_ties_and_strengths_that_were_asked_for():
    world, said = draw(AnsweredConfig(planted=PLANTED, noise=0.5, ties=0.3, strengths=3), 0)
    assert np.mean(world.train.tie) == pytest.approx(0.3, abs=0.01)
    assert np.mean(said.tie) == pytest.approx(0.3, abs=0.08)
    counts = np.bincount(world.train.strength[~world.train.tie].astype(int))
    assert counts[0] == 0
    assert counts[1:].min() > 0.3 * counts.sum()
    assert world.context.user.max() < world.num_unseen
    # Test pairs are as users truly prefer; what they say of them is wrong now and then.
    known = ~said.tie
    same = said.chosen[known] == world.test.chosen[known]
    assert 0.75 < same.mean() < 0.99


def test_stronger_answers_are_right_more_often():
    world, _ = draw(AnsweredConfig(planted=PLANTED, noise=0.7, strengths=3), 1)
    levels = world.features @ world.directions
    votes = world.train
    margin = np.einsum("pk,pk->p", levels[votes.chosen] - levels[votes.rejected], world.mixture[votes.user])
    right = [np.mean(margin[votes.strength == level] > 0) for level in (1, 2, 3)]
    assert right[0] < right[1] < right[2]


@pytest.mark.parametrize("change", [{"noise": 0.0}, {"ties": 1.0}, {"strengths": 0}])
def test_options_out_of_range(change):
    with pytest.raises(UserError, match="noise above 0"):
        AnsweredConfig(**{"planted": PLANTED, "noise": 0.5, **change})


def test_the_study_ends_with_gains_and_a_picture(tmp_path):
    config = configs.get_config("smoke")
    vote_kinds.run(config, tmp_path)
    gains = read_json(tmp_path / "gains.json")["40% ties, 3 strengths"]
    assert set(gains) == {
        f"{name}: {side}/accuracy" for name in ("shared", vote_kinds.GRAPH) for side in ("seen", "unseen")
    }
    report = (tmp_path / "report.md").read_text()
    assert "Gain by ties and strengths" in report
    assert (tmp_path / "plots" / "ties.png").stat().st_size > 0
    before = (tmp_path / "kinds" / "40% ties, 3 strengths" / "results.json").read_bytes()
    vote_kinds.run(config, tmp_path)
    assert (tmp_path / "kinds" / "40% ties, 3 strengths" / "results.json").read_bytes() == before


def test_ratings_reach_lore_in_a_run(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "user": f"u{u}",
            "prompt": f"Question {p}?",
            "response": f"Answer {a} to {p}.",
            "rating": int(rng.integers(1, 6)),
        }
        for u in range(8)
        for p in range(6)
        for a in range(3)
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: Any = jsonl.get_config("linear")
    config.methods, config.source.path = ("LoRe",), str(tmp_path / "votes.jsonl")
    config.lore.update({"ranks": (), "components": (), "clusters": 0, "line_search": "bisection"})
    work = Workspace(config, 0, tmp_path / "run" / "seed_0")
    lore.run(config, tmp_path / "run")
    task = make_task(work)
    assert task.ratings is not None
    known, held = task.ratings
    assert held is not None
    assert not len(task.train.user)
    assert len(known.user) + len(held.user) == len(work.data.rated(("train", "validation"), seen=True).user)
    assert 0 < len(held.user) < len(known.user)
    # Nothing that chooses was learned from.
    codes = [set(zip(part.user.tolist(), part.response.tolist(), strict=True)) for part in (known, held)]
    assert not codes[0] & codes[1]
    assert (tmp_path / "run" / "report.md").exists()


def test_lore_chooses_by_held_out_ties_in_a_run_too(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "user": f"u{u}",
            "prompt": f"Question {p}?",
            "responses": [f"Yes, {p}.", f"No, {p}."],
            **({"outcome": "tie"} if rng.random() < 0.4 else {"preference": int(rng.integers(2))}),
        }
        for u in range(8)
        for p in range(20)
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: Any = jsonl.get_config("linear")
    config.methods, config.source.path = ("LoRe",), str(tmp_path / "votes.jsonl")
    work = Workspace(config, 0, tmp_path / "run" / "seed_0")
    prepare_votes(work)
    embed(work)
    task = make_task(work)
    learned = work.data.pairs(("train", "validation"), seen=True, ties=True)
    assert len(task.train.user) + len(task.validation.user) == len(learned.user)
    for part in (task.train, task.validation):
        assert part.tie is not None
        assert 0 < part.tie.sum() < len(part.tie)
    responses = [set(part.chosen.tolist()) | set(part.rejected.tolist()) for part in (task.train, task.validation)]
    assert not responses[0] & responses[1]
