"""Deep LoRe on the tiny world: it trains, scores seen and unseen users alike, and is taken up where it was."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from configs import deep as deep_config
from experiments import compare, deep
from experiments.prepare import prepare
from experiments.runner.workspace import Workspace, workspaces
from pref_jax.errors import UserError
from pref_jax.eval.reporting.results import read_results
from pref_jax.files import read_json


def _config(decoders) -> Any:
    config: Any = deep_config.get_config("smoke")
    config.pretrain.folder = str(decoders)
    config.methods = ("deep LoRe",)
    return config


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture(scope="module")
def finished(decoders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    compare.run(_config(decoders), workdir)
    return next(workspaces(_config(decoders), workdir)), workdir


def test_it_is_scored_and_reported(finished):
    _, workdir = finished
    rows = read_results(workdir / "results.json")["rows"]
    assert [row["method"] for row in rows] == ["deep LoRe"]
    assert all(0 <= row["metrics"][f"{who}/accuracy"] <= 1 for row in rows for who in ("seen", "unseen"))
    assert "trained through the solver" in (workdir / "report.md").read_text()
    assert (workdir / "plots" / "training.png").is_file()


def other_batches(run: Workspace) -> Workspace:
    """The same run, which reads texts in batches of another size."""
    config: Any = copy.deepcopy(run.config)
    config.deep.eval_batch_size = 7
    return dataclasses.replace(run, config=config)


def test_margins_are_those_of_the_stored_model_read_text_by_text(finished):
    run, _ = finished
    config, folder = deep.model_of(run), run.method_folder(deep.METHOD)
    params = deep.load_params(run, config, folder)
    rewards = deep.response_rewards(other_batches(run), config, params)
    some = np.array([0, 3, len(rewards) - 1])
    texts = map(jnp.asarray, run.texts.tokens.take(some))
    own = deep.deep.text_rewards(config, params, run.text.params, *texts)
    np.testing.assert_allclose(rewards[some], own, rtol=1e-4, atol=1e-5)
    data = run.data
    weights = np.asarray(deep.solve_users(config, params, rewards, data))
    assert len(weights) == data.num_users
    spread = weights - np.asarray(params["prior"]["mean"])
    known = data.pairs(("train", "validation")).user
    assert (np.abs(spread).max(1) > 0)[np.unique(known)].all(), "seen and unseen users alike are solved"
    test = run.test_pairs
    z = np.asarray(rewards)[test.chosen] - np.asarray(rewards)[test.rejected]
    margins, facts = run.scores(deep.METHOD)
    np.testing.assert_allclose(margins, (z * weights[test.user]).sum(1), rtol=1e-4, atol=1e-5)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert facts["trainable_parameters"] == size == read_json(folder / "model" / "model.json")["trainable_parameters"]
    assert facts["seconds"] > facts["stage_seconds"]["train"] > 0


def test_test_answers_are_no_part_of_weights(finished):
    """Turning all test votes round changes no weight."""
    run, _ = finished
    config, data = deep.model_of(run), run.data
    params = deep.load_params(run, config, run.method_folder(deep.METHOD))
    rewards = deep.response_rewards(run, config, params)
    table = data.comparisons.to_pandas()
    turned = table["split"] == "test"
    table.loc[turned, ["chosen", "rejected"]] = table.loc[turned, ["rejected", "chosen"]].to_numpy()
    comparisons = pa.Table.from_pandas(table, schema=data.comparisons.schema, preserve_index=False)
    other = dataclasses.replace(data, comparisons=comparisons)
    before, after = (deep.solve_users(config, params, rewards, one) for one in (data, other))
    np.testing.assert_array_equal(before, after)


def test_a_finished_run_repeated_changes_no_number(finished, decoders):
    _, workdir = finished
    before = read_results(workdir / "results.json")["rows"]
    compare.run(_config(decoders), workdir)
    assert read_results(workdir / "results.json")["rows"] == before


def test_broken_off_in_training_it_ends_in_the_same_bits(finished, decoders, tmp_path, monkeypatch):
    run, _ = finished
    other = next(workspaces(_config(decoders), tmp_path))
    prepare(other)
    whole = deep.text_episodes

    def breaking(*arguments, **how):
        def look_up(number, batch):
            if number == 7:
                raise KeyboardInterrupt
            return batch

        return whole(*arguments, **how).map_with_index(look_up)

    monkeypatch.setattr(deep, "text_episodes", breaking)
    with pytest.raises(KeyboardInterrupt):
        deep.deep_lore(other)
    assert not (other.method_folder(deep.METHOD) / "model").exists()
    monkeypatch.undo()
    deep.deep_lore(other)
    ours, theirs = (one.method_folder(deep.METHOD) / "model/adapters/adapters.safetensors" for one in (other, run))
    assert ours.read_bytes() == theirs.read_bytes()
    np.testing.assert_array_equal(other.scores(deep.METHOD)[0], run.scores(deep.METHOD)[0])


def test_a_wrong_field_is_told(decoders, tmp_path):
    config = _config(decoders)
    config.deep.model.solver = "newton"
    run = next(workspaces(config, tmp_path))
    prepare(run)
    with pytest.raises(UserError, match="solver: is 'newton'; use one of ridge, logistic"):
        deep.deep_lore(run)
