"""Trains and scores one reward model: CoPL's, the shared one or the group oracle, alike but for their routing.

Axis letters: B batch, L length, P pairs, U users, N responses.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from copl_jax.io import checkpoint
from copl_jax.reward import load_balancing, reward_model, routing
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from experiments.backbones import load_backbone, load_tokens
from experiments.runner.cli import freeze
from experiments.runner.test_labels import load_groups
from experiments.runner.workspace import Run, context_pairs, load_data, stage, stopwatch, test_pairs, votes_by_prompt
from pref_jax.comparisons import Comparisons
from pref_jax.data.text.token_table import TokenTable
from pref_jax.files import read_json, write_json
from pref_jax.lm.config import LMConfig
from pref_jax.lm.pair_batches import rounded, shared_length, text_batches
from pref_jax.mesh import batch_shards, make_mesh, put_batch, replicated
from pref_jax.train.loop import fit
from pref_jax.train.state import OptimizerConfig, init_state, make_step, optimizer

Routing = Literal["users", "groups", "none"]


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


class Opened(NamedTuple):
    """What training and scoring of a reward model both read.

    Attributes:
      config: the model.
      base: the frozen transformer, on the mesh.
      tokens: all responses under their prompts.
      length: of the longest text, rounded up: all batches have this one length, so one step compiles, and one
        program scores.
      mesh: the devices.
    """

    config: RewardConfig
    base: Any
    tokens: TokenTable
    length: int
    mesh: Mesh


def open_model(run: Run, *, routing: Routing, num_experts: int | None = None) -> Opened:
    """Loads transformer and texts for the reward model of the config; arguments as in `configure`."""
    mesh = make_mesh(**run.config.mesh.to_dict())
    lm, base = load_backbone(run, mesh)
    tokens = load_tokens(run, load_data(run))
    config = configure(run, lm, routing=routing, num_experts=num_experts)
    return Opened(config, base, tokens, rounded(int(tokens.lengths.max(initial=1)), lm), mesh)


def train_and_score(
    run: Run,
    folder: Path,
    *,
    routing: Routing,
    num_experts: int | None = None,
    table: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """`train`, unless that is done, and `evaluate`; arguments as there and in `configure`."""
    earlier = (folder / "model").is_dir()
    model = open_model(run, routing=routing, num_experts=num_experts)
    stage(folder / "model", lambda part: train(run, part, model, folder, table=table))
    margins, facts = evaluate(run, model, folder, table=table)
    # `scored` counts what is done here; what a process before this one did is told to it.
    return margins, facts | ({"stage_seconds": {"train": _trained(folder)["seconds"]}} if earlier else {})


def train(run: Run, part: Path, model: Opened, folder: Path, *, table: np.ndarray | None = None) -> None:
    """Trains a reward model on the seen users' answers, but for the part of the prompts that is held out.

    Args:
      run: the run.
      part: gets `adapters/`, the model as `copl_jax.io.checkpoint` writes it, and `model.json` (facts).
      model: what to train.
      folder: gets checkpoints and logs; a killed training goes on from there.
      table: user embeddings float [U C] (routing `users`) or group numbers int [U] (`groups`); seen users' are read.
    """
    spent = stopwatch(folder)
    section, config, mesh = run.config.reward, model.config, model.mesh
    learn, _ = votes_by_prompt(run, load_data(run), fraction=section.holdout_fraction)
    frozen = {"base": model.base}
    if table is not None:
        frozen[config.routing] = jax.device_put(table, replicated(mesh))
    dim = table.shape[1] if table is not None and config.routing == "users" else 0
    plain = optimizer(freeze(OptimizerConfig, section.optimizer, "reward.optimizer"))
    transform = load_balancing.optimizer(config.gate, plain, num_steps=section.optimizer.num_steps)
    params = reward_model.init(config, jax.random.key(run.seed), embedding_dim=dim)
    if config.lm.num_labels == 1:
        # A reward model's own head is a better beginning than noise.
        params["head"]["w"] = jnp.asarray(model.base["score"]["kernel"][:, 0], jnp.float32)
    shared = shared_length(config.lm, learn, model.tokens, model.length) if section.share_prefix else None
    sizes = {"batch_size": section.batch_size, "num_steps": section.optimizer.num_steps}
    state = fit(
        name=folder.name,
        state=init_state(jax.device_put(params, replicated(mesh)), transform, run.seed),
        frozen=frozen,
        step=make_step(reward_model.make_loss(config), transform, accumulate=section.accumulate),
        batches=text_batches(learn, model.tokens, model.length, shared=shared, **sizes, seed=run.seed),
        folder=folder,
        mesh=mesh,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        consume=True,
    )
    checkpoint.save(part / "adapters", config, state.params, table)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    facts = {"trainable_parameters": size, **spent()}
    write_json(part / "model.json", facts)


def load_params(folder: Path, lm: LMConfig, mesh: Mesh) -> Any:
    """The parameters that `train` left in `folder`/model, a copy on each device of the mesh."""
    return jax.device_put(checkpoint.load(folder / "model" / "adapters", lm).params, replicated(mesh))


def evaluate(
    run: Run, model: Opened, folder: Path, *, table: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Margins of the test pairs [P] by the model trained in `folder`, and facts.

    The margins of the held-out answers go to `held_out.npy` of `folder`, for a choice between trained models.
    """
    section, data = run.config.reward, load_data(run)
    params = load_params(folder, model.config.lm, model.mesh)
    _, held_out = votes_by_prompt(run, data, fraction=section.holdout_fraction)
    with jax.set_mesh(model.mesh):
        margins, chosen_by = (
            score(model, params, pairs, table, batch_size=section.eval_batch_size)
            for pairs in (test_pairs(data), held_out)
        )
    np.save(folder / "held_out.npy", chosen_by)
    trained = _trained(folder)
    users = table if model.config.routing == "users" else None
    facts = {
        "trainable_parameters": trained["trainable_parameters"],
        "taken_up": trained.get("taken_up", False),
        "truncated_responses": model.tokens.truncated,
        "parameters_per_user": 0 if users is None else users.shape[1],
        "context_pairs": 0 if users is None else context_pairs(data),
    }
    if users is not None:
        groups = load_groups(run, "report on experts")
        facts |= gate_facts(model.config, params, users, data.seen, groups)
    return margins, facts


def _trained(folder: Path) -> dict[str, Any]:
    return read_json(folder / "model" / "model.json")


@functools.partial(jax.jit, static_argnums=0)
def _rewards(config: RewardConfig, params, base, tokens, mask, users):
    return reward_model.rewards(config, params, base, tokens, mask, users)


def score(model: Opened, params: Any, pairs: Comparisons, table: np.ndarray | None, *, batch_size: int) -> np.ndarray:
    """Reward margins float32 [P]; a response is read once for each user (or group, or at all) that it is scored for.

    `batch_size` rows at a time, over all devices; rounded up to a multiple of the parts that the mesh cuts them into.
    """
    config = model.config
    route = pairs.user if config.routing == "users" else np.zeros_like(pairs.user)
    if config.routing == "groups" and table is not None:
        route = table[pairs.user]

    def rate(tokens, mask, owner):
        users = None if table is None else table[owner] if config.routing == "users" else owner.astype(np.int32)
        return _rewards(config, params, model.base, *put_batch((tokens, mask, users), model.mesh))

    return routed_margins(model, pairs, route, rate, batch_size=batch_size)


def routed_margins(
    model: Opened, pairs: Comparisons, route: np.ndarray, rate: Callable[..., jax.Array], *, batch_size: int
) -> np.ndarray:
    """Reward margins float32 [P]; a response is read once for each route that it is scored for.

    Args:
      model: its texts and mesh are read.
      pairs: what to score.
      route: int [P] of each pair, from 0: what its rewards depend on beside the texts.
      rate: (tokens int32 [B L], mask bool [B L], route int64 [B]) -> rewards [B].
      batch_size: B, rounded up to a multiple of the parts that the mesh cuts batches into.
    """
    tokens, shards = model.tokens, batch_shards(model.mesh)
    batch_size = -(-batch_size // shards) * shards
    count = len(tokens.lengths)
    sides = np.concatenate([pairs.chosen, pairs.rejected]).astype(np.int64) + np.tile(route.astype(np.int64), 2) * count
    distinct, where = np.unique(sides, return_inverse=True)
    rewards = np.empty(len(distinct), np.float32)
    for start in tqdm(range(0, len(distinct), batch_size), desc="score", disable=None):
        some = distinct[start : start + batch_size]
        padded = np.pad(some, (0, batch_size - len(some)), mode="edge")
        found = rate(*tokens.take(padded % count, model.length), padded // count)
        rewards[start : start + len(some)] = np.asarray(found)[: len(some)]
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
    decisions = reward_model.route(config, params, jnp.asarray(table))
    if decisions is None:
        return {}
    names = np.array(["everybody" if name is None else name for name in groups])
    choices = np.concatenate([np.asarray(gate.choice) for gate in decisions.values()])
    sent = np.eye(config.mixture.num_experts)[choices].mean(axis=2)
    dead = (sent[:, seen].sum(axis=1) == 0).sum(axis=1)
    return {
        "expert_usage": {str(name): sent[:, names == name].mean(axis=1).tolist() for name in sorted(set(names))},
        "gates": [f"{target} {layer}" for target in decisions for layer in range(config.lm.num_layers)],
        "gate_entropy": float(routing.entropy(decisions)),
        "num_gates": len(dead),
        "dead_experts": int(dead.sum()),
        "dead_experts_by_gate": dead.tolist(),
    }
