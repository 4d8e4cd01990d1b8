"""Known responses of real ratings: how pairs are drawn, and the study from config to report."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny

from configs import jester_warm
from experiments import warm_pairs
from experiments.studies import warm_texts
from experiments.studies.warm_ratings import WarmConfig, draw
from experiments.studies.warm_texts import Texts
from pref_jax.errors import UserError
from pref_jax.files import read_json
from pref_jax.lm.text_model import as_responses, open_text

CONFIG = WarmConfig(seen=9, unseen=4, min_ratings=8, min_difference=0.5, most=6, validation=2, tests=5)


def ratings(people: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    found = rng.normal(size=(people, 12)).astype(np.float32)
    found[rng.random(found.shape) < 0.1] = np.nan
    found[0, :9] = np.nan  # too few
    return found


def test_pairs_are_of_the_ratings_and_never_twice():
    values = ratings()
    small, large = (draw(values, CONFIG, pairs=pairs, seed=1) for pairs in (2, 6))
    assert (len(small.train.user), len(large.train.user), len(large.context.user)) == (18, 54, 24)
    each = np.arange(54) % 6 < 2
    for one, other in zip(small.train[:3], large.train.take(each)[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(small.test[:3], large.test[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    every = [large.train, large.validation, large.test]
    keys = np.concatenate([np.stack([part.user, part.chosen, part.rejected], axis=1) for part in every])
    assert len(np.unique(keys, axis=0)) == len(keys) == 9 * 13
    # Some person's ratings explain all pairs of each user.
    with np.errstate(invalid="ignore"):
        for user in range(9):
            own = keys[keys[:, 0] == user]
            assert (values[:, own[:, 1]] - values[:, own[:, 2]] >= 0.5).all(axis=1).sum() == 1


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(UserError, match="7 per person; give 1 to 6"):
        draw(ratings(), CONFIG, pairs=7, seed=0)
    with pytest.raises(UserError, match=r"lower world\.seen or world\.unseen"):
        draw(ratings(8), CONFIG, pairs=2, seed=0)


def test_the_study_ends_with_a_report_and_is_not_done_again(tmp_path, monkeypatch):
    config: Any = jester_warm.get_config("smoke")
    warm_pairs.run(config, tmp_path)
    rows = read_json(tmp_path / "3_pairs" / "results.json")["rows"]
    assert [row["method"] for row in rows] == list(config.methods)
    assert all(0 <= row["metrics"][name] <= 1 for row in rows for name in warm_pairs.METRICS)
    report = (tmp_path / "report.md").read_text()
    assert "| 3 pairs per person |" in report
    monkeypatch.setattr(warm_pairs, "METHODS", dict.fromkeys(warm_pairs.METHODS))
    warm_pairs.run(config, tmp_path)
    config.methods = ("matrix factorization",)
    with pytest.raises(UserError, match="another config"):
        warm_pairs.run(config, tmp_path)


def test_wrong_settings_are_told(tmp_path):
    config = jester_warm.get_config()
    with pytest.raises(UserError, match=r"config\.source\.path is empty"):
        warm_pairs.run(config, tmp_path)
    config.methods = ("matrix factorization",)
    with pytest.raises(UserError, match="unknown matrix factorization; known: item values"):
        warm_pairs.run(config, tmp_path / "other")
    assert set(jester_warm.METHODS) | set(jester_warm.CAUSE) <= set(warm_pairs.METHODS)


def test_methods_that_read_texts_stand_beside_those_that_do_not(tmp_path):
    config: Any = jester_warm.get_config("texts,smoke")
    config.text.update({"base": str(tiny.reward_model(tmp_path / "base")), "blocks": 0, "max_length": 64})
    warm_pairs.run(config, tmp_path / "run")
    rows = read_json(tmp_path / "run" / "3_pairs" / "results.json")["rows"]
    assert [row["method"] for row in rows] == list(config.methods)
    assert all(0 <= row["metrics"][name] <= 1 for row in rows for name in warm_pairs.METRICS)
    config.text.base = ""
    with pytest.raises(UserError, match=r"--config\.text\.base"):
        warm_pairs.run(config, tmp_path / "other")


def test_the_lowest_blocks_read_as_they_do_in_the_whole(tmp_path):
    own: Any = jester_warm.get_config("texts")
    config = warm_texts.TextConfig(base=own.text.base, blocks=2, max_length=32)
    cut, whole = warm_texts.open_base(config), open_text(config.base, max_length=32, layer=2)
    tokens = cut.tokenize(as_responses(["Why?", "Who is there?"], ["To get to the other side.", "Nobody."]))
    assert cut.config.num_layers == 2
    np.testing.assert_allclose(cut.states(tokens), whole.states(tokens), atol=1e-5)
    with pytest.raises(UserError, match="give 1 to 6 blocks of an encoder"):
        warm_texts.open_base(dataclasses.replace(config, blocks=7))
    with pytest.raises(UserError, match="of an encoder"):
        warm_texts.open_base(dataclasses.replace(config, base=str(tiny.reward_model(tmp_path)), blocks=1))


def test_tables_hold_the_votes_of_the_world():
    world = draw(ratings(), CONFIG, pairs=3, seed=2)
    tables = warm_texts.preferences(world, Texts("Which?", [f"text {row}" for row in range(12)]))
    assert tables.seen.tolist() == [True] * 9 + [False] * 4
    for part, votes, shift in (("train", world.train, 0), ("test", world.test, 0), ("train", world.context, 9)):
        found = tables.pairs(part, seen=not shift)
        for column in ("chosen", "rejected"):
            np.testing.assert_array_equal(getattr(found, column), getattr(votes, column))
        np.testing.assert_array_equal(found.user, votes.user + shift)
