"""What the mixture of experts costs: a training step with it beside one of plain LoRA of the same rank.

Axes: B rows (two a pair), L length, E experts, R rank, D features in.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from copl_jax.reward import lora_experts, routing
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from experiments.benchmarks.measure import Result, in_turns, result
from experiments.benchmarks.training import ENCODER, SMALL, Case, training_step
from pref_jax.baselines.shared import SharedConfig
from pref_jax.lm import backbone
from pref_jax.lm.lora import LoRAConfig
from pref_jax.train.state import LossFn

NUM_EXPERTS, RANK = 8, 8


# The decoder at the quickstart's batch size.
CASES = (Case(SMALL, pairs=64, length=64), Case(ENCODER, pairs=16, length=128))


def mixture_step(cases: tuple[Case, ...] = CASES, rounds: int = 10, each: int = 3) -> list[Result]:
    """A whole training step, dropout included: 8 experts of rank 8 and a shared one, against plain LoRA of rank 16.

    Same transformer, same batch, float32, in turns. `extra` holds the seconds of the same step where every expert
    reads every example and the chosen ones are picked afterwards, and how far its loss is from ours, relatively.
    """
    return [_compare(case, rounds, each) for case in cases]


def _compare(case: Case, rounds: int, each: int) -> Result:
    mixture = RewardConfig(lm=case.lm, mixture=ExpertsConfig(num_experts=NUM_EXPERTS, rank=RANK))
    lora = SharedConfig(lm=case.lm, lora=LoRAConfig(rank=2 * RANK))
    batch = case.batch()
    ours, dense = training_step(mixture, batch), training_step(mixture, batch, loss=_dense_loss(mixture))
    # The second loss has the first update in it.
    losses = np.array([[run() for _ in range(2)] for run in (ours, dense)])
    baseline, seconds, all_experts = in_turns([training_step(lora, batch), ours, dense], rounds=rounds, each=each)
    apart = float(np.abs(losses[1] / losses[0] - 1).max())
    extra = {"dense_seconds": all_experts, "answers_apart": apart, "num_experts": NUM_EXPERTS}
    return result("experts", case.size, baseline, seconds, **extra)


def _dense_loss(config: RewardConfig) -> LossFn:
    """The loss of `reward_model.make_loss` with `_everybody` in place of `adapter_fn`, and the same random numbers."""

    def loss(params, frozen, batch, key):
        noise_key, dropout_key = jax.random.split(key)
        decided = routing.route(config.gate, params["gates"], frozen["users"][batch["user"]], noise_key)
        adapters = lora_experts.make_adapters(params["experts"], routing.repeat(decided, 2), dropout_key)
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
    """The adapters by the textbook: the outputs of all experts, weighted by 0 where they are not chosen."""
    keep = 1 - dropout
    x = jnp.where(jax.random.bernoulli(adapter["key"], keep, x.shape), x / keep, 0)
    a, b = adapter["experts"]["a"], adapter["experts"]["b"]
    chosen = jax.nn.one_hot(adapter["choice"], len(a))
    weight = jnp.einsum("bk,bke->be", adapter["weight"], chosen)
    everyone = jnp.einsum("bler,erf->blef", jnp.einsum("bld,edr->bler", x, a), b)
    shared = (x @ adapter["shared"]["a"]) @ adapter["shared"]["b"]
    return scale * (shared + jnp.einsum("be,blef->blf", weight, everyone))
