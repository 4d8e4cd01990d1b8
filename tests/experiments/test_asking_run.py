"""New people who are asked by the service: what they say, the study's figures by hand, and a small run."""

import json
import math
from typing import Any

import numpy as np
import pytest

import pref_jax
from configs import asking as config_file
from experiments import asking, demo
from experiments.asking import ARMS, ASKED, DRAWN, KNOWN, NEW, OTHER, PAGE, SEEN, UNKNOWN
from experiments.studies import english_world, fitted_world, simulated_people
from pref_jax.data.sources.synthetic import world
from pref_jax.data.sources.synthetic.world import WorldConfig
from pref_jax.errors import UserError
from pref_jax.serve.store.store import Store

EXPECTED = "expected_information"
SETTINGS = WorldConfig(
    tastes="dirichlet", dirichlet_alpha=0.5, seen_users=30, unseen_users=40, train_prompts=20, test_prompts=6
)


def rows(seed: int, seen: float, nobody: float, **curves: list[float]) -> list[dict[str, Any]]:
    """Rows of results of one seed; curves at 0, 4 and 8 answers."""
    found = [{"method": SEEN, "seed": seed, "metrics": {KNOWN: seen, UNKNOWN: nobody}}]
    for arm, curve in curves.items():
        metrics = {f"{NEW}/{n}": value for n, value in zip((0, 4, 8), curve, strict=True)}
        found.append({"method": {"asked": ASKED, "page": PAGE, "drawn": DRAWN}[arm], "seed": seed, "metrics": metrics})
    return found


def test_share_of_the_seen_users_gain():
    """They gained 0.2; new people begin elsewhere, at 0.5."""
    found = rows(3, 0.8, 0.6, asked=[0.5, 0.6, 0.72], drawn=[0.5, 0.48, 0.7])
    assert asking.shares(found, ASKED, 3) == pytest.approx({0: 0.0, 4: 0.5, 8: 1.1})
    assert asking.shares(found, DRAWN, 3) == pytest.approx({0: 0.0, 4: -0.1, 8: 1.0})
    assert asking.shares(rows(3, 0.6, 0.6, asked=[0.5, 0.6, 0.7]), ASKED, 3) == {}


@pytest.mark.parametrize(
    ("reached", "goal", "want"),
    [
        ({0: 0.0, 4: 0.5, 8: 1.0}, 0.9, 7.2),
        ({0: 0.0, 4: 0.5, 8: 1.0}, 0.5, 4.0),
        ({8: 1.0, 0: 0.0, 4: 0.9}, 0.9, 4.0),
        ({0: 0.0, 1: 1.2, 2: 0.1, 3: 1.0}, 0.9, 0.75),
        ({0: 0.0, 4: 0.5}, 0.9, math.inf),
        ({0: 0.95}, 0.9, 0.0),
        ({}, 0.9, math.inf),
    ],
)
def test_answers_needed(reached, goal, want):
    assert asking.needed(reached, goal) == pytest.approx(want)


def test_answers_needed_are_paired_and_the_goal_may_not_be_reached():
    found = rows(0, 0.8, 0.6, asked=[0.5, 0.7, 0.7], page=[0.5, 0.7, 0.7], drawn=[0.5, 0.6, 0.7])
    found += rows(1, 0.8, 0.6, asked=[0.5, 0.5, 0.7], page=[0.5, 0.5, 0.7], drawn=[0.5, 0.5, 0.6])
    found += rows(2, 0.6, 0.7, asked=[0.5, 0.5, 0.7], page=[0.5, 0.5, 0.7], drawn=[0.5, 0.5, 0.6])
    needed = asking.answers_needed(found, 8)
    assert needed[ASKED] == needed[PAGE] == pytest.approx([3.6, 7.6])
    assert needed[DRAWN] == pytest.approx([7.2, 8.0])
    told = asking.needed_told(needed, 8, 3)
    # Means of 3.6 and 7.6, of 7.2 and 8, and of 3.6 and 0.4; t of one degree of freedom is 12.706.
    assert f"{ASKED}: 5.6 ± 25.4 (3.6, 7.6)" in told
    assert f"{DRAWN}: 7.6 ± 5.1 (7.2, 8.0)" in told
    assert f"paired by world, {PAGE}: 2.0 ± 20.3" in told
    assert "1 of 6 times" in told
    assert "1 of 3 worlds" in told


def test_people_say_what_they_prefer_with_the_noise_of_the_world():
    truth, tables = world.truth(SETTINGS), world.generate(SETTINGS)
    pairs = demo.voted_pairs(tables, most=60)
    says = simulated_people.opinions(SETTINGS, truth, pairs, np.random.default_rng(0))
    ends = np.array([pair.id.split("-") for pair in pairs], int)
    texts = tables.responses["text"].to_pylist()
    assert [(pair.first, pair.second) for pair in pairs] == [(texts[a], texts[b]) for a, b in ends]
    gains = (truth.levels[ends[:, 0]] - truth.levels[ends[:, 1]]) @ truth.tastes[30:].T
    clear = np.abs(gains.T) > 0.01
    np.testing.assert_array_equal(says[clear], gains.T[clear] > 0)
    noisy = WorldConfig(**{**SETTINGS.__dict__, "label_noise": 0.2})
    said = simulated_people.opinions(noisy, truth, pairs, np.random.default_rng(0))
    assert 0.15 < (said != says).mean() < 0.25


def test_votes_of_the_world_have_its_noise():
    """By logistic noise of scale s the better of two that differ by d is named with probability sigmoid(d / s)."""
    config = WorldConfig(answer_noise=0.5)
    margins = world.voted_margins(config, np.full(20_000, 1.0), np.random.default_rng(0))
    assert (margins > 0).mean() == pytest.approx(1 / (1 + np.exp(-2)), abs=0.01)


def test_a_world_in_english_keeps_its_votes():
    tables = world.generate(SETTINGS)
    found, words = english_world.in_english(tables), english_world.english()
    assert found.comparisons.equals(tables.comparisons)
    assert found.responses.schema.equals(tables.responses.schema)
    before, after = tables.responses.to_pylist()[7], found.responses.to_pylist()[7]
    assert after["text"] == english_world.sentence(before["text"], words) != before["text"]
    assert after["prompt"][0]["content"] == english_world.sentence(before["prompt"][0]["content"], words)


def test_everybody_gets_another_person():
    found = fitted_world.others(40, np.random.default_rng(0))
    assert sorted(found) == list(range(40))
    assert (found != np.arange(40)).all()


def test_it_runs_and_goes_on(tmp_path, capsys):
    config: Any = config_file.get_config("smoke")
    asking.run(config, tmp_path)
    told = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in told["rows"]] == list(asking.MEANINGS)
    metrics = {row["method"]: row["metrics"] for row in told["rows"]}
    for arm in ARMS:
        assert list(metrics[arm]) == [f"{NEW}/{n}" for n in config.points]
        assert metrics[arm][f"{NEW}/0"] == metrics[ASKED][f"{NEW}/0"], "all begin with nobody's weights"
    assert metrics[OTHER] != metrics[ASKED]
    assert (tmp_path / "plots" / "asking.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report.md").read_text()
    assert all(name in report for name in asking.MEANINGS)
    _votes_lie_in_the_store(config, tmp_path / "seed_0")
    _the_page_shows_what_was_chosen_before_the_last_answer(tmp_path / "seed_0")
    _a_pool_that_is_too_small_is_told(config, tmp_path / "seed_0")
    before = capsys.readouterr().out
    asking.run(config, tmp_path)
    assert "a fit" in before
    assert "a fit" not in capsys.readouterr().out
    config.pool = 5
    with pytest.raises(UserError, match="another config"):
        asking.run(config, tmp_path)


def _votes_lie_in_the_store(config, folder):
    """What new people were asked and said, which the saved model has not learned."""
    most, people = config.points[-1], config.source.unseen_users
    with Store.open(f"sqlite:///{folder}/votes.db") as store:
        assert len(store.pairs(simulated_people.POOL)) == config.pool
        assert {user.id for user in store.users("", 100)} == {
            f"{a}-{n}" for a in ("asked", "page", "drawn") for n in range(people)
        }
        for arm, rule in (("asked", EXPECTED), ("page", EXPECTED), ("drawn", "random")):
            votes = store.votes(f"{arm}-0")
            assert len({vote.pair for vote in votes}) == len(votes) == most
            assert {vote.asked for vote in votes} == {rule}
    model = pref_jax.load(folder / "model")
    assert len(model.users) == config.source.seen_users


def _the_page_shows_what_was_chosen_before_the_last_answer(folder):
    with Store.open(f"sqlite:///{folder}/votes.db") as store:
        shown = {arm: [vote.pair for vote in store.votes(f"{arm}-0")] for arm in ("asked", "page")}
        votes = {"votes": [_sent(vote) for vote in store.votes("asked-0")[:1]]}
    with asking.served(folder) as client:

        def chosen(count: int) -> list[str]:
            answer = client.post("/v1/users/new/ask", json={"pool": simulated_people.POOL, "count": count})
            return [pair["id"] for pair in answer.json()["pairs"]]

        assert shown["page"][:2] == chosen(asking.AHEAD)[:2]
        assert shown["asked"][:1] == chosen(1)
        assert client.post("/v1/users/new/votes", json=votes).status_code == 200
        assert shown["asked"][1:2] == chosen(1)


def _sent(vote):
    return {name: getattr(vote, name) for name in ("prompt", "first", "second", "choice", "pair", "asked")}


def _a_pool_that_is_too_small_is_told(config, folder):
    with Store.open(f"sqlite:///{folder}/votes.db") as store:
        pairs = store.pairs(simulated_people.POOL)
    says, more = np.ones(len(pairs), bool), [config.pool + 1]
    with asking.served(folder) as client:
        with pytest.raises(UserError, match=f"no pair left after {config.pool} answers"):
            simulated_people.answer_asked(client, "late", pairs, says, more)
        with pytest.raises(UserError, match=f"no pair left after {config.pool} answers"):
            simulated_people.answer_asked(client, "later", pairs, says, more, ahead=3)
        with pytest.raises(UserError, match=f"the pool has {config.pool} pairs; give it {config.pool + 1} or more"):
            simulated_people.answer_drawn(client, "last", pairs, says, more, np.random.default_rng(0))
        with pytest.raises(UserError, match="the service answered 404"):
            simulated_people.weights(client, "nobody")
