"""CoPL's real training step gives the same losses on one device and on eight, however they are divided."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from copl_jax.reward import reward_model
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from pref_jax.baselines import shared
from pref_jax.baselines.shared import SharedConfig
from pref_jax.lm import backbone, sharding_rules
from pref_jax.lm.lora import LoRAConfig
from pref_jax.mesh import make_mesh, put_batch, replicated, tree_shardings
from pref_jax.train.loop import jit_step
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

LM = tiny.llama(vocab_size=64, hidden_size=32, intermediate_size=64, max_positions=32)
USERS, BATCH, LENGTH, STEPS = 12, 16, 10, 4


def _shared_batches(rng):
    for _ in range(STEPS):
        bounds = np.sort(rng.integers(0, 2 * LENGTH, (BATCH, 3)), axis=1)[:, :, None]  # ends of the three parts
        parts = np.select([np.arange(2 * LENGTH)[None] < bounds[:, part] for part in range(3)], [1, 2, 3])
        tokens = rng.integers(0, LM.vocab_size, parts.shape).astype(np.int32)
        yield {
            "user": rng.integers(0, USERS, BATCH).astype(np.int32),
            "tokens": tokens,
            "parts": parts.astype(np.int32),
        }


def _batches(rng):
    for _ in range(STEPS):
        texts = {}
        for side in ("chosen", "rejected"):
            lengths = rng.integers(3, LENGTH + 1, BATCH)
            texts[side] = rng.integers(0, LM.vocab_size, (BATCH, LENGTH)).astype(np.int32)
            texts[f"{side}_mask"] = np.arange(LENGTH)[None] < lengths[:, None]
        yield {"user": rng.integers(0, USERS, BATCH).astype(np.int32), **texts}


def _model(routing: Any) -> tuple[Any, Any]:
    """Fresh parameters, and the loss: CoPL's, the oracle's, or ("none") the shared reward's."""
    if routing == "none":
        plain = SharedConfig(lm=LM, lora=LoRAConfig(rank=2))
        return shared.init(plain, jax.random.key(2)), shared.make_loss(plain)
    mixture = ExpertsConfig(num_experts=3, rank=2)
    config = RewardConfig(lm=LM, routing=routing, mixture=mixture, gate=GateConfig(hidden=8))
    return reward_model.init(config, jax.random.key(2), embedding_dim=6), reward_model.make_loss(config)


def _losses(routing: str, batches: Callable = _batches, **axes: int) -> list[float]:
    """Losses of a few steps, dropout and gate noise included, with the transformer cut over the mesh."""
    count = int(np.prod(list(axes.values())))
    mesh = make_mesh(**axes, devices=jax.devices()[:count])
    rng = np.random.default_rng(0)
    base = backbone.init(LM, jax.random.key(1))
    table = {
        "users": rng.normal(size=(USERS, 6)).astype(np.float32),
        "groups": rng.integers(0, 3, USERS).astype(np.int32),
        "none": None,
    }[routing]
    frozen = {"base": jax.device_put(base, tree_shardings(mesh, sharding_rules.specs(base, mesh)))}
    if table is not None:
        frozen[routing] = jax.device_put(table, replicated(mesh))
    params, loss = _model(routing)
    transform = optimizer(OptimizerConfig(lr=1e-2, num_steps=STEPS, clip=1.0))
    state = init_state(jax.device_put(params, replicated(mesh)), transform, 3)
    step = jit_step(make_step(loss, transform), state, frozen, mesh)
    losses = []
    for batch in batches(rng):
        state, metrics = step(state, frozen, put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize(
    ("routing", "batches"),
    [("users", _batches), ("groups", _batches), ("none", _batches), ("users", _shared_batches)],
    ids=["users", "groups", "none", "shared rows"],
)
def test_one_device_equals_eight(routing, batches):
    alone = _losses(routing, batches, data=1, fsdp=1, tensor=1)
    assert len(set(alone)) == STEPS
    for axes in ({"data": 8, "fsdp": 1, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        np.testing.assert_allclose(_losses(routing, batches, **axes), alone, rtol=1e-5, atol=1e-6)
