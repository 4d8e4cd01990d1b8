"""Pairs that share a row give the rewards, loss and gradients of pairs apart."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from copl_jax.reward import lora_experts, reward_model, routing
from copl_jax.reward.reward_model import RewardConfig
from pref_jax.data.text.shared_prefix import shared_lengths, shared_rows
from pref_jax.data.text.token_table import TokenTable
from pref_jax.errors import UserError
from pref_jax.lm import backbone

MIXTURE = lora_experts.ExpertsConfig(num_experts=3, rank=2, targets=("q_proj", "v_proj", "down_proj"))
LLAMA = RewardConfig(lm=tiny.llama(), mixture=MIXTURE, gate=routing.GateConfig(hidden=8))
GEMMA = tiny.llama(
    family="gemma3_text", head_dim=6, sliding_layers=(True, False), window=3, local_rope_theta=20.0, num_layers=2
)
CONFIGS = {
    "llama": LLAMA,
    "mean pooling": dataclasses.replace(LLAMA, lm=tiny.llama(pooling="mean")),
    "gemma3": dataclasses.replace(LLAMA, lm=GEMMA, remat="full"),
    "groups": dataclasses.replace(LLAMA, routing="groups"),
}
DIM, LONGEST = 5, 12


def texts_of(seed):
    """Pairs of texts of one token or more: random ones, and each kind that could go wrong."""
    rng = np.random.default_rng(seed)
    text = [int(token) for token in rng.integers(0, 32, 40)]
    pairs = [
        (text[:5], text[5:9]),  # nothing in common
        (text[:6], text[:6]),  # the same
        (text[:4], text[:9]),  # one goes on where the other ends
        (text[:9], text[:4]),
        ([*text[:8], 1], [*text[:8], 2]),  # answers of one token
        ([1], [2]),
        ((text[:9] + text[20:25])[-LONGEST:], (text[:9] + text[30:32])[-LONGEST:]),  # cut from the left, one of them
        ((text[:9] + text[20:25])[-LONGEST:], (text[:9] + text[30:35])[-LONGEST:]),  # both, alike
    ]
    for prefix in rng.integers(0, 8, 8):
        begin = [int(token) for token in rng.integers(0, 32, prefix)]
        first, second = (begin + [int(token) for token in rng.integers(0, 32, size)] for size in rng.integers(1, 5, 2))
        pairs.append((first, second))
    return pairs


def batches(seed):
    """The same pairs in both layouts, as the trainer makes them."""
    texts = [text for pair in texts_of(seed) for text in pair]
    flat = np.array([token for text in texts for token in text], np.int32)
    table = TokenTable(flat, np.cumsum([0, *map(len, texts)]).astype(np.int64), 0)
    chosen, rejected = np.arange(0, len(texts), 2), np.arange(1, len(texts), 2)
    user = np.random.default_rng(seed).integers(0, 9, len(chosen)).astype(np.int32)
    apart: dict[str, np.ndarray] = {"user": user}
    for side, rows in (("chosen", chosen), ("rejected", rejected)):
        apart[side], apart[f"{side}_mask"] = table.take(rows)
    tokens, parts = shared_rows(table, chosen, rejected, int(shared_lengths(table, chosen, rejected).max()) + 1)
    return jax.device_put((apart, {"user": user, "tokens": tokens, "parts": parts}))


@functools.cache
def model(name):
    """Config, trainable parameters with experts at work, and what is frozen."""
    config, rng = CONFIGS[name], np.random.default_rng(len(name))
    params = jax.jit(lambda: reward_model.init(config, jax.random.key(0), embedding_dim=DIM))()
    params["experts"] = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), params["experts"]
    )
    params["head"]["w"] = jnp.asarray(rng.standard_normal(16), jnp.float32)
    frozen = {"base": jax.jit(backbone.init, static_argnums=0)(config.lm, jax.random.key(1))}
    if config.routing == "users":
        frozen["users"] = jnp.asarray(rng.standard_normal((9, DIM)), jnp.float32)
    elif config.routing == "groups":
        frozen["groups"] = jnp.asarray(rng.integers(0, 3, 9), jnp.int32)
    return config, params, frozen


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_rows_equal_separate_rows(name):
    config, params, frozen = model(name)
    loss = jax.jit(jax.value_and_grad(reward_model.make_loss(config), has_aux=True))
    rewards = jax.jit(functools.partial(reward_model.pair_rewards, config))
    for seed in (0, 1):
        users = frozen[config.routing][batches(seed)[0]["user"]]
        found = [rewards(params, frozen["base"], batch, users) for batch in batches(seed)]
        np.testing.assert_allclose(*found, atol=1e-5)
        assert np.ptp(found[0], axis=0).min() > 0.1
        ((value, metrics), grads), (apart, grads_apart) = (loss(params, frozen, batch, None) for batch in batches(seed))
        np.testing.assert_allclose(value, apart[0], atol=1e-5)
        for key, metric in metrics.items():
            np.testing.assert_allclose(metric, apart[1][key], atol=1e-5, err_msg=key)
        leaves = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(grads_apart), strict=True)
        for (path, ours), theirs in leaves:
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=where)
            assert (np.abs(theirs).max() > 1e-3) == (where != "['head']['b']"), where


def test_rewards_are_those_of_the_texts():
    config, params, frozen = model("llama")
    apart, shared = batches(2)
    users = frozen["users"][apart["user"]]
    rewards = jax.jit(functools.partial(reward_model.rewards, config))
    sides = [rewards(params, frozen["base"], apart[s], apart[f"{s}_mask"], users) for s in ("chosen", "rejected")]
    found = jax.jit(functools.partial(reward_model.pair_rewards, config))(params, frozen["base"], shared, users)
    np.testing.assert_allclose(found, np.stack(sides, axis=1), atol=1e-5)
    np.testing.assert_allclose(found[1, 0], found[1, 1], atol=1e-6)  # the pair of twice the same text


def test_dropout_and_noise_work_on_shared_rows():
    config, params, frozen = model("llama")
    loss, shared = jax.jit(reward_model.make_loss(config)), batches(0)[1]
    calm, noisy = (float(loss(params, frozen, shared, key)[0]) for key in (None, jax.random.key(0)))
    assert np.isfinite(noisy)
    assert abs(calm - noisy) > 1e-3


def test_an_encoder_cannot_share():
    lm = tiny.bert()
    config = dataclasses.replace(LLAMA, lm=lm, mixture=dataclasses.replace(MIXTURE, targets=("q_proj",)))
    params = jax.eval_shape(lambda: reward_model.init(config, jax.random.key(0), embedding_dim=DIM))
    with pytest.raises(UserError, match=r"a bert model reads a prompt otherwise .*share_prefix=False"):
        jax.eval_shape(
            functools.partial(reward_model.pair_rewards, config), params, {}, batches(0)[1], jnp.ones((16, DIM))
        )
