"""What the mixture of experts costs: a training step with it beside one of plain LoRA of the same rank.

Axes: B rows (two a pair), L length, C features of a user embedding, U users, E experts, R rank, D features in.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from copl_jax import experts, gates, reward
from copl_jax.experts import ExpertsConfig
from copl_jax.reward import RewardConfig
from experiments.benchmarks.measure import Result, in_turns, result
from pref_jax.lm import backbone
from pref_jax.lm.config import LMConfig
from pref_jax.train.loop import jit_step
from pref_jax.train.mesh import make_mesh, put_batch, replicated
from pref_jax.train.state import LossFn, OptimizerConfig, init_state, make_step, optimizer

NUM_EXPERTS, RANK = 8, 8
USERS, DIM = 500, 64


class Case(NamedTuple):
    """A transformer, and how much it reads in a step: B = 2 `pairs` rows of L = `length` tokens."""

    lm: LMConfig
    pairs: int
    length: int


# The decoder of the quickstart at its batch size, and an encoder of the size of all-MiniLM-L6.
CASES = (
    Case(
        LMConfig(
            family="llama",
            vocab_size=2048,
            hidden_size=128,
            intermediate_size=384,
            num_layers=3,
            num_heads=4,
            max_positions=256,
            lm_head=False,
        ),
        pairs=64,
        length=64,
    ),
    Case(
        LMConfig(
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
        ),
        pairs=16,
        length=128,
    ),
)


def mixture_step(cases: tuple[Case, ...] = CASES, rounds: int = 10, each: int = 3) -> list[Result]:
    """A whole training step, dropout included: 8 experts of rank 8 and a shared one, against plain LoRA of rank 16.

    Same transformer, same batch, float32, in turns. `extra` holds the seconds of the same step where every expert
    reads every example and the chosen ones are picked afterwards, and how far its loss is from ours, relatively.
    """
    return [_compare(case, rounds, each) for case in cases]


def _compare(case: Case, rounds: int, each: int) -> Result:
    mixture = RewardConfig(lm=case.lm, mixture=ExpertsConfig(num_experts=NUM_EXPERTS, rank=RANK))
    plain = ExpertsConfig(num_experts=0, rank=2 * RANK)
    lora = dataclasses.replace(mixture, routing="none", mixture=plain)
    ours, dense = _step(case, mixture), _step(case, mixture, _dense_loss(mixture))
    # The second loss has the first update in it.
    losses = np.array([[run() for _ in range(2)] for run in (ours, dense)])
    baseline, seconds, all_experts = in_turns([_step(case, lora), ours, dense], rounds=rounds, each=each)
    size = f"{case.lm.family} d={case.lm.hidden_size}, {2 * case.pairs} x {case.length} tokens"
    apart = float(np.abs(losses[1] / losses[0] - 1).max())
    extra = {"dense_seconds": all_experts, "answers_apart": apart, "num_experts": NUM_EXPERTS}
    return result("experts", size, baseline, seconds, **extra)


def _step(case: Case, config: RewardConfig, loss: LossFn | None = None) -> Callable[[], jax.Array]:
    """A function that takes one training step, in the memory of the step before, and gives its loss."""
    mesh = make_mesh(devices=jax.devices()[:1])
    base = backbone.init(case.lm, jax.random.key(0))
    users = np.random.default_rng(0).standard_normal((USERS, DIM)).astype(np.float32)
    frozen = {"base": base, "users": users / np.linalg.norm(users, axis=1, keepdims=True)}
    if config.routing == "none":
        del frozen["users"]
    frozen = jax.device_put(frozen, replicated(mesh))
    transform = optimizer(OptimizerConfig(lr=1e-3, num_steps=1_000_000, weight_decay=1e-3, clip=1.0))
    params = _working(reward.init(config, jax.random.key(1), embedding_dim=DIM))
    state = init_state(jax.device_put(params, replicated(mesh)), transform, seed=0)
    compiled = jit_step(make_step(loss or reward.make_loss(config), transform), state, frozen, mesh)
    batch = put_batch(_batch(case), mesh)

    def run() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        return jax.block_until_ready((metrics["loss"], state))[0]

    return run


def _working(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters, but with second factors that are not zero: else nobody would see a wrong first one."""
    for target, own in params["experts"].items():
        for part in own.values():
            part["b"] = 0.02 * jax.random.normal(jax.random.key(len(target)), part["b"].shape)
    return params


def _batch(case: Case) -> dict[str, Any]:
    """Random pairs; texts of L/2 to L tokens, padded on the right."""
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {"user": rng.integers(USERS, size=case.pairs, dtype=np.int32)}
    for side in ("chosen", "rejected"):
        lengths = rng.integers(case.length // 2, case.length + 1, size=(case.pairs, 1))
        batch[side] = rng.integers(case.lm.vocab_size, size=(case.pairs, case.length), dtype=np.int32)
        batch[f"{side}_mask"] = np.arange(case.length) < lengths
    return batch


def _dense_loss(config: RewardConfig) -> LossFn:
    """The loss of `reward.make_loss` with `_everybody` in place of `experts.apply`, and the same random numbers."""

    def loss(params, frozen, batch, key):
        noise_key, dropout_key = jax.random.split(key)
        decided = gates.decide(config.gate, params["gates"], frozen["users"][batch["user"]], noise_key)
        adapters = experts.bind(params["experts"], gates.repeat(decided, 2), dropout_key)
        tokens, mask = (
            jnp.stack([batch[f"chosen{part}"], batch[f"rejected{part}"]], axis=1).reshape(2 * len(batch["user"]), -1)
            for part in ("", "_mask")
        )
        apply = functools.partial(_everybody, scale=config.mixture.scale, dropout=config.mixture.dropout)
        hidden = backbone.hidden_states(config.lm, frozen["base"], tokens, mask, adapters, apply)
        scores = backbone.pool(config.lm, hidden, mask) @ params["head"]["w"] + params["head"]["b"]
        return -jnp.mean(jax.nn.log_sigmoid(scores[::2] - scores[1::2])), {}

    return loss


def _everybody(adapter: Any, x: jax.Array, *, scale: float, dropout: float) -> jax.Array:
    """`experts.apply` by the textbook: the outputs of all experts, weighted by 0 where they are not chosen."""
    keep = 1 - dropout
    x = jnp.where(jax.random.bernoulli(adapter["key"], keep, x.shape), x / keep, 0)
    a, b = adapter["experts"]["a"], adapter["experts"]["b"]
    chosen = jax.nn.one_hot(adapter["choice"], len(a))
    weight = jnp.einsum("bk,bke->be", adapter["weight"], chosen)
    everyone = jnp.einsum("bler,erf->blef", jnp.einsum("bld,edr->bler", x, a), b)
    shared = (x @ adapter["shared"]["a"]) @ adapter["shared"]["b"]
    return scale * (shared + jnp.einsum("be,blef->blf", weight, everyone))
