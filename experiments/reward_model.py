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

from copl_jax import balance, gates, reward, store
from copl_jax.experts import ExpertsConfig
from copl_jax.gates import GateConfig
from copl_jax.reward import RewardConfig
from experiments.cli import freeze
from experiments.stages import Run, load_backbone, load_data, load_tokens, test_pairs, votes_by_prompt
from pref_jax.data.batches import pair_batches
from pref_jax.data.preferences import Pairs
from pref_jax.data.token_table import TokenTable
from pref_jax.lm.config import LMConfig
from pref_jax.train.loop import fit
from pref_jax.train.mesh import make_mesh, replicated
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

Routing = Literal["users", "groups", "none"]


def text_batches(pairs: Pairs, tokens: TokenTable, length: int, **how: int) -> grain.MapDataset:
    """`pair_batches` with the responses' rows replaced by their tokens and masks, as `reward.make_loss` takes them."""

    def look_up(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        chosen, chosen_mask = tokens.take(batch["chosen"], length)
        rejected, rejected_mask = tokens.take(batch["rejected"], length)
        return {
            "user": batch["user"],
            "chosen": chosen,
            "chosen_mask": chosen_mask,
            "rejected": rejected,
            "rejected_mask": rejected_mask,
        }

    return pair_batches(pairs, **how).map(look_up)


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
      folder: gets checkpoints and logs, from which a killed training goes on, and in the end `adapters/`, the trained
        model as `copl_jax.store` writes it.
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
    transform = balance.optimizer(
        config.gate, optimizer(freeze(OptimizerConfig, section.optimizer, "reward.optimizer"))
    )
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
            train, tokens, length, batch_size=section.batch_size, num_steps=section.optimizer.num_steps, seed=run.seed
        ),
        folder=folder,
        mesh=mesh,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        consume=True,
    )
    store.save(folder / "adapters", config, state.params, table)
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


def gate_facts(
    config: RewardConfig, params: Any, table: np.ndarray, seen: np.ndarray, groups: list[str | None]
) -> dict[str, Any]:
    """How the trained gates send users, after training and without its noise; JSON values.

    Args:
      config: the model's.
      params: trained.
      table: user embeddings float [U C].
      seen: bool [U].
      groups: U names or None.

    Returns:
      "expert_usage": {group: [gates][experts]}, fractions of the group's users' choices; "gates": their names;
      "gate_entropy": mean over users and gates, in nats; "num_gates"; "dead_experts_by_gate" and their sum
      "dead_experts": experts that no seen user is sent to.
    """
    decisions = reward.route(config, params, jnp.asarray(table))
    if decisions is None:
        return {}
    names = np.array(["everybody" if name is None else name for name in groups])
    choices = np.concatenate([np.asarray(gate.choice) for gate in decisions.values()])
    sent = np.eye(config.mixture.num_experts)[choices].mean(axis=2)
    dead = (sent[:, seen].sum(axis=1) == 0).sum(axis=1)
    return {
        "expert_usage": {str(name): sent[:, names == name].mean(axis=1).tolist() for name in sorted(set(names))},
        "gates": [f"{target} {layer}" for target in decisions for layer in range(config.lm.num_layers)],
        "gate_entropy": float(gates.entropy(decisions)),
        "num_gates": len(dead),
        "dead_experts": int(dead.sum()),
        "dead_experts_by_gate": dead.tolist(),
    }
