"""Planted worlds hold what they promise; the grid runs, goes on where it was cut off, and tells mistakes."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from configs import lore_planted
from experiments import linear, planted
from experiments.studies.planted_world import PlantedConfig, draw
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.errors import UserError
from pref_jax.eval.reporting.results import read_results

SMALL: dict[str, Any] = {"seen": 40, "unseen": 15, "tests": 20, "responses": 200, "features": 12, "directions": 3}
SMALL |= {"alpha": 0.1, "pairs": 15, "wrong": 0.0}


QUICK = LoReConfig.quick()


def small(**changes: Any) -> PlantedConfig:
    return PlantedConfig(**{**SMALL, **changes})


def test_a_world_is_drawn_as_its_config_says():
    config = small(pairs=10, wrong=0.25)
    world = draw(config, 1)
    assert world.features.shape == (400, 12)
    assert world.features.dtype == np.float32
    assert world.seen.tolist() == [True] * 40 + [False] * 15
    assert np.bincount(world.train.user).tolist() == [8] * 40
    assert np.bincount(world.validation.user).tolist() == [2] * 40
    assert np.bincount(world.context.user).tolist() == [10] * 15
    assert np.bincount(world.test.user).tolist() == [20] * 55
    # Nobody voted on a response of the test.
    voted = np.concatenate([side for votes in (world.train, world.validation, world.context) for side in votes[1:3]])
    assert voted.max() < 200 <= min(world.test.chosen.min(), world.test.rejected.min())
    for votes in (world.train, world.validation, world.context, world.test):
        assert (votes.chosen != votes.rejected).all()
    assert 0.7 < world.said.mean() < 0.8
    # Test votes are as a mixture of the directions says, and the head is the directions' mean.
    np.testing.assert_allclose(world.directions.T @ world.directions, np.eye(3), atol=1e-6)
    assert world.head is not None
    np.testing.assert_allclose(world.directions.mean(1), world.head, rtol=1e-6)


def test_equal_seeds_give_equal_worlds_and_others_do_not():
    config = small()
    one, again, other = draw(config, 3), draw(config, 3), draw(config, 4)
    for one_leaf, same in zip(*(jax.tree.leaves(dataclasses.asdict(drawn)) for drawn in (one, again)), strict=True):
        np.testing.assert_array_equal(one_leaf, same)
    assert not np.array_equal(one.features, other.features)


def test_users_who_are_all_alike_are_served_by_the_given_head():
    world = draw(small(alpha=None), 0)
    assert (linear.margins(world, planted.METHODS[planted.HEAD](world, 3, 0, QUICK)) > 0).all()
    different = draw(small(alpha=0.01), 0)
    assert 0.5 < (linear.margins(different, planted.METHODS[planted.HEAD](different, 3, 0, QUICK)) > 0).mean() < 0.9


def test_wrong_votes_name_the_worse_response():
    right, wrong = (draw(small(alpha=None, pairs=40, wrong=share), 5) for share in (0.0, 0.25))
    for world, share in ((right, 0.0), (wrong, 0.25)):
        difference = world.features[world.train.chosen] - world.features[world.train.rejected]
        assert abs((difference @ world.head < 0).mean() - share) < 0.03


@pytest.mark.slow
def test_what_is_learned_beats_what_is_given_where_tastes_differ():
    world = draw(small(seen=120, alpha=0.05, pairs=20), 2)
    found = {name: linear.margins(world, method(world, 3, 0, QUICK)) for name, method in planted.METHODS.items()}
    right = {name: float((margins > 0).mean()) for name, margins in found.items()}
    assert right[planted.LORE] > max(right[planted.SHARED], right[planted.HEAD]) + 0.05


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("planted")
    planted.run(lore_planted.get_config("smoke"), workdir)
    return workdir


def test_every_world_method_and_seed_has_a_row_and_the_report_its_tables(finished):
    config: Any = lore_planted.get_config("smoke")
    for pairs in config.pairs:
        rows = read_results(finished / "worlds" / f"alpha 0.1, {pairs} pairs, 0% wrong" / "results.json")["rows"]
        assert {(row["method"], row["seed"]) for row in rows} == set(itertools.product(config.methods, config.seeds))
        assert set(planted.METRICS) <= set(rows[0]["metrics"])
    report = (finished / "report.md").read_text()
    for title in planted.METRICS.values():
        assert f"## {title}" in report
    for picture in ("alpha_0.1_wrong_0_seen.png", "alpha_0.1_wrong_0_unseen.png"):
        assert (finished / "plots" / picture).stat().st_size > 1000


def test_a_grid_that_was_cut_off_goes_on(finished, monkeypatch):
    path = finished / "worlds" / "alpha 0.1, 5 pairs, 0% wrong" / "results.json"
    before = path.read_bytes()
    other = finished / "worlds" / "alpha 0.1, 6 pairs, 0% wrong" / "results.json"
    kept = read_results(other)["rows"]
    other.unlink()
    drawn = []

    def watched(config, seed):
        drawn.append((config.pairs, seed))
        return draw(config, seed)

    monkeypatch.setattr(planted, "draw", watched)
    planted.run(lore_planted.get_config("smoke"), finished)
    assert drawn == [(6, 0), (6, 1)]
    assert path.read_bytes() == before
    again = read_results(other)["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in kept]


def test_mistakes_are_told(tmp_path):
    config: Any = lore_planted.get_config("smoke")
    config.methods = ("LoRe", "LoRa")
    with pytest.raises(UserError, match="unknown LoRa; known: given head"):
        planted.run(config, tmp_path)
    for wrong in ({"pairs": 1}, {"wrong": 0.5}, {"alpha": 0.0}, {"alpha": -1.0}, {"directions": 13, "features": 12}):
        with pytest.raises(UserError, match=r"alpha is above 0|directions lie|are at least 2"):
            small(**wrong)
