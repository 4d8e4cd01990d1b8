"""CoPL's reward in a small transformer: what it must not mix up, its loss, and that it learns."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copl_jax.reward import lora_experts, reward_model, routing
from pref_jax.errors import UserError
from pref_jax.lm import backbone
from pref_jax.lm.config import LMConfig
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

LM = LMConfig(
    family="llama", vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, max_positions=32
)
MIXTURE = lora_experts.ExpertsConfig(num_experts=4, rank=2, dropout=0.1)
CONFIG = reward_model.RewardConfig(lm=LM, mixture=MIXTURE, gate=routing.GateConfig(hidden=8))
ORACLE = dataclasses.replace(CONFIG, routing="groups")
DIM = 5
rewards = jax.jit(reward_model.rewards, static_argnums=0)
init = jax.jit(reward_model.init, static_argnums=0, static_argnames="embedding_dim")


@functools.cache
def loss_of(config):
    """The compiled loss, and its gradient."""
    loss = reward_model.make_loss(config)
    return jax.jit(loss), jax.jit(jax.grad(loss, has_aux=True))


@functools.cache
def base():
    return jax.jit(lambda: backbone.init(LM, jax.random.key(1)))()


def example(config, seed=0, batch=4, length=6):
    """Parameters with working experts, the base, users for each kind of routing, and a batch."""
    rng = np.random.default_rng(seed)
    params = init(config, jax.random.key(seed), embedding_dim=DIM)
    params["experts"] = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), params["experts"]
    )
    table = rng.standard_normal((9, DIM)).astype(np.float32)
    frozen = {"base": base()}
    if config.routing == "users":
        frozen["users"] = jnp.asarray(table / np.linalg.norm(table, axis=1, keepdims=True))
    elif config.routing == "groups":
        frozen["groups"] = jnp.asarray(rng.integers(0, 4, 9), jnp.int32)
    rows: dict[str, Any] = {"user": rng.integers(0, 9, batch).astype(np.int32)}
    for side in ("chosen", "rejected"):
        rows[side] = rng.integers(0, 23, (batch, length)).astype(np.int32)
        rows[f"{side}_mask"] = np.arange(length) < rng.integers(1, length + 1, (batch, 1))
    return params, frozen, jax.device_put(rows)


def rows_of(config, frozen, batch) -> Any:
    return frozen[config.routing][batch["user"]]


@pytest.mark.parametrize("config", [CONFIG, ORACLE], ids=lambda config: config.routing)
def test_loss_is_bradley_terry_of_the_rewards(config):
    params, frozen, batch = example(config)
    loss, metrics = loss_of(config)[0](params, frozen, batch, None)
    users = rows_of(config, frozen, batch)
    scores = [
        np.array(rewards(config, params, frozen["base"], batch[side], batch[f"{side}_mask"], users), np.float64)
        for side in ("chosen", "rejected")
    ]
    assert scores[0].shape == (4,)
    margin = scores[0] - scores[1]
    assert np.abs(margin).max() > 1e-4
    np.testing.assert_allclose(loss, np.log1p(np.exp(-margin)).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["margin"], margin.mean(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (margin > 0).mean())
    usage = [metrics[f"usage_{e}"] for e in range(config.mixture.num_experts)]
    np.testing.assert_allclose(sum(usage), 1, rtol=1e-5)
    assert 0 <= metrics["gate_entropy"] <= np.log(4) + 1e-6


def test_reward_is_head_on_the_last_token_of_the_adapted_transformer():
    params, frozen, batch = example(CONFIG, seed=1)
    users = rows_of(CONFIG, frozen, batch)
    decided = routing.route(CONFIG.gate, params["gates"], users)
    tokens, mask = batch["chosen"], batch["chosen_mask"]
    got = rewards(CONFIG, params, frozen["base"], tokens, mask, users)
    hidden_states = jax.jit(backbone.hidden_states, static_argnums=0)
    for i in range(2):
        # One example alone, its chosen expert folded into one LoRA of rank 2R by hand.
        folded = {}
        for target, own in params["experts"].items():
            picked = [decided[target].choice[:, i, 0], decided[target].weight[:, i, 0]]
            layer = np.arange(LM.num_layers)
            b = own["experts"]["b"][layer, picked[0]] * picked[1][:, None, None]
            folded[target] = {
                "a": jnp.concatenate([own["shared"]["a"], own["experts"]["a"][layer, picked[0]]], axis=2),
                "b": 2 * jnp.concatenate([own["shared"]["b"], b], axis=1),
            }
        length = int(mask[i].sum())
        hidden = hidden_states(LM, frozen["base"], tokens[i : i + 1, :length], mask[i : i + 1, :length], folded)
        expected = hidden[0, -1] @ params["head"]["w"] + params["head"]["b"]
        np.testing.assert_allclose(got[i], expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("top_k", [1, 3])
def test_merged_into_the_base_one_users_rewards_are_the_same(top_k):
    config = dataclasses.replace(CONFIG, gate=routing.GateConfig(hidden=8, top_k=top_k))
    params, frozen, batch = example(config, seed=6)
    tokens, mask = batch["chosen"], batch["chosen_mask"]
    for user in frozen["users"][:2]:
        merged = lora_experts.merge(
            frozen["base"],
            params["experts"],
            reward_model.route(config, params, user[None]),
            scale=config.mixture.scale,
        )
        pooled = backbone.pool(LM, backbone.hidden_states(LM, merged, tokens, mask), mask)
        users = jnp.tile(user[None], (4, 1))
        expected = rewards(config, params, frozen["base"], tokens, mask, users)
        np.testing.assert_allclose(pooled @ params["head"]["w"] + params["head"]["b"], expected, rtol=1e-5, atol=1e-5)


def test_rows_do_not_mix_and_padding_does_not_count():
    params, frozen, batch = example(CONFIG, seed=2)
    users = rows_of(CONFIG, frozen, batch)
    before = rewards(CONFIG, params, frozen["base"], batch["chosen"], batch["chosen_mask"], users)
    order = jnp.array([2, 0, 3, 1])
    noise = jnp.where(batch["chosen_mask"], batch["chosen"], 7)
    after = rewards(CONFIG, params, frozen["base"], noise[order], batch["chosen_mask"][order], users[order])
    np.testing.assert_allclose(after, before[order], rtol=1e-4, atol=1e-6)


def test_fresh_model_is_the_same_for_every_user():
    params = init(CONFIG, jax.random.key(0), embedding_dim=DIM)
    _, frozen, batch = example(CONFIG)
    tokens, mask = jnp.tile(batch["chosen"][:1], (4, 1)), jnp.tile(batch["chosen_mask"][:1], (4, 1))
    scores = rewards(CONFIG, params, frozen["base"], tokens, mask, frozen["users"][:4])
    np.testing.assert_allclose(scores, scores[0], rtol=1e-5)
    assert scores.dtype == jnp.float32
    assert set(params) == {"experts", "gates", "head"}
    assert jax.tree.map(jnp.shape, params["head"]) == {"w": (16,), "b": ()}


@pytest.mark.parametrize("config", [CONFIG, ORACLE], ids=lambda config: config.routing)
def test_every_parameter_but_the_heads_bias_learns(config):
    params, frozen, batch = example(config, seed=3, batch=16)
    grads = loss_of(config)[1](params, frozen, batch, jax.random.key(0))[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert (np.abs(leaf).max() > 0) == (name != "['head']['b']"), name


def test_training_noise_is_off_without_a_key():
    params, frozen, batch = example(CONFIG, seed=4)
    loss = loss_of(CONFIG)[0]
    calm = [float(loss(params, frozen, batch, None)[0]) for _ in range(2)]
    noisy = [float(loss(params, frozen, batch, jax.random.key(i))[0]) for i in range(2)]
    assert calm[0] == calm[1]
    assert len({*calm, *noisy}) == 3


def test_learns_opposite_tastes_that_one_reward_cannot():
    """Even users like texts that end in 1, odd users those that end in 2."""
    rng = np.random.default_rng(0)
    config = dataclasses.replace(
        CONFIG, mixture=dataclasses.replace(MIXTURE, dropout=0.0, targets=("v_proj", "o_proj"))
    )
    params = jax.jit(lambda: reward_model.init(config, jax.random.key(0), embedding_dim=2))()
    frozen = {"base": example(config)[1]["base"], "users": jnp.asarray(np.tile(np.eye(2), (8, 1)), jnp.float32)}

    def batch():
        user = rng.integers(0, 16, 32)
        tokens = rng.integers(3, 23, (2, 32, 5))
        tokens[0, :, -1], tokens[1, :, -1] = 1 + user % 2, 2 - user % 2
        full = np.ones((32, 5), bool)
        rows = {"user": user, "chosen": tokens[0], "rejected": tokens[1]}
        return {name: row.astype(np.int32) for name, row in rows.items()} | dict.fromkeys(
            ("chosen_mask", "rejected_mask"), full
        )

    adam = optimizer(OptimizerConfig(lr=2e-2, num_steps=80, warmup_fraction=0.1, clip=1.0))
    step = jax.jit(make_step(reward_model.make_loss(config), adam))
    state, metrics = init_state(params, adam, 0), {}
    for _ in range(80):
        state, metrics = step(state, frozen, batch())
    assert metrics["accuracy"] > 0.95


def test_mistakes_are_told():
    with pytest.raises(UserError, match="num_experts and rank are at least 1"):
        dataclasses.replace(MIXTURE, num_experts=0)
    with pytest.raises(UserError, match="top_k=5 of 4 experts"):
        dataclasses.replace(CONFIG, gate=routing.GateConfig(top_k=5))
    with pytest.raises(UserError, match="embedding_dim is 0"):
        reward_model.init(CONFIG, jax.random.key(0))
    params, frozen, batch = example(CONFIG)
    with pytest.raises(UserError, match="needs embeddings"):
        reward_model.rewards(CONFIG, params, frozen["base"], batch["chosen"], batch["chosen_mask"])
    with pytest.raises(UserError, match="needs group numbers"):
        reward_model.rewards(
            ORACLE, params, frozen["base"], batch["chosen"], batch["chosen_mask"], frozen["users"][batch["user"]]
        )
