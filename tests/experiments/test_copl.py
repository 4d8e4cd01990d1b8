"""CoPL's stages: run one by one they leave what one command leaves; a finished run loads; decoders are shared."""

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from configs import copl as copl_config
from configs import synthetic
from copl_jax.io import checkpoint
from copl_jax.reward import reward_model
from experiments import copl
from experiments.prepare import prepare
from experiments.reporting import summary
from experiments.reporting.summary import summarise
from experiments.runner.workspace import workspaces
from pref_jax.data.sources.synthetic import world
from pref_jax.errors import UserError
from pref_jax.eval.reporting.results import read_results
from pref_jax.files import read_json


def _config(decoders: Path) -> Any:
    config: Any = copl_config.get_config("smoke")
    config.pretrain.folder = str(decoders)
    return config


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture(scope="module")
def at_once(decoders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("at_once")
    copl.run(_config(decoders), workdir)
    return workdir


def _one(config: Any, workdir: Path):
    return next(workspaces(config, workdir))


def test_stages_one_by_one_in_any_order_that_their_needs_allow(at_once, decoders, tmp_path):
    config, rows = _config(decoders), []
    for order in (("graph", "reward", "adapt", "report"), ("graph", "adapt", "reward", "report")):
        workdir = tmp_path / "-".join(order)
        for stage in order:
            assert not (workdir / "results.json").exists()
            copl.run(config, workdir, stage)
        rows.append(read_results(workdir / "results.json")["rows"])
    rows.append(read_results(at_once / "results.json")["rows"])
    scores = [[(row["method"], row["metrics"], row["intervals"]) for row in some] for some in rows]
    assert scores[0] == scores[1] == scores[2]
    assert [method for method, *_ in scores[0]] == ["CoPL"]


def test_a_stage_that_lacks_another_names_its_command(decoders, tmp_path):
    config = _config(decoders)
    for stage in ("reward", "adapt", "report"):
        with pytest.raises(UserError, match=r"graph: not there yet; run python -m experiments.copl --stage=graph"):
            copl.run(config, tmp_path, stage)
    copl.run(config, tmp_path, "graph")
    with pytest.raises(UserError, match=r"adapted: not there yet; .* --stage=adapt"):
        copl.run(config, tmp_path, "report")
    copl.run(config, tmp_path, "adapt")
    with pytest.raises(UserError, match=r"model: not there yet; .* --stage=reward"):
        copl.run(config, tmp_path, "report")
    with pytest.raises(UserError, match=r"--stage=rewards: no such stage; give all, graph, reward, adapt, report"):
        copl.run(config, tmp_path, "rewards")


def test_seconds_are_those_of_all_stages(at_once, decoders):
    run = _one(_config(decoders), at_once)
    facts = run.scores(copl.METHOD)[1]
    stages = {"graph": "graph/graph.json", "adapt": "adapted/adapted.json", "reward": "copl/model/model.json"}
    assert facts["stage_seconds"] == {name: read_json(run.folder / file)["seconds"] for name, file in stages.items()}
    assert facts["seconds"] > sum(facts["stage_seconds"].values())


def test_a_run_at_once_is_not_told_as_resumed(at_once, decoders):
    """Though its head has left checkpoints before the transformer's training began."""
    run = _one(_config(decoders), at_once)
    assert any((run.method_folder(copl.METHOD) / "head").rglob("checkpoints/*"))
    assert not read_json(run.method_folder(copl.METHOD) / "model" / "model.json")["was_resumed"]
    assert not run.scores(copl.METHOD)[1]["was_resumed"]


def test_a_finished_run_loads_and_gives_the_rewards_that_were_scored(at_once, decoders):
    run = _one(_config(decoders), at_once)
    found = copl.load(run)
    config, base, (tokens, length) = found.config, found.texts.model.params, (found.texts.tokens, found.texts.length)
    pairs = run.data.pairs("test")
    some = slice(0, 40, 3)
    users = jnp.asarray(found.users[pairs.user[some]])
    texts = [[jnp.asarray(part) for part in tokens.take(rows[some], length)] for rows in (pairs.chosen, pairs.rejected)]
    chosen, rejected = (reward_model.rewards(config, found.params, base, ids, mask, users) for ids, mask in texts)
    margins = run.scores(copl.METHOD)[0][some]
    np.testing.assert_allclose(chosen - rejected, margins, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.responses, run.responses)


@pytest.mark.parametrize("refreshed", [True, False])
def test_seen_users_are_refreshed_if_asked(refreshed, at_once, decoders, tmp_path):
    workdir = Path(shutil.copytree(at_once, tmp_path / "copy"))
    (workdir / "config.json").unlink()
    config = _config(decoders)
    config.refresh_seen = refreshed
    run = _one(config, workdir)
    trained = run.users(adapted=False)
    shutil.rmtree(run.folder / "graph")
    copl.embed(run)
    again = run.users(adapted=False)
    np.testing.assert_allclose(np.linalg.norm(again[run.data.seen], axis=1), 1, rtol=1e-5)
    assert np.array_equal(again, trained) == refreshed  # `at_once` ran by the default
    facts = read_json(run.folder / "graph" / "graph.json")
    assert 0 <= facts["validation_accuracy"] <= 1
    assert 0 <= facts["validation_accuracy_refreshed"] <= 1


@pytest.mark.parametrize("method", copl.BALANCED)
def test_balanced_experts_are_a_method_on_the_same_graph(method, at_once, decoders, tmp_path):
    workdir = Path(shutil.copytree(at_once, tmp_path / "copy"))
    (workdir / "config.json").unlink()  # the same run with one more method
    config = _config(decoders)
    config.methods = (copl.METHOD, method)
    run = _one(config, workdir)
    before = (run.folder / "graph" / "graph.json").stat().st_mtime_ns
    copl.balanced(run, method=method)
    summarise(config, workdir)
    assert (run.folder / "graph" / "graph.json").stat().st_mtime_ns == before
    stored = checkpoint.load(run.method_folder(method) / "model" / "adapters", run.text.config)
    assert stored.config.gate.balance == copl.BALANCED[method]
    assert run.config.reward.gate.balance == "none"
    report = (workdir / "report.md").read_text()
    assert f"{method} against CoPL, seen users, seed 0" in report
    assert f"{method}: of the 8 experts of 4 gates, so many serve no seen user, by seed:" in report


def test_unseen_users_embeddings_are_a_stage_of_their_own(at_once, decoders):
    run = _one(_config(decoders), at_once)
    data = run.data
    early, late = run.users(adapted=False), run.users()
    np.testing.assert_array_equal(early[data.seen], late[data.seen])
    np.testing.assert_allclose(np.linalg.norm(late[data.seen], axis=1), 1, rtol=1e-5)
    assert not early[~data.seen].any()
    assert np.abs(late[~data.seen]).sum(axis=1).min() > 0


def test_a_decoder_is_pretrained_once_and_only_shared_by_equal_settings(at_once, decoders, tmp_path):
    config = _config(decoders)
    (folder,) = decoders.glob("decoder_*")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    config.source.seen_users = 20
    other = _one(config, tmp_path / "other")
    prepare(other)
    assert other.pretrain_folders[0] == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert read_json(folder / "pretrain.json")["settings"]["lm"]["family"] == "gemma"
    changes: list[tuple[str, Any]] = [
        ("source.marker_noise", 0.2),
        ("pretrain.optimizer.lr", 1e-3),
        ("pretrain.lm.num_heads", 2),
        ("pretrain.dialogues", 65),
        ("seeds", (1,)),
    ]
    homes = set()
    for number, (field, value) in enumerate(changes):
        config = _config(decoders)
        config.update_from_flattened_dict({field: value})
        homes.add(_one(config, tmp_path / str(number)).pretrain_folders[0])
    assert len(homes | {folder}) == 1 + len(changes)


def test_without_a_shared_folder_the_decoder_lies_in_the_run(tmp_path):
    config: Any = synthetic.get_config("smoke")
    config.pretrain.folder = ""
    run = _one(config, tmp_path)
    assert run.pretrain_folders == (run.folder / "backbone", run.folder / "pretrain")


def test_users_are_told_apart_by_votes_where_these_differ():
    sizes: Any = {"seen_users": 30, "unseen_users": 5, "train_prompts": 12, "test_prompts": 6}
    even = world.generate(world.WorldConfig(protocol="ALL", pairs_per_user=16, **sizes))
    uneven = world.generate(world.WorldConfig(protocol="AVG", **sizes))
    assert list(summary._kinds(even, by_votes=True)) == ["seen users", "unseen users"]
    assert list(summary._kinds(uneven, by_votes=False)) == ["seen users", "unseen users"]
    seen, unseen, few, more, told, silent = summary._kinds(uneven, by_votes=True).values()
    np.testing.assert_array_equal(seen, ~unseen)
    np.testing.assert_array_equal(few ^ more, seen)
    np.testing.assert_array_equal(told ^ silent, seen)
    known = uneven.pairs("train", seen=True)
    votes = np.bincount(known.user, minlength=35)
    assert votes[few].max() < summary.FEW <= votes[more].min()
    assert not known.controversial[silent[known.user]].any()
    assert set(known.user[known.controversial == 1]) == set(np.flatnonzero(told))
