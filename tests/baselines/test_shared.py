"""The shared reward: its loss is that of its rewards in both layouts of pairs, and all but the bias learns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from pref_jax.baselines import shared
from pref_jax.baselines.shared import SharedConfig
from pref_jax.data.text.shared_prefix import shared_lengths, shared_rows
from pref_jax.data.text.token_table import TokenTable
from pref_jax.lm import backbone
from pref_jax.lm.lora import LoRAConfig

CONFIG = SharedConfig(lm=tiny.llama(), lora=LoRAConfig(rank=2, targets=("q_proj", "v_proj", "down_proj")))


def _model() -> tuple[Any, Any]:
    """Parameters with adapters at work, and what is frozen."""
    rng, params = np.random.default_rng(0), shared.init(CONFIG, jax.random.key(0))
    params["adapters"] = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), params["adapters"]
    )
    params["head"]["w"] = jnp.asarray(rng.standard_normal(16), jnp.float32)
    return params, {"base": backbone.init(CONFIG.lm, jax.random.key(1))}


def _layouts(seed: int) -> tuple[Any, Any]:
    """The same pairs in rows of one text each, and in rows that both texts share."""
    rng, texts = np.random.default_rng(seed), []
    for prefix in rng.integers(0, 8, 12):
        begin = [int(token) for token in rng.integers(0, 32, prefix)]
        texts += [begin + [int(token) for token in rng.integers(0, 32, size)] for size in rng.integers(1, 5, 2)]
    flat = np.array([token for text in texts for token in text], np.int32)
    table = TokenTable(flat, np.cumsum([0, *map(len, texts)]).astype(np.int64), 0)
    chosen, rejected = np.arange(0, len(texts), 2), np.arange(1, len(texts), 2)
    apart: dict[str, Any] = {}
    for side, rows in (("chosen", chosen), ("rejected", rejected)):
        apart[side], apart[f"{side}_mask"] = table.take(rows)
    tokens, parts = shared_rows(table, chosen, rejected, int(shared_lengths(table, chosen, rejected).max()) + 1)
    return jax.device_put((apart, {"tokens": tokens, "parts": parts}))


def test_loss_is_bradley_terry_of_the_rewards_in_both_layouts():
    (params, frozen), batches = _model(), _layouts(0)
    apart = batches[0]
    chosen, rejected = (
        np.array(shared.rewards(CONFIG, params, frozen["base"], apart[side], apart[f"{side}_mask"]), np.float64)
        for side in ("chosen", "rejected")
    )
    margin, loss = chosen - rejected, jax.jit(jax.value_and_grad(shared.make_loss(CONFIG), has_aux=True))
    assert np.abs(margin).max() > 0.1
    (first, slopes), (second, others) = (loss(params, frozen, batch, None) for batch in batches)
    for value, metrics in (first, second):
        np.testing.assert_allclose(value, np.log1p(np.exp(-margin)).mean(), atol=1e-5)
        np.testing.assert_allclose(metrics["margin"], margin.mean(), atol=1e-5)
        np.testing.assert_allclose(metrics["accuracy"], (margin > 0).mean())
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(slopes), jax.tree.leaves(others), strict=True):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=where)
        assert (np.abs(theirs).max() > 1e-3) == (where != "['head']['b']"), where


def test_dropout_is_off_without_a_key():
    (params, frozen), batch = _model(), _layouts(1)[0]
    loss = jax.jit(shared.make_loss(CONFIG))
    calm = [float(loss(params, frozen, batch, None)[0]) for _ in range(2)]
    noisy = [float(loss(params, frozen, batch, jax.random.key(i))[0]) for i in range(2)]
    assert calm[0] == calm[1]
    assert len({*calm, *noisy}) == 3
