"""Trains and scores one reward model: CoPL's, the shared one or the group oracle, alike but for their routing.

Axis letters: B batch, L length, P pairs, U users, N responses.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from copl_jax import gates, reward
from copl_jax.experts import ExpertsConfig
from copl_jax.gates import GateConfig
from copl_jax.reward import RewardConfig
from experiments.cli import freeze
from experiments.stages import Run, load_backbone, load_data, load_tokens, say, test_pairs, votes_by_prompt
from pref_jax.data.batches import pair_batches
from pref_jax.data.preferences import Pairs
from pref_jax.data.shared_prefix import shared_lengths, shared_rows
from pref_jax.data.token_table import TokenTable
from pref_jax.lm.backbone import linear_shapes
from pref_jax.lm.config import LMConfig
from pref_jax.train.loop import fit
from pref_jax.train.mesh import make_mesh, replicated
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

Routing = Literal["users", "groups", "none"]


def text_batches(
    pairs: Pairs, tokens: TokenTable, length: int, *, shared: int | None = None, **how: int
) -> grain.MapDataset:
    """`pair_batches` with the responses' rows replaced by their tokens, as `reward.make_loss` takes them.

    Args:
      pairs: who preferred what.
      tokens: the responses.
      length: L of rows that hold one response.
      shared: L of rows that both responses of a pair share; None for rows of one response.
      **how: as for `pair_batches`.
    """
    look_up = (
        functools.partial(_apart, tokens, length) if shared is None else functools.partial(_together, tokens, shared)
    )
    return pair_batches(pairs, **how).map(look_up)


def _apart(tokens: TokenTable, length: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    chosen, chosen_mask = tokens.take(batch["chosen"], length)
    rejected, rejected_mask = tokens.take(batch["rejected"], length)
    return {
        "user": batch["user"],
        "chosen": chosen,
        "chosen_mask": chosen_mask,
        "rejected": rejected,
        "rejected_mask": rejected_mask,
    }


def _together(tokens: TokenTable, length: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids, parts = shared_rows(tokens, batch["chosen"], batch["rejected"], length)
    return {"user": batch["user"], "tokens": ids, "parts": parts}


def shared_length(lm: LMConfig, pairs: Pairs, tokens: TokenTable, length: int) -> int | None:
    """Tokens of a row that both responses of a pair share; None where rows of one response, of `length`, are better.

    For an encoder they always are, as it reads a prompt otherwise under each answer; for a decoder they are where
    pairs have so little in common that one long row asks for more work than two short ones.
    """
    if not lm.traits.causal:
        return None
    shared = int(shared_lengths(tokens, pairs.chosen, pairs.rejected).max(initial=1))
    if _work(lm, shared) >= 2 * _work(lm, length):
        say(f"  a row for each response: {2 * length} tokens a pair are less work than {shared} in one row")
        return None
    say(f"  one row for both responses of a pair: {shared} tokens in place of {2 * length}")
    return shared


def _work(lm: LMConfig, length: int) -> int:
    """Multiplications of a block for one row: linears, and attention, which looks at all of the row."""
    linears = sum(d * f for d, f in linear_shapes(lm).values())
    return length * (linears + 2 * length * lm.num_heads * lm.head_dim)


def configure(run: Run, lm: LMConfig, *, routing: Routing, num_experts: int | None = None) -> RewardConfig:
    """The reward model of the config, with another routing or number of experts where a method asks for it."""
    section = run.config.reward
    own = {} if num_experts is None else {"num_experts": num_experts}
    experts = {**section.experts.to_dict(), **own, "targets": tuple(section.experts.targets)}
    return RewardConfig(
        lm=lm,
        routing=routing,
        mixture=freeze(ExpertsConfig, experts, "reward.experts"),
        gate=freeze(GateConfig, section.gate, "reward.gate"),
        remat=section.remat,
    )


def train_and_score(
    run: Run,
    folder: Path,
    *,
    routing: Routing,
    num_experts: int | None = None,
    table: np.ndarray | None = None,
    more: Callable[[RewardConfig, Any], dict[str, Any]] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Trains a reward model on the seen users' answers; returns margins of the test pairs [P] and facts.

    With `reward.hold_out` above 0 that part of the prompts is not learnt from, and the margins of the answers to it
    are kept in `held_out.npy` of `folder`, for a choice between trained models.

    Args:
      run: the run.
      folder: gets checkpoints and logs; a killed training goes on from there.
      routing: `users`, `groups` or `none`, see `copl_jax.reward`.
      num_experts: in place of the config's.
      table: user embeddings float [U C] (`users`) or group numbers int [U] (`groups`).
      more: further facts from the trained parameters.
    """
    section, data = run.config.reward, load_data(run)
    train, held_out = votes_by_prompt(run, data, fraction=section.hold_out)
    mesh = make_mesh(**run.config.mesh.to_dict())
    lm, base = load_backbone(run, mesh)
    tokens = load_tokens(run, data)
    config = configure(run, lm, routing=routing, num_experts=num_experts)
    # All batches, shuffled as they are, have one length, the longest text's: one step to compile, and one to score by.
    length = int(tokens.lengths.max(initial=1))
    frozen = {"base": base}
    if table is not None:
        frozen[routing] = jax.device_put(table, replicated(mesh))
    dim = table.shape[1] if table is not None and routing == "users" else 0
    transform = optimizer(freeze(OptimizerConfig, section.optimizer, "reward.optimizer"))
    params = reward.init(config, jax.random.key(run.seed), embedding_dim=dim)
    if lm.num_labels == 1:
        # A reward model's own head is a better beginning than noise.
        params["head"]["w"] = jnp.asarray(base["score"]["kernel"][:, 0], jnp.float32)
    state = fit(
        name=folder.name,
        state=init_state(jax.device_put(params, replicated(mesh)), transform, run.seed),
        frozen=frozen,
        step=make_step(reward.make_loss(config), transform, accumulate=section.accumulate),
        batches=text_batches(
            train,
            tokens,
            length,
            shared=shared_length(lm, train, tokens, length) if section.share_prefix else None,
            batch_size=section.batch_size,
            num_steps=section.optimizer.num_steps,
            seed=run.seed,
        ),
        folder=folder,
        mesh=mesh,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        consume=True,
    )
    margins, chosen_by = (
        score(config, state.params, frozen, tokens, length, pairs, table, batch_size=section.eval_batch_size)
        for pairs in (test_pairs(data), held_out)
    )
    np.save(folder / "held_out.npy", chosen_by)
    facts = {} if more is None else more(config, state.params)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return margins, {"trainable_parameters": size, "truncated_responses": tokens.truncated, **facts}


@functools.partial(jax.jit, static_argnums=0)
def _rewards(config: RewardConfig, params, base, tokens, mask, users):
    return reward.rewards(config, params, base, tokens, mask, users)


def score(
    config: RewardConfig,
    params: Any,
    frozen: Any,
    tokens: TokenTable,
    length: int,
    pairs: Pairs,
    table: np.ndarray | None,
    *,
    batch_size: int,
) -> np.ndarray:
    """Reward margins float32 [P]; a response is read once for each user (or group, or at all) that it is scored for."""
    route = pairs.user if config.routing == "users" else np.zeros_like(pairs.user)
    if config.routing == "groups" and table is not None:
        route = table[pairs.user]
    count = len(tokens.lengths)
    sides = np.concatenate([pairs.chosen, pairs.rejected]).astype(np.int64) + np.tile(route.astype(np.int64), 2) * count
    distinct, where = np.unique(sides, return_inverse=True)
    rewards = np.empty(len(distinct), np.float32)
    for start in tqdm(range(0, len(distinct), batch_size), desc="score", disable=None):
        some = distinct[start : start + batch_size]
        padded = np.pad(some, (0, batch_size - len(some)), mode="edge")
        ids, mask = tokens.take(padded % count, length)
        owner = padded // count
        users = None if table is None else table[owner] if config.routing == "users" else owner.astype(np.int32)
        rewards[start : start + len(some)] = np.asarray(_rewards(config, params, frozen["base"], ids, mask, users))[
            : len(some)
        ]
    chosen, rejected = rewards[where].reshape(2, -1)
    return chosen - rejected


def usage_by_group(config: RewardConfig, params: Any, table: np.ndarray, groups: list[str | None]) -> dict[str, Any]:
    """Fraction of each group's users that each gate sends to each expert: {group: [gates][experts]}."""
    decisions = reward.route(config, params, jnp.asarray(table))
    if decisions is None:
        return {}
    names = ["everybody" if name is None else name for name in groups]
    choices = np.concatenate([np.asarray(gate.choice) for gate in decisions.values()])
    one_hot = np.eye(config.mixture.num_experts)[choices]
    members = {name: np.array([other == name for other in names]) for name in sorted(set(names))}
    return {
        "expert_usage": {name: one_hot[:, who].mean(axis=1).tolist() for name, who in members.items()},
        "gates": [f"{target} {layer}" for target in decisions for layer in range(config.lm.num_layers)],
        "gate_entropy": float(gates.entropy(decisions)),
    }
