"""Personal baselines on the tiny world: scored and reported, resumed where they were."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from experiments import baselines, compare
from experiments.methods import HEADS, METHODS
from experiments.prepare import prepare
from experiments.runner.workspace import Workspace, workspaces
from pref_jax.baselines import head_training, on_features, on_transformer, p_rlhf
from pref_jax.eval.reporting.results import read_results
from pref_jax.train.method import was_resumed

NAMES = ("VPL (features)", "PAL-A", "GPO", "P-RLHF")


def _config(decoders: Any, methods: tuple[str, ...] = NAMES) -> Any:
    config: Any = quickstart.get_config("smoke")
    config.pretrain.folder = str(decoders)
    config.methods = methods
    config.baselines.steps = (4, 6)
    return config


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture(scope="module")
def finished(decoders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    compare.run(_config(decoders), workdir)
    return next(workspaces(_config(decoders), workdir)), workdir


def test_all_are_scored_and_reported_with_what_they_cost(finished):
    run, workdir = finished
    rows = read_results(workdir / "results.json")["rows"]
    assert [row["method"] for row in rows] == list(NAMES)
    assert all(0 <= row["metrics"][f"{who}/accuracy"] <= 1 for row in rows for who in ("seen", "unseen"))
    facts = {name: run.scores(name)[1] for name in NAMES}
    assert all(own["trainable_parameters"] > 0 and own["seconds"] > 0 for own in facts.values())
    assert [own["parameters_per_user"] for own in facts.values()] == [8, 4, 0, 32]
    assert [own["context_pairs"] for own in facts.values()] == [8, 8, 8, "none"]
    assert len(facts["VPL (features)"]["held_out_losses"]) == 2


def test_every_method_has_a_place_and_a_meaning():
    every = {*HEADS, *(f"{name} (features)" for name in HEADS), "P-RLHF"}
    assert every <= set(METHODS)
    assert set(HEADS) == set(head_training.HEADS)
    assert all(METHODS[name].sentence for name in every)


def test_unseen_users_share_p_rlhfs_generic_prompt_and_seen_ones_have_their_own(finished):
    run, _ = finished
    data, model, base = run.data, run.shared, run.text.params
    sizes = {"soft_tokens": run.baselines.soft_tokens, "num_users": int(data.seen.sum())}
    like = p_rlhf.init(model, base, jax.random.key(0), **sizes)
    params, _ = baselines._load(run, "P-RLHF", like)
    pairs, margins = run.test_pairs, run.scores("P-RLHF")[0]
    unseen = np.flatnonzero(~data.seen[pairs.user])[:3]
    seen = np.flatnonzero(data.seen[pairs.user])[:3]
    own = np.where(data.seen, head_training.seen_rows(data.seen), -1).astype(np.int32)
    for some in (unseen, seen):
        one, two = (
            p_rlhf.rewards(
                model, params, base, *map(jnp.asarray, run.texts.tokens.take(side[some])), own[pairs.user[some]] + 1
            )
            for side in (pairs.chosen, pairs.rejected)
        )
        np.testing.assert_allclose(margins[some], one - two, rtol=1e-3, atol=1e-5)
    assert np.abs(np.asarray(params["table"])).max() > 0


@pytest.mark.parametrize(("method", "module"), [("VPL (features)", on_features), ("GPO", on_transformer)])
def test_broken_off_in_training_it_ends_in_the_same_bits(finished, decoders, tmp_path, monkeypatch, method, module):
    run, _ = finished
    other: Workspace = next(workspaces(_config(decoders), tmp_path))
    prepare(other)
    whole = module.context_batches

    def breaking(*arguments, **how):
        def look_up(number, batch):
            if number == 5:
                raise KeyboardInterrupt
            return batch

        return whole(*arguments, **how).map_with_index(look_up)

    monkeypatch.setattr(module, "context_batches", breaking)
    with pytest.raises(KeyboardInterrupt):
        METHODS[method].run(other)
    assert not (other.method_folder(method) / "model").exists()
    monkeypatch.undo()
    resumed = was_resumed(other.method_folder(method))
    assert resumed or method == "GPO", "the first candidate was done"
    METHODS[method].run(other)
    ours, theirs = (one.method_folder(method) / "model/adapters/adapters.safetensors" for one in (other, run))
    assert ours.read_bytes() == theirs.read_bytes()
    np.testing.assert_array_equal(other.scores(method)[0], run.scores(method)[0])
    assert [one.scores(method)[1]["was_resumed"] for one in (other, run)] == [resumed, False]


def test_test_answers_reach_no_representation(finished):
    """Only training and validation answers are handed over, and an unseen user's representation follows from them."""
    run, _ = finished
    data = run.data
    states, _ = baselines._states(run)
    head = head_training.HEADS["VPL"](run.baselines)[0]
    params = head.init(jax.random.key(0), states.features.shape[1], int(data.seen.sum()))
    known = data.pairs(("train", "validation"))
    users = head_training.user_representations(head, params, states, known, data.seen, context=8, seed=0)
    fewer = type(known)(*(column[known.user != known.user[-1]] for column in known))
    without = head_training.user_representations(head, params, states, fewer, data.seen, context=8, seed=0)
    changed = np.abs(np.asarray(users) - np.asarray(without)).max(1) > 0
    assert np.flatnonzero(changed).tolist() == [known.user[-1]]
