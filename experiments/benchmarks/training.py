"""What benchmarks of reward models train: transformers of the sizes at hand, batches, and a compiled step.

Axes: B rows (two a pair), L length.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from copl_jax.reward import reward_model
from copl_jax.reward.reward_model import RewardConfig
from pref_jax.baselines import shared
from pref_jax.baselines.shared import SharedConfig
from pref_jax.lm import backbone
from pref_jax.lm.config import LMConfig
from pref_jax.mesh import make_mesh, put_batch, replicated
from pref_jax.train.loop import jit_step
from pref_jax.train.state import LossFn, OptimizerConfig, init_state, make_step, optimizer

# The quickstart's decoder.
SMALL = LMConfig(
    family="llama",
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=384,
    num_layers=3,
    num_heads=4,
    max_positions=256,
    lm_head=False,
)
# A wider and deeper one.
LARGER = dataclasses.replace(
    SMALL, vocab_size=8192, hidden_size=384, intermediate_size=1024, num_layers=6, num_heads=6, num_kv_heads=6
)
# An encoder of the size of all-MiniLM-L6.
ENCODER = LMConfig(
    family="bert",
    vocab_size=30522,
    hidden_size=384,
    intermediate_size=1536,
    num_layers=6,
    num_heads=12,
    max_positions=512,
    activation="gelu",
    mlp_bias=True,
    tie_embeddings=False,
    lm_head=False,
    pooling="mean",
)
USERS, DIM = 500, 64
RECIPE = OptimizerConfig(lr=1e-4, num_steps=1_000_000, weight_decay=1e-3, clip=1.0)


class Case(NamedTuple):
    """A transformer, and how much it reads in a step: B = 2 `pairs` rows of L = `length` tokens."""

    lm: LMConfig
    pairs: int
    length: int

    @property
    def size(self) -> str:
        """The case, for people."""
        return f"{self.lm.family} d={self.lm.hidden_size}, {2 * self.pairs} x {self.length} tokens"

    def batch(self) -> dict[str, np.ndarray]:
        """Random pairs of random users; texts of L/2 to L tokens, padded on the right."""
        rng = np.random.default_rng(0)
        batch: dict[str, np.ndarray] = {"user": rng.integers(USERS, size=self.pairs, dtype=np.int32)}
        for side in ("chosen", "rejected"):
            lengths = rng.integers(self.length // 2, self.length + 1, size=(self.pairs, 1))
            batch[side] = rng.integers(self.lm.vocab_size, size=(self.pairs, self.length), dtype=np.int32)
            batch[f"{side}_mask"] = np.arange(self.length) < lengths
        return batch


def frozen_parts(config: RewardConfig | SharedConfig) -> dict[str, Any]:
    """What a step only reads: a transformer of random weights, and `USERS` embeddings where users are routed."""
    frozen: dict[str, Any] = {"base": backbone.init(config.lm, jax.random.key(0))}
    if isinstance(config, RewardConfig) and config.routing == "users":
        users = np.random.default_rng(0).standard_normal((USERS, DIM)).astype(np.float32)
        frozen["users"] = users / np.linalg.norm(users, axis=1, keepdims=True)
    return frozen


def trained_parts(config: RewardConfig | SharedConfig) -> dict[str, Any]:
    """Fresh parameters, but second factors of LoRA are not zero: else nobody would see a wrong first one."""
    if isinstance(config, SharedConfig):
        params = shared.init(config, jax.random.key(1))
        pairs = list(params["adapters"].items())
    else:
        params = reward_model.init(config, jax.random.key(1), embedding_dim=DIM)
        pairs = [(target, part) for target, own in params["experts"].items() for part in own.values()]
    for target, part in pairs:
        part["b"] = 0.02 * jax.random.normal(jax.random.key(len(target)), part["b"].shape)
    return params


def training_step(
    config: RewardConfig | SharedConfig,
    batch: Mapping[str, Any],
    *,
    loss: LossFn | None = None,
    frozen: Mapping[str, Any] | None = None,
    recipe: OptimizerConfig = RECIPE,
) -> Callable[[], jax.Array]:
    """A function that takes one training step on one device, in the memory of the step before, and gives its loss.

    The batch is always the same; `loss` stands in for the config's own, `frozen` for `frozen_parts`.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    fixed = jax.device_put(frozen or frozen_parts(config), replicated(mesh))
    transform = optimizer(recipe)
    state = init_state(jax.device_put(trained_parts(config), replicated(mesh)), transform, seed=0)
    own = shared.make_loss(config) if isinstance(config, SharedConfig) else reward_model.make_loss(config)
    compiled = jit_step(make_step(loss or own, transform), state, fixed, mesh)
    placed = put_batch(dict(batch), mesh)

    def step() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, fixed, placed)
        return jax.block_until_ready((metrics["loss"], state))[0]

    return step
