"""P-RLHF: soft prompts are tokens, its rewards and loss are those of the formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pref_jax.baselines import p_rlhf
from pref_jax.baselines.shared import SharedConfig, init_adapters
from pref_jax.lm import backbone, lora
from pref_jax.lm.lora import LoRAConfig
from pref_jax.lm.pairs import pair_states


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
REWARD = SharedConfig(lm=LM, lora=LoRAConfig(rank=2, dropout=0.0))


def _soft_model(seed: int) -> tuple[Any, Any, np.ndarray]:
    """Parameters of P-RLHF away from their start, the transformer, and tokens [3 2] that each user's prompt stands for.

    The last row is what the generic prompt stands for.
    """
    rng = np.random.default_rng(seed)
    base = backbone.init(LM, jax.random.key(seed))
    ids = rng.integers(1, 32, (3, 2))
    embedded = backbone.hidden_states(LM, base, jnp.asarray(ids, jnp.int32), jnp.ones((3, 2), bool), layer=0)
    fresh = init_adapters(REWARD, jax.random.key(seed))
    params = {
        "adapters": jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), fresh),
        "generic": embedded[2],
        "table": (embedded[:2] - embedded[2:]).reshape(2, -1),
        "head": {"w": jnp.asarray(rng.normal(size=LM.hidden_size), jnp.float32), "b": jnp.asarray(0.3)},
    }
    return params, base, ids


def _reward_after(params: Any, base: Any, ids: np.ndarray, batch: Any, side: str) -> np.ndarray:
    """v . LM([these tokens; text]) + b, the tokens read as any others."""
    tokens = jnp.concatenate([jnp.asarray(ids, jnp.int32), batch[side]], 1)
    mask = jnp.concatenate([jnp.ones(ids.shape, bool), batch[f"{side}_mask"]], 1)
    hidden = backbone.hidden_states(LM, base, tokens, mask, params["adapters"], lora.adapter_fn(REWARD.lora))
    states = backbone.pool(LM, hidden, mask)
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
            route = jnp.asarray(rows + 1)
            found = p_rlhf.rewards(REWARD, params, base, batch[side], batch[f"{side}_mask"], route)
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
