"""Personal baselines on the tiny world: scored and reported, taken up where they were; soft prompts are tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import quickstart
from copl_jax.reward import lora_experts
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from experiments import compare
from experiments.baselines import on_features, on_transformer, p_rlhf, personal, settings
from experiments.prepare import prepare
from experiments.reporting import summary
from experiments.runner import workspace
from experiments.runner.workspace import Workspace, workspaces
from pref_jax.eval.reporting.results import read_results
from pref_jax.lm import backbone
from pref_jax.lm.pairs import pair_states

METHODS = ("VPL (features)", "PAL-A", "GPO", "P-RLHF")


def _config(decoders: Any, methods: tuple[str, ...] = METHODS) -> Any:
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
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(0 <= row["metrics"][f"{who}/accuracy"] <= 1 for row in rows for who in ("seen", "unseen"))
    facts = {name: run.scores(name)[1] for name in METHODS}
    assert all(own["trainable_parameters"] > 0 and own["seconds"] > 0 for own in facts.values())
    assert [own["parameters_per_user"] for own in facts.values()] == [8, 4, 0, 32]
    assert [own["context_pairs"] for own in facts.values()] == [8, 8, 8, "none"]
    assert len(facts["VPL (features)"]["held_out_losses"]) == 2


def test_every_method_has_a_place_and_a_meaning():
    every = {*on_features.METHODS, *on_transformer.METHODS, p_rlhf.METHOD}
    assert every <= set(compare.METHODS)
    assert every <= set(summary.MEANINGS)


def test_unseen_users_share_p_rlhfs_generic_prompt_and_seen_ones_have_their_own(finished):
    run, _ = finished
    data, folder = run.data, run.method_folder(p_rlhf.METHOD)
    model, size = on_transformer.open_model(run), settings.read(run).soft_tokens
    like = p_rlhf.init(model, jax.random.key(0), size, int(data.seen.sum()), 0)
    params, _ = on_transformer.load_trained(folder, model, like)
    pairs, margins = workspace.test_pairs(data), run.scores(p_rlhf.METHOD)[0]
    unseen = np.flatnonzero(~data.seen[pairs.user])[:3]
    seen = np.flatnonzero(data.seen[pairs.user])[:3]
    own = np.where(data.seen, personal.seen_rows(data.seen), -1).astype(np.int32)
    for some in (unseen, seen):
        one, two = (
            p_rlhf.rewards(
                model.config,
                params,
                model.base,
                *map(jnp.asarray, model.tokens.take(side[some])),
                jnp.asarray(own[pairs.user[some]]),
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
        compare.METHODS[method](other)
    assert not (other.method_folder(method) / "model").exists()
    monkeypatch.undo()
    taken_up = workspace.was_resumed(other.method_folder(method))
    assert taken_up or method == "GPO", "the first candidate was done"
    compare.METHODS[method](other)
    ours, theirs = (one.method_folder(method) / "model/adapters/adapters.safetensors" for one in (other, run))
    assert ours.read_bytes() == theirs.read_bytes()
    np.testing.assert_array_equal(other.scores(method)[0], run.scores(method)[0])
    assert [one.scores(method)[1]["was_resumed"] for one in (other, run)] == [taken_up, False]


def test_test_answers_reach_no_representation(finished):
    """Only training and validation answers are handed over, and an unseen user's representation follows from them."""
    run, _ = finished
    data = run.data
    states, _ = on_features.load_states(run, data)
    head = settings.HEADS["VPL"](settings.read(run))[0]
    params = head.init(jax.random.key(0), states.features.shape[1], int(data.seen.sum()))
    known = data.pairs(("train", "validation"))
    users = personal.user_representations(head, params, states, known, data.seen, context=8, seed=0)
    fewer = type(known)(*(column[known.user != known.user[-1]] for column in known))
    without = personal.user_representations(head, params, states, fewer, data.seen, context=8, seed=0)
    changed = np.abs(np.asarray(users) - np.asarray(without)).max(1) > 0
    assert np.flatnonzero(changed).tolist() == [known.user[-1]]


def _rows(rng: np.random.Generator) -> dict[str, Any]:
    """Two pairs that begin alike, as rows of their own and as shared rows."""
    trunk, ends, tail = rng.integers(1, 32, (2, 3)), rng.integers(1, 32, (2, 2, 2)), np.zeros((2, 1), int)
    apart = [np.concatenate([trunk, ends[:, s], tail], 1) for s in range(2)]
    mask = np.arange(6)[None] < np.array([5, 5])[:, None]
    shared = np.concatenate([trunk, ends[:, 0], ends[:, 1]], 1)
    parts = np.tile([1, 1, 1, 2, 2, 3, 3], (2, 1))
    one = {"chosen": apart[0], "rejected": apart[1], "chosen_mask": mask, "rejected_mask": mask}
    both = {"tokens": shared, "parts": parts}
    return {
        name: {k: jnp.asarray(v) if v.dtype == bool else jnp.asarray(v, jnp.int32) for k, v in own.items()}
        for name, own in (("apart", one), ("shared", both))
    }


@pytest.mark.parametrize("kind", ["apart", "shared"])
def test_a_soft_prompt_of_tokens_embeddings_is_these_tokens(kind):
    config, rng = tiny.llama(), np.random.default_rng(3)
    params = backbone.init(config, jax.random.key(1))
    batch = _rows(rng)[kind]
    before = jnp.asarray(rng.integers(1, 32, (2, 2)), jnp.int32)
    soft = backbone.hidden_states(config, params, before, jnp.ones((2, 2), bool), layer=0)
    found = pair_states(config, params, batch, soft=soft)
    tokens = _rows(np.random.default_rng(3))["apart"]
    longer = {}
    for side in ("chosen", "rejected"):
        longer[side] = jnp.concatenate([before, tokens[side]], 1)
        longer[f"{side}_mask"] = jnp.concatenate([jnp.ones((2, 2), bool), tokens[f"{side}_mask"]], 1)
    want = pair_states(config, params, longer)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    other = pair_states(config, params, batch, soft=soft[::-1])
    assert np.abs(np.asarray(other) - np.asarray(want)).max() > 1e-3


LM = tiny.llama()
REWARD = RewardConfig(lm=LM, routing="none", mixture=ExpertsConfig(num_experts=0, rank=2, dropout=0.0))


def _soft_model(seed: int) -> tuple[Any, Any, np.ndarray]:
    """Parameters of P-RLHF away from their start, the transformer, and tokens [3 2] that each user's prompt stands for.

    The last row is what the generic prompt stands for.
    """
    rng = np.random.default_rng(seed)
    base = backbone.init(LM, jax.random.key(seed))
    ids = rng.integers(1, 32, (3, 2))
    embedded = backbone.hidden_states(LM, base, jnp.asarray(ids, jnp.int32), jnp.ones((3, 2), bool), layer=0)
    fresh = lora_experts.init(REWARD.mixture, jax.random.key(seed), backbone.linear_shapes(LM), LM.num_layers)
    params = {
        "experts": jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), fresh),
        "generic": embedded[2],
        "table": (embedded[:2] - embedded[2:]).reshape(2, -1),
        "head": {"w": jnp.asarray(rng.normal(size=LM.hidden_size), jnp.float32), "b": jnp.asarray(0.3)},
    }
    return params, base, ids


def _reward_after(params: Any, base: Any, ids: np.ndarray, batch: Any, side: str) -> np.ndarray:
    """v . LM([these tokens; text]) + b, the tokens read as any others."""
    tokens = jnp.concatenate([jnp.asarray(ids, jnp.int32), batch[side]], 1)
    mask = jnp.concatenate([jnp.ones(ids.shape, bool), batch[f"{side}_mask"]], 1)
    bound, applied = lora_experts.make_adapters(params["experts"]), lora_experts.adapter_fn(REWARD.mixture)
    states = backbone.pool(LM, backbone.hidden_states(LM, base, tokens, mask, bound, applied), mask)
    return np.asarray(states, np.float64) @ np.asarray(params["head"]["w"], np.float64) + float(params["head"]["b"])


@pytest.mark.parametrize("seed", [0, 1])
def test_p_rlhfs_rewards_and_loss_are_those_of_the_formula(seed):
    """For users whose e_0 + o_u are the embeddings of known tokens, and for nobody in particular."""
    params, base, ids = _soft_model(seed)
    batch = {**_rows(np.random.default_rng(seed))["apart"], "user": jnp.array([1, 0])}
    frozen = {"base": base, "number": jnp.arange(2)}
    for share, rows in ((0.0, np.array([1, 0])), (1.0, np.array([-1, -1]))):
        want = {side: _reward_after(params, base, ids[rows], batch, side) for side in ("chosen", "rejected")}
        for side, rewards in want.items():
            found = p_rlhf.rewards(REWARD, params, base, batch[side], batch[f"{side}_mask"], jnp.asarray(rows))
            np.testing.assert_allclose(found, rewards, rtol=1e-4, atol=1e-4)
        loss = p_rlhf.make_loss(REWARD, share)
        (value, metrics), slopes = jax.value_and_grad(loss, has_aux=True)(params, frozen, batch, jax.random.key(0))
        margins = want["chosen"] - want["rejected"]
        assert value == pytest.approx(np.logaddexp(0, -margins).mean(), rel=1e-4)
        assert metrics["accuracy"] == (margins > 0).mean()
        # Read as of nobody, a pair teaches what all share and nothing about its user.
        assert (np.abs(slopes["table"]).max(axis=1) > 0).tolist() == [share == 0] * 2
        assert np.abs(slopes["generic"]).max() > 0


def test_p_rlhfs_pairs_are_read_as_of_nobody_as_often_as_asked():
    params, base, _ = _soft_model(2)
    batch = {**_rows(np.random.default_rng(2))["apart"], "user": jnp.array([1, 1])}
    slope = jax.jit(jax.grad(p_rlhf.make_loss(REWARD, 0.25), has_aux=True))
    frozen = {"base": base, "number": jnp.arange(2)}
    none = [not np.asarray(slope(params, frozen, batch, jax.random.key(k))[0]["table"]).any() for k in range(200)]
    assert 0.25**2 - 0.05 < np.mean(none) < 0.25**2 + 0.05
    assert not np.asarray(slope(params, frozen, batch, jax.random.key(0))[0]["table"][0]).any(), "nobody asked user 0"
